# SPDX-License-Identifier: Apache-2.0
"""A whole process graph under test: `qam up` in a domain of its own, and a node that watches it."""

import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from ros_graph import Graph, open_graph, own_domain, ros_environment

from qam_ros.contract.errors import ConfigError
from qam_ros.contract.interface import load_interface
from qam_ros.contract.messages import GuardReport
from qam_ros.contract.reading import dump_yaml
from qam_ros.contract.transition import GuardMode
from qam_ros.runtime.bringup import find_executable
from qam_ros.runtime.child import Child
from qam_ros.runtime.guard_log import executed_keys, read_guard_log
from qam_ros.runtime.store import TransitionStore

NOBODY = bytes(16)
MOVING = (GuardMode.RAMP, GuardMode.ACTIVE)
END_S = 30.0  # stream and learner may take some of it on a busy machine

Keys = set[tuple[bytes, int]]


class System:
    """A running bringup.

    Args:
        graph: node that watches it, in its domain.
        folder: its run_dir, empty; the supervisor's own output goes beside it.
        robot: robot name, for the files.
        words: of `qam up`, run_dir left out.
        launcher: command that takes these words; by default that of `qam up`.
    """

    def __init__(
        self,
        graph: Graph,
        folder: Path,
        robot: str,
        words: list[str],
        launcher: Sequence[str] = (),
    ):
        self.graph = graph
        self.folder = folder
        self.interface = load_interface(robot)
        self.period_ns = round(self.interface.control_period_s * 1e9)
        launcher = launcher or [find_executable("qam"), "up"]
        command = [*launcher, *words, f"run_dir:={folder}"]
        self.up = Child(command, folder.with_suffix(".log"), os.environ)
        self.nodes: list[Child] = []
        self.reports: list[GuardReport] = self.listen(GuardReport, "guard_report")

    # The graph's processes.

    def processes(self) -> dict[str, dict]:
        """What the supervisor knows of each process."""
        path = self.folder / "processes.json"
        return json.loads(path.read_text())["processes"] if path.exists() else {}

    def add(self, executable: str, **parameters: object) -> Child:
        """Start one more node in the graph's domain; it is killed at the end."""
        file = self.folder.with_name(f"{executable}.yaml")
        content = {"/**": {"ros__parameters": parameters}}
        file.write_text(dump_yaml(content, str(file), ConfigError))
        command = [
            find_executable(executable),
            "--ros-args",
            "--params-file",
            str(file),
        ]
        self.nodes.append(Child(command, file.with_suffix(".log"), os.environ))
        return self.nodes[-1]

    def pid(self, name: str) -> int:
        """Process id of a process."""
        return self.processes()[name]["pid"]

    def send(self, name: str, number: signal.Signals) -> None:
        """Send a process a signal."""
        os.kill(self.pid(name), number)

    def kill(self, name: str, timeout_s: float = END_S) -> None:
        """Kill -9 a process, and wait until the supervisor has started it again."""
        pid = self.pid(name)
        os.kill(pid, signal.SIGKILL)
        self.expect(lambda: self.pid(name) != pid, f"{name} again", timeout_s)

    def left(self) -> list[str]:
        """Command lines of the graph's processes that still exist."""
        lines = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if f"{self.folder}/" in line and path.parent.name != str(os.getpid()):
                    lines.append(line)
        return lines

    def finish(self, timeout_s: float) -> int:
        """Wait until the graph ends by itself; its exit code."""
        self.expect(lambda: self.up.exit_code() is not None, "the end", timeout_s)
        return self.up.exit_code()

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        """Ask the graph to end; its exit code."""
        self.up.ask_to_stop(number)
        return self.finish(END_S)

    def close(self) -> None:
        """Kill whatever is left."""
        pids = [entry["pid"] for entry in self.processes().values()]
        for child in (self.up, *self.nodes):
            child.kill()
        mine = {int(path.name) for path in Path("/proc").glob("[0-9]*")}
        for pid in mine.intersection(pids) if self.left() else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    # What it says.

    def listen(self, kind: type, topic: str, profile=None) -> list:
        """List that fills with a topic's messages, as dataclasses of the contract."""
        from qam_ros.nodes import qos
        from qam_ros.nodes.convert import from_ros, ros_type

        received: list = []
        self.graph.node.create_subscription(
            ros_type(kind),
            topic,
            lambda message: received.append(from_ros(message, kind)),
            profile or qos.HISTORY,
        )
        return received

    def talk(self, kind: type, topic: str, profile, peers: int = 1) -> Callable:
        """Function that publishes a dataclass of the contract, once it is listened to."""
        from qam_ros.nodes.convert import ros_type, to_ros

        publisher = self.graph.publisher(ros_type(kind), topic, profile, peers=peers)
        return lambda message: publisher.publish(to_ros(message))

    def expect(self, condition: Callable[[], object], what: str, timeout_s: float = 30):
        """Wait for a condition; fails with the graph's logs when it does not come."""
        self.graph.wait(
            lambda: condition() or self.up.exit_code() is not None, timeout_s
        )
        if not condition():
            pytest.fail(f"waited for {what}, {timeout_s} s at most\n{self.text()}")

    def after(self, begin: int = 0) -> list[GuardReport]:
        """Guard reports from an index on."""
        return self.reports[begin:]

    def moves(self) -> bool:
        """The guard's newest report is of a tick that moves the robot."""
        return bool(self.reports) and self.reports[-1].mode in MOVING

    def until_moving(self) -> None:
        """Wait until the robot moves; resets the guard where it has stopped."""
        from std_srvs.srv import Trigger

        def moving() -> bool:
            if not self.reports or self.reports[-1].mode == GuardMode.SAFE_STOP:
                self.graph.spin(0.05)
                self.graph.call(Trigger, "guard/reset")
            return self.moves()

        self.expect(lambda: self.graph.node.count_publishers("guard_report"), "guard")
        self.expect(moving, "motion", 60.0)

    def text(self) -> str:
        """The last lines of every log."""
        logs = [self.up.log, *sorted((self.folder / "logs").glob("*.log"))]
        logs += [node.log for node in self.nodes]
        return "\n".join(
            f"== {path.name}\n" + "\n".join(path.read_text().splitlines()[-15:])
            for path in logs
            if path.exists()
        )

    # What it leaves behind.

    def rows(self, file: str = "spool.sqlite") -> np.ndarray:
        """Transitions of the spool or the replay log, in the order in which they came."""
        with TransitionStore(self.folder / file, self.interface) as store:
            return store.read(0, 10**6)[1]

    def executed(self) -> Keys:
        """Keys of the rows that the guard executed inside episodes, by its own log."""
        return executed_keys(read_guard_log(self.folder / "guard.log"))


def keys(rows: np.ndarray) -> list[tuple[bytes, int]]:
    """Keys (session, seq) of transitions, in their order."""
    return [(row["session"].tobytes(), int(row["seq"])) for row in rows]


def check_exactly_once(executed: Keys, rows: np.ndarray) -> None:
    """What was executed is what is stored: as sets, and none twice."""
    stored = keys(rows)
    lost, extra = executed - set(stored), set(stored) - executed
    twice = len(stored) - len(set(stored))
    assert (len(lost), len(extra), twice) == (0, 0, 0), sorted(
        seq for _, seq in lost | extra
    )
    assert stored, "nothing was executed"


@contextlib.contextmanager
def run_system(
    folder: Path, robot: str, *words: str, launcher: Sequence[str] = ()
) -> Iterator[System]:
    """Start `qam up` with these words in a free domain; everything is dead at the end."""
    with own_domain() as domain, pytest.MonkeyPatch.context() as patch:
        for name, value in ros_environment(domain, folder / "ros_log").items():
            patch.setenv(name, value)
        with open_graph(domain) as graph:
            system = System(graph, folder, robot, list(words), launcher)
            try:
                yield system
            finally:
                system.close()
