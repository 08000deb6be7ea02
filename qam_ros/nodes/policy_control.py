# SPDX-License-Identifier: Apache-2.0
"""The policy's control thread: when a tick is due, and how long everything took."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from qam_ros.contract.messages import ActionProposal, EpisodeEvent
from qam_ros.runtime.assembler import Fields
from qam_ros.runtime.phase import PhasePacer
from qam_ros.runtime.policy import Candidate, PolicyCore, Swap
from qam_ros.runtime.realtime import (
    QuietInterpreter,
    RealTime,
    SteadyClock,
    describe,
    enter,
)
from qam_ros.runtime.timing import LATE, TimingRing, periods, quantiles, write_timing

TIMING_FILE: Final = "policy_timing.npz"
CAPACITY: Final = 200_000
LONGEST_SLEEP_NS: Final = 100_000_000
"""A thread that shall end does so within this time [ns]."""
WINDOW: Final = 1000
"""Ticks that the figures of the diagnostics look back."""
NAMES: Final = (
    "tick_ns",
    "lateness_ns",
    "publish_lateness_ns",
    "sensor_wait_ns",
    "sample_ns",
)

_logger = logging.getLogger(__name__)


class PolicyTiming:
    """Times of the ticks, all in nanoseconds.

    ``tick_ns`` start (monotonic), ``lateness_ns`` wake-up after the deadline, ``publish_lateness_ns``
    publication after the deadline, ``sensor_wait_ns`` from wake-up to the start, taking in what the
    sensors have sent, ``sample_ns`` sampling of each new chunk, ``swap_ns`` of each swap.

    Args:
        period_ns: control period [ns].
    """

    def __init__(self, period_ns: int) -> None:
        self._rings = {name: TimingRing(CAPACITY) for name in NAMES}
        self._rings["swap_ns"] = TimingRing(10_000)
        self._period_ns = period_ns
        self._seen_ns = -1
        self.late = 0
        self.repeated = 0
        self.skipped = 0

    def tick(self, tick_ns: int, sample_ns: int) -> None:
        """Note a tick; ``sample_ns`` is 0 when no chunk was sampled."""
        self._rings["tick_ns"].append(tick_ns)
        if sample_ns:
            self._rings["sample_ns"].append(sample_ns)

    def observed(self, stamp_ns: int) -> None:
        """Note the stamp of a tick's observation [ns]; one seen before is counted in ``repeated``."""
        self.repeated += stamp_ns == self._seen_ns
        self._seen_ns = stamp_ns

    def deadline(self, woke_ns: int, sensor_wait_ns: int, published_ns: int) -> None:
        """Note how a tick kept its deadline.

        Args:
            woke_ns: from the deadline to the wake-up [ns].
            sensor_wait_ns: from there to the start, taking in sensors [ns].
            published_ns: from the deadline to the end of publication [ns].
        """
        self._rings["lateness_ns"].append(woke_ns)
        self._rings["sensor_wait_ns"].append(sensor_wait_ns)
        self._rings["publish_lateness_ns"].append(published_ns)
        self.late += LATE * published_ns > self._period_ns

    def swap(self, swap_ns: int) -> None:
        """Note a swap."""
        self._rings["swap_ns"].append(swap_ns)

    def summary(self) -> dict[str, object]:
        """Figures for diagnostics, times in milliseconds."""
        ticks = self._rings["tick_ns"]
        series = {
            "period": periods(ticks.values(WINDOW)),
            "lateness": self._rings["lateness_ns"].values(WINDOW),
            "publication": self._rings["publish_lateness_ns"].values(WINDOW),
            "sample": self._rings["sample_ns"].values(WINDOW),
        }
        figures: dict[str, object] = {"ticks": ticks.count}
        figures |= {"late ticks": self.late, "skipped ticks": self.skipped}
        figures |= {"ticks without new sensors": self.repeated}
        for name, values in series.items():
            for key, value in quantiles(values * 1e-6).items():
                figures[f"{name} {key} [ms]"] = value
        return figures

    def write(self, run_dir: Path) -> None:
        """Write all series to ``policy_timing.npz``."""
        write_timing(
            run_dir / TIMING_FILE, {n: ring.values() for n, ring in self._rings.items()}
        )


