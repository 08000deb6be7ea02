# SPDX-License-Identifier: Apache-2.0
"""The policy process over DDS: proposals, swaps, refusals, rollback, lifecycle, end."""

import os
import signal
import time

import numpy as np
import pytest

from qam_ros.contract.artifact import read_artifact
from qam_ros.contract.messages import (
    ActionProposal,
    EpisodeEvent,
    EpisodeKind,
    PolicyStatus,
    PolicyUpdate,
)
from qam_ros.contract.weights import encode_weights
from qam_ros.runtime.sampler import OnnxSampler
from qam_ros.runtime.timing import read_timing
from qam_ros.runtime.update_parts import GOLDEN_NAME, split_update

PERIOD_NS = 100_000_000


class Rig:
    """A base's sensors and a learner around one policy process."""

    def __init__(self, graph, artifact):
        from qam_ros.nodes import qos
        from qam_ros.nodes.convert import from_ros, ros_type, to_ros
        from qam_ros.nodes.sensors import sensor_codecs

        self.graph, self.to_ros = graph, to_ros
        self.artifact = artifact
        self.k = 0
        self.proposals, self.statuses = [], []
        received = (
            (ActionProposal, "action_proposal", self.proposals, qos.HISTORY),
            (PolicyStatus, "policy_status", self.statuses, qos.STATUS),
        )
        for kind, topic, seen, profile in received:
            graph.node.create_subscription(
                ros_type(kind),
                topic,
                lambda message, kind=kind, seen=seen: seen.append(
                    from_ros(message, kind)
                ),
                profile,
            )
        self.codec = sensor_codecs(artifact.interface)["odom"]
        self.odom = graph.publisher(
            self.codec.message_type, "odom", qos.SENSOR_OUT, peers=1
        )
        self.events = graph.publisher(
            ros_type(EpisodeEvent), "episode_event", qos.HISTORY, peers=1
        )
        self.updates = graph.publisher(
            ros_type(PolicyUpdate), "policy_update", qos.UPDATE, peers=1
        )

    def sense(self):
        self.k += 1
        position = {"pose.pose.position": [0.1 * self.k, 1.0, 0.0]}
        stamp_ns = 10**9 + self.k * PERIOD_NS
        self.odom.publish(self.codec.encode(stamp_ns, position))

    def answered(self):
        self.sense()
        self.graph.spin(0.05)
        return bool(self.proposals)

    def start(self):
        """Meet the policy with idle ticks, then begin an episode with the next step."""
        assert self.graph.wait(self.answered)
        self.graph.spin(0.2)
        self.proposals.clear()
        self.event(EpisodeKind.START)
        return self

    def event(self, kind, episode=1):
        stamp_ns = 10**9 + (self.k + 1) * PERIOD_NS
        event = EpisodeEvent(stamp_ns, episode, kind, False, False, False, 0, 0.0)
        self.events.publish(self.to_ros(event))

    def step(self):
        before = len(self.proposals)
        self.sense()
        assert self.graph.wait(lambda: len(self.proposals) > before, 5.0)
        return self.proposals[-1]

    def offer(self, version, parent, *, amount=0.02, broken=""):
        weights = {name: value.copy() for name, value in self.artifact.weights.items()}
        weights["0/bias"] += np.float32(amount)
        sampler, golden = OnnxSampler(self.artifact), self.artifact.golden
        sampler.set_weights(weights)
        chunks = sampler.sample_all(golden.observations, golden.noise)
        if broken == "weights":
            weights["0/bias"][0] = np.nan
        if broken == "chunks":
            chunks += np.float32(0.01)
        for part in split_update(
            encode_weights({**weights, GOLDEN_NAME: chunks}),
            run_id="online",
            version=version,
            parent_version=parent,
            part_bytes=1000,
        ):
            self.updates.publish(self.to_ros(part))

    def verdict(self, version):
        """Status that decides a version, ticking meanwhile: weights change between chunks."""

        def decided():
            self.sense()
            self.graph.spin(0.03)
            return any(
                status.offered_version == version for status in self.statuses[1:]
            )

        assert self.graph.wait(decided)
        return self.statuses[-1]


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
    assert rig.step().policy_version == old + 1
    answer = rig.graph.call(Trigger, "/policy/rollback")
    assert answer.success
    assert rig.graph.wait(lambda: rig.step().policy_version == old)
    assert rig.graph.wait(lambda: rig.statuses[-1].running_version == old)
    assert not rig.graph.call(Trigger, "/policy/rollback").success


@pytest.mark.parametrize(
    ("broken", "words"), [("weights", "NaN"), ("chunks", "golden chunks are")]
)
def test_bad_weights_are_refused_in_status_and_diagnostics(rig, broken, words):
    from diagnostic_msgs.msg import DiagnosticArray

    seen = rig.graph.collect(DiagnosticArray, "/diagnostics")
    old = rig.artifact.manifest.policy_version
    rig.offer(old + 1, old, broken=broken)
    status = rig.verdict(old + 1)
    assert not status.accepted
    assert words in status.reason
    assert rig.step().policy_version == old

    def reported():
        values = {v.key: v.value for a in seen for s in a.status for v in s.values}
        return words in values.get("last refusal", "")

    assert rig.graph.wait(reported, 5.0)


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
    assert {"late ticks", "skipped ticks", "actions skipped"} <= values.keys()
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
