# SPDX-License-Identifier: Apache-2.0
"""Scores of a run at the ends of its phases: per task, per domain, over all; beside published ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from qam_train.suite.report.published import Level, Published
from qam_train.suite.report.run import BEHAVIOUR, OFFLINE, ONLINE, Run, Task
from qam_train.suite.report.statistics import Array, Estimate, estimate

FINAL, GAIN = "final", "gain"
ALL = "all"
BySeed = dict[int, float]


@dataclass(frozen=True)
class Row:
    """One method on one task (or on the tasks of one domain, or on all).

    Args:
        method: name.
        domain: name, or "all".
        task: number; None: mean over the tasks that the run holds.
        seeds: runs per task, the fewest.
        clone: success of the cloned flow that methods start from.
        offline: at the end of offline training; None: not all tasks have got there.
        online: at the end of online training; likewise.
        gain: last phase minus clone, seed by seed.
        published_offline, published_online: the same tasks, as published.
    """

    method: str
    domain: str
    task: int | None
    seeds: int
    clone: Estimate | None
    offline: Estimate | None
    online: Estimate | None
    gain: Estimate | None
    published_offline: Level | None
    published_online: Level | None


class Scores:
    """Everything that tables and figures take from the cells of one run."""

    def __init__(self, run: Run, published: Published) -> None:
        self.run = run
        self.published = published
        self._clones = self._pooled_clones()

    def by_seed(self, method: str, task: Task, phase: str) -> BySeed:
        """Success by seed at the end of a phase ("behaviour": the clone, of whichever method)."""
        if phase == BEHAVIOUR:
            return self._clones.get(task, {})
        found = {}
        for cell in self.run.of(method, task):
            last = ONLINE if cell.config.online_steps else OFFLINE
            rate = cell.at_end(last if phase == FINAL else phase)
            if rate is not None:
                found[cell.config.seed] = rate
        return found

    def gain(self, method: str, task: Task) -> BySeed:
        """Last phase minus clone, for seeds that have both."""
        clone = self._clones.get(task, {})
        final = self.by_seed(method, task, FINAL)
        return {seed: final[seed] - clone[seed] for seed in final if seed in clone}

    def groups(
        self, method: str, tasks: Sequence[Task], phase: str
    ) -> list[Array] | None:
        """One array (seeds,) per task; None where a task has none."""

        def of(task: Task) -> BySeed:
            return (
                self.gain(method, task)
                if phase == GAIN
                else self.by_seed(method, task, phase)
            )

        return _arrays(of, tasks)

    def row(self, method: str, domain: str, tasks: Sequence[Task]) -> Row:
        """Summary of a method over some tasks."""
        estimates = {}
        for phase in (BEHAVIOUR, OFFLINE, ONLINE, GAIN):
            groups = self.groups(method, tasks, phase)
            estimates[phase] = None if groups is None else estimate(groups)
        final = self.groups(method, tasks, FINAL)
        return Row(
            method,
            domain,
            tasks[0][1] if len(tasks) == 1 and domain != ALL else None,
            0 if final is None else min(len(group) for group in final),
            estimates[BEHAVIOUR],
            estimates[OFFLINE],
            estimates[ONLINE],
            estimates[GAIN],
            self.published.level(method, tasks, OFFLINE),
            self.published.level(method, tasks, ONLINE),
        )

    def task_rows(self, domain: str) -> Iterator[Row]:
        """Methods on each task of a domain."""
        for task in self.tasks_of(domain):
            for method in self.run.methods:
                yield self.row(method, domain, [task])

    def domain_rows(self, domain: str) -> Iterator[Row]:
        """Methods over the tasks of a domain, or over all tasks for "all"."""
        tasks = self.run.tasks if domain == ALL else self.tasks_of(domain)
        for method in self.run.methods:
            yield self.row(method, domain, tasks)

    def tasks_of(self, domain: str) -> list[Task]:
        """Tasks of a domain that the run holds."""
        return [task for task in self.run.tasks if task[0] == domain]

    def common(self, phase: str) -> tuple[list[str], list[Task]]:
        """Methods that have reached the end of a phase anywhere, and the tasks that all of them have."""
        reached = {
            method: {t for t in self.run.tasks if self.by_seed(method, t, phase)}
            for method in self.run.methods
        }
        methods = [method for method, tasks in reached.items() if tasks]
        shared = [
            task for task in self.run.tasks if all(task in reached[m] for m in methods)
        ]
        return methods, shared if methods else []

    def _pooled_clones(self) -> dict[Task, BySeed]:
        """Clone's success by task and seed: the mean over all cells that evaluated it."""
        found: dict[Task, dict[int, list[float]]] = {}
        for cell in self.run.cells:
            rate = cell.at_end(BEHAVIOUR)
            if rate is not None:
                by_seed = found.setdefault(cell.task, {})
                by_seed.setdefault(cell.config.seed, []).append(rate)
        return {
            task: {seed: float(np.mean(rates)) for seed, rates in by_seed.items()}
            for task, by_seed in found.items()
        }


def _arrays(of: Callable[[Task], BySeed], tasks: Sequence[Task]) -> list[Array] | None:
    groups = []
    for task in tasks:
        by_seed = of(task)
        if not by_seed:
            return None
        groups.append(np.array([by_seed[seed] for seed in sorted(by_seed)]))
    return groups or None
