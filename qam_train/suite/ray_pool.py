# SPDX-License-Identifier: Apache-2.0
"""Cells as Ray tasks, on this machine or on a cluster whose machines share the output folder.

Ray decides where and when a cell runs; what it says goes through its folder, as with local
processes. A machine that dies is no harm: Ray starts the cell again, and it goes on.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from qam_ros.contract.errors import ConfigError, QamError
from qam_train.suite.cell import RunSettings, run_cell
from qam_train.suite.cell_config import read_cell
from qam_train.suite.matrix import Cell

LOCAL = "local"


class RayPool:
    """A Ray task for each cell.

    Args:
        address: of a running Ray, "auto" for the one of this machine, or "local" to start one.
        workers: cells at the same time; 0: as many as Ray has room for.
        settings: of all cells; folders as every machine sees them.
        gpu_share: of a GPU, for each cell; 0: cells run on CPUs.

    Raises:
        ConfigError: Ray is not installed, or cannot be reached.
    """

    def __init__(
        self, address: str, workers: int, settings: RunSettings, gpu_share: float
    ) -> None:
        self._ray = _import_ray()
        self._workers = workers
        absolute = [path.resolve() for path in (settings.out, settings.data)]
        device = "cuda" if gpu_share > 0.0 else "cpu"
        self._settings = replace(
            settings, out=absolute[0], data=absolute[1], device=device
        )
        self._gpu_share = gpu_share
        self._running: dict[Any, Cell] = {}
        try:
            if address == LOCAL:
                self._ray.init(
                    num_cpus=workers or None,
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
        room = self._workers or int(self._ray.cluster_resources().get("CPU", 1))
        return room - len(self._running)

    def start(self, cell: Cell) -> None:
        """Hand a cell over to Ray."""
        task = self._ray.remote(
            num_cpus=cell.config.threads,
            num_gpus=self._gpu_share,
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
