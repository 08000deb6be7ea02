# SPDX-License-Identifier: Apache-2.0
"""The control loop without ROS, and a bare loop beside it, for `qam bench loop`."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qam_ros.contract.artifact import Artifact
from qam_ros.contract.interface import RobotInterface
from qam_ros.contract.messages import ActionProposal, EpisodeEvent
from qam_ros.contract.transition import EpisodeKind
from qam_ros.nodes.policy_control import PolicyControl
from qam_ros.runtime.bus import Bus
from qam_ros.runtime.guard_config import guard_config
from qam_ros.runtime.guard_core import GuardCore
from qam_ros.runtime.guard_types import GuardOutput
from qam_ros.runtime.phase import PhasePacer
from qam_ros.runtime.planner import ThreadPlanner
from qam_ros.runtime.policy import PolicyCore, Swap
from qam_ros.runtime.realtime import RealTime, SteadyClock, enter
from qam_ros.runtime.sampler import OnnxSampler
from qam_ros.runtime.timing import LATE, read_timing

SETTLE_S = 0.3
"""Left out at the start of every part [s]."""
Values = np.ndarray[tuple[int], np.dtype[np.float64]]


@dataclass(frozen=True)
class LoopOptions:
    """How the policy uses its chunks."""

    replan_every: int | None = None
    sample_ahead: bool = False


@dataclass(frozen=True)
class Part:
    """One stretch of ticks, all times in nanoseconds.

    Args:
        seconds: its length.
        period_ns: control period.
        deadlines: (n,) deadlines of the ticks; where one is missing, there was no tick.
        ticks: (n,) starts of the ticks.
        late: (n,) end of publication after the deadline.
        latency: (m,) observation stamp to command.
        cpu_s: CPU time of policy and guard [s].
        shares: what the time of a tick goes into, name -> values.
    """

    seconds: float
    period_ns: int
    deadlines: Values
    ticks: Values
    late: Values
    latency: Values
    cpu_s: float
    shares: Mapping[str, Values]

    @property
    def missed(self) -> int:
        """Deadlines without a tick; a tick that is late is still the tick of its own deadline."""
        gaps = np.round(np.diff(self.deadlines) / self.period_ns)
        return int((gaps - 1).clip(0).sum())

    @property
    def late_ticks(self) -> int:
        """Ticks that published more than a fifth of a period late."""
        return int((self.late * LATE > self.period_ns).sum())

    @property
    def bad(self) -> tuple[int, int]:
        """Deadlines that were not kept, late or missed, each counted once; all deadlines."""
        missed = self.missed
        return self.late_ticks + missed, len(self.ticks) + missed


def sensor_values(
    interface: RobotInterface, tick: int
) -> dict[str, dict[str, np.ndarray[tuple[int], np.dtype[np.float64]]]]:
    """A robot that hardly moves: every field of every topic."""
    values: dict[str, dict[str, Values]] = {}
    sources = [(b.source, b.raw_size) for b in interface.observation]
    for source, size in sources:
        field = np.full(size, 0.3 + 1e-3 * np.sin(0.1 * tick))
        values.setdefault(source.topic, {})[source.field] = field
    return values


def start_event(stamp_ns: int) -> EpisodeEvent:
    """The start of the only episode."""
    return EpisodeEvent(
        stamp_ns=stamp_ns,
        episode=1,
        kind=EpisodeKind.START,
        terminated=False,
        truncated=False,
        success=False,
        steps=0,
        episode_return=0.0,
    )


def may_use(realtime: RealTime) -> tuple[str, ...]:
    """Why a thread may not have what is asked for; empty if it may."""
    found: list[tuple[str, ...]] = []
    thread = threading.Thread(target=lambda: found.append(enter(realtime)))
    thread.start()
    thread.join()
    return found[0]


def run_bare(period_ns: int, seconds: float, realtime: RealTime) -> Part:
    """A loop that sleeps to the deadline and does nothing else, on a thread like the policy's."""
    ticks: list[int] = []
    deadlines: list[int] = []
    cpu: list[float] = []

    def loop() -> None:
        enter(realtime)
        clock = SteadyClock()
        start_ns = time.monotonic_ns() + period_ns
        end_ns = start_ns + round((seconds + SETTLE_S) * 1e9)
        pacer = PhasePacer(period_ns, 0, start_ns)
        while pacer.deadline_ns < end_ns:
            clock.sleep_until(pacer.deadline_ns)
            now_ns = clock.now_ns()
            ticks.append(now_ns)
            deadlines.append(pacer.deadline_ns)
            pacer.advance(now_ns, None, now_ns)
        cpu.append(time.thread_time())

    thread = threading.Thread(target=loop)
    thread.start()
    thread.join()
    kept = np.array(ticks) >= ticks[0] + SETTLE_S * 1e9
    share = cpu[0] * seconds / (seconds + SETTLE_S)
    starts, due = np.array(ticks, float)[kept], np.array(deadlines, float)[kept]
    return Part(seconds, period_ns, due, starts, starts - due, np.zeros(0), share, {})


