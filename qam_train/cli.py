# SPDX-License-Identifier: Apache-2.0
"""Command lines of the trainer: 'qam train' and 'qam parity'."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from qam_ros.contract.dataset import read_dataset, read_dataset_manifest
from qam_ros.contract.errors import ConfigError
from qam_ros.contract.interface import load_interface
from qam_train.config import load_config, saved_settings
from qam_train.data.dataset import FlatDataset
from qam_train.export_sources import PLACE
from qam_train.loops.offline import train_offline
from qam_train.offline_config import OfflineConfig
from qam_train.parity import PRECISIONS, Comparison, UnsupportedRecordingError, compare


@dataclass(frozen=True)
class TrainArguments:
    """Train a method offline: behaviour cloning where it is asked for, then the method."""

    dataset: tyro.conf.Positional[Path]
    """Dataset directory."""
    run_dir: Path
    """Directory of the run; created."""
    method: str | None = None
    """Method, e.g. qam, trqam, fql; the same as --set method=NAME. Without it: the settings' own, qam."""
    robot: str | None = None
    """Robot the policy is for, a name in config/robot or a file; a dataset of another interface is refused."""
    config: Path | None = None
    """YAML settings; without it the published sizes. With --resume: the run's own config.yaml."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Override of one setting, dotted.key=value; may be repeated."""
    resume: bool = False
    """Continue from the newest checkpoint."""
    quiet: bool = False
    """No progress display."""


@dataclass(frozen=True)
class ParityArguments:
    """Compare the methods with recordings of the official implementation.

    Exit code 0: every recording was compared, and every quantity is within tolerance. Exit code 1: a
    quantity is beyond, or a recording could not be compared (an unknown method, a switch that no method
    here stands for, a file that is no recording); each is named with its reason. Networks that the
    recordings' README calls never read count as compared: they must have no gradient and not move.
    """

    directory: tyro.conf.Positional[Path]
    """Directory of npz recordings."""
    precision: Literal["both", "float64", "float32"] = "both"
    """Precision of the methods here; the reference is always float64."""
    json: bool = False
    """Print JSON instead of a table."""


def train(argv: Sequence[str]) -> int:
    """Train a method offline: behaviour cloning where it is asked for, then the method.

    Returns:
        0.

    Raises:
        QamError: settings or dataset are not usable; nothing has been trained yet.
        NonFiniteError: training broke; the last checkpoint is good.
    """
    arguments = tyro.cli(TrainArguments, prog="qam train", args=list(argv))
    config = _train_settings(arguments)
    interface = None if arguments.robot is None else load_interface(arguments.robot)
    manifest = read_dataset_manifest(arguments.dataset)
    dataset = FlatDataset.from_contract(read_dataset(arguments.dataset, interface))
    train_offline(
        config,
        dataset,
        arguments.run_dir,
        resume=arguments.resume,
        progress=not arguments.quiet,
        provenance={
            "robot": manifest.interface.robot,
            "semantic_hash": manifest.interface.semantic_hash,
            "dataset_hash": manifest.sha256,
            PLACE: str(arguments.dataset.resolve()),
        },
    )
    return 0


def _train_settings(arguments: TrainArguments) -> OfflineConfig:
    """Settings of a run; those of a resumed one are its own where nothing else is said.

    Raises:
        ConfigError: not usable; nothing to resume; the run is one of another method.
    """
    path, method = arguments.config, arguments.method
    if path is None and arguments.resume:
        path = saved_settings(arguments.run_dir, given=bool(method or arguments.set))
        held = None if path is None else load_config(OfflineConfig, path).method
        if method is not None and held is not None and held != method:
            raise ConfigError(
                f"{arguments.run_dir}: the run was made with method {held}, found --method "
                f"{method}; resume it without --method, or start in another directory"
            )
    chosen = () if method is None else (f"method={method}",)
    return load_config(OfflineConfig, path, (*chosen, *arguments.set))


def parity(argv: Sequence[str]) -> int:
    """Compare our methods with recordings of the official implementation.

    Returns:
        0; 1 where a quantity is beyond tolerance or a recording could not be compared.
    """
    arguments = tyro.cli(ParityArguments, prog="qam parity", args=list(argv))
    paths = sorted(arguments.directory.glob("*.npz"))
    if not paths:
        raise ConfigError(f"{arguments.directory}: expected npz recordings, found none")
    precisions = (
        list(PRECISIONS) if arguments.precision == "both" else [arguments.precision]
    )
    rows: list[Comparison] = []
    left_out: dict[str, str] = {}
    for path in paths:
        try:
            found = [row for p in precisions for row in compare(path, p)]
        except UnsupportedRecordingError as error:
            left_out[path.name] = str(error)
        else:
            rows += found
    if arguments.json:
        listed = [{**dataclasses.asdict(row), "passed": row.passed} for row in rows]
        print(json.dumps({"comparisons": listed, "not_compared": left_out}, indent=2))
    else:
        _print_table(rows, left_out)
    return 0 if not left_out and all(row.passed for row in rows) else 1


def _print_table(rows: Sequence[Comparison], left_out: dict[str, str]) -> None:
    table = Table("method", "precision", "quantity", "largest error", "allowed", "")
    for row in _worst(rows):
        verdict = "ok" if row.passed else "[red]BEYOND[/red]"
        table.add_row(
            row.method,
            row.precision,
            row.quantity,
            f"{row.error:.1e}",
            f"{row.tolerance:.1e}",
            verdict,
        )
    console = Console()
    console.print(table)
    failed = sum(not row.passed for row in rows)
    methods = len({row.method for row in rows})
    console.print(
        f"{methods} recordings compared, {len(rows) - failed} quantities within tolerance, {failed} beyond"
    )
    for name, reason in left_out.items():
        console.print(f"not compared: {name}: {reason}", markup=False)


def _worst(rows: Sequence[Comparison]) -> list[Comparison]:
    """One row for each method, precision and kind of quantity: the one with the largest error."""
    worst: dict[tuple[str, str, str], Comparison] = {}
    for row in rows:
        kind = row.quantity.split(":")[0]
        key = (row.method, row.precision, kind)
        if key not in worst or _rank(row) > _rank(worst[key]):
            worst[key] = dataclasses.replace(row, quantity=kind)
    return list(worst.values())


def _rank(row: Comparison) -> float:
    return math.inf if math.isnan(row.error) else row.error
