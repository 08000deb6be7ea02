# SPDX-License-Identifier: Apache-2.0
"""One cell of the suite: everything that one method, task and seed needs, as a frozen dataclass.

Protocols write cells (protocol.py), the runner reads them; a cell's config.yaml is a whole one.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from qam_ros.contract.errors import ConfigError
from qam_train.agents.registry import Method, find_method
from qam_train.config import (
    MethodConfig,
    StageConfig,
    from_mapping,
    require,
    require_finite,
    to_mapping,
)

TASKS = (1, 2, 3, 4, 5)
ACTION_BOUND = 1.0 - 1e-5  # official code: where a tanh can still reach
RATES = (
    "behaviour_lr_start",
    "behaviour_lr_end",
    "offline_lr_start",
    "offline_lr_end",
)


@dataclass(frozen=True)
class DataConfig:
    """Which rows a cell learns from.

    Args:
        dataset: name of the generated dataset, e.g. "scene-play" (`qam data generate --preset`).
        sparse: rewards other than 0 become -1, in the data and online.
        files: number of files; above 1: a folder of files 000, 001, ..., each a dataset.
        replace_every: updates on one file before the next takes its place.
        clip: actions of the data are clipped to +-clip; None: used as they are (official code, for
            sets of many files).
    """

    dataset: str
    sparse: bool = False
    files: int = 1
    replace_every: int = 1000
    clip: float | None = ACTION_BOUND

    def __post_init__(self) -> None:
        require(bool(self.dataset), "dataset", "a name", self.dataset)
        for name in ("files", "replace_every"):
            value = getattr(self, name)
            require(value >= 1, name, "a positive number", value)
        require(
            self.clip is None or 0.0 < self.clip <= 1.0,
            "clip",
            "nothing, or a number in (0, 1]",
            self.clip,
        )


@dataclass(frozen=True)
class CellConfig:
    """Everything one run of the suite needs.

    Args:
        protocol, method, domain: names, as in the protocol.
        task: 1 to 5.
        seed: of initialisation, sampling, training noise and worlds.
        world: name of the world that is played in.
        data: rows to learn from.
        agent: numbers of the class that trains (`cell.trains.config`).
        algorithm: name of the class that trains, where it is not `method`: a published setting
            of 0 switches the head of qam_edit or qam_onestep off, which leaves qam. Read `trains`.
        behaviour_updates: updates of behaviour cloning before offline training; 0: none.
        behaviour_lr_start, behaviour_lr_end: learning rate, linear over the stage.
        offline_updates: updates from the dataset alone.
        offline_lr_start, offline_lr_end: learning rate, linear over the stage; the last one goes
            on online.
        online_steps: control periods played online.
        start_steps: of those, played before online training begins.
        random_steps: of those, played with uniform random actions.
        utd: updates per control period online.
        online_fraction: share of each online batch drawn from online rows; None: uniform over all.
        evaluate_every: updates (offline) or control periods (online) between two evaluations.
        episodes: per evaluation.
        standardise: observations are standardised with the dataset's statistics.
        pad_terminated: chunks that cross a terminated end are kept (see OfflineConfig).
        online_pad_terminated: the same for online rows.
        max_episode_steps: length of an episode [control periods]; 0: the world's own.
        online_budget: trust-region budget online; None: as offline. TRQAM and SQAM only.
        matmul_precision: torch's float32 matmul precision.
        threads: CPU threads.
        device: "auto", "cpu" or "cuda[:index]".
    """

    protocol: str
    method: str
    domain: str
    task: int
    seed: int
    world: str
    data: DataConfig
    agent: MethodConfig
    algorithm: str = ""
    behaviour_updates: int = 0
    behaviour_lr_start: float = 3e-4
    behaviour_lr_end: float = 3e-4
    offline_updates: int = 1_000_000
    offline_lr_start: float = 3e-4
    offline_lr_end: float = 3e-4
    online_steps: int = 500_000
    start_steps: int = 5000
    random_steps: int = 0
    utd: float = 1.0
    online_fraction: float | None = None
    evaluate_every: int = 50_000
    episodes: int = 50
    standardise: bool = False
    pad_terminated: bool = False
    online_pad_terminated: bool = False
    max_episode_steps: int = 0
    online_budget: float | None = None
    matmul_precision: typing.Literal["highest", "high", "medium"] = "highest"
    threads: int = 1
    device: str = "auto"

    def __post_init__(self) -> None:
        require_finite(self)
        require(self.task in TASKS, "task", "1 to 5", self.task)
        kind = self.trains.config
        require(
            type(self.agent) is kind,
            "agent",
            f"{kind.__name__}, the settings of {self.algorithm or self.method}",
            type(self.agent).__name__,
        )
        for name in ("evaluate_every", "episodes", "threads"):
            value = getattr(self, name)
            require(value >= 1, name, "a positive number", value)
        for name in (
            *("behaviour_updates", "offline_updates", "online_steps", "start_steps"),
            *("random_steps", "max_episode_steps", *RATES),
        ):
            require(
                getattr(self, name) >= 0, name, "a number >= 0", getattr(self, name)
            )
        require(self.utd > 0.0, "utd", "a positive number", self.utd)
        require(
            self.online_fraction is None or 0.0 <= self.online_fraction <= 1.0,
            "online_fraction",
            "nothing, or a number in [0, 1]",
            self.online_fraction,
        )
        require(
            self.online_budget is None or self.online_budget > 0.0,
            "online_budget",
            "nothing, or a positive number",
            self.online_budget,
        )
        require(
            self.online_budget is None or hasattr(self.agent, "dual"),
            "online_budget",
            f"nothing, since {self.algorithm or self.method} has no trust region",
            self.online_budget,
        )

    @property
    def trains(self) -> Method:
        """Class and settings of the agent to train; not always those of `method`."""
        return find_method(self.algorithm or self.method)

    @property
    def behaviour(self) -> StageConfig:
        """The cloning stage."""
        return StageConfig(
            self.behaviour_updates, self.behaviour_lr_start, self.behaviour_lr_end
        )

    @property
    def offline(self) -> StageConfig:
        """The offline stage."""
        return StageConfig(
            self.offline_updates, self.offline_lr_start, self.offline_lr_end
        )

    @property
    def folder(self) -> Path:
        """Where the cell lies below the suite's output folder."""
        task = f"{self.domain}-task{self.task}"
        return Path(self.protocol) / self.method / task / f"seed{self.seed}"


