# SPDX-License-Identifier: Apache-2.0
"""The demo's stages before the robot starts: data, offline training, export, evaluation."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from qam_ros.contract.dataset import read_dataset, read_dataset_manifest
from qam_train.data.dataset import FlatDataset
from qam_train.deployed import behaviour_of
from qam_train.evaluate import evaluate
from qam_train.export import (
    TOLERANCE,
    Provenance,
    export_artifact,
    find_checkpoint,
)
from qam_train.loops.demo_display import Display
from qam_train.loops.demo_run import DemoRun
from qam_train.loops.evaluator import EvaluationConfig
from qam_train.loops.offline import train_offline
from qam_train.restore import Agent, restore_agent
from sim.generate import Target, generate
from sim.recipes import make_recipe

EVALUATION_SEED = (
    10_000  # added to the demo's seed: starts that neither data nor robot play
)


def make_data(run: DemoRun, display: Display, result: dict[str, Any]) -> None:
    """Scripted episodes into `dataset/`."""
    config, data = run.config, run.config.data
    recipe = make_recipe(
        "task",
        config.world,
        config.task,
        extra_rows=config.offline.agent.chunk,
        **{
            name: value
            for name, value in dataclasses.asdict(data).items()
            if name != "rows"
        },
    )
    with display.bar("episodes", data.rows, "rows") as bar:
        made = generate(
            run.path / "dataset",
            recipe,
            Target(rows=data.rows),
            seed=config.seed,
            workers=config.workers,
            progress=lambda rows, episodes: bar.update(
                min(rows, data.rows), f"{episodes} episodes"
            ),
        )
    result.update(
        rows=made.rows,
        episodes=made.episodes,
        successful_episodes=made.successes,
        rows_per_s=round(made.made_rows / made.wall_s, 1),
    )
    display.result(
        f"{made.rows} rows in {made.episodes} episodes, {made.successes} of them reached the goal"
    )


def train(run: DemoRun, display: Display, result: dict[str, Any]) -> None:
    """Behaviour cloning, then the method, into `offline/`; goes on from its newest checkpoint."""
    folder = run.path / "dataset"
    manifest = read_dataset_manifest(folder)
    dataset = FlatDataset.from_contract(read_dataset(folder))
    for name, config in run.config.trainings().items():
        trained = train_offline(
            config,
            dataset,
            run.path / name,
            resume=True,
            progress=not display.console.quiet,
            provenance={
                "dataset_hash": manifest.sha256,
                "semantic_hash": manifest.interface.semantic_hash,
            },
        )
    result["agent"] = trained.agent.algorithm


def export(run: DemoRun, display: Display, result: dict[str, Any]) -> None:
    """Artifacts of the cloned base and of the offline policy, verified on their golden probes."""
    folder = run.path / "dataset"
    manifest, dataset = read_dataset_manifest(folder), read_dataset(folder)
    checkpoint = find_checkpoint(run.path / "offline")
    agent = restore_agent(checkpoint)
    policies = {"base": _base(run, agent), "offline": agent}
    errors = []
    for name, policy in policies.items():
        exported = export_artifact(
            policy,
            manifest.interface,
            dataset,
            run.path / "artifacts" / name,
            Provenance(f"demo-{run.config.seed}", manifest.sha256),
            seed=run.config.seed,
            replace_existing=True,
        )
        errors.append(exported.largest_error)
    result.update(
        checkpoint=str(checkpoint.relative_to(run.path)),
        probes=64,
        largest_difference=float(np.max(errors)),
        tolerance=TOLERANCE,
    )
    display.result(
        f"torch and ONNX Runtime differ by at most {np.max(errors):.1e} on 64 probes"
    )


def _base(run: DemoRun, agent: Agent) -> Agent:
    """The cloned flow that the trained policy is compared with."""
    if run.config.base.updates > 0:
        return restore_agent(find_checkpoint(run.path / "base"))
    if run.config.offline.behaviour.updates > 0:
        return restore_agent(run.path / "offline" / "behaviour.safetensors")
    return behaviour_of(agent)


def evaluation_config(run: DemoRun, artifact: Path) -> EvaluationConfig:
    """How a policy of the demo is evaluated: the same starts for every policy."""
    config = run.config
    return EvaluationConfig(
        artifact, config.world, config.task, config.seed + EVALUATION_SEED
    )


def evaluate_policy(
    run: DemoRun, display: Display, result: dict[str, Any], name: str, artifact: Path
) -> None:
    """Success of one policy over the demo's episodes, into ``result[name]``."""
    episodes = run.config.episodes
    with display.bar(name, episodes, "episodes") as bar:
        found = evaluate(
            evaluation_config(run, artifact),
            episodes,
            run.config.workers,
            lambda done, solved: bar.update(done, f"{solved} reached the goal"),
        )
    result[name] = {
        **found.summary(),
        "successes": [int(success) for success in found.successes],
    }
    display.result(
        f"{name}: {100 * found.mean:.0f} %  [{100 * found.low:.0f}, {100 * found.high:.0f}]"
    )
