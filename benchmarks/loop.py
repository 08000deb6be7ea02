# SPDX-License-Identifier: Apache-2.0
"""How well the control loop keeps its rate: late ticks, jitter, observation to command, CPU share.

Per rate, in short turns whose order rotates: a bare loop that sleeps to the same deadlines and does
nothing else (what machine and interpreter allow); policy and guard on the in-process bus, ONNX sampler
included; policy, guard and a light plant as processes on ROS 2, started once and stopped between their
turns. Each with ordinary scheduling and, where the user may, with SCHED_FIFO. A tick is late when it
has published its proposal more than a fifth of a period after its deadline; deadlines that were missed
altogether count as late, too, and no deadline counts twice. The difference of the shares to the baseline
has a 95 % interval: bootstrap over the turns. Jitter is the absolute difference of a tick's period to
the control period. With --swaps N the loop on the in-process bus runs with and without N exchanges of
weights, each of which comes in parts, is put together, hashed and judged on threads beside the loop.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np
from loop_inprocess import InProcess, LoopOptions, Part, may_use, run_bare
from loop_swaps import SwapLoop
from made_up import random_artifact
from measuring import machine, report

from qam_ros.contract.artifact import Artifact
from qam_ros.contract.interface import load_interface
from qam_ros.runtime.realtime import RealTime

BARE, BUS, ROS = "bare loop", "in-process bus", "ROS 2"
SWAPS = "in-process bus, swaps"
BOOTSTRAPS = 2000
FIFO = RealTime(priority=20)
COLUMNS = (
    "rate [Hz]",
    "scheduling",
    "loop",
    "achieved [Hz]",
    "late [%]",
    "baseline",
    "late - baseline [points]",
    "from",
    "to",
    "missed",
    "jitter p50 [us]",
    "jitter p99 [us]",
    "jitter max [us]",
    "command p50 [us]",
    "command p99 [us]",
    "command max [us]",
    "CPU [%]",
)
SHARE_COLUMNS = (
    "rate [Hz]",
    "scheduling",
    "loop",
    "time goes into",
    "p50",
    "p99",
    "max",
)
LIMITS = """What limits what:
  bare loop             wake-up of a sleeping thread: the kernel and what else runs on the machine.
  in-process - bare     ours: sampler, guard, assembly of messages, and the interpreter lock that the
                        control thread shares with the thread that plays the robot.
  ROS 2 - in-process    rclpy: conversion and serialisation of messages, DDS threads, and an executor
                        thread that takes the interpreter lock for every message that comes in.
  taking in sensors     rclpy: the messages of all topics that have come are read at the deadline.
Command is the time from an observation's stamp to the command sent, on ROS 2 to its arrival at the
plant; a fifth of a period of it (at most 4 ms) is the offset from stamp to deadline. CPU is of one core:
control thread in-process, the whole processes policy and guard on ROS 2."""


@dataclasses.dataclass
class Measured:
    """Parts of one variant, and what was seen of other processes."""

    parts: list[Part] = dataclasses.field(default_factory=list)
    shares: dict[str, list[Any]] = dataclasses.field(
        default_factory=lambda: defaultdict(list)
    )
    processes: dict[str, list[float]] = dataclasses.field(
        default_factory=lambda: defaultdict(list)
    )

    def add(self, part: Part) -> None:
        """Take in a part."""
        self.parts.append(part)
        for name, values in part.shares.items():
            self.shares[name].append(values)

    @property
    def bad(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Deadlines not kept and all deadlines, of each turn; (turns, 2)."""
        return np.array([part.bad for part in self.parts], float)

    def row(self, baseline: str, bare: Measured) -> tuple[object, ...]:
        """Figures of the table, from "achieved" on."""
        seconds = sum(part.seconds for part in self.parts)
        jitter = [np.abs(np.diff(p.ticks) - p.period_ns) for p in self.parts]
        return (
            sum(len(part.ticks) for part in self.parts) / seconds,
            float(late_percent(self.bad)),
            baseline,
            *late_difference(self.bad, bare.bad),
            sum(part.missed for part in self.parts),
            *quantiles(jitter),
            *quantiles([part.latency for part in self.parts]),
            100.0 * sum(part.cpu_s for part in self.parts) / seconds,
        )


