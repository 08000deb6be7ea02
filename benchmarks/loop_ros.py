# SPDX-License-Identifier: Apache-2.0
"""The control loop on ROS 2: policy, guard and a light plant as processes, for `qam bench loop`."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from loop_inprocess import LoopOptions, Part, part_of

from qam_ros.contract.artifact import Artifact, write_artifact
from qam_ros.contract.errors import ConfigError
from qam_ros.contract.interface_yaml import write_interface
from qam_ros.contract.reading import dump_yaml
from qam_ros.runtime.bringup import bringup_folder, find_executable
from qam_ros.runtime.child import Child
from qam_ros.runtime.realtime import RealTime
from qam_ros.runtime.timing import read_timing

START_S = 60.0
STOP_S = 15.0
RESUME_S = 0.8
"""Left out after a pause: the guard stops, and is reset [s]."""
FINISH_S = 0.1
"""After a turn: its last tick is published before the graph is stopped [s]."""
NAMES = ("plant", "guard", "policy")


class RosLoop:
    """The graph, started once and stopped by SIGSTOP between its turns: then it costs the others nothing.

    Args:
        artifact: the policy, with the control period to measure.
        options: how it uses its chunks.
        realtime: what the nodes ask of the system.

    Raises:
        TimeoutError: the guard did not begin to command.
    """

    def __init__(
        self, artifact: Artifact, options: LoopOptions, realtime: RealTime
    ) -> None:
        self._period_ns = round(artifact.interface.control_period_s * 1e9)
        self._windows: list[tuple[int, float, dict[str, float]]] = []
        with ExitStack() as stack:
            self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            self._graph = stack.enter_context(ExitStack())
            started = graph(artifact, self._folder, options, realtime)
            self._children = self._graph.enter_context(started)
            _wait_for_commands(self._folder, self._children)
            self._stack = stack.pop_all()
        self._signal(signal.SIGSTOP)

    def close(self) -> None:
        """End the graph, whatever happened."""
        self._stack.close()

    def run(self, seconds: float) -> None:
        """Let the graph run for some time, and remember when."""
        self._signal(signal.SIGCONT)
        time.sleep(RESUME_S)
        from_ns, before = time.monotonic_ns(), _cpu_s(self._children)
        time.sleep(seconds)
        shares = {
            name: (used - before[name]) / seconds
            for name, used in _cpu_s(self._children).items()
        }
        self._windows.append((from_ns, seconds, shares))
        time.sleep(FINISH_S)
        self._signal(signal.SIGSTOP)

    def finish(self) -> list[tuple[Part, Mapping[str, float]]]:
        """End the graph.

        Returns:
            Of each turn the policy's ticks, with latencies as the plant sees them; CPU share of each
            process.
        """
        self._graph.close()
        policy = read_timing(self._folder / "policy_timing.npz")
        plant = read_timing(self._folder / "loop_plant.npz")
        found: list[tuple[Part, Mapping[str, float]]] = []
        for from_ns, seconds, shares in self._windows:
            end_ns = from_ns + round(seconds * 1e9)
            received_ns = plant["received_ns"]
            kept = (received_ns >= from_ns) & (received_ns < end_ns)
            latency = plant["latency_ns"][kept].astype(float)
            cpu_s = (shares["policy"] + shares["guard"]) * seconds
            part = part_of(policy, from_ns, seconds, self._period_ns, latency, cpu_s)
            found.append((part, shares))
        return found

    def _signal(self, number: signal.Signals) -> None:
        for child in self._children.values():
            os.kill(child.pid, number)


@contextmanager
def graph(
    artifact: Artifact, folder: Path, options: LoopOptions, realtime: RealTime
) -> Iterator[dict[str, Child]]:
    """The three processes; they have written their timing when the context is left."""
    robot = folder / "robot.yaml"
    content = write_interface(artifact.interface)
    robot.write_text(dump_yaml(content, str(robot), ConfigError))
    write_artifact(
        folder / "artifact",
        artifact.manifest,
        artifact.onnx_bytes,
        artifact.weights,
        artifact.golden,
    )
    shared = {"run_dir": str(folder), "priority": realtime.priority}
    settings = {
        "guard": {**shared, "robot": str(robot), "dry_run": False, "ramp_s": 0.0},
        "policy": {
            **shared,
            "artifact": str(folder / "artifact"),
            "replan_every": options.replan_every or 0,
            "sample_ahead": options.sample_ahead,
        },
    }
    children: dict[str, Child] = {}
    try:
        for name in NAMES:
            command = _plant_command(robot, folder, realtime.priority)
            if name in settings:
                command = _node_command(name, settings[name], folder)
            children[name] = Child(command, folder / f"{name}.log", _environment())
        yield children
    finally:
        for child in children.values():
            if child.exit_code() is None:
                os.kill(child.pid, signal.SIGCONT)
            child.ask_to_stop(signal.SIGTERM)
        for child in children.values():
            if child.wait(STOP_S) is None:
                child.kill()


def _node_command(name: str, settings: Mapping[str, Any], folder: Path) -> list[str]:
    path = folder / f"{name}.yaml"
    content = {"/**": {"ros__parameters": dict(settings)}}
    path.write_text(dump_yaml(content, str(path), ConfigError))
    executable = find_executable(f"{name}_node")
    return [executable, "--ros-args", "--params-file", str(path)]


def _plant_command(robot: Path, folder: Path, priority: int) -> list[str]:
    program = "import sys; from loop_plant import run; run(*sys.argv[1:])"
    return [sys.executable, "-c", program, str(robot), str(folder), str(priority)]


def _environment() -> dict[str, str]:
    here = str(Path(__file__).resolve().parent)
    paths = [here, os.environ.get("PYTHONPATH", "")]
    profile = bringup_folder().parent / "fastdds.xml"
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "ROS_DOMAIN_ID": str(1 + os.getpid() % 100),
        "FASTDDS_DEFAULT_PROFILES_FILE": str(profile),
        "OMP_NUM_THREADS": "1",
    }


def _wait_for_commands(folder: Path, children: Mapping[str, Child]) -> None:
    """Wait until the guard has logged some rows."""
    log = folder / "guard.log"
    deadline_s = time.monotonic() + START_S
    while not (log.is_file() and log.stat().st_size > 2000):
        ended = [name for name in NAMES if children[name].exit_code() is not None]
        if ended or time.monotonic() > deadline_s:
            lines = [f"{n}: {x}" for n in NAMES for x in children[n].last_lines(5)]
            raise TimeoutError(
                f"no commands within {START_S} s"
                + (f", {' '.join(ended)} ended" if ended else "")
                + "\n"
                + "\n".join(lines)
            )
        time.sleep(0.1)


def _cpu_s(children: Mapping[str, Child]) -> dict[str, float]:
    """CPU time that each process has used so far [s]."""
    tick = os.sysconf("SC_CLK_TCK")
    used = {}
    for name, child in children.items():
        text = Path(f"/proc/{child.pid}/stat").read_text()
        fields = text.rpartition(")")[2].split()
        used[name] = (int(fields[11]) + int(fields[12])) / tick
    return used
