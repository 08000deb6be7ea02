# SPDX-License-Identifier: Apache-2.0
"""Stages are recorded when they end well, skipped on resume, and foreign folders are left alone."""

import dataclasses
import time
from pathlib import Path

import pytest
from rich.console import Console

from qam_ros.contract.errors import ConfigError
from qam_ros.runtime.bringup import bringup_folder
from qam_train.config import load_config
from qam_train.loops.demo import STAGES, DemoArguments, _settings
from qam_train.loops.demo_config import DemoConfig
from qam_train.loops.demo_display import Display
from qam_train.loops.demo_run import DemoRun, MemoryWatch

CONFIG = DemoConfig()


def finish(run: DemoRun, name: str) -> None:
    with run.stage(name) as result:
        result["rows"] = 3


def test_a_finished_stage_is_there_after_resume(tmp_path: Path) -> None:
    finish(DemoRun(tmp_path / "demo", CONFIG, resume=False), "data")
    run = DemoRun(tmp_path / "demo", CONFIG, resume=True)
    assert run.finished("data")
    assert not run.finished("offline")
    assert run.result("data") == {"rows": 3}
    assert run.seconds["data"] >= 0
    assert run.peak_rss_mib > 10


def test_a_stage_that_fails_is_not_recorded(tmp_path: Path) -> None:
    run = DemoRun(tmp_path / "demo", CONFIG, resume=False)
    with pytest.raises(RuntimeError, match="stopped"), run.stage("data"):
        raise RuntimeError("stopped")
    assert not DemoRun(tmp_path / "demo", CONFIG, resume=True).finished("data")


def test_without_resume_an_earlier_demo_is_replaced(tmp_path: Path) -> None:
    finish(DemoRun(tmp_path / "demo", CONFIG, resume=False), "data")
    (tmp_path / "demo" / "dataset").mkdir()
    run = DemoRun(tmp_path / "demo", CONFIG, resume=False)
    assert not run.finished("data")
    assert not (tmp_path / "demo" / "dataset").exists()


def test_a_folder_that_no_demo_made_is_never_cleared(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="--run-dir"):
        DemoRun(tmp_path, CONFIG, resume=False)
    assert (tmp_path / "thesis.tex").is_file()


def test_resume_with_other_settings_names_the_setting(tmp_path: Path) -> None:
    finish(DemoRun(tmp_path / "demo", CONFIG, resume=False), "data")
    other = dataclasses.replace(CONFIG, episodes=7)
    with pytest.raises(ConfigError, match="episodes"):
        DemoRun(tmp_path / "demo", other, resume=True)


def test_resume_may_change_the_number_of_workers(tmp_path: Path) -> None:
    finish(DemoRun(tmp_path / "demo", CONFIG, resume=False), "data")
    assert DemoRun(
        tmp_path / "demo", dataclasses.replace(CONFIG, workers=5), resume=True
    ).finished("data")


def test_seed_reaches_every_stage() -> None:
    seeded = CONFIG.seeded(7)
    assert (seeded.seed, seeded.offline.seed, seeded.online.seed) == (7, 7, 7)
    assert CONFIG.seeded(None).seed == CONFIG.seed


@pytest.mark.parametrize("name", ["demo", "demo_miniature"])
def test_shipped_settings_are_valid(name: str) -> None:
    config = load_config(DemoConfig, bringup_folder().parent / f"{name}.yaml")
    assert config.online.total_updates > 0
    versions = config.online.total_updates // config.online.offer_every
    assert versions >= 3  # the demo promises at least three swaps


def test_resume_takes_the_settings_of_the_run(tmp_path: Path) -> None:
    DemoRun(tmp_path / "demo", dataclasses.replace(CONFIG, episodes=9), resume=False)
    arguments = DemoArguments(run_dir=tmp_path / "demo", resume=True)
    assert _settings(arguments).episodes == 9


def test_a_negative_number_of_episodes_is_refused() -> None:
    with pytest.raises(ConfigError, match="episodes"):
        DemoConfig(episodes=-1)


def test_memory_watch_sees_what_was_allocated() -> None:
    with MemoryWatch(period_s=0.005) as before:
        pass
    with MemoryWatch(period_s=0.005) as watch:
        held = bytearray(200 * 2**20)
        held[::4096] = b"x" * len(held[::4096])
        time.sleep(0.05)
    assert watch.peak_mib > before.peak_mib + 150


def test_display_numbers_the_stages_and_marks_finished_ones() -> None:
    console = Console(width=100)
    display = Display(console, len(STAGES))
    with console.capture() as captured:
        display.stage("data: recordings", done=True)
        display.stage("offline: training")
    assert "1/8  data: recordings  (finished before)" in captured.get()
    assert "2/8  offline: training" in captured.get()
