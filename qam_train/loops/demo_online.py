# SPDX-License-Identifier: Apache-2.0
"""The demo's stages on the running robot: online fine-tuning in lockstep, then real time."""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qam_ros.contract.artifact import read_artifact
from qam_train.config import save_config
from qam_train.export import Provenance, export_version
from qam_train.loops.demo_display import Display
from qam_train.loops.demo_measure import check_stream, keep_files, lockstep_speed
from qam_train.loops.demo_robot import (
    POLL_S,
    End,
    Graph,
    Operator,
    Progress,
    Watch,
    read_progress,
)
from qam_train.loops.demo_run import DemoRun
from qam_train.versions import VersionFolder

ROBOT = "robot"
LEARNER_CONFIG = "learner.yaml"


def robot_dir(run: DemoRun) -> Path:
    """Folder of the ROS graph."""
    return run.path / ROBOT


def fine_tune(run: DemoRun, display: Display, result: dict[str, Any]) -> None:
    """Start the graph in lockstep, learn until all updates are done, stop it."""
    learner = run.path / LEARNER_CONFIG
    save_config(run.config.online, learner)
    artifact = run.path / "artifacts" / "offline"
    started = time.perf_counter()
    with Graph(_arguments(run, artifact, "lockstep")) as graph:
        watch = Watch(
            graph, run.config.robot.start_timeout_s, run.config.robot.stall_timeout_s
        )
        _until_first_row(run, watch)
        result["start_s"] = round(time.perf_counter() - started, 2)
        display.result(
            f"all processes run, first transition after {result['start_s']:.1f} s"
        )
        progress = _until_finished(run, display, watch)
        end = graph.stop()
    _note_end(result, end)
    result["progress"] = asdict(progress)
    folder = keep_files(robot_dir(run), "lockstep")
    result["lockstep"] = asdict(lockstep_speed(folder))
    check = check_stream(robot_dir(run), read_artifact(artifact).interface)
    display.result(
        f"{check.executed} executed, {check.in_replay} in replay, {check.lost} lost, "
        f"{check.duplicated} twice; {progress.accepted} weight swaps; "
        f"{result['lockstep']['steps_per_s']:.1f} control steps/s"
    )


def _arguments(run: DemoRun, artifact: Path, pace: str) -> dict[str, Any]:
    config = run.config
    return {
        "artifact": str(artifact),
        "world": config.world,
        "task": config.task,
        "seed": config.seed,
        "pace": pace,
        "checkpoint": str(run.path / run.result("export")["checkpoint"]),
        "dataset": str(run.path / "dataset"),
        "learner_config": str(run.path / LEARNER_CONFIG),
        "run_dir": str(robot_dir(run)),
    }


def _until_first_row(run: DemoRun, watch: Watch) -> None:
    while (progress := read_progress(robot_dir(run), run.config.online)).rows == 0:
        watch.look(progress)
        time.sleep(POLL_S)


def _until_finished(run: DemoRun, display: Display, watch: Watch) -> Progress:
    online = run.config.online
    with display.bar("online updates", online.total_updates, "updates") as bar:
        while not (progress := read_progress(robot_dir(run), online)).finished:
            watch.look(progress)
            bar.update(
                progress.updates, f"{progress.rows} steps, {progress.accepted} swaps"
            )
            time.sleep(POLL_S)
        bar.update(
            online.total_updates, f"{progress.rows} steps, {progress.accepted} swaps"
        )
    return progress


def export_online(run: DemoRun) -> Path:
    """Artifact of what the robot runs now, `artifacts/online`: its newest accepted version.

    Versions that were rolled back do not count. A robot that is left with none runs the offline policy.
    """
    folder = VersionFolder(robot_dir(run) / "versions", 0)
    offline, online = (run.path / "artifacts" / name for name in ("offline", "online"))
    if not folder.accepted:
        shutil.copytree(offline, online, dirs_exist_ok=True)
        return online
    record = folder.records[folder.accepted[-1]]
    weights, chunks = folder.weights(record.version)
    manifest = read_artifact(offline).manifest
    export_version(
        offline,
        weights,
        chunks,
        online,
        Provenance(
            f"demo-{run.config.seed}",
            manifest.dataset_hash,
            record.version,
            manifest.policy_version,
        ),
        replace_existing=True,
    )
    return online


def run_real_time(run: DemoRun, display: Display, result: dict[str, Any]) -> None:
    """The same graph with the fine-tuned policy at the robot's own pace for a while."""
    robot = run.config.robot
    artifact = run.path / "artifacts" / "online"
    before = read_progress(robot_dir(run), run.config.online).rows
    with Graph(_arguments(run, artifact, "realtime")) as graph:
        watch = Watch(graph, robot.start_timeout_s, robot.stall_timeout_s)
        while (
            progress := read_progress(robot_dir(run), run.config.online)
        ).rows <= before:
            watch.look(progress)
            time.sleep(POLL_S)
        operator = Operator(robot_dir(run))
        started = time.monotonic()
        with display.bar("real time", robot.realtime_s, "s") as bar:
            while (passed := time.monotonic() - started) < robot.realtime_s:
                graph.check()
                operator.look()
                bar.update(round(passed, 1))
                time.sleep(POLL_S)
            bar.update(robot.realtime_s)
        end = graph.stop()
    _note_end(result, end)
    result["resets"] = operator.resets
    keep_files(robot_dir(run), "realtime")


def _note_end(result: dict[str, Any], end: End) -> None:
    result["exit_code"] = end.exit_code
    result["processes_left"] = end.processes_left
    result["stop_s"] = round(end.seconds, 2)