class PolicyControl:
    """Drives a PolicyCore on a thread of its own; the other methods may be called from anywhere.

    Args:
        core: the policy.
        publish: sends a proposal.
        swapped: told about every swap, after the proposal of that tick.
        bad_chunk: told when a chunk was not finite.
        clock_ns: time in the domain of the stamps [ns].
        lockstep: tick when an observation is complete; else on deadlines.
        phase_offset_ns: from an observation's stamp to the deadline, at most a fifth of the period
            [ns].
        realtime: what the thread asks of the system in real time; None for the defaults.
        steady: time of the deadlines.
        warn: told what was not granted.
        failed: told, in words, why the thread has ended; nothing is proposed any more.
        sense: in real time, brings what the sensors have sent to ``on_observation`` when a tick is
            due, without waiting for any of it; None where it comes by itself.
    """

    def __init__(
        self,
        core: PolicyCore,
        *,
        publish: Callable[[ActionProposal], None],
        swapped: Callable[[Swap], None],
        bad_chunk: Callable[[], object],
        clock_ns: Callable[[], int],
        lockstep: bool,
        phase_offset_ns: int,
        realtime: RealTime | None = None,
        steady: SteadyClock | None = None,
        warn: Callable[[str], object] = _logger.warning,
        failed: Callable[[str], object] = _logger.critical,
        sense: Callable[[], object] | None = None,
    ) -> None:
        self.core = core
        self.running = False
        self._publish = publish
        self._swapped = swapped
        self._bad_chunk = bad_chunk
        self._bad_chunks = 0
        self._clock_ns = clock_ns
        self._lockstep = lockstep
        self._period_ns = round(core.interface.control_period_s * 1e9)
        self._offset_ns = min(phase_offset_ns, self._period_ns // LATE)
        self._realtime = realtime or RealTime()
        self._steady = steady or SteadyClock()
        self._warn = warn
        self._failed = failed
        self._sense = sense
        self._quiet = QuietInterpreter()
        self.problems: tuple[str, ...] = ()
        self.failure = ""
        self.scheduling = "not started"
        self._condition = threading.Condition()
        self._thread: threading.Thread | None = None
        self.timing = PolicyTiming(self._period_ns)

    @property
    def longest_pause_ns(self) -> int:
        """Longest collection of garbage between ticks so far [ns]."""
        return self._quiet.longest_ns

    def start(self) -> None:
        """Start ticking."""
        self.running = True
        self.failure = ""
        if not self._lockstep and self._realtime.collect_between_ticks:
            self._quiet.start()
        self._thread = threading.Thread(
            target=self.run, name="policy_control", daemon=True
        )
        self._thread.start()

    def stop(self) -> bool:
        """Stop ticking; whether it ran."""
        if self._thread is None:
            return False
        with self._condition:
            self.running = False
            self._condition.notify()
        self._thread.join(timeout=0.5)
        self._thread = None
        self._quiet.stop()
        return True

    def run(self) -> None:
        """Tick until ``running`` is false; the body of the thread.

        An error ends it, since a chunk or a phase may be half made; never without a word.
        """
        try:
            if self._lockstep:
                self._run_lockstep()
            else:
                self._run_real_time()
        except Exception as problem:
            self.running = False
            self.failure = (
                f"the control thread ended: {type(problem).__name__}: {problem}"
            )
            _logger.exception("the control thread ended")
            self._failed(self.failure)

    def on_observation(self, stamp_ns: int, values: Mapping[str, Fields]) -> None:
        """As ``PolicyCore.on_observation``."""
        with self._condition:
            self.core.on_observation(stamp_ns, values)
            self._condition.notify()

    def on_event(self, event: EpisodeEvent) -> None:
        """As ``PolicyCore.on_event``."""
        with self._condition:
            self.core.on_event(event)
            self._condition.notify()

    def offer(self, candidate: Candidate) -> None:
        """As ``PolicyCore.offer``."""
        with self._condition:
            self.core.offer(candidate)

    def _run_lockstep(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: not self.running or self.core.ready())
                if not self.running:
                    return
                started_ns = time.monotonic_ns()
                proposal = self.core.tick(self._clock_ns())
            self._publish(proposal)
            self._finish(started_ns)
            self._tell()

    def _run_real_time(self) -> None:
        self.problems = enter(self._realtime)
        self.scheduling = describe()
        for problem in self.problems:
            self._warn(problem)
        pacer = PhasePacer(self._period_ns, self._offset_ns, self._steady.now_ns())
        while self._sleep_until(pacer.deadline_ns):
            self._tick_real_time(pacer)

    def _sleep_until(self, deadline_ns: int) -> bool:
        """Wait for a deadline; whether to go on."""
        while self.running and (now_ns := self._steady.now_ns()) < deadline_ns:
            self._steady.sleep_until(min(deadline_ns, now_ns + LONGEST_SLEEP_NS))
        return self.running

    def _tick_real_time(self, pacer: PhasePacer) -> None:
        """One tick with the newest observation there is; sensors that are late are not waited for."""
        deadline_ns = pacer.deadline_ns
        woke_ns = self._steady.now_ns()
        if self._sense is not None:
            self._sense()
        with self._condition:
            started_ns = self._steady.now_ns()
            due_ns = self._clock_ns() - started_ns + deadline_ns
            proposal = self.core.tick(due_ns)
        self._publish(proposal)
        published_ns = self._steady.now_ns()
        self.timing.deadline(
            woke_ns - deadline_ns, started_ns - woke_ns, published_ns - deadline_ns
        )
        lag_ns = None
        if proposal.observation.size:
            lag_ns = due_ns - proposal.stamp_ns
            self.timing.observed(proposal.stamp_ns)
        self._finish(started_ns)
        with self._condition:
            self.core.look_ahead()
        self._tell()
        self._quiet.after_tick(published_ns)
        pacer.advance(self._steady.now_ns(), lag_ns, started_ns)
        self.timing.skipped = pacer.skipped

    def _finish(self, started_ns: int) -> None:
        """Note a tick when its proposal is out; weights that failed are taken back before the next."""
        self.timing.tick(started_ns, self.core.sample_ns)
        if self.core.bad_chunks > self._bad_chunks:
            self._bad_chunks = self.core.bad_chunks
            self._bad_chunk()

    def _tell(self) -> None:
        """Tell about a swap."""
        swap = self.core.take_swap()
        if swap is not None:
            self.timing.swap(swap.swap_ns)
            self._swapped(swap)
