# SPDX-License-Identifier: Apache-2.0
"""Evaluation of a policy artifact in simulation: many seeded episodes in worker processes.

A worker holds one world and the robot's own software: ONNX sampler, chunk queue, observation
assembler, guard with the deployment's overlay. It never imports torch. An episode depends on the
seed and its index alone, not on the number of workers or on the episodes before it.

OGBench reports success one control step late; an episode counts as solved when the world says so
within its step limit.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from qam_ros.contract.errors import ConfigError, QamError
from qam_train.intervals import wilson_interval
from qam_train.loops.evaluator import EvaluationConfig, Evaluator
from sim.plant import EpisodeRecord

# One thread each: workers share the cores among themselves.
_THREAD_LIMITS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class EvalResult:
    """Outcome of all episodes, in the order of their index.

    Args:
        successes: whether each episode was solved.
        returns: sum of rewards of each.
        lengths: control steps of each.
        mean: share of solved episodes.
        low: lower end of its 95 % interval (Wilson).
        high: upper end.
        seconds: wall time, start of the workers included [s].
    """

    successes: tuple[bool, ...]
    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    mean: float
    low: float
    high: float
    seconds: float

    @property
    def episodes(self) -> int:
        """Number of episodes."""
        return len(self.successes)

    def summary(self) -> dict[str, float | int]:
        """The figures without the single episodes."""
        return {
            "mean": self.mean,
            "low": self.low,
            "high": self.high,
            "episodes": self.episodes,
            "mean_return": float(np.mean(self.returns)),
            "mean_length": float(np.mean(self.lengths)),
            "seconds": self.seconds,
        }


def evaluate(
    config: EvaluationConfig,
    episodes: int,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> EvalResult:
    """Play episodes 0 .. episodes-1 in worker processes.

    Args:
        config: what is evaluated.
        episodes: number of episodes.
        workers: processes; each holds a world (about 250 MiB).
        progress: called with (episodes done, solved so far).

    Raises:
        QamError: the policy or world cannot be used, or a worker died.
    """
    if episodes < 1 or workers < 1:
        raise ConfigError(
            f"evaluation: expected at least one episode and worker, got {episodes} and {workers}"
        )
    started = time.perf_counter()
    records: list[EpisodeRecord] = []
    solved = 0
    for record in _played(config, episodes, min(workers, episodes)):
        records.append(record)
        solved += record.success
        if progress is not None:
            progress(len(records), solved)
    low, high = wilson_interval(solved, episodes)
    return EvalResult(
        successes=tuple(record.success for record in records),
        returns=tuple(record.episode_return for record in records),
        lengths=tuple(record.steps for record in records),
        mean=solved / episodes,
        low=low,
        high=high,
        seconds=time.perf_counter() - started,
    )


def _played(
    config: EvaluationConfig, episodes: int, workers: int
) -> Iterator[EpisodeRecord]:
    context = multiprocessing.get_context(
        "spawn"
    )  # no state of this process goes along
    with (
        _single_threaded(),
        ProcessPoolExecutor(
            workers, mp_context=context, initializer=_start_worker, initargs=(config,)
        ) as pool,
    ):
        try:
            yield from pool.map(_play_in_worker, range(episodes))
        except BrokenProcessPool as error:
            raise QamError(
                "evaluation: a worker process died; see its output above, and whether memory "
                "sufficed (fewer --workers need less)"
            ) from error


_evaluator: Evaluator | QamError | None = None  # of a worker process


def _start_worker(config: EvaluationConfig) -> None:
    global _evaluator  # noqa: PLW0603 - a pool has no other place for what a worker keeps
    try:
        _evaluator = Evaluator(config)
    except QamError as error:  # raised where it can be told: with the first episode
        _evaluator = error


def _play_in_worker(index: int) -> EpisodeRecord:
    if isinstance(_evaluator, QamError):
        raise QamError(str(_evaluator))
    assert _evaluator is not None
    return _evaluator.play(index)


@contextmanager
def _single_threaded() -> Iterator[None]:
    """Processes started inside the block use one thread in numerical libraries."""
    before = {name: os.environ.get(name) for name in _THREAD_LIMITS}
    os.environ.update(dict.fromkeys(_THREAD_LIMITS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@dataclass(frozen=True)
class EvaluateArguments:
    """Evaluate a policy artifact in simulation."""

    artifact: tyro.conf.Positional[Path]
    """Policy artifact, a directory or zip file."""
    world: str
    """World, e.g. cube-single, or OGBench's single-task name."""
    task: int | None = None
    """Task 1..5; default: of the name, else 1."""
    episodes: int = 100
    """Number of episodes."""
    seed: int = 0
    """Seed of the episodes."""
    workers: Annotated[int, tyro.conf.arg(aliases=["-j"])] = 2
    """Worker processes."""
    overlay: str | None = None
    """Overlay of a deployment: a file or a name in config/robot."""
    max_episode_steps: int = 0
    """Truncate after so many steps; 0: the world's own limit."""
    json: bool = False
    """Print JSON, single episodes included."""


def command(argv: Sequence[str]) -> int:
    """Evaluate a policy artifact in simulation: success with its 95 % interval."""
    arguments = tyro.cli(EvaluateArguments, prog="qam eval", args=list(argv))
    config = EvaluationConfig(
        arguments.artifact,
        arguments.world,
        arguments.task,
        arguments.seed,
        arguments.overlay,
        arguments.max_episode_steps,
    )
    result = _evaluate_visibly(
        config, arguments.episodes, arguments.workers, show=not arguments.json
    )
    if arguments.json:
        print(json.dumps(dataclasses.asdict(result)))  # noqa: T201
        return 0
    summary = result.summary()
    print(  # noqa: T201
        f"{arguments.artifact} in {arguments.world}: success {result.mean:.3f} "
        f"[{result.low:.3f}, {result.high:.3f}] over {result.episodes} episodes, mean return "
        f"{summary['mean_return']:.1f}, mean length {summary['mean_length']:.1f}, "
        f"{result.seconds:.1f} s"
    )
    return 0


def _evaluate_visibly(
    config: EvaluationConfig, episodes: int, workers: int, *, show: bool
) -> EvalResult:
    """Evaluate with a progress display: bar, time left, success so far."""
    columns = (
        TextColumn("episodes"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("success {task.fields[success]:.2f}"),
    )
    with Progress(*columns, transient=True, disable=not show) as display:
        task = display.add_task("episodes", total=episodes, success=0.0)

        def advance(done: int, solved: int) -> None:
            display.update(task, completed=done, success=solved / done)

        return evaluate(config, episodes, workers, advance)
