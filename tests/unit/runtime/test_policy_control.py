# SPDX-License-Identifier: Apache-2.0
"""The policy's control thread in real time, with a clock of its own: no test here waits for anything."""

import time

import numpy as np
import pytest

from qam_ros.nodes.policy_control import PolicyControl
from qam_ros.runtime.planner import ThreadPlanner
from qam_ros.runtime.policy import Candidate, PolicyCore
from qam_ros.runtime.realtime import RealTime
from qam_ros.runtime.sampler import OnnxSampler

T = 50_000_000
OFFSET = 4_000_000


class Clock:
    """Virtual time in which only sleeping and what the test says takes time; brings the sensors."""

    def __init__(self):
        self.ns = 10**9
        self.control = self.helpers = None
        self.sensors_ns = -1
        self.silent = set()

    def now_ns(self):
        return self.ns

    def sleep_until(self, deadline_ns):
        self.ns = max(self.ns, deadline_ns)
        self.sense()

    def sense(self):
        """Observations come at multiples of the period; a tick finds the newest one."""
        stamp_ns = self.ns // T * T
        if stamp_ns > self.sensors_ns and stamp_ns // T not in self.silent:
            self.sensors_ns = stamp_ns
            self.control.on_observation(stamp_ns, self.helpers.pose(x=stamp_ns * 1e-12))
            self.control.on_observation(stamp_ns, self.helpers.joints())


class TimedSampler(OnnxSampler):
    """Sampling and swapping take virtual time."""

    def __init__(self, artifact, clock, sample_ns=400_000, load_ns=150_000):
        super().__init__(artifact)
        self.clock, self.sample_ns, self.load_ns = clock, sample_ns, load_ns

    def sample(self, observation, noise):
        self.clock.ns += self.sample_ns
        return super().sample(observation, noise)

    def load(self, flat):
        self.clock.ns += self.load_ns
        super().load(flat)


class Rig:
    """A control loop that ends after a number of ticks.

    Args:
        costs: tick -> time that its publication takes [ns].
        each: called after each publication with its number.
    """

    def __init__(self, helpers, artifact, *, costs=None, each=None, core=None, **times):
        self.clock = Clock()
        self.sampler = TimedSampler(artifact, self.clock, **times)
        self.proposals, self.published_ns, self.swaps = [], [], []
        self.costs, self.each = costs or {}, each
        settings = {"lockstep": False, "align": True, "steady_ns": self.clock.now_ns}
        self.core = PolicyCore(artifact, self.sampler, 7, **settings | (core or {}))
        self.control = PolicyControl(
            self.core,
            publish=self.publish,
            swapped=self.swaps.append,
            bad_chunk=lambda: None,
            clock_ns=self.clock.now_ns,
            lockstep=False,
            phase_offset_ns=OFFSET,
            realtime=RealTime(),
            steady=self.clock,
        )
        self.clock.control, self.clock.helpers = self.control, helpers
        self.control.on_event(helpers.event(stamp_ns=0))

    def publish(self, proposal):
        tick = len(self.proposals)
        self.clock.ns += self.costs.get(tick, 100_000)
        self.proposals.append(proposal)
        self.published_ns.append(self.clock.ns)
        if self.each is not None:
            self.each(tick)
        self.control.running = len(self.proposals) < self.ticks

    def run(self, ticks):
        self.ticks, self.control.running = ticks, True
        self.clock.sense()
        self.control.run()
        return self


def test_ticks_in_time_are_not_late(helpers, artifact):
    timing = Rig(helpers, artifact).run(100).control.timing
    assert (timing.late, timing.skipped) == (0, 0)


