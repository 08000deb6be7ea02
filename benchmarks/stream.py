# SPDX-License-Identifier: Apache-2.0
"""Transition stream: rows per second from spool to committed replay, and what a tick costs.

The stream node runs as its own process on a spool that is full; this process is the learner's end and
commits every batch with an fsync before it answers, over DDS on the loopback. Baselines: the same two
ends in one process without DDS, and the same way with one row a batch and a transaction. The cost of
a tick is the CPU time of the whole stream process while ticks come at a fixed rate. Promises: at least
10,000 rows/s, and less than 1 ms of CPU a tick beyond idling.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from measuring import machine, report
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node

from qam_ros.contract import messages
from qam_ros.contract.interface import RobotInterface, load_interface
from qam_ros.contract.transition import (
    ActionSource,
    GuardMode,
    Rows,
    transition_dtype,
)
from qam_ros.nodes import qos
from qam_ros.nodes.convert import from_ros, ros_type, to_ros
from qam_ros.runtime.bringup import find_executable
from qam_ros.runtime.store import TransitionStore
from qam_ros.runtime.stream import Downlink, Uplink, UplinkConfig

BATCH = 256


def random_rows(interface: RobotInterface, count: int) -> Rows:
    """Rows with values everywhere; one guard session."""
    generator = np.random.default_rng(0)
    rows = np.zeros(count, transition_dtype(interface))
    rows["seq"] = np.arange(count)
    for name in ("observation", "proposed", "executed", "next_observation"):
        rows[name] = generator.uniform(-1, 1, rows[name].shape)
    return rows


def fill(folder: Path, interface: RobotInterface, rows: Rows) -> None:
    """A spool that holds the rows."""
    with TransitionStore(folder / "spool.sqlite", interface) as store:
        store.append(rows)


class Learner(Node):
    """Receiving end: commits, then answers; notes when."""

    def __init__(self, namespace: str, path: Path, interface: RobotInterface) -> None:
        super().__init__("bench", namespace=namespace)
        self.store = TransitionStore(path, interface, synchronous="FULL")
        self.downlink = Downlink(self.store, interface.robot)
        self.first, self.begin_s, self.end_s = 0, 0.0, 0.0
        kind = ros_type(messages.TransitionAck)
        self.acks = self.create_publisher(kind, "transition_ack", qos.ACK)
        kind = ros_type(messages.TransitionBatch)
        self.create_subscription(kind, "transition_batch", self.receive, qos.BATCH)

    def receive(self, message: object) -> None:
        """Take a batch; the clock begins behind the first."""
        receipt = self.downlink.receive(from_ros(message, messages.TransitionBatch))
        self.acks.publish(to_ros(receipt.ack))
        self.end_s = time.perf_counter()
        if not self.begin_s:
            self.first, self.begin_s = self.store.last_position, self.end_s


@dataclass
class Process:
    """The stream node as a process of its own."""

    folder: Path
    robot: str
    batch_rows: int
    namespace: str = ""

    def __enter__(self) -> subprocess.Popen[bytes]:
        self.namespace = f"/bench_{os.getpid()}_{time.monotonic_ns()}"
        settings = {
            "robot": self.robot,
            "run_dir": self.folder,
            "batch_rows": self.batch_rows,
        }
        command = [
            find_executable("stream_node"),
            "--ros-args",
            "-r",
            f"__ns:={self.namespace}",
        ]
        for name, value in settings.items():
            command += ["-p", f"{name}:={value}"]
        self.process = subprocess.Popen(command)
        return self.process

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(10)


def over_dds(interface: RobotInterface, rows: Rows, batch_rows: int) -> float:
    """Rows per second through the real node."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fill(folder, interface, rows)
        process = Process(folder, interface.robot, batch_rows)
        with process:
            learner = Learner(process.namespace, folder / "replay.sqlite", interface)
            spin(learner, lambda: learner.store.last_position == rows.size)
            learner.store.close()
            learner.destroy_node()
        return (rows.size - learner.first) / (learner.end_s - learner.begin_s)


