# SPDX-License-Identifier: Apache-2.0
"""A thousand new policies in a running loop: control, guard and joiner, as fast as they go."""

import numpy as np
import pytest

from qam_ros.contract.messages import EpisodeEvent, StepReward
from qam_ros.nodes.policy_control import PolicyControl
from qam_ros.runtime.guard_config import guard_config
from qam_ros.runtime.guard_core import GuardCore
from qam_ros.runtime.joiner import Joiner
from qam_ros.runtime.policy import Candidate, PolicyCore
from qam_ros.runtime.sampler import OnnxSampler

SWAPS = 1000
CHUNK = 2


class Loop:
    """The whole loop without ROS; the next weights are offered as soon as the last ones run."""

    def __init__(self, helpers, artifact):
        self.helpers, self.artifact = helpers, artifact
        interface = artifact.interface
        self.sampler = OnnxSampler(artifact)
        self.joiner = Joiner(interface)
        self.guard = GuardCore(guard_config(interface))
        self.proposals, self.swaps, self.rows = [], [], []
        self.k = 0
        self.control = PolicyControl(
            PolicyCore(artifact, self.sampler, 7),
            publish=self.publish,
            swapped=self.on_swap,
            bad_chunk=lambda: pytest.fail("a chunk is not finite"),
            clock_ns=lambda: self.k * helpers.period_ns,
            lockstep=True,
            phase_offset_ns=0,
        )

    def weights(self, version):
        """Weights of a version; version 1 is the artifact's."""
        shift = np.float32(1e-4 * (version - 1))
        return {
            name: value + shift if name == "1/bias" else value
            for name, value in self.artifact.weights.items()
        }

    def offer(self, version):
        flat = self.sampler.layout.pack(self.weights(version))
        self.control.offer(Candidate(version, flat, 0.0))

    def on_swap(self, swap):
        self.swaps.append(swap.version)
        if swap.version <= SWAPS:
            self.offer(swap.version + 1)

    def publish(self, proposal):
        """What the rest of the graph does with a proposal; then the world goes on."""
        self.proposals.append(proposal)
        report = self.guard.tick(proposal.stamp_ns, proposal).report
        reward = StepReward(proposal.stamp_ns, 1, proposal.step, -1.0, False, False)
        for message in (proposal, report, reward):
            self.rows += list(self.joiner.add(message, proposal.stamp_ns))
        if len(self.swaps) < SWAPS or len(self.proposals) % CHUNK:
            self.sense()
        else:
            self.control.running = False

    def sense(self):
        stamp_ns = self.k * self.helpers.period_ns
        values = {**self.helpers.pose(x=1e-4 * self.k), **self.helpers.joints()}
        self.guard.on_measured(stamp_ns, values)
        self.control.on_observation(stamp_ns, values)
        self.k += 1

    def run(self):
        event: EpisodeEvent = self.helpers.event()
        for listener in (self.control, self.guard):
            listener.on_event(event)
        self.joiner.add(event, 0)
        self.control.running = True
        self.offer(2)
        self.sense()
        self.control.run()
        return self


@pytest.fixture(scope="module")
def loop(helpers, interface):
    return Loop(helpers, helpers.artifact(interface, chunk=CHUNK)).run()


def test_every_tick_is_answered_and_every_version_runs_in_order(loop):
    assert loop.swaps == list(range(2, SWAPS + 2))
    ticks = [p.tick for p in loop.proposals]
    assert ticks == list(range(len(ticks)))
    assert all(p.action.size for p in loop.proposals)


def test_no_chunk_is_of_mixed_versions(loop):
    """Each chunk is, bit for bit, what its version alone makes of its noise."""
    generator = np.random.default_rng(7)
    sampler = OnnxSampler(loop.artifact)
    width = loop.artifact.manifest.graph.noise_width
    last = 0
    for start in range(0, len(loop.proposals) - CHUNK, CHUNK):
        chunk = loop.proposals[start : start + CHUNK]
        version = chunk[0].policy_version
        assert [p.policy_version for p in chunk] == [version] * CHUNK
        assert version >= last
        last = version
        sampler.set_weights(loop.weights(version))
        noise = generator.standard_normal(width, dtype=np.float32)
        expected = sampler.sample(chunk[0].observation, noise)
        assert expected.tobytes() == np.stack([p.action for p in chunk]).tobytes()


def test_each_transition_has_the_version_that_proposed_it(loop):
    assert len(loop.rows) >= len(loop.proposals) - 2
    versions = [int(row["policy_version"]) for row in loop.rows]
    assert versions == sorted(versions)
    by_stamp = {p.stamp_ns: p.policy_version for p in loop.proposals}
    assert versions == [by_stamp[int(row["observation_stamp_ns"])] for row in loop.rows]
    assert set(versions) >= set(range(2, SWAPS + 1))