def late_percent(bad: Any) -> Any:
    """Share of deadlines not kept [%]; (..., turns, 2) -> (...)."""
    kept, every = bad.sum(-2)[..., 0], bad.sum(-2)[..., 1]
    return 100.0 * kept / np.maximum(every, 1.0)


def late_difference(bad: Any, baseline: Any) -> tuple[float, float, float]:
    """Difference of the shares of deadlines not kept [points], and its 95 % interval.

    The interval is that of a bootstrap over turns; a turn and the baseline's turn beside it go
    together, because the machine's load is theirs alike.

    Args:
        bad: (turns, 2) deadlines not kept, all deadlines.
        baseline: the same of the baseline.
    """
    turns = len(bad)
    drawn = np.random.default_rng(0).integers(turns, size=(BOOTSTRAPS, turns))
    many = late_percent(bad[drawn]) - late_percent(baseline[drawn])  # (BOOTSTRAPS,)
    low, high = np.quantile(many, (0.025, 0.975))
    return (
        float(late_percent(bad) - late_percent(baseline)),
        float(low),
        float(high),
    )


def quantiles(values: Sequence[Any]) -> tuple[float | None, ...]:
    """p50, p99 and maximum of series in nanoseconds, as microseconds; None without values."""
    together = np.concatenate([np.asarray(v, float) for v in values])
    if together.size == 0:
        return (None, None, None)
    return tuple(float(q) for q in np.quantile(together * 1e-3, (0.5, 0.99, 1.0)))


Turn = Callable[[], None]


