# SPDX-License-Identifier: Apache-2.0
"""`qam up` with the real nodes of the second robot: everything starts, works and ends."""

import json
import os
import signal
import sqlite3
import sys
from pathlib import Path

import pytest

from qam_ros.runtime.child import Child
from qam_ros.runtime.recording import import_bag

QAM = Path(sys.executable).parent / "qam"


@pytest.fixture
def up(ros_domain, tmp_path, base_artifact):
    """Function that runs `qam up mobile_base` with further arguments; killed at the end."""
    started = []

    def start(name: str = "mobile_base", **arguments) -> Child:
        if name == "mobile_base":
            arguments = {"artifact": base_artifact, "run_dir": tmp_path, **arguments}
        words = [f"{key}:={value}" for key, value in arguments.items()]
        log = tmp_path / f"up_{name}.log"
        started.append(Child([str(QAM), "up", name, *words], log, os.environ))
        return started[-1]

    yield start
    for child in started:
        child.kill()


def processes(folder: Path) -> dict[str, dict]:
    path = folder / "processes.json"
    return json.loads(path.read_text())["processes"] if path.exists() else {}


def rows(folder: Path) -> int:
    """Rows in the spool."""
    with sqlite3.connect(f"file:{folder / 'spool.sqlite'}?mode=ro", uri=True) as spool:
        return spool.execute("SELECT count(*) FROM rows").fetchone()[0]


def running(folder: Path) -> list[str]:
    """Processes of the graph that still exist."""
    pids = {name: entry["pid"] for name, entry in processes(folder).items()}
    return [name for name, pid in pids.items() if Path(f"/proc/{pid}").exists()]


def test_a_graph_in_lockstep_plays_its_episodes_and_ends_by_itself(up, tmp_path):
    child = up(episodes=2, max_episode_steps=40, namespace="left")
    assert child.wait(60.0) == 0, child.last_lines(30)
    assert {entry["exit_code"] for entry in processes(tmp_path).values()} == {0}
    assert running(tmp_path) == []
    assert rows(tmp_path) == 80


def test_a_graph_in_real_time_ends_cleanly_on_a_signal(up, tmp_path, graph):
    from geometry_msgs.msg import TwistStamped

    child = up(pace="realtime", max_episode_steps=40)
    commands = graph.collect(TwistStamped, "cmd_vel")

    def moving():  # between episodes it is told to stand still
        return sum(bool(command.twist.linear.x) for command in commands)

    assert graph.wait(lambda: moving() >= 15, 30.0), child.last_lines(30)
    child.ask_to_stop(signal.SIGINT)
    assert child.wait(20.0) == 0, child.last_lines(30)
    assert running(tmp_path) == []
    assert rows(tmp_path) >= 10


def test_a_dead_policy_comes_back_and_a_dead_guard_ends_the_graph(up, tmp_path, graph):
    from geometry_msgs.msg import TwistStamped

    child = up(pace="realtime")
    commands = graph.collect(TwistStamped, "cmd_vel")
    assert graph.wait(lambda: len(commands) >= 5, 30.0), child.last_lines(30)
    os.kill(processes(tmp_path)["policy"]["pid"], signal.SIGKILL)
    assert graph.wait(lambda: processes(tmp_path)["policy"]["restarts"] == 1)
    os.kill(processes(tmp_path)["guard"]["pid"], signal.SIGKILL)
    assert child.wait(20.0) == 1
    assert running(tmp_path) == []


def test_the_recorder_beside_a_graph_records_the_rows_that_the_stream_spools(
    up, tmp_path
):
    recording = tmp_path / "recording"
    recorder = up("record", robot="mobile_base", use_sim_time=True, run_dir=recording)
    child = up(episodes=2, max_episode_steps=40)
    assert child.wait(60.0) == 0, child.last_lines(30)
    recorder.ask_to_stop(signal.SIGTERM)
    assert recorder.wait(20.0) == 0, recorder.last_lines(30)
    recorded = import_bag(recording / "bag")
    with sqlite3.connect(tmp_path / "spool.sqlite") as spool:
        spooled = {data for (data,) in spool.execute("SELECT data FROM rows")}
    assert len(spooled) == 80
    assert {row.tobytes() for row in recorded} == spooled


def test_an_artifact_that_does_not_exist_is_named_in_the_log(up, tmp_path):
    child = up(artifact=tmp_path / "absent.zip", episodes=1)
    assert child.wait(30.0) == 1
    assert "absent.zip" in child.log.read_text()
