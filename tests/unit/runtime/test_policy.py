# SPDX-License-Identifier: Apache-2.0
import tracemalloc

import numpy as np
import pytest

from qam_ros.contract.errors import InterfaceError
from qam_ros.contract.interface import load_interface
from qam_ros.contract.messages import EpisodeKind
from qam_ros.runtime.chunks import ChunkQueue
from qam_ros.runtime.policy import Candidate, PolicyCore
from qam_ros.runtime.sampler import OnnxSampler


class Rig:
    """A policy in lockstep, fed with complete observations."""

    def __init__(self, helpers, artifact, **settings):
        self.helpers = helpers
        self.sampler = OnnxSampler(artifact)
        self.core = PolicyCore(artifact, self.sampler, 7, session=b"p" * 16, **settings)
        self.k = -1

    def event(self, kind=EpisodeKind.START, episode=1):
        self.core.on_event(
            self.helpers.event(kind, episode, (self.k + 1) * self.helpers.period_ns)
        )
        return self

    def observe(self, x=None, skip=1):
        self.k += skip
        x = 0.01 * self.k if x is None else x
        stamp_ns = self.k * self.helpers.period_ns
        self.core.on_observation(stamp_ns, self.helpers.pose(x=x))
        self.core.on_observation(stamp_ns, self.helpers.joints())

    def tick(self, **observation):
        self.observe(**observation)
        assert self.core.ready()
        return self.core.tick(self.k * self.helpers.period_ns)


@pytest.fixture
def rig(helpers, artifact):
    return Rig(helpers, artifact)


def test_a_chunk_is_played_open_loop_and_then_sampled_again(rig):
    rig.event()
    proposals = [rig.tick() for _ in range(7)]
    assert [p.chunk_id for p in proposals] == [0, 0, 0, 1, 1, 1, 2]
    assert [p.chunk_index for p in proposals] == [0, 1, 2, 0, 1, 2, 0]
    assert [p.step for p in proposals] == list(range(7))
    assert all(p.action.size == 5 for p in proposals)


def test_the_chunk_is_that_of_the_sampler_for_the_logged_seed(rig, artifact):
    noise = np.random.default_rng(7).standard_normal(15, dtype=np.float32)
    rig.event()
    proposals = [rig.tick() for _ in range(3)]
    chunk = OnnxSampler(artifact).sample(proposals[0].observation, noise)
    for row, proposal in zip(chunk, proposals, strict=True):
        assert row.tobytes() == proposal.action.tobytes()


def test_as_much_noise_is_drawn_as_the_graph_takes(helpers, interface):
    artifact = helpers.artifact(interface, candidates=4)
    assert artifact.manifest.graph.noise_width == 60
    noise = np.random.default_rng(7).standard_normal(120, dtype=np.float32)
    rig = Rig(helpers, artifact).event()
    proposals = [rig.tick() for _ in range(6)]
    for start, first in ((0, proposals[0]), (60, proposals[3])):
        chunk = OnnxSampler(artifact).sample(
            first.observation, noise[start : start + 60]
        )
        assert chunk[0].tobytes() == first.action.tobytes()


def test_replanning_uses_the_first_actions_of_each_chunk(helpers, artifact):
    rig = Rig(helpers, artifact, replan_every=2).event()
    assert [rig.tick().chunk_index for _ in range(5)] == [0, 1, 0, 1, 0]


@pytest.mark.parametrize("kind", [EpisodeKind.END, EpisodeKind.ABORT])
def test_between_episodes_only_the_observation_is_shown(rig, kind):
    rig.event()
    rig.tick()
    rig.event(kind)
    idle = rig.tick()
    assert idle.action.size == 0
    assert idle.observation.size == 6
    rig.event(EpisodeKind.START, 2)
    first = rig.tick()
    assert (first.episode, first.step, first.chunk_index) == (2, 0, 0)
    assert first.action.size == 5


def test_before_any_episode_and_without_observation_it_proposes_nothing(rig):
    blind = rig.core.tick(123)
    assert blind.stamp_ns == 123
    assert blind.observation.size == blind.ages_s.size == blind.action.size == 0
    assert rig.tick().action.size == 0