@pytest.mark.parametrize(("cost", "late"), [(T // 5 - 10**6, 0), (T // 5 + 10**6, 1)])
def test_a_tick_is_late_when_it_publishes_a_fifth_of_a_period_after_its_deadline(
    helpers, artifact, cost, late
):
    timing = Rig(helpers, artifact, costs={50: cost}).run(100).control.timing
    assert (timing.late, timing.skipped) == (late, 0)
    assert timing.summary()["late ticks"] == late


def test_a_stall_is_counted_and_never_caught_up_in_a_burst(helpers, artifact):
    rig = Rig(helpers, artifact, costs={50: 10 * T + T // 3}).run(100)
    timing = rig.control.timing
    assert timing.late == 1
    assert timing.skipped == 10
    assert timing.summary()["skipped ticks"] == 10
    gaps = np.diff(rig.published_ns)
    assert gaps.min() > 0.5 * T
    # 99 more periods than skipped ones lie between the first and the last tick
    assert rig.published_ns[-1] - rig.published_ns[0] == pytest.approx(109 * T, abs=T)


def test_after_a_late_start_the_next_tick_keeps_half_a_period_of_distance(
    helpers, artifact
):
    rig = Rig(helpers, artifact)
    woke = rig.clock.sleep_until

    def oversleep(deadline_ns):
        woke(deadline_ns + (int(0.7 * T) if len(rig.proposals) == 50 else 0))

    rig.clock.sleep_until = oversleep
    rig.run(100)
    assert np.diff(rig.published_ns).min() > 0.5 * T
    assert rig.control.timing.skipped == 1


def test_each_action_is_executed_at_the_time_it_was_planned_for(helpers, artifact):
    rig = Rig(helpers, artifact).run(40)
    assert [p.chunk_index for p in rig.proposals[:7]] == [0, 1, 2, 0, 1, 2, 0]
    assert rig.core.skipped_actions == 0


def test_a_slow_sampler_in_the_tick_costs_the_first_actions_of_its_chunk(
    helpers, artifact
):
    rig = Rig(helpers, artifact, sample_ns=int(1.1 * T)).run(20)
    # sampled for over a period: the chunk begins with its second action, a deadline later
    indices = [p.chunk_index for p in rig.proposals]
    assert indices[:6] == [1, 1, 1, 1, 1, 1]
    assert rig.core.skipped_actions >= 19
    for proposal, published_ns in zip(rig.proposals, rig.published_ns, strict=True):
        planned_ns = proposal.stamp_ns + proposal.chunk_index * T
        assert abs(published_ns - planned_ns) < 0.5 * T


def test_chunks_made_ahead_by_a_thread_begin_with_the_action_of_the_next_tick(
    helpers, artifact
):
    """The sampler's own thread; virtual time waits for it."""
    planner = ThreadPlanner(OnnxSampler(artifact))
    rig = Rig(helpers, artifact, core={"planner": planner, "replan_every": 1})
    sleep = rig.clock.sleep_until

    def sleep_until(deadline_ns):
        while planner.busy and planner._result is None:
            time.sleep(0.0005)
        sleep(deadline_ns)

    rig.clock.sleep_until = sleep_until
    rig.run(60)
    planner.close()
    timing = rig.control.timing
    assert (timing.late, timing.skipped) == (0, 0)
    assert rig.proposals[0].action.size == 0
    assert [p.chunk_index for p in rig.proposals[1:]] == [1] * 59
    assert [p.chunk_id for p in rig.proposals[1:]] == list(range(59))
    assert rig.core.skipped_actions == 59


def run_with_swaps(helpers, artifact, ticks, swaps):
    def each(tick):
        if swaps:
            number = tick + 2
            flat = rig.sampler.layout.pack(
                {k: v * np.float32(1 - 1e-6 * number) for k, v in weights.items()}
            )
            rig.core.offer(Candidate(number, flat, 0.0))

    weights = artifact.weights
    rig = Rig(helpers, artifact, each=each, core={"replan_every": 1})
    return rig.run(ticks)


def test_a_thousand_swaps_miss_no_tick_that_the_same_run_without_would_not(
    helpers, artifact
):
    plain = run_with_swaps(helpers, artifact, 1001, swaps=False)
    swapped = run_with_swaps(helpers, artifact, 1001, swaps=True)
    assert len(swapped.swaps) == 1000
    for rig in (plain, swapped):
        assert (rig.control.timing.late, rig.control.timing.skipped) == (0, 0)
    assert [p.stamp_ns for p in plain.proposals] == [
        p.stamp_ns for p in swapped.proposals
    ]
    versions = [p.policy_version for p in swapped.proposals]
    assert versions == sorted(versions)
    assert versions[-1] == 1001
