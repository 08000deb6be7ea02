# SPDX-License-Identifier: Apache-2.0
"""`qam demo`: the whole loop on real parts, from nothing to a report, in minutes on two cores.

    data -> offline -> export -> evaluate -> online (ROS 2, lockstep) -> evaluate online
         -> real time (ROS 2) -> report

A finished stage is kept in the run's folder; `--resume` goes on after it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from qam_ros.contract.errors import ConfigError
from qam_ros.runtime.bringup import bringup_folder
from qam_train.config import load_config
from qam_train.loops import demo_online, demo_report, demo_stages
from qam_train.loops.demo_config import DemoConfig
from qam_train.loops.demo_display import Display
from qam_train.loops.demo_run import DemoRun
from qam_train.report.record import Record
from qam_train.report.terminal import summary_table

DOMAINS = 101  # ROS domains that need no ports beyond the ephemeral range
Stage = Callable[[DemoRun, Display, dict[str, Any]], None]


def _evaluate(run: DemoRun, display: Display, result: dict[str, Any]) -> None:
    for name in ("base", "offline"):
        demo_stages.evaluate_policy(
            run, display, result, name, run.path / "artifacts" / name
        )


def _evaluate_online(run: DemoRun, display: Display, result: dict[str, Any]) -> None:
    artifact = demo_online.export_online(run)
    demo_stages.evaluate_policy(run, display, result, "online", artifact)


STAGES: dict[str, tuple[str, Stage]] = {
    "data": (
        "scripted recordings, most of which aim at the wrong place",
        demo_stages.make_data,
    ),
    "offline": ("behaviour cloning, then the method", demo_stages.train),
    "export": ("policy artifacts, verified", demo_stages.export),
    "evaluate": ("success of the cloned base and of the trained policy", _evaluate),
    "online": (
        "robot on ROS 2 in lockstep, learning from its stream",
        demo_online.fine_tune,
    ),
    "evaluate online": ("success after fine-tuning", _evaluate_online),
    "real time": ("the same processes in real time", demo_online.run_real_time),
    "report": ("film, figures, page", demo_report.write_report),
}


@dataclass(frozen=True)
class DemoArguments:
    """Run the whole loop: data, offline training, robot on ROS 2, online fine-tuning, report."""

    run_dir: Path = Path("runs/demo")
    """Folder of the run; an earlier demo there is replaced unless --resume is given."""
    config: Path | None = None
    """YAML settings; default: config/demo.yaml."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Override of one setting, dotted.key=value; may be repeated."""
    method: str = ""
    """Method in place of the settings' own, e.g. trqam or fql."""
    seed: int | None = None
    """Seed of everything."""
    resume: bool = False
    """Go on after the stages that an interrupted demo finished."""
    miniature: bool = False
    """A demo of about a minute that shows every part but learns next to nothing."""
    quiet: bool = False
    """No progress display."""


def command(argv: Sequence[str]) -> int:
    """Run the demo; returns the exit code."""
    arguments = tyro.cli(DemoArguments, prog="qam demo", args=list(argv))
    config = _settings(arguments)
    os.environ.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % DOMAINS))
    console = Console(quiet=arguments.quiet)
    record = run_demo(arguments.run_dir, config, console, resume=arguments.resume)
    console.print()
    console.print(summary_table(record, arguments.run_dir / "report.html"))
    return 0


def run_demo(
    path: Path, config: DemoConfig, console: Console, *, resume: bool = False
) -> Record:
    """Run the stages that are not finished, write report and summary.

    Args:
        path: folder of the run.
        config: settings.
        console: where progress is shown.
        resume: keep the finished stages of an earlier run with these settings.
    """
    run = DemoRun(path, config, resume=resume)
    display = Display(console, len(STAGES))
    for name, (title, work) in STAGES.items():
        display.stage(f"{name}: {title}", done=run.finished(name))
        if not run.finished(name):
            with run.stage(name) as result:
                work(run, display, result)
    return demo_report.finish(run)


def _settings(arguments: DemoArguments) -> DemoConfig:
    path = arguments.config
    if path is None:
        own = arguments.run_dir / "demo.yaml"
        name = "demo_miniature.yaml" if arguments.miniature else "demo.yaml"
        resumed = arguments.resume and own.is_file()
        path = own if resumed else bringup_folder().parent / name
    elif arguments.miniature:
        raise ConfigError("give either --config or --miniature, both name the settings")
    config = load_config(DemoConfig, path, arguments.set)
    if arguments.method:
        config = config.with_method(arguments.method)
    return config.seeded(arguments.seed)
