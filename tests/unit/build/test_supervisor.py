# SPDX-License-Identifier: Apache-2.0
"""`qam up` with small fake programs in place of nodes."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from qam_ros.runtime.bringup import Bringup, ProcessSpec
from qam_ros.runtime.supervisor import Backoff, Supervisor

GOOD = """\
import signal, sys, time
from pathlib import Path
here = Path(sys.argv[1])
def leave(number, frame):
    with here.open("a") as out:
        out.write(signal.Signals(number).name + "\\n")
    raise SystemExit(0)
signal.signal(signal.SIGTERM, leave)
signal.signal(signal.SIGINT, leave)
with here.open("a") as out:
    out.write("up\\n")
while True:
    time.sleep(0.05)
"""
STUBBORN = GOOD.replace("    raise SystemExit(0)\n", "")
FAILING = """\
import sys
from pathlib import Path
with Path(sys.argv[1]).open("a") as out:
    out.write("up\\n")
print("the reason")
raise SystemExit(3)
"""
BRIEF = FAILING.replace("SystemExit(3)", "SystemExit(0)")
FAST = Backoff(first_s=0.05, longest_s=0.4, stable_s=30.0)


class Scene:
    """Fake programs with their journals in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def spec(self, name: str, program: str, **options) -> ProcessSpec:
        """One process that runs a program; it writes `up` and the signals it gets."""
        script = self.folder / f"{name}.py"
        script.write_text(program)
        command = (sys.executable, str(script), str(self.folder / f"{name}.txt"))
        return ProcessSpec(
            name=name, command=command, parameters={"rate": 2.0}, **options
        )

    def journal(self, name: str) -> list[str]:
        """What a program wrote."""
        path = self.folder / f"{name}.txt"
        return path.read_text().split() if path.exists() else []

    def processes(self) -> dict[str, dict]:
        """Entries of processes.json."""
        return json.loads((self.folder / "processes.json").read_text())["processes"]


class Stepped(Supervisor):
    """A supervisor that calls a function between its looks at the processes."""

    def __init__(self, bringup: Bringup, step) -> None:
        super().__init__(bringup, FAST)
        self._step = step
        self._deadline = time.monotonic() + 20.0

    def _poll(self) -> bool:
        assert time.monotonic() < self._deadline, "the scene never came to its end"
        self._step(self)
        return super()._poll()


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def bringup(scene: Scene, *specs: ProcessSpec) -> Bringup:
    return Bringup("fake", {}, specs, scene.folder)


def stop_when(condition):
    return lambda supervisor: supervisor.stop() if condition() else None


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_clean_end_has_code_0_and_leaves_no_process(scene):
    graph = bringup(
        scene, scene.spec("guard", GOOD), scene.spec("policy", GOOD, respawn=True)
    )
    both = lambda: scene.journal("guard") and scene.journal("policy")  # noqa: E731
    assert Stepped(graph, stop_when(both)).run() == 0
    assert scene.journal("guard") == scene.journal("policy") == ["up", "SIGTERM"]
    entries = scene.processes()
    assert [entry["exit_code"] for entry in entries.values()] == [0, 0]
    assert not any(alive(entry["pid"]) for entry in entries.values())


def test_a_killed_child_comes_back_and_the_end_is_still_clean(scene):
    graph = bringup(scene, scene.spec("policy", GOOD, respawn=True))
    killed = []

    def step(supervisor):
        if scene.journal("policy") == ["up"] and not killed:
            killed.append(scene.processes()["policy"]["pid"])
            os.kill(killed[0], signal.SIGKILL)
        if scene.journal("policy") == ["up", "up"]:
            supervisor.stop()

    assert Stepped(graph, step).run() == 0
    entry = scene.processes()["policy"]
    assert entry["restarts"] == 1
    assert entry["pid"] != killed[0]


def test_pauses_between_restarts_grow_up_to_the_longest():
    backoff = Backoff(first_s=0.5, longest_s=3.0)
    assert [backoff.pause_s(n) for n in (1, 2, 3, 4, 5)] == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_a_child_that_always_fails_is_given_up_while_the_others_go_on(scene):
    graph = bringup(
        scene,
        scene.spec("guard", GOOD),
        scene.spec("learner", FAILING, respawn=True, max_restarts=2),
    )

    def step(supervisor):
        if scene.processes()["learner"]["state"] == "given up":
            assert scene.processes()["guard"]["state"] == "running"
            supervisor.stop()

    Path(scene.folder / "processes.json").write_text(
        json.dumps({"processes": {"learner": {"state": "waiting"}}})
    )
    started = time.monotonic()
    assert Stepped(graph, step).run() == 1
    assert time.monotonic() - started > FAST.pause_s(1) + FAST.pause_s(2)
    assert scene.journal("learner") == ["up"] * 3


def test_a_node_that_refuses_its_settings_at_the_first_start_ends_the_graph(scene):
    refusing = FAILING.replace("SystemExit(3)", f"SystemExit({os.EX_CONFIG})")
    graph = bringup(
        scene, scene.spec("guard", GOOD), scene.spec("policy", refusing, respawn=True)
    )
    assert Supervisor(graph, FAST).run() == 1
    assert scene.journal("policy") == ["up"]


