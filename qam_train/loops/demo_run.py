# SPDX-License-Identifier: Apache-2.0
"""A demo's folder: which stages are finished, what they gave, how long they took, memory used."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from qam_ros.contract.errors import ConfigError
from qam_train.config import load_config, save_config, to_mapping
from qam_train.loops.demo_config import DemoConfig
from qam_train.report.record import write_json

STAGES_FILE = "stages.json"
CONFIG_FILE = "demo.yaml"
# Settings that a resumed demo may change: they change no number of a finished stage.
FREE_ON_RESUME = {"workers", "film"}


class DemoRun:
    """The folder of one demo and its finished stages.

    Args:
        path: folder; made when missing.
        config: settings; kept in the folder.
        resume: keep finished stages of the same settings. Otherwise what an earlier demo left
            there is removed.

    Raises:
        ConfigError: the folder holds something else, or a demo with other settings.
    """

    def __init__(self, path: Path, config: DemoConfig, *, resume: bool) -> None:
        self.path = path
        self.config = config
        held = path / STAGES_FILE
        if not resume:
            clear(path)
        elif held.is_file():
            _check_same(config, path / CONFIG_FILE)
        path.mkdir(parents=True, exist_ok=True)
        self._stages: dict[str, dict[str, Any]] = (
            json.loads(held.read_text()) if held.is_file() else {}
        )
        save_config(config, path / CONFIG_FILE)
        write_json(held, self._stages)

    def finished(self, stage: str) -> bool:
        """Whether a stage's result is there."""
        return stage in self._stages

    def result(self, stage: str) -> dict[str, Any]:
        """What a finished stage gave."""
        found: dict[str, Any] = self._stages[stage]["result"]
        return found

    @property
    def seconds(self) -> dict[str, float]:
        """Wall time of every finished stage [s]."""
        return {name: float(entry["seconds"]) for name, entry in self._stages.items()}

    @property
    def peak_rss_mib(self) -> float:
        """Largest memory of the process tree in any stage [MiB]."""
        return max(
            (float(entry["peak_rss_mib"]) for entry in self._stages.values()),
            default=0.0,
        )

    @contextmanager
    def stage(self, name: str) -> Iterator[dict[str, Any]]:
        """Measure a stage; what the block puts into the dictionary is its result.

        Nothing is recorded when the block fails.
        """
        result: dict[str, Any] = {}
        started = time.perf_counter()
        with MemoryWatch() as memory:
            yield result
        self._stages[name] = {
            "seconds": round(time.perf_counter() - started, 3),
            "peak_rss_mib": round(memory.peak_mib, 1),
            "result": result,
        }
        write_json(self.path / STAGES_FILE, self._stages)


def clear(path: Path) -> None:
    """Remove what an earlier demo left in a folder.

    Raises:
        ConfigError: the folder holds something that no demo made.
    """
    if not path.is_dir() or not any(path.iterdir()):
        return
    if not (path / STAGES_FILE).is_file():
        raise ConfigError(
            f"{path}: expected an empty folder or an earlier demo's, found other files; "
            "give another --run-dir"
        )
    shutil.rmtree(path)


def _check_same(config: DemoConfig, path: Path) -> None:
    then = to_mapping(load_config(DemoConfig, path))
    for key, value in to_mapping(config).items():
        if key not in FREE_ON_RESUME and value != then[key]:
            raise ConfigError(
                f"{path.parent}: the demo there was made with other settings ({key}); resume it with "
                "its own demo.yaml, or start without --resume"
            )


class MemoryWatch:
    """Largest resident memory of this process and its descendants, sampled while it is open.

    Shared pages count once for each process, so that it is an upper bound.
    """

    def __init__(self, period_s: float = 0.5) -> None:
        self.peak_mib = 0.0
        self._period_s = period_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory", daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        me = psutil.Process()
        while True:
            self.peak_mib = max(self.peak_mib, _tree_rss(me) / 2**20)
            if self._stop.wait(self._period_s):
                return


def _tree_rss(root: psutil.Process) -> int:
    total = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:  # it ended between the listing and the look
            continue
    return total
