# SPDX-License-Identifier: Apache-2.0
"""The policy's control thread in real time, with a clock of its own: no test here waits for anything."""

import dataclasses
import threading
import time

import numpy as np
import pytest

from qam_ros.contract.messages import StepReward
from qam_ros.nodes.policy_control import PolicyControl
from qam_ros.runtime.guard_config import guard_config
from qam_ros.runtime.guard_core import GuardCore
from qam_ros.runtime.joiner import Joiner
from qam_ros.runtime.planner import ThreadPlanner
from qam_ros.runtime.policy import Candidate, PolicyCore
from qam_ros.runtime.realtime import RealTime
from qam_ros.runtime.sampler import OnnxSampler

T = 50_000_000
OFFSET = 4_000_000


class Clock:
    """Virtual time in which only waiting and what the test says takes time; brings the sensors."""

    def __init__(self, period_ns=T):
        self.ns = 10**9
        self.period_ns = period_ns
        self.control = self.helpers = None
        self.sensors_ns = -1
        self.silent = lambda _: False

    def now_ns(self):
        return self.ns

    def sleep_until(self, deadline_ns):
        self.ns = max(self.ns, deadline_ns)
        self.sense()

    def sense(self):
        """Observations come at multiples of the period; a tick finds the newest one."""
        stamp_ns = self.ns // self.period_ns * self.period_ns
        if stamp_ns > self.sensors_ns and not self.silent(stamp_ns // self.period_ns):
            self.sensors_ns = stamp_ns
            x = stamp_ns * 1e-12
            self.control.on_observation(stamp_ns, self.helpers.pose(x=x, yaw=x))
            self.control.on_observation(stamp_ns, self.helpers.joints(x, x))


class VirtualCondition(threading.Condition):
    """A condition whose waits take virtual time."""

    def __init__(self, clock):
        super().__init__()
        self.clock = clock

    def wait(self, timeout=None):
        assert timeout is not None, "would wait for ever"
        self.clock.ns += round(timeout * 1e9)
        return False

    def wait_for(self, predicate, timeout=None):
        return predicate() or (self.wait(timeout), predicate())[1]


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
        costs: tick -> time that its publication takes [ns]; 100 us for those not named.
        each: called after each publication with its number.
    """

    def __init__(
        self,
        helpers,
        artifact,
        *,
        costs=None,
        cost=100_000,
        each=None,
        core=None,
        **times,
    ):
        self.clock = Clock(round(artifact.interface.control_period_s * 1e9))
        self.sampler = TimedSampler(artifact, self.clock, **times)
        self.proposals, self.published_ns, self.swaps = [], [], []
        self.costs, self.cost, self.each = costs or {}, cost, each
        self.failures = []
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
            failed=self.failures.append,
        )
        self.control._condition = VirtualCondition(self.clock)
        self.clock.control, self.clock.helpers = self.control, helpers
        self.control.on_event(helpers.event(stamp_ns=0))

    def publish(self, proposal):
        tick = len(self.proposals)
        self.clock.ns += self.costs.get(tick, self.cost)
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
    assert indices == [1, 2] * 10
    assert rig.core.skipped_actions == 10
    assert_executed_as_planned(rig)


def assert_executed_as_planned(rig):
    """Every action goes out nearest to the stamp of its chunk's observation + index T."""
    made_ns = {}
    for proposal, published_ns in zip(rig.proposals, rig.published_ns, strict=True):
        assert proposal.action.size
        start_ns = made_ns.setdefault(proposal.chunk_id, proposal.stamp_ns)
        assert abs(published_ns - start_ns - proposal.chunk_index * T) < 0.5 * T


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


@pytest.mark.parametrize("every", [2, 3])
def test_sensors_at_a_lower_rate_make_no_tick_late(helpers, artifact, every):
    rig = Rig(helpers, artifact)
    rig.clock.silent = lambda number: number % every
    rig.run(100)
    timing = rig.control.timing
    assert (timing.late, timing.skipped) == (0, 0)
    assert timing.repeated == pytest.approx(100 * (1 - 1 / every), abs=1)
    assert timing.summary()["ticks without new sensors"] == timing.repeated
    # published at the deadline + sampling + publication, with or without a new observation
    gaps = np.diff(rig.published_ns)
    assert np.abs(gaps - T).max() <= T // 100 + 400_000


def test_with_sensors_at_half_the_rate_a_chunk_is_executed_to_its_end(
    helpers, artifact
):
    rig = Rig(helpers, artifact)
    rig.clock.silent = lambda number: number % 2
    rig.run(61)
    indices = [p.chunk_index for p in rig.proposals]
    # of three actions the last is due in the third tick; a chunk may begin on an old observation
    assert max(indices) == 2
    assert len({p.chunk_id for p in rig.proposals}) <= 32
    assert_executed_as_planned(rig)


def test_a_repeated_observation_is_executed_and_is_no_row(helpers, artifact):
    """A sensor that comes late once: what was done without it is in no transition."""
    rig = Rig(helpers, artifact)
    first = rig.clock.ns // T
    rig.clock.silent = lambda number: number - first in (10, 25, 26)
    rig.run(40)
    guard = GuardCore(guard_config(artifact.interface), lockstep=False)
    joiner, rows, reports = Joiner(artifact.interface), [], []
    start = helpers.event(stamp_ns=0)
    guard.on_event(start)
    joiner.add(start, 0)
    for proposal, at_ns in zip(rig.proposals, rig.published_ns, strict=True):
        x = proposal.stamp_ns * 1e-12
        guard.on_measured(proposal.stamp_ns, helpers.pose(x=x))
        report = guard.tick(at_ns, proposal, at_ns).report
        reports.append(report)
        reward = StepReward(proposal.stamp_ns, 1, proposal.step, -1.0, False, False)
        for message in (proposal, report, reward):
            rows += list(joiner.add(message, at_ns))
    rows += list(joiner.flush())
    assert all(p.action.size for p in rig.proposals)
    stamps = [p.stamp_ns for p in rig.proposals]
    repeated = [n for n in range(1, 40) if stamps[n] == stamps[n - 1]]
    assert len(repeated) == rig.control.timing.repeated == 3
    assert [n for n, r in enumerate(reports) if not r.is_row] == repeated
    by_stamp = {int(row["observation_stamp_ns"]): row for row in rows}
    assert len(by_stamp) == 37
    for number, report in enumerate(reports[:-1]):
        if report.is_row:
            row = by_stamp[stamps[number]]
            followed = stamps[number + 1] - stamps[number] == T
            assert bool(row["masked"]) == (not followed)
            assert not row["has_next"]


def test_an_error_of_the_sampler_ends_the_thread_with_a_word(helpers, artifact):
    rig = Rig(helpers, artifact)
    sample = rig.sampler.sample

    def broken(observation, noise):
        if len(rig.proposals) >= 30:
            raise RuntimeError("out of memory")
        return sample(observation, noise)

    rig.sampler.sample = broken
    rig.run(100)
    assert len(rig.proposals) == 30
    assert not rig.control.running
    (told,) = rig.failures
    assert told == rig.control.failure
    assert told == "the control thread ended: RuntimeError: out of memory"


def test_an_error_of_the_sampler_on_its_own_thread_ends_the_loop_with_a_word(
    helpers, artifact
):
    class Broken(OnnxSampler):
        def sample(self, observation, noise):
            raise RuntimeError("out of memory")

    planner = ThreadPlanner(Broken(artifact))
    rig = Rig(helpers, artifact, core={"planner": planner, "replan_every": 1})
    sleep = rig.clock.sleep_until

    def sleep_until(deadline_ns):
        while planner.busy and planner._problem is None:
            time.sleep(0.0005)
        sleep(deadline_ns)

    rig.clock.sleep_until = sleep_until
    rig.run(100)
    assert not rig.control.running
    assert len(rig.proposals) == 1
    assert "RuntimeError: out of memory" in rig.failures[0]


def test_an_error_in_lockstep_ends_the_thread_with_a_word(helpers, artifact):
    rig = Rig(helpers, artifact, core={"lockstep": True, "align": False})
    rig.control._lockstep = True
    rig.control._condition = threading.Condition()
    rig.sampler.sample = lambda observation, noise: 1 / 0
    rig.run(5)
    assert not rig.control.running
    assert "ZeroDivisionError" in rig.failures[0]


def test_weights_that_failed_are_gone_before_the_next_tick(helpers, artifact):
    """A rollback from ``bad_chunk`` costs one tick."""
    rig = Rig(helpers, artifact, core={"replan_every": 1})
    pack = rig.sampler.layout.pack
    bad = {name: np.full_like(v, np.nan) for name, v in artifact.weights.items()}
    rig.control._bad_chunk = lambda: rig.core.offer(
        Candidate(1, pack(artifact.weights), 0.0)
    )
    rig.each = lambda tick: (
        rig.core.offer(Candidate(2, pack(bad), 0.0)) if tick == 20 else None
    )
    rig.run(40)
    assert [n for n, p in enumerate(rig.proposals) if not p.action.size] == [21]
    assert [s.version for s in rig.swaps] == [2, 1]
    assert rig.core.bad_chunks == 1
    assert not rig.core.gives_bad_chunks


def run_with_swaps(helpers, artifact, ticks, *, swaps, **settings):
    def each(tick):
        if swaps:
            number = tick + 2
            flat = rig.sampler.layout.pack(
                {k: v * np.float32(1 - 1e-6 * number) for k, v in weights.items()}
            )
            rig.core.offer(Candidate(number, flat, 0.0))

    weights = artifact.weights
    rig = Rig(helpers, artifact, each=each, core={"replan_every": 1}, **settings)
    return rig.run(ticks)


@pytest.mark.parametrize("period_s", [0.05, 0.001])
def test_a_thousand_swaps_miss_no_tick_that_the_same_run_without_would_not(
    helpers, artifact, period_s
):
    """At 1 kHz a tick may take 200 us: sampling and publication fit in, not a swap of 150 us besides."""
    interface = dataclasses.replace(artifact.interface, control_period_s=period_s)
    fast = helpers.artifact(interface)
    times = {"sample_ns": 60_000, "cost": 60_000}
    plain, swapped = (
        run_with_swaps(helpers, fast, 1001, swaps=swaps, **times)
        for swaps in (False, True)
    )
    # the last offer comes after the last publication, and is in before the thread ends
    assert len(swapped.swaps) == 1001
    for rig in (plain, swapped):
        assert (rig.control.timing.late, rig.control.timing.skipped) == (0, 0)
    assert [p.stamp_ns for p in plain.proposals] == [
        p.stamp_ns for p in swapped.proposals
    ]
    versions = [p.policy_version for p in swapped.proposals]
    assert versions == list(range(1, 1002))