class BusClock(SteadyClock):
    """Delivers what is on the bus before it sleeps: the guard answers when the proposal is out.

    Args:
        bus: the bus of policy and guard.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def sleep_until(self, deadline_ns: int) -> None:
        """Deliver, then wait for a monotonic time [ns]."""
        self._bus.spin()
        super().sleep_until(deadline_ns)


class InProcess:
    """Policy and guard on the in-process bus and one thread; a second thread plays the robot.

    Args:
        artifact: the policy, with the control period to measure.
        options: how it uses its chunks.
        realtime: what the control thread asks of the system.
        swapped: told of every exchange of weights, on the control thread.
    """

    def __init__(
        self,
        artifact: Artifact,
        options: LoopOptions,
        realtime: RealTime,
        swapped: Callable[[Swap], None] = lambda _: None,
    ) -> None:
        self.interface = artifact.interface
        self._realtime = realtime
        self.period_ns = round(self.interface.control_period_s * 1e9)
        self.commands: list[tuple[int, int]] = []
        self._cpu: list[tuple[int, float]] = []
        self._guard = GuardCore(guard_config(self.interface), lockstep=False)
        self._bus = Bus()
        self._bus.subscribe("action_proposal", self._on_proposal)
        self._bus.subscribe("command", self._on_command)
        sampler = OnnxSampler(artifact)
        self._planner = None
        if options.sample_ahead:
            below = realtime.below()
            self._planner = ThreadPlanner(sampler, lambda: enter(below))
        core = PolicyCore(
            artifact,
            sampler,
            0,
            lockstep=False,
            align=True,
            replan_every=options.replan_every,
            planner=self._planner,
        )
        self.control = PolicyControl(
            core,
            publish=self._publish,
            swapped=swapped,
            bad_chunk=lambda: None,
            clock_ns=time.monotonic_ns,
            lockstep=False,
            phase_offset_ns=self.period_ns // LATE,
            realtime=realtime,
            steady=BusClock(self._bus),
        )

    def run(self, seconds: float) -> Part:
        """Run for some time and give the ticks after the first moments."""
        stop = threading.Event()
        robot = threading.Thread(target=self._play_robot, args=(stop,))
        robot.start()
        self.control.start()
        started_ns = time.monotonic_ns()
        time.sleep(seconds + SETTLE_S)
        self.control.stop()
        stop.set()
        robot.join()
        if self._planner is not None:
            self._planner.close()
        with tempfile.TemporaryDirectory() as folder:
            self.control.timing.write(Path(folder))
            series = read_timing(Path(folder) / "policy_timing.npz")
        from_ns = started_ns + round(SETTLE_S * 1e9)
        sent = np.array([t for t, _ in self.commands])
        latency = np.array([n for _, n in self.commands], float)[sent >= from_ns]
        cpu = [spent for at_ns, spent in self._cpu if at_ns >= from_ns]
        return part_of(
            series, from_ns, seconds, self.period_ns, latency, cpu[-1] - cpu[0]
        )

    def _publish(self, proposal: ActionProposal) -> None:
        self._bus.publish("action_proposal", proposal)
        self._cpu.append((time.monotonic_ns(), time.thread_time()))

    def _on_proposal(self, proposal: ActionProposal) -> None:
        now_ns = time.monotonic_ns()
        output = self._guard.tick(now_ns, proposal, now_ns)
        if output.commands:
            self._bus.publish("command", output)

    def _on_command(self, output: GuardOutput) -> None:
        now_ns = time.monotonic_ns()
        self.commands.append((now_ns, now_ns - output.stamp_ns))

    def _play_robot(self, stop: threading.Event) -> None:
        enter(self._realtime.below())
        stamp_ns = time.monotonic_ns()
        for listener in (self.control, self._guard):
            listener.on_event(start_event(stamp_ns))
        tick = 0
        while not stop.is_set():
            SteadyClock().sleep_until(stamp_ns)
            values = sensor_values(self.interface, tick)
            self._guard.on_measured(stamp_ns, values)
            self.control.on_observation(stamp_ns, values)
            stamp_ns += self.period_ns
            tick += 1


def part_of(
    series: Mapping[str, np.ndarray[Any, Any]],
    from_ns: int,
    seconds: float,
    period_ns: int,
    latency: Values,
    cpu_s: float,
) -> Part:
    """The part of a policy's timing that begins at a time [ns, monotonic]."""
    end_ns = from_ns + round(seconds * 1e9)
    kept = (series["tick_ns"] >= from_ns) & (series["tick_ns"] < end_ns)
    woke = series["lateness_ns"][kept].astype(float)
    waited = series["sensor_wait_ns"][kept].astype(float)
    late = series["publish_lateness_ns"][kept].astype(float)
    shares = {
        "wake-up after the deadline": woke,
        "taking in sensors": waited,
        "sampling, publishing": late - woke - waited,
        "sampling a chunk": series["sample_ns"].astype(float),
    }
    ticks = series["tick_ns"][kept].astype(float)
    due = ticks - woke - waited
    return Part(seconds, period_ns, due, ticks, late, latency, cpu_s, shares)
