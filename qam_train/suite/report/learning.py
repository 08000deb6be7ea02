# SPDX-License-Identifier: Apache-2.0
"""Learning curves on one axis: offline updates up to where online begins, environment steps after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qam_train.suite.report.published import OFFLINE_END, Curve
from qam_train.suite.report.run import BEHAVIOUR, ONLINE, Run, Task
from qam_train.suite.report.statistics import Array, Estimate, estimate

RESAMPLES = 500  # of each point of a curve


@dataclass(frozen=True)
class Point:
    """Success at one place of a curve.

    Args:
        place: on the axis.
        phase: "behaviour", "offline" or "online".
        score: over seeds and tasks.
    """

    place: int
    phase: str
    score: Estimate


def online_start(run: Run, tasks: Sequence[Task]) -> int:
    """Where online training begins on the axis of some tasks: after the longest offline training."""
    return max(
        (c.config.offline_updates for c in run.cells if c.task in set(tasks)), default=0
    )


def curve(run: Run, method: str, tasks: Sequence[Task], start: int) -> list[Point]:
    """A method's curve, at the places that every one of the tasks has reached.

    Args:
        run: the cells.
        method: name.
        tasks: averaged over.
        start: where online begins on the axis; a cell's online steps count from there.
    """
    by_place: dict[tuple[int, str], dict[Task, list[float]]] = {}
    for task in tasks:
        for cell in run.of(method, task):
            for row in cell.evaluations:
                online = row.phase == ONLINE
                place = row.step + (start - cell.config.offline_updates) * online
                held = by_place.setdefault((place, row.phase), {})
                held.setdefault(task, []).append(row.success)
    order = {BEHAVIOUR: 0}
    return [
        Point(place, phase, estimate(_groups(held), resamples=RESAMPLES))
        for (place, phase), held in sorted(
            by_place.items(), key=lambda item: (item[0][0], order.get(item[0][1], 1))
        )
        if len(held) == len(tasks)
    ]


def _groups(held: dict[Task, list[float]]) -> list[Array]:
    return [np.array(values) for values in held.values()]


def aligned(published: Curve, start: int) -> tuple[NDArray[np.int64], Curve]:
    """Places of a published curve on our axis; offline steps beyond our offline training are left out.

    Returns:
        places (P,) and the points that stay.
    """
    online = published.steps > OFFLINE_END
    keep = online | (published.steps <= start)
    places = np.where(online, published.steps - OFFLINE_END + start, published.steps)
    kept = Curve(published.steps[keep], published.success[keep], published.spread[keep])
    return places[keep], kept
