# SPDX-License-Identifier: Apache-2.0
"""The generator: scripted episodes by parallel worker processes, seeded and resumable."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from qam_ros.contract.columns import Dataset
from qam_ros.contract.errors import ConfigError, DatasetError
from qam_ros.runtime.child import end_with_parent
from sim.ant_expert import expert_sha256
from sim.episodes import EpisodeMaker
from sim.labels import LABEL_KEYS, label
from sim.recipes import Recipe
from sim.shards import (
    Shard,
    join,
    leading_shards,
    open_shards,
    read_lengths,
    shard_path,
    write_shard,
)
from sim.store import dataset_of, interface_for, save
from sim.worlds import world_info

SHARD_EPISODES = 4
Progress = Callable[[int, int], None]
"""Called with (rows so far, episodes so far) when a shard is done."""


@dataclass(frozen=True)
class Generation:
    """What was generated and at what cost.

    Attributes:
        rows: rows of the dataset.
        episodes: episodes of the dataset.
        successes: episodes with a row in the task's goal.
        targets: targets of the drivers that were over before their episode was.
        reached: those of them that were reached.
        fallen: episodes that ended before their time because the robot fell over.
        made_rows: rows simulated by this call (less than `rows` after a resume; more where the last
            shards went beyond the target).
        cpu_s: CPU time of this call's simulation, all workers together [s].
        wall_s: wall time of this call [s].
    """

    rows: int
    episodes: int
    successes: int
    targets: int
    reached: int
    fallen: int
    made_rows: int
    cpu_s: float
    wall_s: float


@dataclass(frozen=True)
class Target:
    """How much to generate: at least `rows` rows (whole episodes), or exactly `episodes` episodes."""

    rows: int = 0
    episodes: int = 0

    def __post_init__(self) -> None:
        if (self.rows > 0) == (self.episodes > 0):
            raise ConfigError(
                f"give either rows or episodes, greater than 0; found {self.rows} and {self.episodes}"
            )

    def of(self, recipe: Recipe) -> Target:
        """The same target in episodes, where their length is known; so no worker makes too many."""
        if self.episodes or not recipe.fixed_length:
            return self
        return Target(episodes=-(-self.rows // recipe.max_steps))

    def episodes_needed(self, lengths: list[int]) -> int | None:
        """Number of leading episodes that reach the target; None when they do not yet."""
        if self.episodes:
            return self.episodes if len(lengths) >= self.episodes else None
        reached = np.flatnonzero(np.cumsum(lengths) >= self.rows)
        return int(reached[0]) + 1 if len(reached) else None


def generate(
    output: Path,
    recipe: Recipe,
    target: Target,
    *,
    seed: int = 0,
    workers: int = 1,
    robot: str | None = None,
    progress: Progress | None = None,
    how: Mapping[str, Any] | None = None,
) -> Generation:
    """Generate a dataset; the result depends on recipe, target and seed, not on the workers.

    Finished shards lie in `<output>.partial`; a call with the same settings goes on from them.

    Args:
        output: folder of the dataset to write; must not exist.
        recipe: how episodes are played.
        target: how much.
        seed: seed of the run.
        workers: worker processes; 1 works in this process.
        robot: name or path of the robot interface the dataset is for (default: the world's).
        progress: called as shards finish.
        how: further entries of the manifest's metadata, which the rows do not depend on.

    Raises:
        DatasetError: the output exists, an unfinished run has other settings, or a worker died.
    """
    if output.exists():
        raise DatasetError(
            f"{output} exists already; choose another output or delete it"
        )
    started = time.perf_counter()
    target = target.of(recipe)
    interface = interface_for(recipe.world, robot)
    settings = generator_settings(recipe, seed)
    folder = output.with_name(output.name + ".partial")
    made_rows, cpu_s = _play(folder, recipe, target, settings, workers, progress)
    shard = _leading_episodes(folder, target)
    labels = _labels(recipe, shard)
    dataset = dataset_of(shard.rows | labels, shard.lengths, shard.end_observations)
    figures = _figures(dataset, shard, recipe)
    meta = settings | dict(how or {}) | {"figures": figures}
    save(output, dataset, interface, recipe.world, recipe.task, meta)
    shutil.rmtree(folder)
    return Generation(
        rows=len(dataset),
        episodes=len(shard.lengths),
        **figures,
        made_rows=made_rows,
        cpu_s=cpu_s,
        wall_s=time.perf_counter() - started,
    )


def _play(
    folder: Path,
    recipe: Recipe,
    target: Target,
    settings: dict[str, Any],
    workers: int,
    progress: Progress | None,
) -> tuple[int, float]:
    """Make the shards that are missing; returns rows and CPU seconds of this call."""
    done = open_shards(folder, settings)
    made_rows, cpu_s = 0, 0.0
    with _shard_maker(recipe, settings["seed"], folder, workers) as submit:
        for first, rows, seconds in _schedule(submit, done, folder, target, workers):
            done[first] = rows
            made_rows += rows
            cpu_s += seconds
            if progress is not None:
                progress(sum(done.values()), len(done) * SHARD_EPISODES)
    return made_rows, cpu_s


def _figures(dataset: Dataset, shard: Shard, recipe: Recipe) -> dict[str, int]:
    """How good the episodes are; see `Generation`."""
    starts = np.cumsum(shard.lengths) - shard.lengths
    may_fall = recipe.kind != "task" and not recipe.fixed_length
    return {
        "successes": int((np.minimum.reduceat(dataset.masks, starts) == 0).sum()),
        "targets": int(shard.targets.sum()),
        "reached": int(shard.reached.sum()),
        "fallen": int((shard.lengths < recipe.max_steps).sum()) if may_fall else 0,
    }


def generator_settings(recipe: Recipe, seed: int) -> dict[str, Any]:
    """Everything that the rows of a generated dataset depend on, for its metadata."""
    settings = {"recipe": recipe.settings(), "seed": seed, "versions": versions()}
    if world_info(recipe.world).family == "ant":
        settings["expert_sha256"] = expert_sha256()
    return settings


def versions() -> dict[str, str]:
    """Versions that the trajectories depend on."""
    return {name: version(name) for name in ("mujoco", "ogbench", "numpy")}


def _leading_episodes(folder: Path, target: Target) -> Shard:
    """The episodes of a finished run, cut after the target."""
    paths = leading_shards(folder)
    needed = target.episodes_needed([n for path in paths for n in read_lengths(path)])
    if needed is None:
        raise DatasetError(f"the shards in {folder} do not reach {target}; run again")
    return join(paths, needed)


def _labels(recipe: Recipe, shard: Shard) -> dict[str, Any]:
    """Rewards and masks: recorded ones for `task` episodes, else by the task's rule."""
    if recipe.kind == "task":
        return {"rewards": shard.rows["rewards"], "masks": shard.rows["masks"]}
    states = {key: shard.rows[key] for key in LABEL_KEYS if key in shard.rows}
    rewards, masks = label(recipe.world, recipe.task, states)
    return {"rewards": rewards, "masks": masks}


Result = tuple[int, int, float]
"""First episode, rows, CPU seconds of a shard."""
_maker: EpisodeMaker | None = None
_folder: Path | None = None


def _start_process(parent: int, recipe: Recipe, seed: int, folder: Path) -> None:
    """First thing in a worker process: it does not outlive us, and Ctrl-C ends it in silence."""
    end_with_parent(parent)()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _start_worker(recipe, seed, folder)


def _start_worker(recipe: Recipe, seed: int, folder: Path) -> None:
    global _maker, _folder
    _maker, _folder = EpisodeMaker(recipe, seed), folder


def _make_shard(first: int) -> Result:
    if _maker is None or _folder is None:
        raise AssertionError("the worker was not started")
    started = time.process_time()
    shard = Shard.of([_maker.make(first + offset) for offset in range(SHARD_EPISODES)])
    write_shard(_folder, shard)
    return first, int(shard.lengths.sum()), time.process_time() - started


@contextmanager
def _shard_maker(
    recipe: Recipe, seed: int, folder: Path, workers: int
) -> Iterator[Callable[[int], Future[Result]]]:
    """Yield a function that starts making the shard of a first episode."""
    if workers < 1:
        raise ConfigError(f"workers must be at least 1, found {workers}")
    if workers == 1:
        _start_worker(recipe, seed, folder)

        def at_once(first: int) -> Future[Result]:
            future: Future[Result] = Future()
            future.set_result(_make_shard(first))
            return future

        yield at_once
        return
    # Spawned, not forked: MuJoCo and BLAS threads do not survive a fork.
    with ProcessPoolExecutor(
        workers,
        multiprocessing.get_context("spawn"),
        _start_process,
        (os.getpid(), recipe, seed, folder),
    ) as pool:
        try:
            yield lambda first: pool.submit(_make_shard, first)
        except BrokenProcessPool as error:
            raise DatasetError(
                f"a generator process died; finished shards are kept in {folder}, run again"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _schedule(
    submit: Callable[[int], Future[Result]],
    done: dict[int, int],
    folder: Path,
    target: Target,
    workers: int,
) -> Iterator[Result]:
    """Keep every worker busy with the next missing shards until the leading ones suffice."""
    lengths = {first: read_lengths(shard_path(folder, first)) for first in done}
    running: set[Future[Result]] = set()
    upcoming = 0
    while not _enough(lengths, target):
        while len(running) < workers and upcoming < (target.episodes or sys.maxsize):
            if upcoming not in lengths:
                running.add(submit(upcoming))
            upcoming += SHARD_EPISODES
        finished, running = wait(running, return_when=FIRST_COMPLETED)
        for future in finished:
            result = future.result()
            lengths[result[0]] = read_lengths(shard_path(folder, result[0]))
            yield result


def _enough(lengths: dict[int, list[int]], target: Target) -> bool:
    leading: list[int] = []
    while (first := len(leading)) in lengths:
        leading += lengths[first]
    return target.episodes_needed(leading) is not None
