# SPDX-License-Identifier: Apache-2.0
"""Cells as Ray tasks, on this machine or on a cluster whose machines share the output folder.

Ray decides where and when a cell runs; what it says goes through its folder, as with local
processes. A machine that dies is no harm: Ray starts the cell again, and it goes on.
"""

from __future__ import annotations

import os
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from qam_ros.contract.errors import ConfigError, QamError
from qam_train.suite.cell import RunSettings, run_cell
from qam_train.suite.cell_config import read_cell
from qam_train.suite.matrix import Cell
from qam_train.suite.pool import GPU_WORKERS

LOCAL = "local"


class RayPool:
    """A Ray task for each cell.

    Args:
        address: of a running Ray, "auto" for the one of this machine, or "local" to start one, even
            where RAY_ADDRESS names another.
        workers: cells at the same time, on each GPU where Ray has any; 0: 4 on a GPU, else as many
            as Ray has room for.
        settings: of all cells; folders as every machine sees them. Device "auto": the GPUs that Ray
            has, whatever this machine has itself, else CPUs.

    Raises:
        ConfigError: Ray is not installed, cannot be reached, or has no GPU where one is asked for.
    """

    def __init__(self, address: str, workers: int, settings: RunSettings) -> None:
        self._ray = _import_ray()
        self._workers = workers
        self._running: dict[Any, Cell] = {}
        self._connect(address)
        gpus = float(self._ray.cluster_resources().get("GPU", 0.0))
        wanted = settings.device.partition(":")[0]
        if wanted == "cuda" and gpus == 0.0:
            self._ray.shutdown()
            raise ConfigError(
                f"--device {settings.device}: Ray at --ray {address} has no GPU; use --device cpu, or "
                "start its machines with GPUs (ray start --num-gpus)"
            )
        self._gpus = 0.0 if wanted == "cpu" else gpus
        self._settings = replace(
            settings,
            out=settings.out.resolve(),
            data=settings.data.resolve(),
            device="cuda" if self._gpus else "cpu",
        )

    def _connect(self, address: str) -> None:
        workers = self._workers
        try:
            if address == LOCAL:
                self._ray.init(
                    address=LOCAL,  # without it Ray would join what RAY_ADDRESS names
                    num_cpus=max(workers, os.cpu_count() or 1) if workers else None,
                    include_dashboard=False,
                    log_to_driver=False,
                    configure_logging=False,
                )
            else:
                self._ray.init(address=address, log_to_driver=False)
        except (ConnectionError, ValueError, self._ray.exceptions.RayError) as error:
            raise ConfigError(
                f"--ray {address}: cannot reach Ray: {error}; give the address of a running one, or "
                "local"
            ) from error

    def free(self) -> int:
        """Cells that may still be handed over; those Ray has no room for yet wait there."""
        if self._gpus:
            room = int(self._gpus * (self._workers or GPU_WORKERS))
        else:
            room = self._workers or int(self._ray.cluster_resources().get("CPU", 1))
        return room - len(self._running)

    def start(self, cell: Cell) -> None:
        """Hand a cell over to Ray."""
        task = self._ray.remote(
            num_cpus=cell.config.threads,
            num_gpus=1.0 / (self._workers or GPU_WORKERS) if self._gpus else 0.0,
            max_calls=1,  # a process each, so that memory comes back
            max_retries=3,
        )(_run)
        reference = task.remote(str(cell.folder.path.resolve()), self._settings)
        self._running[reference] = cell

    def ended(self) -> list[tuple[Cell, str]]:
        """Cells whose task ended."""
        if not self._running:
            return []
        waiting = list(self._running)
        found, _ = self._ray.wait(waiting, num_returns=len(waiting), timeout=0)
        return [
            (self._running.pop(reference), self._death(reference))
            for reference in found
        ]

    def stop(self) -> None:
        """Cancel all tasks and leave Ray; one that was started here ends."""
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        self._running = {}
        self._ray.shutdown()

    def _death(self, reference: Any) -> str:
        try:
            self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            return f"the Ray task ended: {error}"
        return ""


def _run(folder: str, settings: RunSettings) -> None:
    """A cell in a Ray process; its failure is noted in its folder."""
    config = read_cell(Path(folder) / "config.yaml")
    try:
        run_cell(config, settings)
    except QamError:
        if not (Path(folder) / "failed.json").is_file():
            raise


def _import_ray() -> Any:
    try:
        return import_module("ray")
    except ModuleNotFoundError as error:
        raise ConfigError(
            "--ray: the package 'ray' is not installed; pip install qam_ros[cluster], or leave --ray "
            "out to run cells in processes of this machine"
        ) from error
