# SPDX-License-Identifier: Apache-2.0
"""How well the control loop keeps its rate: late ticks, jitter, observation to command, CPU share.

Per rate, in turns: a bare loop that sleeps to the same deadlines and does nothing else (what machine
and interpreter allow); policy and guard on the in-process bus, ONNX sampler included; policy, guard
and a light plant as processes on ROS 2. Each with ordinary scheduling and, where the user may, with
SCHED_FIFO. A tick is late when it has published its proposal more than a fifth of a period after its
deadline; deadlines that were missed altogether count as late, too. Jitter is the absolute difference of a
tick's period to the control period.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from loop_inprocess import InProcess, LoopOptions, Part, may_use, run_bare
from made_up import random_artifact
from measuring import machine, report

from qam_ros.contract.artifact import Artifact
from qam_ros.contract.interface import load_interface
from qam_ros.runtime.realtime import RealTime

BARE, BUS, ROS = "bare loop", "in-process bus", "ROS 2"
FIFO = RealTime(priority=20)
COLUMNS = (
    "rate [Hz]",
    "scheduling",
    "loop",
    "achieved [Hz]",
    "late [%]",
    "late - bare [points]",
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
  wait for late sensors DDS and the plant's process: the tick waits up to a quarter of a period.
Command is the time from an observation's stamp to the command sent; a fifth of a period of it (at most
4 ms) is the offset from stamp to deadline. CPU is of one core: control thread in-process, the whole
processes policy and guard on ROS 2."""


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
    def late_percent(self) -> float:
        """Late and missed deadlines of all deadlines [%]."""
        missed = sum(part.missed for part in self.parts)
        late = sum(part.late_ticks for part in self.parts)
        return (
            100.0 * (late + missed) / (missed + sum(len(p.ticks) for p in self.parts))
        )

    def row(self, bare: Measured) -> tuple[object, ...]:
        """Figures of the table, from "achieved" on."""
        seconds = sum(part.seconds for part in self.parts)
        jitter = [np.abs(np.diff(p.ticks) - p.period_ns) for p in self.parts]
        return (
            sum(len(part.ticks) for part in self.parts) / seconds,
            self.late_percent,
            self.late_percent - bare.late_percent,
            sum(part.missed for part in self.parts),
            *quantiles(jitter),
            *quantiles([part.latency for part in self.parts]),
            100.0 * sum(part.cpu_s for part in self.parts) / seconds,
        )


def quantiles(values: Sequence[Any]) -> tuple[float | None, ...]:
    """p50, p99 and maximum of series in nanoseconds, as microseconds; None without values."""
    together = np.concatenate([np.asarray(v, float) for v in values])
    if together.size == 0:
        return (None, None, None)
    return tuple(float(q) for q in np.quantile(together * 1e-3, (0.5, 0.99, 1.0)))


def measure(
    artifact: Artifact,
    seconds: float,
    options: LoopOptions,
    realtime: RealTime,
    *,
    ros: bool,
) -> dict[str, Callable[[Measured], None]]:
    """The loops of one rate, each as a function that measures one part."""
    period_ns = round(artifact.interface.control_period_s * 1e9)

    def on_ros(into: Measured) -> None:
        from loop_ros import run_ros  # needs rclpy's packages

        part, processes, received = run_ros(artifact, seconds, options, realtime)
        into.add(part)
        into.shares["command, at the plant"].append(received)
        for name, share in processes.items():
            into.processes[name].append(share)

    loops: dict[str, Callable[[Measured], None]] = {
        BARE: lambda into: into.add(run_bare(period_ns, seconds, realtime)),
        BUS: lambda into: into.add(InProcess(artifact, options, realtime).run(seconds)),
    }
    return loops | ({ROS: on_ros} if ros else {})


def run_rate(
    artifact: Artifact, arguments: argparse.Namespace, schedulers: dict[str, RealTime]
) -> tuple[list[tuple[object, ...]], list[tuple[object, ...]]]:
    """Rows of both tables for one rate."""
    options = LoopOptions(arguments.replan_every or None, arguments.sample_ahead)
    rate = 1.0 / artifact.interface.control_period_s
    part_s = arguments.seconds / arguments.turns
    found: dict[tuple[str, str], Measured] = defaultdict(Measured)
    for _ in range(arguments.turns):
        for scheduling, realtime in schedulers.items():
            loops = measure(
                artifact, part_s, options, realtime, ros=not arguments.no_ros
            )
            for name, loop in loops.items():
                loop(found[scheduling, name])
    rows: list[tuple[object, ...]] = []
    shares: list[tuple[object, ...]] = []
    for (scheduling, name), measured in found.items():
        bare = found[scheduling, BARE]
        rows.append((rate, scheduling, name, *measured.row(bare)))
        for share, values in measured.shares.items():
            shares.append((rate, scheduling, name, f"{share} [us]", *quantiles(values)))
        for process, cpu in measured.processes.items():
            text = f"CPU of process {process} [%]"
            figure = 100.0 * float(np.mean(cpu))
            shares.append((rate, scheduling, name, text, figure, None, None))
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
    for rate in arguments.rate:
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
        "robot": arguments.robot,
        "net": widths,
        "flow steps": arguments.steps,
        "chunk": arguments.chunk,
        "replan every": arguments.replan_every or arguments.chunk,
        "sample ahead": arguments.sample_ahead,
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
    add("--rate", type=_numbers(float), default=[50.0, 100.0, 250.0, 500.0])
    add("--seconds", type=float, default=30.0, help="of each variant")
    add("--turns", type=int, default=2, help="parts they are cut into")
    add("--robot", default="ur5e_2f85", help="its control period is replaced")
    add("--widths", type=_numbers(int), default=[256, 256], help="of the network")
    add("--steps", type=int, default=10, help="flow steps; 1 costs as a one-step head")
    add("--chunk", type=int, default=5, help="actions in a chunk")
    add("--replan-every", type=int, default=0, help="actions used of each; 0: all")
    add("--sample-ahead", action="store_true", help="sample on a thread of its own")
    add("--no-ros", action="store_true", help="only the in-process bus")
    add("--no-fifo", action="store_true", help="only ordinary scheduling")
    add("--json", action="store_true")
    return parser.parse_args(argv)


def _numbers(kind: type[Any]) -> Callable[[str], list[Any]]:
    def read(text: str) -> list[Any]:
        return [kind(part) for part in text.split(",")]

    return read


if __name__ == "__main__":
    raise SystemExit(main())
