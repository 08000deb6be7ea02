# SPDX-License-Identifier: Apache-2.0
"""The policy's control thread: when a tick is due, and how long everything took."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from qam_ros.contract.messages import ActionProposal, EpisodeEvent
from qam_ros.runtime.assembler import Fields
from qam_ros.runtime.phase import PhasePacer
from qam_ros.runtime.policy import Candidate, PolicyCore, Swap
from qam_ros.runtime.timing import TimingRing, periods, quantiles, write_timing

TIMING_FILE: Final = "policy_timing.npz"
CAPACITY: Final = 200_000
WINDOW: Final = 1000
"""Ticks that the figures of the diagnostics look back."""
LATE: Final = 10
"""A tick is late when it starts more than a period / LATE behind its deadline."""


class PolicyTiming:
    """Times of the ticks: tick_ns (monotonic), lateness_ns, sample_ns (of new chunks), swap_ns.

    Args:
        period_ns: control period [ns].
    """

    def __init__(self, period_ns: int) -> None:
        names = ("tick_ns", "lateness_ns", "sample_ns")
        self._rings = {name: TimingRing(CAPACITY) for name in names}
        self._rings["swap_ns"] = TimingRing(10_000)
        self._period_ns = period_ns
        self.late = 0
        self.skipped = 0

    def tick(self, tick_ns: int, lateness_ns: int, sample_ns: int) -> None:
        """Note a tick; ``sample_ns`` is 0 when no chunk was sampled."""
        self._rings["tick_ns"].append(tick_ns)
        self._rings["lateness_ns"].append(lateness_ns)
        self.late += LATE * lateness_ns > self._period_ns
        if sample_ns:
            self._rings["sample_ns"].append(sample_ns)

    def swap(self, swap_ns: int) -> None:
        """Note a swap."""
        self._rings["swap_ns"].append(swap_ns)

    def summary(self) -> dict[str, object]:
        """Figures for diagnostics, times in milliseconds."""
        ticks = self._rings["tick_ns"]
        series = {
            "period": periods(ticks.values(WINDOW)),
            "lateness": self._rings["lateness_ns"].values(WINDOW),
            "sample": self._rings["sample_ns"].values(WINDOW),
        }
        figures: dict[str, object] = {"ticks": ticks.count}
        figures |= {"late ticks": self.late, "skipped ticks": self.skipped}
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
        phase_offset_ns: from an observation's stamp to the deadline [ns].
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
    ) -> None:
        self.core = core
        self.running = False
        self._publish = publish
        self._swapped = swapped
        self._bad_chunk = bad_chunk
        self._bad_chunks = 0
        self._clock_ns = clock_ns
        self._lockstep = lockstep
        self._offset_ns = phase_offset_ns
        self._period_ns = round(core.interface.control_period_s * 1e9)
        self._condition = threading.Condition()
        self._thread: threading.Thread | None = None
        self.timing = PolicyTiming(self._period_ns)

    def start(self) -> None:
        """Start ticking."""
        self.running = True
        body = self._run_lockstep if self._lockstep else self._run_real_time
        self._thread = threading.Thread(target=body, name="policy_control", daemon=True)
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
        return True

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
            self._finish(proposal, started_ns, 0)

    def _run_real_time(self) -> None:
        pacer = PhasePacer(self._period_ns, self._offset_ns, time.monotonic_ns())
        while True:
            with self._condition:
                if self._wait_until(pacer.deadline_ns):
                    return
                woke_ns = time.monotonic_ns()
                self._condition.wait_for(  # at most when the sensors are late
                    lambda: not self.running or self.core.assembler.fresh,
                    timeout=0.25e-9 * self._period_ns,
                )
                started_ns, clock_ns = time.monotonic_ns(), self._clock_ns()
                proposal = self.core.tick(clock_ns)
            self._finish(proposal, started_ns, woke_ns - pacer.deadline_ns)
            seen = proposal.observation.size > 0
            behind_ns = clock_ns - started_ns + pacer.deadline_ns - proposal.stamp_ns
            pacer.advance(time.monotonic_ns(), behind_ns if seen else None)
            self.timing.skipped = pacer.skipped

    def _wait_until(self, deadline_ns: int) -> bool:
        """Wait for a deadline, with the condition held; whether to end instead."""
        while self.running and (rest_ns := deadline_ns - time.monotonic_ns()) > 0:
            self._condition.wait(rest_ns * 1e-9)
        return not self.running

    def _finish(
        self, proposal: ActionProposal, started_ns: int, lateness_ns: int
    ) -> None:
        self._publish(proposal)
        self.timing.tick(started_ns, lateness_ns, self.core.sample_ns)
        swap = self.core.take_swap()
        if swap is not None:
            self.timing.swap(swap.swap_ns)
            self._swapped(swap)
        if self.core.bad_chunks > self._bad_chunks:
            self._bad_chunks = self.core.bad_chunks
            self._bad_chunk()
