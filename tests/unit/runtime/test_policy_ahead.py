# SPDX-License-Identifier: Apache-2.0
"""Chunks aligned in time, made in the tick or ahead of it, with a clock and samplers of the test's own."""

import time

import numpy as np
import pytest

from qam_ros.contract.messages import EpisodeKind
from qam_ros.runtime.chunks import ChunkQueue
from qam_ros.runtime.planner import ThreadPlanner
from qam_ros.runtime.policy import Candidate, PolicyCore

T = 50_000_000
LENGTH = 8


class Marked:
    """A sampler whose chunks say which chunk and which action they are, and with which weights."""

    def __init__(self, size):
        self.size, self.made, self.weights, self.value = size, 0, 0.0, None

    def sample(self, observation, noise):
        chunk = np.zeros((LENGTH, self.size), np.float32)
        chunk[:, 0] = self.made
        chunk[:, 1] = np.arange(LENGTH)
        chunk[:, 2] = self.weights
        if self.value is not None:
            chunk[:] = self.value(self.made)
        self.made += 1
        return chunk

    def load(self, flat):
        self.weights = float(flat[0])


class SlowPlanner:
    """A planner whose chunks are there some time after they were begun."""

    def __init__(self, sampler, rig, took_ns):
        self.sampler, self.rig, self.took_ns = sampler, rig, took_ns
        self.job = None

    @property
    def busy(self):
        return self.job is not None

    def start(self, observation, noise):
        assert self.job is None
        chunk = self.sampler.sample(observation, noise)
        self.job = (self.rig.now_ns + self.took_ns, chunk)
        self.rig.planned_from[self.sampler.made - 1] = self.rig.stamp_ns

    def take(self):
        if self.job is None or self.rig.now_ns < self.job[0]:
            return None
        (_, chunk), self.job = self.job, None
        return chunk, self.took_ns


class Rig:
    """A policy in real time whose sensors are ``age_ns`` old at each tick."""

    def __init__(self, helpers, interface, *, ahead_ns=None, age_ns=0, **settings):
        self.helpers, self.age_ns, self.k = helpers, age_ns, 0
        artifact = helpers.artifact(interface, chunk=LENGTH)
        self.sampler = Marked(interface.action_size)
        self.planned_from = {}
        planner = None
        if ahead_ns is not None:
            planner = SlowPlanner(self.sampler, self, ahead_ns)
        self.core = PolicyCore(
            artifact, self.sampler, 7, lockstep=False, align=True, planner=planner,
            **settings,
        )  # fmt: skip
        self.event()

    def event(self, kind=EpisodeKind.START, episode=1):
        self.core.on_event(self.helpers.event(kind, episode, self.now_ns - 10 * T))

    @property
    def now_ns(self):
        return 10**9 + self.k * T

    @property
    def stamp_ns(self):
        return self.now_ns - self.age_ns

    def tick(self, x=0.0):
        self.k += 1
        self.core.on_observation(self.stamp_ns, self.helpers.pose(x=x))
        self.core.on_observation(self.stamp_ns, self.helpers.joints())
        proposal = self.core.tick(self.now_ns)
        self.core.look_ahead()
        return proposal

    def ticks(self, count):
        return [self.tick() for _ in range(count)]


@pytest.fixture
def make(helpers, interface):
    return lambda **settings: Rig(helpers, interface, **settings)


def indices(proposals):
    return [p.chunk_index if p.action.size else None for p in proposals]


@pytest.mark.parametrize(
    ("age", "skipped"), [(0.0, 0), (0.4, 0), (0.6, 1), (1.4, 1), (3.0, 3)]
)
def test_an_action_from_an_old_observation_is_that_of_the_step_it_was_planned_for(
    make, age, skipped
):
    rig = make(age_ns=round(age * T))
    proposals = rig.ticks(LENGTH - skipped)
    assert indices(proposals) == list(range(skipped, LENGTH))
    assert [p.action[1] for p in proposals] == [p.chunk_index for p in proposals]
    assert rig.core.skipped_actions == skipped
    rig.tick()
    assert rig.core.skipped_actions == 2 * skipped