LATER = GOOD.replace(
    "here = Path(sys.argv[1])\n",
    "here = Path(sys.argv[1])\n"
    'starts = here.read_text().count("up") if here.exists() else 0\n'
    "if starts < 2:\n"
    '    with here.open("a") as out:\n'
    '        out.write("up\\n")\n'
    "    raise SystemExit(CODES[starts])\n",
)


@pytest.mark.parametrize("codes", [(1, 1), (3, os.EX_CONFIG)])
def test_an_early_failure_that_is_no_refusal_restarts_the_process_alone(scene, codes):
    """Settings that were good once are good: what is refused later, such as a full disk, passes."""
    graph = bringup(
        scene,
        scene.spec("guard", GOOD),
        scene.spec("learner", LATER.replace("CODES", repr(codes)), respawn=True),
    )
    third = stop_when(lambda: scene.journal("learner") == ["up"] * 3)
    assert Stepped(graph, third).run() == 0
    assert scene.journal("guard") == ["up", "SIGTERM"]
    assert scene.processes()["learner"]["restarts"] == 2


def test_the_end_of_a_process_that_may_not_restart_ends_the_graph(scene, caplog):
    graph = bringup(
        scene, scene.spec("policy", GOOD, respawn=True), scene.spec("guard", FAILING)
    )
    caplog.set_level("INFO")
    assert Supervisor(graph, FAST).run() == 1
    assert scene.journal("guard") == ["up"]
    assert scene.processes()["policy"]["state"] == "finished"
    assert "the reason" in caplog.text


def test_a_finished_plant_ends_the_graph_with_code_0(scene):
    graph = bringup(
        scene, scene.spec("policy", GOOD, respawn=True), scene.spec("plant", BRIEF)
    )
    assert Supervisor(graph, FAST).run() == 0
    assert scene.processes()["plant"] | {"pid": 0, "command": []} == {
        "pid": 0,
        "state": "finished",
        "restarts": 0,
        "exit_code": 0,
        "command": [],
    }


def test_processes_stop_in_reverse_order_after_their_settling_time(scene):
    graph = bringup(
        scene,
        scene.spec("stream", GOOD, settle_s=0.3),
        scene.spec("plant", GOOD),
    )
    both = lambda: scene.journal("stream") and scene.journal("plant")  # noqa: E731
    assert Stepped(graph, stop_when(both)).run() == 0
    ends = [
        (scene.folder / f"{name}.txt").stat().st_mtime for name in ("plant", "stream")
    ]
    assert ends[1] - ends[0] >= 0.3


def test_a_process_that_ignores_the_signal_is_killed_and_the_code_says_so(scene):
    graph = bringup(scene, scene.spec("policy", STUBBORN, stop_timeout_s=0.2))
    assert Stepped(graph, stop_when(lambda: scene.journal("policy"))).run() == 1
    assert scene.journal("policy") == ["up", "SIGTERM"]
    assert scene.processes()["policy"]["exit_code"] == -signal.SIGKILL


def test_a_second_request_does_not_wait(scene):
    graph = bringup(scene, scene.spec("policy", STUBBORN, stop_timeout_s=60.0))

    def step(supervisor):
        if scene.journal("policy"):
            supervisor.stop()
            threading.Timer(0.2, supervisor.stop).start()

    started = time.monotonic()
    assert Stepped(graph, step).run() == 1
    assert time.monotonic() - started < 10.0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_reach_every_child_and_parameters_are_written(scene, number):
    spec = scene.spec("policy", GOOD)
    source = (
        "import sys\n"
        "from pathlib import Path\n"
        "from qam_ros.runtime.bringup import Bringup, ProcessSpec\n"
        "from qam_ros.runtime.supervisor import Supervisor\n"
        f"spec = ProcessSpec('policy', {spec.command!r}, {{'rate': 2.0}}, namespace='left')\n"
        f"sys.exit(Supervisor(Bringup('b', {{}}, (spec,), Path({str(scene.folder)!r}))).run())\n"
    )
    process = subprocess.Popen([sys.executable, "-c", source])
    deadline = time.monotonic() + 20.0
    while not scene.journal("policy") and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(10.0) == 0
    assert scene.journal("policy") == ["up", number.name]
    command = scene.processes()["policy"]["command"]
    assert command[-7:-1] == [
        *("--ros-args", "-r", "__node:=policy", "-r", "__ns:=/left", "--params-file")
    ]
    assert "rate: 2.0" in Path(command[-1]).read_text()


def test_children_end_when_the_supervisor_is_killed(scene):
    spec = scene.spec("guard", GOOD)
    source = (
        "from pathlib import Path\n"
        "from qam_ros.runtime.bringup import Bringup, ProcessSpec\n"
        "from qam_ros.runtime.supervisor import Supervisor\n"
        f"spec = ProcessSpec('guard', {spec.command!r}, {{}})\n"
        f"Supervisor(Bringup('b', {{}}, (spec,), Path({str(scene.folder)!r}))).run()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", source])
    deadline = time.monotonic() + 20.0
    while not scene.journal("guard") and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait(10.0)
    while scene.journal("guard") != ["up", "SIGTERM"] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert scene.journal("guard") == ["up", "SIGTERM"]