def test_lockstep_waits_for_all_topics_of_one_stamp(rig, helpers):
    rig.event()
    rig.core.on_observation(0, helpers.pose())
    assert not rig.core.ready()
    rig.core.on_observation(0, helpers.joints())
    assert rig.core.ready()
    rig.core.tick(0)
    assert not rig.core.ready()
    rig.core.on_observation(50, helpers.pose())
    assert not rig.core.ready()


def test_sensors_that_overtake_the_start_wait_for_it(rig):
    rig.event()
    rig.tick()
    rig.event(EpisodeKind.END)
    rig.tick()
    rig.observe()
    assert not rig.core.ready()
    rig.k -= 1
    rig.event(EpisodeKind.START, 2)
    rig.k += 1
    assert rig.core.ready()
    assert rig.core.tick(0).action.size == 5


def test_a_first_start_that_comes_second_gets_its_tick(rig):
    assert rig.tick().action.size == 0
    rig.k -= 1
    rig.event()
    rig.k += 1
    assert rig.core.ready()
    proposal = rig.core.tick(0)
    assert proposal.action.size == 5
    assert proposal.step == 0


def test_a_gap_drops_the_rest_of_the_chunk(rig):
    rig.event()
    rig.tick()
    proposal = rig.tick(skip=2)
    assert (proposal.chunk_id, proposal.chunk_index, proposal.step) == (1, 0, 2)


def test_an_observation_that_is_not_finite_ends_the_chunk(rig):
    rig.event()
    rig.tick()
    assert rig.tick(x=np.nan).action.size == 0
    proposal = rig.tick()
    assert (proposal.chunk_id, proposal.chunk_index) == (1, 0)


def test_weights_change_only_between_chunks(rig, artifact):
    rig.event()
    rig.tick()
    other = {name: value * 2 for name, value in artifact.weights.items()}
    rig.core.offer(Candidate(2, rig.sampler.layout.pack(other), 0.1))
    versions = [rig.tick().policy_version for _ in range(4)]
    assert versions == [1, 1, 2, 2]
    swap = rig.core.take_swap()
    assert (swap.version, swap.probe_change) == (2, 0.1)
    assert rig.core.take_swap() is None


def test_new_weights_change_the_chunk_and_nothing_else(helpers, artifact):
    one, two = Rig(helpers, artifact).event(), Rig(helpers, artifact).event()
    two.core.offer(Candidate(1, two.sampler.layout.pack(artifact.weights), 0.0))
    for _ in range(4):
        assert one.tick().action.tobytes() == two.tick().action.tobytes()


def test_between_episodes_weights_change_at_once(rig, artifact):
    rig.core.offer(Candidate(5, rig.sampler.layout.pack(artifact.weights), 0.0))
    assert rig.tick().policy_version == 1
    assert rig.core.version == 5


def test_a_chunk_that_is_not_finite_is_dropped_and_counted(rig, artifact):
    rig.event()
    bad = {name: np.full_like(v, np.nan) for name, v in artifact.weights.items()}
    rig.core.offer(Candidate(2, rig.sampler.layout.pack(bad), 0.0))
    assert rig.tick().action.size == 0
    assert rig.core.bad_chunks == 1
    rig.core.offer(Candidate(1, rig.sampler.layout.pack(artifact.weights), 0.0))
    assert rig.tick().action.size == 5


def test_an_artifact_of_another_robot_is_refused_in_words(helpers, artifact):
    other = load_interface("mobile_base")
    with pytest.raises(InterfaceError, match="made for another robot interface"):
        Rig(helpers, artifact, interface=other)


def test_ticks_allocate_nothing_that_grows(rig):
    rig.event()
    for _ in range(50):
        rig.tick()
    tracemalloc.start()
    rig.tick()
    before, _ = tracemalloc.get_traced_memory()
    for _ in range(1000):
        rig.tick()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # a thousand observations alone would be over 100 kB
    assert after - before < 20_000


def test_chunk_queue_needs_a_chunk_before_the_first_action():
    queue = ChunkQueue(4, replan_every=9)
    assert queue.at_boundary
    queue.push(np.zeros((4, 2), np.float32), version=3)
    steps = [queue.pop() for _ in range(4)]
    assert queue.at_boundary
    assert [step.version for step in steps] == [3] * 4
    queue.push(np.zeros((4, 2), np.float32), version=3)
    queue.clear()
    assert queue.at_boundary
