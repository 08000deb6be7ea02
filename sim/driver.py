# SPDX-License-Identifier: Apache-2.0
"""What every scripted driver offers, and how it counts its targets."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from sim.world import Values


class Tally:
    """How many targets a driver gave up or reached since the episode began.

    Attributes:
        targets: targets that are over, the last one of an episode therefore left out.
        reached: those of them that were reached.
    """

    def __init__(self) -> None:
        self.targets = 0
        self.reached = 0

    def count(self, *, reached: bool) -> None:
        """One target is over."""
        self.targets += 1
        self.reached += int(reached)


class Driver(Protocol):
    """Chooses actions for one episode after another."""

    tally: Tally

    def begin(self, rng: np.random.Generator) -> None:
        """Start on the world's present state, right after a reset, with a new tally."""

    def action(self) -> Values:
        """Normalised action (A,) in [-1, 1] for the world's present state."""
