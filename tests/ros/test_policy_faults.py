# SPDX-License-Identifier: Apache-2.0
"""The policy process with something broken in it: chunks, threads, too many updates at once."""

import time

import pytest
from policy_rig import Rig, patched_node

from qam_ros.contract.artifact import read_artifact

OVERFLOW = """
from qam_ros.runtime.sampler import OnnxSampler
sample = OnnxSampler.sample
def overflowing(self, observation, noise):
    chunk = sample(self, observation, noise)
    return chunk if abs(observation[0]) < 1e30 else chunk * float("nan")
OnnxSampler.sample = overflowing
"""
"""A network whose numbers overflow very far away."""


@pytest.fixture
def rig(graph, spawn, base_artifact, tmp_path):
    settings = {"artifact": base_artifact, "use_sim_time": True}
    spawn(patched_node(tmp_path, OVERFLOW), settings)
    return Rig(graph, read_artifact(base_artifact)).start()


def test_weights_that_give_bad_chunks_are_rolled_back_and_diagnostics_are_well_again(
    rig,
):
    old = rig.artifact.manifest.policy_version
    rig.offer(old + 1, old)
    assert rig.verdict(old + 1).accepted
    while rig.step().chunk_index != 2:
        pass
    assert rig.step(x=1e35).action.size == 0
    first = rig.step()
    assert (first.policy_version, first.chunk_index) == (old, 0)
    assert rig.graph.wait(lambda: rig.statuses[-1].running_version == old)
    assert rig.diagnosed(
        lambda message, values: (
            message == "proposing" and values["chunks not finite"] == "1"
        )
    )


def test_bad_chunks_of_weights_that_still_run_are_said(rig):
    while rig.step().chunk_index != 2:
        pass
    assert rig.step(x=1e35).action.size == 0
    assert rig.step().action.size
    assert rig.diagnosed(lambda message, _: "not finite" in message)


def test_a_control_thread_that_ends_takes_the_process_with_it(
    graph, spawn, base_artifact, tmp_path
):
    patch = """
from qam_ros.runtime.sampler import OnnxSampler
sample, calls = OnnxSampler.sample, []
def broken(self, observation, noise):
    if threading.current_thread().name == "policy_control":
        calls.append(1)
        if len(calls) > 2:
            raise RuntimeError("out of memory")
    return sample(self, observation, noise)
OnnxSampler.sample = broken
"""
    settings = {"artifact": base_artifact, "use_sim_time": True}
    process = spawn(patched_node(tmp_path, patch), settings)
    rig = Rig(graph, read_artifact(base_artifact)).start()
    rig.process = process
    for _ in range(6):
        rig.step()
    rig.sense()
    assert process.wait(5.0) == 1
    assert "the control thread ended: RuntimeError: out of memory" in process.text()


def test_more_offers_than_can_be_judged_are_put_off_and_nothing_hangs(
    graph, spawn, base_artifact, tmp_path
):
    patch = """
from qam_ros.runtime.updates import PolicyUpdates
judge = PolicyUpdates.judge
PolicyUpdates.judge = lambda self, offer: (time.sleep(4.0), judge(self, offer))[1]
"""
    settings = {"artifact": base_artifact, "use_sim_time": True}
    process = spawn(patched_node(tmp_path, patch), settings)
    rig = Rig(graph, read_artifact(base_artifact)).start()
    old = rig.artifact.manifest.policy_version
    for version in range(old + 1, old + 9):
        rig.offer(version, old)
        rig.graph.spin(0.05)  # a reader keeps some parts only
    # one is judged, four wait
    assert rig.diagnosed(lambda _, values: values["put off, busy with others"] == "3")
    started = time.monotonic()
    for _ in range(3):
        assert rig.step().action.size
    assert time.monotonic() - started < 1.0
    started = time.monotonic()
    assert process.stop() == 0
    assert time.monotonic() - started < 2.0