@contextmanager
def open_loops(
    artifact: Artifact, arguments: argparse.Namespace, realtime: RealTime
) -> Iterator[tuple[dict[str, Turn], Mapping[str, Measured]]]:
    """The loops of one rate and scheduling: one turn of each, and what they measure.

    What is measured on ROS 2 is there when the context is left.
    """
    seconds = arguments.seconds / arguments.turns
    options = LoopOptions(arguments.replan_every or None, arguments.sample_ahead)
    period_ns = round(artifact.interface.control_period_s * 1e9)
    found: dict[str, Measured] = defaultdict(Measured)
    loops: dict[str, Turn] = {
        BARE: lambda: found[BARE].add(run_bare(period_ns, seconds, realtime)),
        BUS: lambda: found[BUS].add(
            InProcess(artifact, options, realtime).run(seconds)
        ),
    }
    if arguments.swaps:
        count = -(-arguments.swaps // arguments.turns)
        swaps = SwapLoop(artifact, options, realtime, count)
        loops[SWAPS] = lambda: found[SWAPS].add(swaps.run(seconds))
    if arguments.no_ros or arguments.swaps:
        yield loops, found
        return
    from loop_ros import RosLoop  # needs rclpy's packages

    ros = RosLoop(artifact, options, realtime)
    try:
        yield loops | {ROS: lambda: ros.run(seconds)}, found
        for part, processes in ros.finish():
            found[ROS].add(part)
            for name, share in processes.items():
                found[ROS].processes[name].append(share)
    finally:
        ros.close()


def run_rate(
    artifact: Artifact, arguments: argparse.Namespace, schedulers: dict[str, RealTime]
) -> tuple[list[tuple[object, ...]], list[tuple[object, ...]]]:
    """Rows of both tables for one rate."""
    rate = 1.0 / artifact.interface.control_period_s
    rows: list[tuple[object, ...]] = []
    shares: list[tuple[object, ...]] = []
    for scheduling, realtime in schedulers.items():
        with open_loops(artifact, arguments, realtime) as (loops, found):
            names = list(loops)
            for turn in range(arguments.turns):
                first = turn % len(names)
                for name in names[first:] + names[:first]:
                    loops[name]()
        for name in names:
            measured, baseline = found[name], BUS if name == SWAPS else BARE
            head = (rate, scheduling, name)
            rows.append((*head, *measured.row(baseline, found[baseline])))
            for share, values in measured.shares.items():
                shares.append((*head, f"{share} [us]", *quantiles(values)))
            for process, cpu in measured.processes.items():
                text, figure = f"CPU of process {process} [%]", float(np.mean(cpu))
                shares.append((*head, text, 100.0 * figure, None, None))
    return rows, shares


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    arguments = _arguments(argv)
    schedulers = {"ordinary": RealTime()}
    refused = may_use(FIFO)
    if not refused and not arguments.no_fifo:
        schedulers["FIFO 20"] = FIFO
    plain = load_interface(arguments.robot)
    rows: list[tuple[object, ...]] = []
    shares: list[tuple[object, ...]] = []
    if arguments.swaps and not arguments.replan_every:
        arguments.replan_every = 1  # weights change between chunks: let there be many
    for rate in chain.from_iterable(arguments.rate):
        interface = dataclasses.replace(plain, control_period_s=1 / rate)
        artifact = random_artifact(
            interface, arguments.widths, arguments.chunk, arguments.steps
        )
        more_rows, more_shares = run_rate(artifact, arguments, schedulers)
        rows += more_rows
        shares += more_shares
    widths = " x ".join(map(str, arguments.widths))
    about = machine("onnxruntime", "numpy") | {
        "seconds": arguments.seconds,
        "turns": arguments.turns,
        "robot": arguments.robot,
        "net": widths,
        "flow steps": arguments.steps,
        "chunk": arguments.chunk,
        "replan every": arguments.replan_every or arguments.chunk,
        "sample ahead": arguments.sample_ahead,
        "swaps asked for": arguments.swaps,
        "fifo": "; ".join(refused) or ("left out" if arguments.no_fifo else "granted"),
    }
    if arguments.json:
        about["where the time goes"] = [
            dict(zip(SHARE_COLUMNS, row, strict=True)) for row in shares
        ]
        about["limits"] = LIMITS
    report("Control loop", about, COLUMNS, rows, as_json=arguments.json)
    if not arguments.json:
        print()
        report("Where the time goes", {}, SHARE_COLUMNS, shares, as_json=False)
        print(LIMITS)
    return 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="qam bench loop", description=__doc__)
    add = parser.add_argument
    rates = [[50.0, 100.0, 250.0, 500.0]]
    add("--rate", type=_numbers(float), nargs="+", default=rates, help="[Hz]")
    add("--seconds", type=float, default=30.0, help="of each variant")
    add("--turns", type=int, default=12, help="parts they are cut into")
    add("--robot", default="ur5e_2f85", help="its control period is replaced")
    add("--widths", type=_numbers(int), default=[256, 256], help="of the network")
    add("--steps", type=int, default=10, help="flow steps; 1 costs as a one-step head")
    add("--chunk", type=int, default=5, help="actions in a chunk")
    add("--replan-every", type=int, default=0, help="actions used of each; 0: all")
    add("--sample-ahead", action="store_true", help="sample on a thread of its own")
    add("--swaps", type=int, default=0, help="exchanges of weights, without ROS")
    add("--no-ros", action="store_true", help="only the in-process bus")
    add("--no-fifo", action="store_true", help="only ordinary scheduling")
    add("--json", action="store_true")
    return parser.parse_args(argv)


def _numbers(kind: type[Any]) -> Callable[[str], list[Any]]:
    def read(text: str) -> list[Any]:
        return [kind(part) for part in text.split(",") if part]

    return read


if __name__ == "__main__":
    raise SystemExit(main())
