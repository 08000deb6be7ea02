# SPDX-License-Identifier: Apache-2.0
"""The demo's last stage: everything that was measured becomes a record, a page and a summary."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import yaml

from qam_ros.contract.artifact import read_artifact
from qam_ros.contract.transition import Rows
from qam_train.config import to_mapping
from qam_train.export import source_commit
from qam_train.learner import REPLAY_LOG
from qam_train.loops.demo_display import Display
from qam_train.loops.demo_film import make_film, take
from qam_train.loops.demo_measure import (
    check_stream,
    read_episodes,
    read_rows,
    read_swaps,
    real_time,
)
from qam_train.loops.demo_online import robot_dir
from qam_train.loops.demo_run import DemoRun
from qam_train.loops.demo_stages import evaluation_config
from qam_train.metrics import read_metrics
from qam_train.report.page import page
from qam_train.report.record import (
    Array,
    Film,
    Record,
    SuccessRate,
    columns,
    summary,
    write_json,
)
from qam_train.suite.report.labels import label
from qam_train.versions import VersionFolder, VersionRecord

FILM = "film/film.mp4"
PACKAGES = ("torch", "onnxruntime", "mujoco", "ogbench", "numpy", "rclpy")


def collect(run: DemoRun, film: Film | None) -> Record:
    """Read everything the finished stages left behind."""
    robot = robot_dir(run)
    interface = read_artifact(run.path / "artifacts" / "offline").interface
    rows = read_rows(robot / REPLAY_LOG, interface)
    first_session = rows[(rows["session"] == rows["session"][0]).all(axis=1)]
    lockstep_rows = first_session[np.argsort(first_session["seq"])]
    later_rows = rows[(rows["session"] != rows["session"][0]).any(axis=1)]
    online = run.result("online")
    offline = read_metrics(run.path / "offline" / "metrics.jsonl")
    records = list(VersionFolder(robot / "versions", 0).records.values())
    evaluated = {**run.result("evaluate"), **run.result("evaluate online")}
    data, export = run.result("data"), run.result("export")
    real = run.result("real time")
    return Record(
        seed=run.config.seed,
        method=label(run.config.offline.method),
        machine=machine(),
        dataset={name: float(value) for name, value in data.items()},
        success={name: _rate(found) for name, found in evaluated.items()},
        behaviour=_behaviour_metrics(run, offline),
        offline=columns(offline, "offline"),
        online=columns(read_metrics(robot / "metrics.jsonl"), "online"),
        episodes=read_episodes(robot / "lockstep", lockstep_rows),
        swaps=read_swaps(records, lockstep_rows),
        stream=check_stream(robot, interface),
        lockstep_steps_per_s=round(online["lockstep"]["steps_per_s"], 2),
        realtime=real_time(
            robot / "realtime",
            interface.control_period_s,
            run.config.robot.settle_s,
        ),
        parity={
            name: float(export[name])
            for name in ("probes", "largest_difference", "tolerance")
        },
        stages=run.seconds,
        peak_rss_mib=run.peak_rss_mib,
        clean_stop={
            f"{name}: {key.replace('_', ' ')}": float(stage[key])
            for name, stage in (("lockstep", online), ("real time", real))
            for key in ("exit_code", "processes_left", "stop_s")
        },
        settings=yaml.safe_dump(to_mapping(run.config), sort_keys=False),
        film=film,
        lockstep=online["lockstep"],
        notes=(*_refused(records), *_notes(later_rows, int(real["resets"]))),
    )


def _behaviour_metrics(
    run: DemoRun, offline: Sequence[Mapping[str, Any]]
) -> dict[str, Array]:
    """Metrics of the cloning, wherever it took place; empty where nothing was cloned."""
    if run.config.base.updates > 0:
        return columns(read_metrics(run.path / "base" / "metrics.jsonl"), "offline")
    if run.config.offline.behaviour.updates > 0:
        return columns(offline, "behaviour")
    return {}


def _refused(records: Sequence[VersionRecord]) -> tuple[str, ...]:
    """A robot that took over nothing: what its policy is after fine-tuning."""
    if any(record.accepted for record in records):
        return ()
    reasons = dict.fromkeys(record.reason for record in records)
    return (
        f"The robot accepted none of the {len(records)} versions and still runs the offline policy: "
        f"{'; '.join(reasons) or 'none was offered'}.",
    )


def _notes(realtime_rows: Rows, resets: int) -> tuple[str, ...]:
    """What a reader must know before the figures."""
    stopped = int((realtime_rows["masked"] != 0).sum())
    if stopped == 0:
        return ()
    after = {0: "", 1: " The demo reset it once, as an operator would."}
    return (
        f"In real time the guard held or stopped the robot in {stopped} of {len(realtime_rows)} "
        "transitions: observations or proposals came too late, as on a machine with too much other work. "
        "It did what it is for; for figures of a moving robot repeat the demo on a quieter machine."
        + after.get(
            resets, f" The demo reset it {resets} times, as an operator would."
        ),
    )


def draw_film(run: DemoRun, display: Display) -> Film | None:
    """The first evaluation start at which base and fine-tuned policy differ, played by both."""
    if not run.config.film:
        return None
    before = run.result("evaluate")["base"]["successes"]
    after = run.result("evaluate online")["online"]["successes"]
    differ = [
        i for i, pair in enumerate(zip(before, after, strict=True)) if pair == (0, 1)
    ]
    index = differ[0] if differ else 0
    takes = [
        take(evaluation_config(run, run.path / "artifacts" / name), index)
        for name in ("base", "online")
    ]
    film = make_film(
        takes[0],
        takes[1],
        ("cloned base", "fine-tuned"),
        world=run.config.world,
        task=run.config.task,
        folder=run.path / "film",
    )
    display.result(film.caption)
    return film


def write_report(run: DemoRun, display: Display, result: dict[str, Any]) -> None:
    """The film; page and summary follow once this stage's own time is known."""
    film = draw_film(run, display)
    if film is not None:
        (run.path / FILM).write_bytes(film.data)
        result["film"] = film.caption
    collect(run, film)  # whatever is missing is found out here, inside the stage


def finish(run: DemoRun) -> Record:
    """Write `report.html` and `summary.json` of a run whose stages are all finished."""
    caption = run.result("report").get("film")
    film = None if caption is None else Film((run.path / FILM).read_bytes(), caption)
    record = collect(run, film)
    write_json(run.path / "summary.json", summary(record))
    (run.path / "report.html").write_text(page(record), encoding="utf-8")
    return record


def machine() -> dict[str, str]:
    """Processor, system and versions this run used."""
    return {
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "commit": source_commit(),
    }


def _version(name: str) -> str:
    names = {"rclpy": ("rclpy", "ros-rclpy")}.get(name, (name,))
    for candidate in names:
        try:
            return version(candidate)
        except ModuleNotFoundError:  # PackageNotFoundError: the other name
            continue
    return "unknown"


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _rate(found: Mapping[str, Any]) -> SuccessRate:
    return SuccessRate(
        found["mean"], found["low"], found["high"], int(found["episodes"])
    )
