# SPDX-License-Identifier: Apache-2.0
"""The policy process over DDS: proposals, swaps, refusals, rollback, lifecycle, end."""

import os
import signal
import time

import numpy as np
import pytest
from policy_rig import PERIOD_NS, Rig

from qam_ros.contract.artifact import read_artifact
from qam_ros.contract.messages import ActionProposal, EpisodeKind
from qam_ros.runtime.sampler import OnnxSampler
from qam_ros.runtime.timing import read_timing


@pytest.fixture
def rig(graph, spawn, base_artifact, tmp_path):
    process = spawn(
        "policy_node",
        {"artifact": base_artifact, "use_sim_time": True, "run_dir": str(tmp_path)},
    )
    rig = Rig(graph, read_artifact(base_artifact)).start()
    rig.process = process
    return rig


def test_each_observation_of_an_episode_is_answered_with_an_action(rig):
    proposals = [rig.step() for _ in range(7)]
    assert [p.step for p in proposals] == list(range(7))
    assert [p.chunk_index for p in proposals] == [0, 1, 2, 0, 1, 2, 0]
    assert all(p.action.shape == (2,) for p in proposals)
    sampler = OnnxSampler(rig.artifact)
    generator = np.random.default_rng(0)  # the default seed
    noise = generator.standard_normal(6, dtype=np.float32)
    chunk = sampler.sample(proposals[0].observation, noise)
    for row, proposal in zip(chunk, proposals[:3], strict=True):
        assert row.tobytes() == proposal.action.tobytes()
    rig.event(EpisodeKind.END)
    rig.graph.spin(0.2)
    assert rig.step().action.size == 0


def test_good_weights_are_swapped_in_and_rolled_back(rig):
    from std_srvs.srv import Trigger

    assert rig.step().policy_version == rig.artifact.manifest.policy_version
    old = rig.artifact.manifest.policy_version
    rig.offer(old + 1, old)
    status = rig.verdict(old + 1)
    assert (status.accepted, status.running_version, status.swaps) == (True, old + 1, 1)
    assert rig.diagnosed(
        lambda message, values: (
            message == "proposing"
            and f"version {old + 1}: accepted" in values["last verdict"]
        )
    )
    while rig.step().chunk_index != 1:  # in the middle of a chunk
        pass
    assert rig.proposals[-1].policy_version == old + 1
    answer = rig.graph.call(Trigger, "/policy/rollback")
    assert answer.success
    seen = len(rig.proposals)
    assert rig.graph.wait(lambda: rig.step().policy_version == old)
    after = [(p.policy_version, p.chunk_index) for p in rig.proposals[seen:]]
    assert after == [(old + 1, 2), (old, 0)]  # at the next chunk, not before
    assert rig.graph.wait(lambda: rig.statuses[-1].running_version == old)
    assert not rig.graph.call(Trigger, "/policy/rollback").success


@pytest.mark.parametrize(
    ("broken", "words"), [("weights", "NaN"), ("chunks", "golden chunks are")]
)
def test_bad_weights_are_refused_in_status_and_diagnostics(rig, broken, words):
    old = rig.artifact.manifest.policy_version
    rig.offer(old + 1, old, broken=broken)
    status = rig.verdict(old + 1)
    assert not status.accepted
    assert words in status.reason
    assert rig.step().policy_version == old

    def reported(_, values):
        refused = f"version {old + 1}: refused" in values["last verdict"]
        return (
            refused
            and words in values["last verdict"]
            and words in values["last refusal"]
        )

    assert rig.diagnosed(reported)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_at_once_with_its_timing(rig, number, tmp_path):
    for _ in range(4):
        rig.step()
    started = time.monotonic()
    assert rig.process.stop(number) == 0
    assert time.monotonic() - started < 1.0
    timing = read_timing(tmp_path / "policy_timing.npz")
    assert len(timing["tick_ns"]) >= 4
    assert len(timing["sample_ns"]) == 2
    assert (timing["sample_ns"] > 0).all()


def test_in_real_time_the_policy_ticks_with_the_control_period(
    graph, spawn, base_artifact, tmp_path
):
    parameters = {"artifact": base_artifact, "run_dir": str(tmp_path)}
    process = spawn("policy_node", parameters)
    proposals = graph.collect(*_proposal_topic())
    assert graph.wait(lambda: proposals)
    graph.spin(1.5)
    # no sensors: it goes on ticking, and proposes nothing
    assert all(len(message.action) == 0 for message in proposals)
    assert process.stop() == 0
    ticks = read_timing(tmp_path / "policy_timing.npz")["tick_ns"]
    # the median, because a busy machine may delay some
    assert np.median(np.diff(ticks)) == pytest.approx(PERIOD_NS, rel=0.05)


