# SPDX-License-Identifier: Apache-2.0
"""Results of paper_scale.py beside the published curve: table, JSON, CSV, and the trained policies."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from measuring import machine

from qam_train.checkpoint import read_checkpoint, write_checkpoint
from qam_train.restore import restore_agent
from qam_train.suite.cell_config import CellConfig
from qam_train.suite.hardware import device_name
from qam_train.suite.report.published import Published

Row = dict[str, Any]
OURS = ("step", "success", "low", "high", "episodes")
COLUMNS = (
    *("domain", "task", "method", "seed"),
    *OURS,
    *("published", "published_stderr"),
)


def about(cell: CellConfig, device: torch.device) -> dict[str, Any]:
    """Machine, versions and precision."""
    return machine("torch", "numpy", "mujoco", "ogbench") | {
        "device": device_name(device),
        "cuda": torch.version.cuda,
        "matmul_precision": cell.matmul_precision,
    }


def table(
    cells: Sequence[CellConfig], evaluations: Sequence[Row], published: Published
) -> list[Row]:
    """Our evaluations in order, each with the published success after as many updates."""
    rows = []
    for cell in cells:
        curve = published.curve(cell.method, [(cell.domain, cell.task)])
        known = {}
        if curve is not None:
            pairs = zip(curve.success, curve.spread, strict=True)
            known = dict(zip(curve.steps.tolist(), pairs, strict=True))
        ours = [e for e in evaluations if e["task"] == cell.task]
        for found in sorted(ours, key=lambda row: row["step"]):
            success, spread = known.get(found["step"], (None, None))
            rows.append(
                {
                    "domain": cell.domain,
                    "task": cell.task,
                    "method": cell.method,
                    "seed": cell.seed,
                    **{name: found[name] for name in OURS},
                    "published": None if success is None else float(success),
                    "published_stderr": None if spread is None else float(spread),
                }
            )
    return rows


def write_results(
    out: Path, record: Mapping[str, Any], rows: Sequence[Row], about: Mapping[str, Any]
) -> None:
    """paper_scale.json, evaluations.csv and table.txt; the last one is printed, too."""
    out.mkdir(parents=True, exist_ok=True)
    whole = {"about": dict(about), **record, "table": list(rows)}
    (out / "paper_scale.json").write_text(json.dumps(whole, indent=1) + "\n")
    with (out / "evaluations.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    text = "\n".join(_lines(record, rows, about)) + "\n"
    (out / "table.txt").write_text(text)
    print(text, end="", flush=True)


def _lines(
    record: Mapping[str, Any], rows: Sequence[Row], about: Mapping[str, Any]
) -> list[str]:
    lines = ["  ".join(f"{key} {value}" for key, value in about.items())]
    data, speed, training = record.get("data"), record.get("speed"), record["training"]
    if data:
        speed_of = data["rows_per_cpu_s"]  # None: an earlier call had made all rows
        made = "" if speed_of is None else f", {speed_of:.0f} rows per CPU second"
        lines.append(
            f"data: {data['dataset']}, {data['rows']:,} rows{made}, {data['workers']} workers"
        )
    if speed:
        lines.append(
            f"one agent: eager {speed['eager']:.1f}, recorded {speed['recorded']:.1f} updates/s, ratio "
            f"{speed['ratio']:.2f}, parameters differ by {speed['difference']:.1e}"
        )
    if training["seconds"] > 0.0:
        rate = training["updates"] / training["seconds"]
        lines.append(
            f"training: {training['updates']} updates of all tasks in {training['seconds']:.0f} s, "
            f"{rate:.1f}/s together"
        )
    lines.append(
        "task  updates  success [95 % of episodes]  published +- standard error"
    )
    for row in rows:
        beside = "-"
        if row["published"] is not None:
            beside = f"{row['published']:.3f} +- {row['published_stderr']:.3f}"
        lines.append(
            f"{row['task']:4d}  {row['step']:7d}  {row['success']:.2f} [{row['low']:.2f}, "
            f"{row['high']:.2f}] of {row['episodes']:<5d}  {beside}"
        )
    return lines


def save_policy(checkpoint: Path, path: Path) -> None:
    """What acts, of a checkpoint: the policy's net and the statistics, a fiftieth of the size."""
    held = read_checkpoint(checkpoint)
    agent = restore_agent(held)
    tensors = agent.actor_parameters() | agent.normaliser.state()
    metadata = {
        name: held.metadata[name] for name in ("algorithm", "agent", "update", "config")
    }
    write_checkpoint(
        path, tensors, metadata | {"versions": {"torch": version("torch")}}
    )
