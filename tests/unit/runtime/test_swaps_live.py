# SPDX-License-Identifier: Apache-2.0
"""Fifty updates beside a loop in real time, with the threads that a policy node has."""

import dataclasses
import queue
import threading
import time

import numpy as np
import pytest

from qam_ros.contract.weights import encode_weights
from qam_ros.nodes.policy_control import PolicyControl
from qam_ros.runtime.policy import Candidate, PolicyCore
from qam_ros.runtime.sampler import OnnxSampler
from qam_ros.runtime.update_parts import GOLDEN_NAME, split_update
from qam_ros.runtime.updates import PolicyUpdates

SWAPS = 50
CHUNK = 2
PERIOD_S = 0.01
LIMIT_S = 20.0


class Remembering(OnnxSampler):
    """Keeps the noise that it was given for each observation."""

    def __init__(self, artifact):
        super().__init__(artifact)
        self.noise = {}

    def sample(self, observation, noise):
        self.noise.setdefault(observation.tobytes(), []).append(noise.copy())
        return super().sample(observation, noise)


class Live:
    """Control thread, a robot, a thread that takes parts in, and one that judges."""

    def __init__(self, helpers, artifact):
        self.helpers, self.artifact = helpers, artifact
        self.sampler = Remembering(artifact)
        core = PolicyCore(artifact, self.sampler, 7, lockstep=False, align=True)
        self.proposals, self.swaps, self.problems = [], [], []
        self.control = PolicyControl(
            core,
            publish=self.proposals.append,
            swapped=self.on_swap,
            bad_chunk=lambda: self.problems.append("a chunk is not finite"),
            clock_ns=time.monotonic_ns,
            lockstep=False,
            phase_offset_ns=2_000_000,
            failed=self.problems.append,
        )
        self.updates = PolicyUpdates(artifact, OnnxSampler(artifact), robot="test_arm")
        self.offers = queue.Queue()
        self.done = threading.Event()
        self.deadline = time.monotonic() + LIMIT_S

    def on_swap(self, swap):
        self.updates.swapped(swap)
        self.swaps.append(swap)

    def weights(self, version):
        shift = np.float32(1e-4 * (version - 1))
        return {
            name: value + shift if name == "1/bias" else value
            for name, value in self.artifact.weights.items()
        }

    def play_robot(self):
        stamp_ns = time.monotonic_ns()
        self.control.on_event(self.helpers.event(stamp_ns=stamp_ns))
        while not self.done.is_set():
            values = {**self.helpers.pose(x=stamp_ns * 1e-12), **self.helpers.joints()}
            self.control.on_observation(stamp_ns, values)
            time.sleep(PERIOD_S)
            stamp_ns = time.monotonic_ns()

    def learn(self):
        golden, sampler = self.artifact.golden, OnnxSampler(self.artifact)
        for version in range(2, SWAPS + 2):
            weights = self.weights(version)
            sampler.set_weights(weights)
            chunks = sampler.sample_all(golden.observations, golden.noise)
            for part in split_update(
                encode_weights({**weights, GOLDEN_NAME: chunks}),
                run_id="online",
                version=version,
                parent_version=version - 1,
                part_bytes=1000,
            ):
                offer = self.updates.receive(part)
                if offer is not None:
                    self.offers.put(offer)
            while len(self.swaps) < version - 1 and time.monotonic() < self.deadline:
                time.sleep(0.001)
        self.offers.put(None)

    def judge(self):
        while (offer := self.offers.get()) is not None:
            verdict = self.updates.judge(offer)
            if isinstance(verdict, Candidate):
                self.control.offer(verdict)
            else:
                self.problems.append(verdict.reason)

    def run(self):
        threads = [
            threading.Thread(target=target)
            for target in (self.play_robot, self.learn, self.judge)
        ]
        self.control.start()
        for thread in threads:
            thread.start()
        for thread in threads[1:]:
            thread.join()
        time.sleep(5 * PERIOD_S)
        self.control.stop()
        self.done.set()
        threads[0].join()
        return self


@pytest.fixture(scope="module")
def live(helpers, interface):
    fast = dataclasses.replace(interface, control_period_s=PERIOD_S)
    return Live(helpers, helpers.artifact(fast, chunk=CHUNK)).run()


def test_every_update_runs_in_order_beside_the_loop(live):
    assert live.problems == []
    assert [swap.version for swap in live.swaps] == list(range(2, SWAPS + 2))
    versions = [p.policy_version for p in live.proposals if p.action.size]
    assert versions == sorted(versions)
    assert versions[-1] == SWAPS + 1
    ticks = [p.tick for p in live.proposals]
    assert ticks == list(range(len(ticks)))


def test_no_chunk_of_the_live_loop_is_of_mixed_versions(live):
    """Each chunk is what one version alone makes of one observation and its noise."""
    sampler = OnnxSampler(live.artifact)
    chunks = {}
    for proposal in live.proposals:
        if proposal.action.size:
            chunks.setdefault(proposal.chunk_id, []).append(proposal)
    compared = 0
    for steps in chunks.values():
        version, observation = steps[0].policy_version, steps[0].observation
        assert {p.policy_version for p in steps} == {version}
        sampler.set_weights(live.weights(version))
        drawn = live.sampler.noise[observation.tobytes()]  # more when a sensor was late
        made = [sampler.sample(observation, noise) for noise in drawn]
        actions = [(p.chunk_index, p.action.tobytes()) for p in steps]
        assert any(
            all(chunk[index].tobytes() == action for index, action in actions)
            for chunk in made
        )
        compared += len(steps)
    assert compared > SWAPS
