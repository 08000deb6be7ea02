# SPDX-License-Identifier: Apache-2.0
"""Intervals of measured rates."""

from __future__ import annotations

import math

_Z_95 = 1.959963984540054


def wilson_interval(successes: int, episodes: int) -> tuple[float, float]:
    """95 % interval of a success rate (Wilson score, E. B. Wilson 1927)."""
    if episodes == 0:
        return 0.0, 1.0
    rate, spread = successes / episodes, _Z_95**2 / episodes
    centre = rate + spread / 2
    half = math.sqrt(spread * (rate * (1 - rate) + spread / 4))
    low, high = (centre - half) / (1 + spread), (centre + half) / (1 + spread)
    return max(0.0, low), min(1.0, high)
