# SPDX-License-Identifier: Apache-2.0
"""Seeds of episodes: a function of (run seed, episode index) and of nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import numpy as np


class SeedStream(IntEnum):
    """Who draws the episode: the three never share an initial state by accident."""

    DATA = 0
    PLANT = 1
    EVALUATION = 2


def episode_seed(seed: int, index: int, stream: SeedStream, attempt: int = 0) -> int:
    """Seed of one episode, independent of which process plays it and of all other episodes.

    Args:
        seed: seed of the run, >= 0.
        index: index of the episode in the run, from 0.
        stream: purpose of the episode.
        attempt: counts replacements of an episode that was discarded.

    Returns:
        32 random bits as an int.
    """
    sequence = np.random.SeedSequence([seed, int(stream), index, attempt])
    return int(sequence.generate_state(1)[0])


@contextmanager
def global_numpy_seed(seed: int) -> Iterator[None]:
    """Seed numpy's global generator inside the block and restore it afterwards.

    OGBench's scripted oracles and the noise of its maze resets draw from the global generator.

    Args:
        seed: 32-bit seed.
    """
    saved = np.random.get_state()  # noqa: NPY002 - the generator that OGBench uses
    np.random.seed(seed)  # noqa: NPY002 - as above
    try:
        yield
    finally:
        np.random.set_state(saved)  # noqa: NPY002 - as above