def cell_from_mapping(mapping: Mapping[str, Any], where: str = "cell") -> CellConfig:
    """Build a cell from nested mappings; `agent` is read as the settings of its method.

    Raises:
        ConfigError: unknown method or key (names the nearest valid one), missing key, wrong type or
            value.
    """
    name = mapping.get("algorithm") or mapping.get("method")
    if not isinstance(name, str):
        raise ConfigError(
            f"{where}: expected the key 'method' with a name, got {name!r}"
        )
    required = [
        item.name
        for item in dataclasses.fields(CellConfig)
        if item.default is dataclasses.MISSING
    ]
    missing = [key for key in required if key not in mapping]
    if missing:
        raise ConfigError(f"{where}: missing {', '.join(missing)}")
    return CellConfig(**vars(from_mapping(_cell_of(name), mapping, where)))


@functools.cache
def _cell_of(method: str) -> type[CellConfig]:
    """The same fields, with the settings of this very method as the type of `agent`."""
    return dataclasses.make_dataclass(
        "CellConfig",
        [("agent", find_method(method).config)],
        bases=(CellConfig,),
        frozen=True,
    )


def read_cell(path: Path) -> CellConfig:
    """Read a cell's config.yaml.

    Raises:
        ConfigError: no such file, not a mapping, or as cell_from_mapping.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: expected the settings of a cell, found no file")
    try:
        mapping = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(mapping, dict):
        raise ConfigError(
            f"{path}: expected a mapping of settings, got {type(mapping).__name__}"
        )
    return cell_from_mapping(mapping, str(path))


def write_cell(cell: CellConfig, path: Path) -> None:
    """Write a whole cell as YAML; read_cell restores it."""
    path.write_text(yaml.safe_dump(to_mapping(cell), sort_keys=False))
