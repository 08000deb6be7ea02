# SPDX-License-Identifier: Apache-2.0
"""Jitter of the control tick: how evenly ticks follow each other, and how late they start.

Ours: the policy node's control thread with policy and guard cores, fed with sensor values by a second
thread, ONNX sampler included. Baseline: a bare loop that only sleeps until the same absolute
deadlines, which shows what the machine itself allows. Both run in turns. Jitter is the absolute
difference of a tick's period to the control period. With --ros the real-time graph of separate
processes (plant, guard, policy, stream) is measured too, from the files its nodes leave.
Ratio = ours / baseline (p99).
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from made_up import random_artifact
from measuring import machine, report

from qam_ros.contract.artifact import Artifact, write_artifact
from qam_ros.contract.interface import RobotInterface, load_interface
from qam_ros.contract.messages import ActionProposal, EpisodeEvent
from qam_ros.contract.transition import EpisodeKind
from qam_ros.nodes.policy_control import PolicyControl
from qam_ros.runtime.guard_config import guard_config
from qam_ros.runtime.guard_core import GuardCore
from qam_ros.runtime.policy import PolicyCore
from qam_ros.runtime.sampler import OnnxSampler
from qam_ros.runtime.timing import periods, read_timing

WIDTHS = (256, 256)
Values = np.ndarray[tuple[int], np.dtype[np.float64]]


def sensor_values(interface: RobotInterface) -> dict[str, dict[str, Values]]:
    """A resting robot: every field of every topic."""
    values: dict[str, dict[str, Values]] = {}
    sources = [(b.source, b.raw_size) for b in interface.observation]
    for source, size in sources:
        field = np.full(size, 0.3)
        values.setdefault(source.topic, {})[source.field] = field
    return values


def run_bare(period_ns: int, seconds: float) -> tuple[Values, Values]:
    """Periods and lateness [ns] of a loop that does nothing but sleep."""
    start_ns = time.monotonic_ns() + period_ns
    ticks, late = [], []
    for index in range(round(seconds * 1e9 / period_ns)):
        deadline_ns = start_ns + index * period_ns
        time.sleep(max(0, deadline_ns - time.monotonic_ns()) * 1e-9)
        ticks.append(time.monotonic_ns())
        late.append(ticks[-1] - deadline_ns)
    return _periods(np.array(ticks)), np.array(late, dtype=float)


def run_control(artifact: Artifact, seconds: float) -> tuple[Values, Values, Values]:
    """Periods, lateness and work [ns] of the control thread with policy and guard."""
    interface = artifact.interface
    period_ns = round(interface.control_period_s * 1e9)
    guard = GuardCore(guard_config(interface), lockstep=False)
    work: list[int] = []

    def publish(proposal: ActionProposal) -> None:
        now_ns = time.monotonic_ns()
        guard.tick(now_ns, proposal, now_ns)
        work.append(time.monotonic_ns() - now_ns + control.core.sample_ns)

    control = PolicyControl(
        PolicyCore(artifact, OnnxSampler(artifact), 0, lockstep=False),
        publish=publish,
        swapped=lambda _swap: None,
        bad_chunk=lambda: None,
        clock_ns=time.monotonic_ns,
        lockstep=False,
        phase_offset_ns=period_ns // 5,
    )
    stop = threading.Event()
    values = sensor_values(interface)

    def feed() -> None:
        stamp_ns = time.monotonic_ns()
        flags = {"terminated": False, "truncated": False, "success": False}
        event = EpisodeEvent(
            stamp_ns=stamp_ns,
            episode=1,
            kind=EpisodeKind.START,
            steps=0,
            episode_return=0.0,
            **flags,
        )
        control.on_event(event)
        guard.on_event(event)
        while not stop.wait(max(0, stamp_ns - time.monotonic_ns()) * 1e-9):
            guard.on_measured(stamp_ns, values)
            control.on_observation(stamp_ns, values)
            stamp_ns += period_ns

    feeder = threading.Thread(target=feed)
    feeder.start()
    control.start()
    time.sleep(seconds)
    control.stop()
    stop.set()
    feeder.join()
    with tempfile.TemporaryDirectory() as folder:
        control.timing.write(Path(folder))
        series = read_timing(Path(folder) / "policy_timing.npz")
    lateness = series["lateness_ns"].astype(float)
    return _periods(series["tick_ns"]), lateness, np.array(work, float)


def run_graph(artifact: Artifact, seconds: float) -> tuple[Values, Values, Values]:
    """Periods, lateness and observation-to-command latency [ns] of the graph on ROS 2."""
    with tempfile.TemporaryDirectory() as folder:
        write_artifact(
            Path(folder) / "artifact",
            artifact.manifest,
            artifact.onnx_bytes,
            artifact.weights,
            artifact.golden,
        )
        run_dir = Path(folder) / "run"
        arguments = {
            "artifact": f"{folder}/artifact",
            "run_dir": str(run_dir),
            "pace": "realtime",
            "learn": "false",
        }
        program = "import sys; from qam_ros.cli import main; sys.exit(main())"
        command = ["-c", program, "up", "sim_finetune"]
        command += [f"{name}:={value}" for name, value in arguments.items()]
        process = subprocess.Popen([sys.executable, *command])
        try:
            wait_for_ticks(run_dir, 60.0)
            time.sleep(seconds)
        finally:
            process.terminate()
            process.wait(30.0)
        policy = read_timing(run_dir / "policy_timing.npz")
        guard = read_timing(run_dir / "guard_timing.npz")
    kept = slice(40, None)  # discovery and first chunks
    return (
        _periods(policy["tick_ns"])[kept],
        policy["lateness_ns"][kept].astype(float),
        guard["latency_ns"][kept].astype(float),
    )


def _periods(ticks_ns: np.ndarray[Any, Any]) -> Values:
    return periods(ticks_ns.astype(np.int64)).astype(float)


def wait_for_ticks(run_dir: Path, timeout_s: float) -> None:
    """Wait until the guard logs ticks.

    Raises:
        TimeoutError: it does not.
    """
    deadline_s = time.monotonic() + timeout_s
    log = run_dir / "guard.log"
    while not (log.is_file() and log.stat().st_size > 2000):
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"no ticks in {log} within {timeout_s} s")
        time.sleep(0.2)


def figures(values: Values, scale: float = 1e-3) -> tuple[float, float, float]:
    """p50, p99 and maximum."""
    p50, p99, top = np.quantile(values * scale, (0.5, 0.99, 1.0))
    return float(p50), float(p99), float(top)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="qam bench loop", description=__doc__)
    parser.add_argument("--rates", type=float, nargs="+", default=[20.0, 100.0])
    parser.add_argument("--seconds", type=float, default=10.0, help="of each variant")
    parser.add_argument("--turns", type=int, default=2, help="parts they are cut into")
    parser.add_argument("--ros", action="store_true", help="also the graph on ROS 2")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    plain = load_interface("ur5e_2f85")
    rows: list[tuple[object, ...]] = []
    for rate in arguments.rates:
        interface = dataclasses.replace(plain, control_period_s=1 / rate)
        artifact = random_artifact(interface, WIDTHS)
        period_ns = round(1e9 / rate)
        part_s = arguments.seconds / arguments.turns
        bare, ours = [], []
        gc.collect()
        for _ in range(arguments.turns):
            bare.append(run_bare(period_ns, part_s))
            ours.append(run_control(artifact, part_s))
        jitter = [
            np.abs(np.concatenate([x[0] for x in xs]) - period_ns)
            for xs in (bare, ours)
        ]
        late = [np.concatenate([x[1] for x in xs]) for xs in (bare, ours)]
        for name, (base, mine) in (("jitter", jitter), ("lateness", late)):
            base_figures = figures(base)
            rows.append((rate, name, "baseline: bare sleep", *base_figures, 1.0))
            found = figures(mine)
            rows.append(
                (rate, name, "policy and guard", *found, found[1] / base_figures[1])
            )
        work = figures(np.concatenate([x[2] for x in ours]))
        rows.append((rate, "sampler + guard", "policy and guard", *work, None))
    if arguments.ros:
        rows += _graph_rows(random_artifact(plain, WIDTHS), arguments.seconds)
    columns = (
        "rate [Hz]",
        "what",
        "variant",
        "p50 [us]",
        "p99 [us]",
        "max [us]",
        "ratio p99",
    )
    about = machine("onnxruntime", "numpy") | {"seconds": arguments.seconds}
    title = "Control tick, ur5e_2f85, net 2 x 256, no real-time scheduling"
    report(title, about, columns, rows, as_json=arguments.json)
    return 0


def _graph_rows(artifact: Artifact, seconds: float) -> list[tuple[object, ...]]:
    period_ns = artifact.interface.control_period_s * 1e9
    period, late, latency = run_graph(artifact, seconds)
    named = {
        "jitter": np.abs(period - period_ns),
        "lateness": late,
        "observation to command": latency,
    }
    rate = 1e9 / period_ns
    return [
        (rate, name, "ROS 2 graph, real time", *figures(values), None)
        for name, values in named.items()
    ]


if __name__ == "__main__":
    raise SystemExit(main())