def test_without_alignment_every_chunk_begins_with_its_first_action(helpers, interface):
    artifact = helpers.artifact(interface, chunk=LENGTH)
    sampler = Marked(interface.action_size)
    core = PolicyCore(artifact, sampler, 7, lockstep=False)
    core.on_event(helpers.event())
    core.on_observation(0, helpers.pose())
    core.on_observation(0, helpers.joints())
    assert core.tick(3 * T).chunk_index == 0
    assert core.skipped_actions == 0


def test_a_chunk_from_an_observation_older_than_itself_is_counted_and_not_executed(
    make,
):
    rig = make(age_ns=LENGTH * T)
    assert rig.tick().action.size == 0
    assert rig.core.old_chunks == 1


def test_a_receding_horizon_uses_so_many_actions_after_the_skipped_ones(make):
    rig = make(age_ns=T, replan_every=2)
    assert indices(rig.ticks(6)) == [1, 2, 1, 2, 1, 2]


@pytest.mark.parametrize("replan_every", [None, 1, 3])
@pytest.mark.parametrize("took", [0.3, 1.3, 2.3])
def test_a_chunk_made_ahead_is_entered_at_the_action_whose_time_it_is(
    make, took, replan_every
):
    rig = make(ahead_ns=round(took * T), replan_every=replan_every, age_ns=T // 5)
    proposals = rig.ticks(60)
    ticks = int(np.ceil(took))
    assert indices(proposals[: ticks + 1]) == [None] * ticks + [ticks]
    for number, proposal in enumerate(proposals[ticks:], start=ticks + 1):
        assert proposal.action.size  # never a gap after the first chunk
        assert proposal.action[1] == proposal.chunk_index
        made_ns = rig.planned_from[int(proposal.action[0])]
        executed_ns = 10**9 + number * T - rig.age_ns
        assert made_ns + proposal.chunk_index * T == executed_ns
    assert rig.core.skipped_actions >= ticks * (rig.sampler.made - 1)


def test_open_loop_uses_chunks_to_their_end_and_a_receding_horizon_does_not(make):
    open_loop, receding = (make(ahead_ns=T // 2, replan_every=n) for n in (None, 1))
    assert max(p.chunk_index for p in open_loop.ticks(60)) >= LENGTH - 2
    assert max(p.chunk_index for p in receding.ticks(60)) == 1
    assert receding.sampler.made > 4 * open_loop.sampler.made


def test_a_sampler_slower_than_its_chunk_leaves_gaps_and_counts_them(make):
    rig = make(ahead_ns=(LENGTH + 1) * T)
    assert indices(rig.ticks(3 * LENGTH)) == [None] * 3 * LENGTH
    assert rig.core.old_chunks == 2


def test_a_lost_observation_moves_a_chunk_made_ahead_on_in_time(make):
    rig = make(ahead_ns=T // 2)
    before = rig.ticks(3)[-1]
    rig.k += 1
    after = rig.tick()
    assert after.chunk_id == before.chunk_id
    assert after.chunk_index == before.chunk_index + 2


def test_a_chunk_begun_in_another_episode_is_never_executed(make):
    rig = make(ahead_ns=3 * T)
    rig.tick()
    rig.event(EpisodeKind.END)
    assert rig.tick().action.size == 0
    rig.event(EpisodeKind.START, 2)
    proposals = rig.ticks(8)
    first = next(p for p in proposals if p.action.size)
    assert first.action[0] == 1  # chunk 0 was begun in the first episode
    assert rig.sampler.made >= 2


def test_weights_change_between_chunks_that_are_made_ahead(make):
    rig = make(ahead_ns=T // 2, replan_every=2)
    proposals = []
    for version in range(2, 30):
        rig.core.offer(Candidate(version, np.full(1, version, np.float32), 0.0))
        proposals += rig.ticks(2)
    acting = [p for p in proposals if p.action.size]
    for proposal in acting:
        assert proposal.policy_version in (1, proposal.action[2])
    versions = [p.policy_version for p in acting]
    assert versions == sorted(versions)
    assert len(set(versions)) > 15
    by_chunk = {}
    for proposal in acting:
        by_chunk.setdefault(proposal.chunk_id, set()).add(proposal.policy_version)
    assert all(len(v) == 1 for v in by_chunk.values())


def test_a_bad_chunk_made_ahead_does_not_end_the_good_one(make):
    rig = make(ahead_ns=T // 2, replan_every=2)
    rig.ticks(3)
    rig.sampler.value = lambda made: np.nan
    rig.ticks(2)
    assert rig.core.bad_chunks == 1
    assert rig.tick().action.size
    rig.sampler.value = None
    assert all(p.action.size for p in rig.ticks(20))


@pytest.mark.parametrize("ahead", [None, 0.5, 2.5])
def test_a_new_chunk_never_makes_the_command_jump_beyond_the_limits(
    helpers, interface, make, ahead
):
    """Chunks that alternate between the corners of the box, through the guard."""
    ahead_ns = None if ahead is None else round(ahead * T)
    rig = make(ahead_ns=ahead_ns, replan_every=3)
    rig.sampler.value = lambda made: 1.0 if made % 2 else -1.0
    guard = helpers.guard_rig(interface).start()
    reach, drive = [], []
    for _ in range(200):
        proposal = rig.tick()
        commands = guard.tick(proposal.action).commands
        if not proposal.action.size:
            continue
        reach.append(commands["target"]["pose.position"][:2])
        drive.append(commands["cmd_vel"]["twist.linear"][:2])
    assert len({round(float(v[0]), 3) for v in drive}) > 3  # it does move, both ways
    period_s = 0.05
    slack = 1e-9
    assert np.abs(np.diff(reach, axis=0)).max() <= 0.5 * period_s + slack
    assert np.abs(np.diff(reach, n=2, axis=0)).max() <= 4.0 * period_s**2 + slack
    assert np.abs(np.diff(drive, axis=0)).max() <= 4.0 * period_s + slack


def test_a_planner_makes_chunks_on_its_thread_and_gives_each_out_once(interface):
    sampler, prepared = Marked(interface.action_size), []
    planner = ThreadPlanner(sampler, lambda: prepared.append(1))
    assert not planner.busy
    assert planner.take() is None
    for number in range(20):
        planner.start(np.zeros(6, np.float32), np.zeros(40, np.float32))
        assert planner.busy
        chunk, took_ns = wait_for(planner.take)
        assert chunk[0, 0] == number
        assert took_ns > 0
        assert not planner.busy
    assert prepared == [1]
    planner.close()
    assert not planner._thread.is_alive()


def test_an_error_of_the_sampler_comes_out_where_the_chunk_is_taken():
    planner = ThreadPlanner(None)
    planner.start(np.zeros(6, np.float32), np.zeros(40, np.float32))
    with pytest.raises(AttributeError):
        wait_for(planner.take)


def wait_for(read):
    deadline = time.monotonic() + 5.0
    while time.monotonic() < deadline:
        if (found := read()) is not None:
            return found
        time.sleep(0.001)
    pytest.fail("no chunk within 5 s")


def test_the_queue_skips_forward_only_and_knows_its_reserve():
    queue = ChunkQueue(4, replan_every=2)
    queue.seek(3)
    assert queue.empty
    assert queue.skipped == 0
    queue.push(np.zeros((4, 2), np.float32), version=1, skip=1)
    assert (queue.left, queue.skipped) == (2, 1)
    queue.seek(0)
    assert queue.pop().index == 1
    queue.seek(3)
    assert queue.at_boundary
    assert not queue.empty
    assert queue.pop().index == 3
    queue.seek(9)
    assert (queue.empty, queue.skipped) == (True, 2)
