# SPDX-License-Identifier: Apache-2.0
"""The guard's control thread: ticks on proposals, and on their absence."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from qam_ros.contract.messages import (
    ActionProposal,
    EpisodeEvent,
    GuardReport,
    HumanAction,
)
from qam_ros.contract.transition import ActionSource, GuardMode, LimitBit
from qam_ros.runtime.guard_core import GuardCore
from qam_ros.runtime.guard_log import GuardLog
from qam_ros.runtime.guard_types import Fields, GuardOutput
from qam_ros.runtime.realtime import QuietInterpreter, RealTime, describe, enter
from qam_ros.runtime.timing import TimingRing, periods, quantiles, write_timing

TIMING_FILE: Final = "guard_timing.npz"
CAPACITY: Final = 200_000
WINDOW: Final = 1000
"""Ticks that the figures of the diagnostics look back."""
FAILURES: Final = 3
"""Ticks that may fail in a row before the thread gives up."""
REST_S: Final = 0.5
"""Time that a moving base gets to come to rest when the guard is deactivated [s]."""

_logger = logging.getLogger(__name__)


class GuardTiming:
    """Times of the ticks: tick_ns (monotonic), latency_ns (observation stamp to command sent)."""

    def __init__(self) -> None:
        self._rings = {name: TimingRing(CAPACITY) for name in ("tick_ns", "latency_ns")}
        self._bits: Counter[str] = Counter()

    def tick(self, tick_ns: int, report: GuardReport) -> None:
        """Note a tick."""
        self._rings["tick_ns"].append(tick_ns)
        if report.latency_ns:
            self._rings["latency_ns"].append(report.latency_ns)
        for bit in LimitBit(report.limit_bits):
            self._bits[bit.name or ""] += 1

    def summary(self) -> dict[str, object]:
        """Figures for diagnostics, times in milliseconds."""
        ticks = self._rings["tick_ns"]
        series = {
            "period": periods(ticks.values(WINDOW)),
            "latency": self._rings["latency_ns"].values(WINDOW),
        }
        figures: dict[str, object] = {"ticks": ticks.count}
        for name, values in series.items():
            for key, value in quantiles(values * 1e-6).items():
                figures[f"{name} {key} [ms]"] = value
        return figures | {
            f"ticks with {name}": n for name, n in sorted(self._bits.items())
        }

    def write(self, run_dir: Path) -> None:
        """Write all series to ``guard_timing.npz``."""
        write_timing(
            run_dir / TIMING_FILE, {n: ring.values() for n, ring in self._rings.items()}
        )


class GuardControl:
    """Drives a GuardCore on a thread of its own; the other methods may be called from anywhere.

    In lockstep a proposal is missing when the clock has gone past the tick after its own; in real
    time when half a period more than a period has passed.

    Args:
        core: the guard.
        send: publishes commands.
        report: publishes a report.
        clock_ns: time in the domain of the stamps [ns].
        log: the guard's log, or None.
        realtime: what the thread asks of the system in real time; None for the defaults.
        warn: told what was not granted, and of ticks that failed.
        gave_up: told when ``FAILURES`` ticks in a row failed and nothing is commanded any more.
    """

    def __init__(
        self,
        core: GuardCore,
        *,
        send: Callable[[GuardOutput], None],
        report: Callable[[GuardReport], None],
        clock_ns: Callable[[], int],
        log: GuardLog | None,
        realtime: RealTime | None = None,
        warn: Callable[[str], object] = _logger.warning,
        gave_up: Callable[[], object] = lambda: None,
    ) -> None:
        self.core = core
        self.running = False
        self.reason = "no tick yet"
        self.driver = ""
        self.failures = 0
        self.retired = 0
        self.problem = ""
        self.timing = GuardTiming()
        self._send = send
        self._report = report
        self._clock_ns = clock_ns
        self._log = log
        self._realtime = realtime or RealTime()
        self._warn = warn
        self._gave_up = gave_up
        self._quiet = QuietInterpreter()
        self.problems: tuple[str, ...] = ()
        self.scheduling = "not started"
        self._condition = threading.Condition()
        self._thread: threading.Thread | None = None
        self._pending: ActionProposal | None = None
        self._give_up_ns = 0
        self._sim_ns = 0
        self._pressed: set[str] = set()

    def start(self) -> None:
        """Start ticking."""
        self.running = True
        if not self.core.lockstep and self._realtime.collect_between_ticks:
            self._quiet.start()
        self._thread = threading.Thread(
            target=self._run, name="guard_control", daemon=True
        )
        self._thread.start()

    def stop(self) -> bool:
        """Stop ticking, with velocities brought to zero first; whether it ran."""
        if self._thread is None:
            return False
        with self._condition:
            self.running = False
            self._condition.notify()
        self._thread.join(timeout=0.5)
        self._thread = None
        self._quiet.stop()
        try:
            self._come_to_rest()
        except Exception as problem:  # noqa: BLE001 - whoever stops has more to stop
            self._warn(f"velocities were not brought to zero: {problem}")
        return True

    def on_proposal(self, proposal: ActionProposal) -> None:
        """Take in a proposal; one that still waits is replaced, and does not wait longer for it.

        Those of a policy that another one replaced are counted and dropped, or they would take the
        ticks of the other.
        """
        with self._condition:
            if proposal.policy_session in self.core.state.retired:
                self.retired += 1
                return
            if self._pending is None:
                patience_ns = self.core.config.period_ns // 10
                self._give_up_ns = time.monotonic_ns() + patience_ns
            self._pending = proposal
            self._condition.notify()

    def on_measured(self, stamp_ns: int, values: Mapping[str, Fields]) -> None:
        """As ``GuardCore.on_measured``."""
        with self._condition:
            self.core.on_measured(stamp_ns, values)
            self._condition.notify()

    def on_event(self, event: EpisodeEvent) -> None:
        """As ``GuardCore.on_event``; also logged."""
        with self._condition:
            self.core.on_event(event)
            self._condition.notify()
        if self._log is not None:
            self._log.event(event, self.core.session)

    def on_human(self, message: HumanAction) -> None:
        """As ``GuardCore.on_human``; who takes over, and the end of it, is said once."""
        with self._condition:
            self.core.on_human(self._clock_ns(), message)
        driver = (message.source_label or "unnamed") if message.takeover else ""
        if driver != self.driver:
            self.driver = driver
            self._warn(f"taken over by '{driver}'" if driver else "the policy drives")

    def on_estop(self, button: str, *, pressed: bool) -> None:
        """An emergency stop was pressed or released; it is released when all are."""
        with self._condition:
            (self._pressed.add if pressed else self._pressed.discard)(button)
            self.core.set_estop(pressed=bool(self._pressed))
            self._condition.notify()

    def on_clock(self, sim_ns: int) -> None:
        """Take in the simulation's time [ns]."""
        with self._condition:
            self._sim_ns = sim_ns
            self._condition.notify()

    def reset(self) -> tuple[bool, str]:
        """As ``GuardCore.reset``."""
        with self._condition:
            done, text = self.core.reset()
        if done:
            self.problem = ""
        return done, text

    def _run(self) -> None:
        """Body of the thread: tick until stopped. A tick that fails latches a safe stop."""
        tick = self._tick_lockstep
        if not self.core.lockstep:
            tick = self._tick_real_time
            self._enter()
        failed = 0
        while failed < FAILURES:
            try:
                if not tick():
                    return
                failed = 0
            except Exception as problem:  # noqa: BLE001 - a robot is left to nobody in silence
                failed += 1
                self._stop_after(problem)
        self.running = False
        self.reason = "no commands: the control thread gave up"
        self._gave_up()

    def _enter(self) -> None:
        """Ask the system for what real time needs; without it the thread is an ordinary one."""
        try:
            self.problems = enter(self._realtime)
            self.scheduling = describe()
        except OSError as problem:
            self.problems = (f"no real-time scheduling: {problem}",)
        for text in self.problems:
            self._warn(text)

    def _stop_after(self, problem: Exception) -> None:
        """Latch a safe stop after a failed tick, and let a period pass."""
        self.failures += 1
        self.problem = f"a tick failed: {type(problem).__name__}: {problem}"
        self._warn(f"{self.problem}; safe stop until reset")
        _logger.error("a tick failed", exc_info=problem)
        with self._condition:
            self.core.stop()
        time.sleep(self.core.config.period_ns * 1e-9)

    def _tick_lockstep(self) -> bool:
        with self._condition:
            self._condition.wait_for(
                lambda: (
                    not self.running
                    or self._is_ready()
                    or self._missed_ns() is not None
                )
            )
            if not self.running:
                return False
            missed_ns = self._missed_ns()
            proposal = None if missed_ns is not None else self._take()
            output = self.core.tick(self._now_ns(proposal), proposal, missed_ns)
        self._finish(output, time.monotonic_ns())
        return True

    def _tick_real_time(self) -> bool:
        with self._condition:
            while self.running and not self._is_due():
                self._condition.wait(self._wait_s())
            if not self.running:
                return False
            tick_ns = time.monotonic_ns()
            output = self.core.tick(self._clock_ns(), self._take(), tick_ns)
        self._finish(output, tick_ns)
        self._quiet.after_tick(tick_ns)
        return True

    def _take(self) -> ActionProposal | None:
        proposal, self._pending = self._pending, None
        return proposal

    def _is_ready(self) -> bool:
        return self._pending is not None and self.core.ready(self._pending)

    def _missed_ns(self) -> int | None:
        """Lockstep: stamp [ns] of a tick that the clock has gone past without a proposal.

        Between episodes no proposal is missed, unless a base still has to come to rest.
        """
        last_ns, period_ns = self.core.state.last_tick_ns, self.core.config.period_ns
        idle = self.core.state.mode == GuardMode.IDLE and not self.core.moves()
        if last_ns is None or idle:
            return None
        if 2 * (self._sim_ns - last_ns) <= 3 * period_ns:
            return None
        # Of a long gap only the end is gone through tick by tick.
        stopped_ns = self._sim_ns - (self.core.config.hold_ticks + 1) * period_ns
        return max(last_ns + period_ns, stopped_ns)

    def _now_ns(self, proposal: ActionProposal | None) -> int:
        """Lockstep: sensors may overtake the clock that was published with them."""
        return (
            self._sim_ns if proposal is None else max(self._sim_ns, proposal.stamp_ns)
        )

    def _is_due(self) -> bool:
        """Real time: a proposal can be answered, or a tick is due without one."""
        if self._is_ready():
            return True
        due_ns = self._due_ns()
        return due_ns is not None and time.monotonic_ns() >= due_ns

    def _due_ns(self) -> int | None:
        """When to tick with what is there [ns, monotonic]; None before the first proposal."""
        deadline_ns = self.core.deadline_ns()
        if self._pending is None:
            return deadline_ns
        if deadline_ns is None:
            return self._give_up_ns
        return min(self._give_up_ns, deadline_ns)

    def _wait_s(self) -> float | None:
        due_ns = self._due_ns()
        if due_ns is None:
            return None
        return max(0.0, (due_ns - time.monotonic_ns()) * 1e-9)

    def _finish(self, output: GuardOutput, tick_ns: int) -> None:
        self._send(output)
        report = output.report
        moved = output.commands and report.source != ActionSource.SAFE
        if moved and report.observation_stamp_ns and not self.core.lockstep:
            latency_ns = self._clock_ns() - report.observation_stamp_ns
            report = replace(report, latency_ns=latency_ns)
        self._report(report)
        if report.is_row and self._log is not None:
            self._log.row(report)
        self.timing.tick(tick_ns, report)
        self.reason = output.reason

    def _come_to_rest(self) -> None:
        """Real time: stop ticks until no velocity is left, for REST_S at most."""
        core = self.core
        if core.lockstep:
            return
        deadline = time.monotonic() + REST_S
        while core.moves() and time.monotonic() < deadline:
            core.stop()
            self._finish(
                core.tick(self._clock_ns(), None, time.monotonic_ns()),
                time.monotonic_ns(),
            )
            time.sleep(core.config.period_ns * 1e-9)
