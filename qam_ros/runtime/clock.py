# SPDX-License-Identifier: Apache-2.0
"""Clocks that are handed in, so that the same code runs in real time, in lockstep and in tests."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Tells the time in the domain of the stamps it is compared with."""

    def now_ns(self) -> int:
        """Time [ns]."""


class MonotonicClock:
    """Time since an arbitrary start that never steps: deadlines and watchdogs in real time."""

    def now_ns(self) -> int:
        """Time since an arbitrary start [ns]."""
        return time.monotonic_ns()


class ManualClock:
    """Time that somebody sets: lockstep simulation and tests.

    Args:
        now_ns: time at the start [ns].
    """

    def __init__(self, now_ns: int = 0) -> None:
        self._now_ns = now_ns

    def now_ns(self) -> int:
        """The time last set [ns]."""
        return self._now_ns

    def set(self, now_ns: int) -> None:
        """Jump to a time, also backwards [ns]."""
        self._now_ns = now_ns

    def advance(self, step_ns: int) -> int:
        """Go on by a step [ns] and return the new time [ns]."""
        self._now_ns += step_ns
        return self._now_ns
