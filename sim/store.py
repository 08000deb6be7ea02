# SPDX-License-Identifier: Apache-2.0
"""From generated shards to a training dataset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.recipes import Recipe
from sim.shards import Shard


def save(
    output: Path,
    shard: Shard,
    labels: dict[str, NDArray[np.float32]],
    recipe: Recipe,
    robot: str | None,
    settings: dict[str, Any],
) -> None:
    """Write the dataset."""
    rows = len(labels["rewards"])
    terminals = np.zeros(rows, dtype=np.uint8)
    terminals[np.cumsum(shard.lengths) - 1] = 1
    output.mkdir(parents=True)
    extras = {key: value for key, value in shard.rows.items() if key not in labels}
    np.savez(
        output / "rows.npz",
        terminals=terminals,
        valid=np.ones(rows, dtype=np.uint8),
        end_observations=shard.end_observations,
        **labels,
        **extras,
    )
    (output / "generator.json").write_text(json.dumps(settings, indent=1))