def in_process(interface: RobotInterface, rows: Rows) -> float:
    """Rows per second from store to store without DDS."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fill(folder, interface, rows)
        spool = TransitionStore(folder / "spool.sqlite", interface)
        replay = TransitionStore(
            folder / "replay.sqlite", interface, synchronous="FULL"
        )
        uplink = Uplink(spool, interface.robot, UplinkConfig(BATCH))
        downlink = Downlink(replay, interface.robot)
        begin_s = time.perf_counter()
        while replay.last_position < rows.size:
            for batch in uplink.poll(time.monotonic_ns()):
                uplink.acknowledge(downlink.receive(batch).ack, time.monotonic_ns())
        elapsed_s = time.perf_counter() - begin_s
        spool.close()
        replay.close()
        return rows.size / elapsed_s


def spin(node: Node, done: Callable[[], bool], timeout_s: float = 120.0) -> None:
    """Run callbacks until something holds."""
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    deadline = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > deadline:
            sys.exit("the stream did not deliver in time; see the node's output above")
        executor.spin_once(timeout_sec=0.05)
    executor.remove_node(node)
    executor.shutdown()


def tick_messages(interface: RobotInterface, tick: int, stamp_ns: int) -> list[Any]:
    """Proposal, report and reward of one tick."""
    at: dict[str, Any] = {"stamp_ns": stamp_ns, "episode": 1, "step": tick}
    policy = b"p" * 16
    action = np.zeros(interface.action_size, np.float32)
    proposal = messages.ActionProposal(
        **at,
        policy_session=policy,
        tick=tick,
        observation=np.zeros(interface.observation_size, np.float32),
        ages_s=np.zeros(len(interface.observation), np.float32),
        action=action,
        policy_version=1,
        chunk_id=tick,
        chunk_index=0,
    )
    guard = messages.GuardReport(
        **at,
        session=b"g" * 16,
        tick=tick,
        is_row=True,
        seq=tick,
        policy_session=policy,
        policy_tick=tick,
        observation_stamp_ns=stamp_ns,
        mode=GuardMode.ACTIVE,
        source=ActionSource.POLICY,
        limit_bits=0,
        masked=False,
        executed=action,
        latency_ns=0,
    )
    reward = messages.StepReward(**at, reward=0.0, terminated=False, truncated=False)
    return [proposal, guard, reward]


def cpu_per_tick_ms(
    interface: RobotInterface, rate_hz: float, ticks: int
) -> tuple[float, float]:
    """CPU time of the stream process for each tick that comes in: in all, and beyond idling [ms]."""
    with tempfile.TemporaryDirectory() as name:
        process = Process(Path(name), interface.robot, BATCH)
        with process as child:
            learner = Learner(
                process.namespace, Path(name) / "replay.sqlite", interface
            )
            publishers = [
                learner.create_publisher(ros_type(kind), topic, qos.HISTORY)
                for kind, topic in (
                    (messages.ActionProposal, "action_proposal"),
                    (messages.GuardReport, "guard_report"),
                    (messages.StepReward, "step_reward"),
                )
            ]
            spin(learner, lambda: all(p.get_subscription_count() for p in publishers))
            time.sleep(1.0)  # discovery of the other topics is not part of a tick
            idle_s = cpu_seconds(child.pid)
            time.sleep(5.0)
            idle_s = (cpu_seconds(child.pid) - idle_s) / 5.0
            period_ns = round(interface.control_period_s * 1e9)
            begin_s, cpu_s = time.monotonic(), cpu_seconds(child.pid)
            for tick in range(ticks):
                for publisher, message in zip(
                    publishers,
                    tick_messages(interface, tick, (tick + 1) * period_ns),
                    strict=True,
                ):
                    publisher.publish(to_ros(message))
                spin(learner, partial(passed, begin_s + tick / rate_hz))
            spin(learner, lambda: learner.store.last_position == ticks - 1)
            cpu_s = cpu_seconds(child.pid) - cpu_s
            learner.store.close()
            learner.destroy_node()
        return 1e3 * cpu_s / ticks, 1e3 * (cpu_s / ticks - idle_s / rate_hz)


def passed(deadline_s: float) -> bool:
    """Whether a monotonic time is over."""
    return time.monotonic() >= deadline_s


def cpu_seconds(pid: int) -> float:
    """User and system time of a process [s]."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="qam bench stream", description=__doc__)
    parser.add_argument("--robot", default="ur5e_2f85")
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    interface = load_interface(arguments.robot)
    rows = random_rows(interface, arguments.rows)
    few = rows[: max(arguments.rows // 30, 1000)]
    rclpy.init()
    measured: dict[str, list[float]] = {}
    for _ in range(arguments.repeats):
        for name, rate in (
            (f"DDS, {BATCH} rows a batch", over_dds(interface, rows, BATCH)),
            ("DDS, one row a batch", over_dds(interface, few, 1)),
            (f"one process, {BATCH} rows a batch", in_process(interface, rows)),
        ):
            measured.setdefault(name, []).append(rate)
    ours, *_ = medians = {
        name: statistics.median(rates) for name, rates in measured.items()
    }
    table = [
        (name, rate, min(measured[name]), max(measured[name]), medians[ours] / rate)
        for name, rate in medians.items()
    ]
    rate_hz = 1 / interface.control_period_s
    cost_ms, own_ms = cpu_per_tick_ms(interface, rate_hz, round(15 * rate_hz))
    rclpy.shutdown()
    about = machine("rclpy", "numpy") | {
        "row": f"{rows.dtype.itemsize} bytes",
        "repeats": arguments.repeats,
        "stream process": f"{cost_ms:.2f} ms of CPU a tick at {rate_hz:g} Hz, "
        f"{own_ms:.2f} ms beyond idling",
    }
    columns = ("way", "rows/s (median)", "least", "most", "ours / this")
    report("Spool to committed replay", about, columns, table, as_json=arguments.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
