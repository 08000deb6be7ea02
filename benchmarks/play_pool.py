# SPDX-License-Identifier: Apache-2.0
"""Evaluation of checkpoints in worker processes, while the caller goes on training on its GPU.

Episodes are those of the suite (qam_train/suite/world.py): each depends on the cell's seed and its
index alone, so the number of workers does not matter.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from qam_ros.runtime.child import end_with_parent
from qam_train.intervals import wilson_interval
from qam_train.restore import restore_agent
from qam_train.suite.cell_config import CellConfig
from qam_train.suite.folder import Row
from qam_train.suite.world import Played, Rollouts

_rollouts: dict[tuple[str, int], Rollouts] = {}


@dataclass
class _Evaluation:
    """One checkpoint's episodes, some of them still playing."""

    task: int
    step: int
    began: float
    parts: list[Future[tuple[Played, ...]]] = field(default_factory=list)


class PlayPool:
    """Worker processes that play episodes of checkpoints.

    Args:
        workers: processes; 1: this process itself, at once.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._waiting: list[_Evaluation] = []
        self._pool: ProcessPoolExecutor | None = None
        if workers > 1:
            # spawned: CUDA and MuJoCo do not survive a fork
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(
                workers, context, _start_process, (os.getpid(),)
            )

    def submit(self, cell: CellConfig, checkpoint: Path, step: int) -> None:
        """Start the episodes of one evaluation; step: updates of the checkpoint."""
        evaluation = _Evaluation(cell.task, step, time.perf_counter())
        first = step // cell.evaluate_every * cell.episodes
        share = -(-cell.episodes // self._workers)
        for begin in range(0, cell.episodes, share):
            count = min(share, cell.episodes - begin)
            arguments = (cell, checkpoint, first + begin, count)
            evaluation.parts.append(self._start(arguments))
        self._waiting.append(evaluation)

    def _start(
        self, arguments: tuple[CellConfig, Path, int, int]
    ) -> Future[tuple[Played, ...]]:
        if self._pool is not None:
            return self._pool.submit(play, *arguments)
        future: Future[tuple[Played, ...]] = Future()
        future.set_result(play(*arguments))
        return future

    def finished(self, wait_s: float = 0.0) -> Iterator[Row]:
        """Evaluations that are over, each once.

        Args:
            wait_s: how long to wait for those that are not [s].
        """
        deadline = time.perf_counter() + wait_s
        while self._waiting:
            over = [e for e in self._waiting if all(p.done() for p in e.parts)]
            for evaluation in over:
                self._waiting.remove(evaluation)
                yield _row(evaluation)
            if not over:
                if time.perf_counter() >= deadline:
                    return
                time.sleep(0.1)

    def close(self) -> None:
        """End the workers; episodes not begun are dropped."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


def play(
    cell: CellConfig, checkpoint: Path, first: int, episodes: int
) -> tuple[Played, ...]:
    """Episodes first .. first+episodes-1 of a checkpoint, on the CPU."""
    key = cell.world, cell.task
    if key not in _rollouts:
        _rollouts[key] = Rollouts(
            cell.world,
            cell.task,
            cell.seed,
            count=1,
            sparse=cell.data.sparse,
            max_episode_steps=cell.max_episode_steps,
        )
    return _rollouts[key].play(restore_agent(checkpoint), first, episodes)


def _start_process(parent: int) -> None:
    end_with_parent(parent)()
    torch.set_num_threads(1)


def _row(evaluation: _Evaluation) -> Row:
    played = [episode for part in evaluation.parts for episode in part.result()]
    solved = sum(episode.success for episode in played)
    low, high = wilson_interval(solved, len(played))
    return {
        "task": evaluation.task,
        "step": evaluation.step,
        "success": solved / len(played),
        "low": low,
        "high": high,
        "episodes": len(played),
        "length": float(np.mean([episode.length for episode in played])),
        "seconds": time.perf_counter() - evaluation.began,
    }