def test_in_real_time_the_newest_message_is_there_at_each_tick(
    graph, spawn, base_artifact
):
    spawn("policy_node", {"artifact": base_artifact})
    rig = Rig(graph, read_artifact(base_artifact))
    assert rig.graph.wait(lambda: rig.proposals)
    stamps = []
    for _ in range(20):
        for _ in range(3):  # sensors three times as fast as ticks
            stamps.append(graph.node.get_clock().now().nanoseconds)
            position = {"pose.pose.position": [1e-9 * stamps[-1] % 10.0, 1.0, 0.0]}
            rig.odom.publish(rig.codec.encode(stamps[-1], position))
            rig.graph.spin(PERIOD_NS / 3e9)
    seen = [p.stamp_ns for p in rig.proposals if p.observation.size]
    assert len(seen) > 10
    assert set(seen) <= set(stamps)
    assert seen == sorted(seen)
    # with the newest one: of about sixty messages every third is seen
    assert len(set(seen)) > 10
    assert np.median(np.diff(seen)) == pytest.approx(PERIOD_NS, rel=0.4)


def test_what_the_system_does_not_grant_is_said_and_the_policy_runs_on(
    graph, spawn, base_artifact
):
    from diagnostic_msgs.msg import DiagnosticArray

    seen = graph.collect(DiagnosticArray, "/diagnostics")
    proposals = graph.collect(*_proposal_topic())
    asked = {"cores": "4000", "sample_ahead": True, "replan_every": 1}
    process = spawn("policy_node", {"artifact": base_artifact, **asked})

    def reported():
        return [s for a in seen for s in a.status if "core 4000" in s.message]

    assert graph.wait(reported)
    values = {v.key: v.value for v in reported()[-1].values}
    assert "core 4000 is not among those" in values["not granted"]
    assert values["control thread"].startswith("ordinary")
    counts = {"late ticks", "skipped ticks", "actions skipped"}
    assert counts | {"ticks without new sensors"} <= values.keys()
    assert float(values["longest collection of garbage [ms]"]) >= 0.0
    before = len(proposals)
    assert graph.wait(lambda: len(proposals) > before + 3)
    assert process.stop() == 0


def _proposal_topic():
    from qam_ros.nodes import qos
    from qam_ros.nodes.convert import ros_type

    return ros_type(ActionProposal), "action_proposal", qos.HISTORY


def test_only_an_active_policy_proposes(graph, spawn, base_artifact):
    from lifecycle_msgs.msg import Transition
    from lifecycle_msgs.srv import ChangeState

    spawn(
        "policy_node",
        {"artifact": base_artifact, "use_sim_time": True, "autostart": False},
    )

    def change(transition):
        request = ChangeState.Request(transition=Transition(id=transition))
        return graph.call(ChangeState, "/policy/change_state", request, 15.0).success

    assert change(Transition.TRANSITION_CONFIGURE)
    rig = Rig(graph, read_artifact(base_artifact))
    for _ in range(5):
        assert not rig.answered()
    assert change(Transition.TRANSITION_ACTIVATE)
    rig.start().step()
    assert change(Transition.TRANSITION_DEACTIVATE)
    seen = len(rig.proposals)
    rig.sense()
    graph.spin(0.3)
    assert len(rig.proposals) == seen
    assert change(Transition.TRANSITION_CLEANUP)
    assert graph.wait(lambda: graph.node.count_publishers("action_proposal") == 0)


def test_a_version_rolled_back_before_its_swap_is_refused_and_never_runs(rig):
    from std_srvs.srv import Trigger

    old = rig.step().policy_version  # a chunk begins: no swap before it ends
    rig.offer(old + 1, old)
    assert rig.graph.wait(lambda: rig.graph.call(Trigger, "/policy/rollback").success)
    assert rig.graph.wait(lambda: rig.statuses[-1].offered_version == old + 1)
    status = rig.statuses[-1]
    assert (status.running_version, status.accepted) == (old, False)
    assert status.reason == "rolled back before it ran"
    assert {rig.step().policy_version for _ in range(7)} == {old}
    rig.offer(old + 2, old)
    assert rig.verdict(old + 2).accepted


def test_the_status_after_a_rollback_names_the_version_that_was_left(rig):
    from std_srvs.srv import Trigger

    old = rig.step().policy_version
    rig.offer(old + 1, old)
    assert rig.verdict(old + 1).accepted
    assert rig.graph.call(Trigger, "/policy/rollback").success
    assert rig.graph.wait(lambda: rig.step().policy_version == old)
    assert rig.graph.wait(lambda: rig.statuses[-1].running_version == old)
    status = rig.statuses[-1]
    assert (status.offered_version, status.accepted) == (old + 1, True)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"artifact": "/nowhere"}, "no such artifact"),
        ({}, "'artifact' is not set"),
        ({"robot": "ur5e_2f85"}, "made for another robot interface"),
        ({"hmac_key": "/nowhere"}, "hmac_key"),
        ({"cores": "all"}, "write for example 2,3 or 2-3"),
        (
            {"sample_ahead": True, "align_chunks": False},
            "sample_ahead needs align_chunks",
        ),
    ],
)
def test_wrong_parameters_end_the_process_with_a_message(
    spawn, base_artifact, parameters, words
):
    if parameters and "artifact" not in parameters:
        parameters = {"artifact": base_artifact, **parameters}
    process = spawn("policy_node", parameters)
    assert process.wait(20.0) == os.EX_CONFIG
    assert words in process.text()
