# SPDX-License-Identifier: Apache-2.0
"""Settings of online fine-tuning, and the arithmetic between rows, updates and credit.

    updates due   = floor(UTD * (rows - start_rows))                   rows up to online_steps
    allowed steps = start_rows + ceil((updates + 1) / UTD) - 1 + W     the plant's credit

At UTD 1 that is updates + W; below 1 the rows of the next update are granted at once. So learning
does not depend on how fast the machine is: a plant in lockstep waits for the updates, and the
updates wait for rows.
"""

from __future__ import annotations

import math
import typing
from dataclasses import dataclass
from fractions import Fraction

from qam_ros.contract.errors import ConfigError


@dataclass(frozen=True)
class LearnerConfig:
    """Online fine-tuning; the numbers of the agent come with its checkpoint.

    Args:
        seed: of sampling and training noise (and of worlds and policy in `qam finetune`).
        online_steps: rows after which the run is complete [environment steps].
        utd: updates per row.
        window: W, steps the plant may be ahead of the updates [environment steps].
        start_rows: rows collected before the first update.
        online_fraction: share of online rows in a batch; None: every row is equally likely.
        pad_terminated: as in offline training.
        budget: of the trust region from the first online update on [nats per control period]; None: as
            offline. Only methods with a trust region take one.
        lr_start: learning rate of the first update.
        lr_end: of the last one; linear between them.
        offer_every: updates between two versions offered to the robot.
        max_probe_change: largest mean action change on the probes that the learner itself offers;
            .inf leaves the verdict to the robot.
        stall_s: when no row came for so long although none is being worked on, the plant is granted
            another window: steps without a row (policy down, robot stopped) have used this one up [s].
        reoffer_s: an offer without verdict is repeated after this time [s].
        checkpoint_every: updates between two checkpoints.
        keep_checkpoints: older checkpoints are removed; 0 keeps all.
        log_every: updates between two rows of metrics.
        matmul_precision: torch's float32 matmul precision.
        threads: CPU threads.
    """

    seed: int = 0
    online_steps: int = 500_000
    utd: float = 1.0
    window: int = 100
    start_rows: int = 5000
    online_fraction: float | None = None
    pad_terminated: bool = False
    budget: float | None = None
    lr_start: float = 3e-4
    lr_end: float = 3e-4
    offer_every: int = 1000
    max_probe_change: float = math.inf
    stall_s: float = 3.0
    reoffer_s: float = 3.0
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    log_every: int = 50
    matmul_precision: typing.Literal["highest", "high", "medium"] = "highest"
    threads: int = 1

    def __post_init__(self) -> None:
        positive = (
            "online_steps",
            "window",
            "offer_every",
            "checkpoint_every",
            "log_every",
            "threads",
        )
        for name in positive:
            _require(
                getattr(self, name) >= 1, name, "a positive number", getattr(self, name)
            )
        for name in ("seed", "start_rows", "keep_checkpoints"):
            _require(
                getattr(self, name) >= 0, name, "a number >= 0", getattr(self, name)
            )
        for name in (
            "utd",
            "lr_start",
            "lr_end",
            "max_probe_change",
            "stall_s",
            "reoffer_s",
        ):
            _require(
                getattr(self, name) > 0, name, "a positive number", getattr(self, name)
            )
        _require(
            self.budget is None or self.budget > 0,
            "budget",
            "a positive number",
            self.budget,
        )
        _require(
            self.start_rows < self.online_steps,
            "start_rows",
            "less than online_steps",
            self.start_rows,
        )

    @property
    def total_updates(self) -> int:
        """Updates of the whole run."""
        return self.updates_due(self.online_steps)

    def updates_due(self, rows: int) -> int:
        """Updates that so many rows pay for."""
        return math.floor(
            _exact(self.utd) * max(0, min(rows, self.online_steps) - self.start_rows)
        )

    def allowed_steps(self, updates: int, unplayed: int = 0) -> int:
        """Steps the plant may have taken in all after so many updates.

        Args:
            updates: updates done.
            unplayed: steps that are known to have left no row, which would use up the window.
        """
        paid = math.ceil((updates + 1) / _exact(self.utd)) - 1
        return self.start_rows + paid + self.window + unplayed

    def learning_rate(self, update: int) -> float:
        """Learning rate of one update, counted from 0."""
        share = min(1.0, update / max(1, self.total_updates - 1))
        return self.lr_start + (self.lr_end - self.lr_start) * share


def _exact(utd: float) -> Fraction:
    """The fraction that was meant: 0.1 is one tenth."""
    return Fraction(utd).limit_denominator(1_000_000)


def _require(holds: bool, name: str, expected: str, got: object) -> None:  # noqa: FBT001
    if not holds:
        raise ConfigError(f"{name}: expected {expected}, got {got}")
