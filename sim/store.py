# SPDX-License-Identifier: Apache-2.0
"""From rows of whole episodes to a training dataset on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qam_ros.contract.dataset import Dataset, DatasetManifest, write_dataset
from qam_ros.contract.errors import DatasetError
from qam_ros.contract.interface import RobotInterface, load_interface, robot_names
from sim.labels import LABEL_KEYS
from sim.worlds import world_info


def interface_for(world: str, robot: str | None) -> RobotInterface:
    """The interface that data of a world are written for.

    Args:
        world: key of `WORLDS`.
        robot: name or path of an interface; None takes the world's own.

    Raises:
        DatasetError: no robot was named and none fits the world.
    """
    name = robot or world_info(world).robot
    if name is None:
        raise DatasetError(
            f"no shipped robot interface fits world {world!r} "
            f"(there are {', '.join(robot_names())}); name one with --robot"
        )
    return load_interface(name)


def dataset_of(
    rows: Mapping[str, NDArray[Any]],
    lengths: NDArray[np.int64],
    end_observations: NDArray[np.float32],
) -> Dataset:
    """Dataset of whole episodes.

    Args:
        rows: observations, actions, rewards, masks and recorded states, (N, ...).
        lengths: (S,) rows of each episode; their sum is N.
        end_observations: (S, O).
    """
    count = int(lengths.sum())
    terminals = np.zeros(count, dtype=np.uint8)
    terminals[np.cumsum(lengths) - 1] = 1
    extras = {key: rows[key] for key in LABEL_KEYS if key in rows}
    extras["episode"] = np.repeat(np.arange(len(lengths), dtype=np.uint64), lengths)
    return Dataset(
        observations=rows["observations"],
        actions=rows["actions"],
        rewards=rows["rewards"],
        masks=rows["masks"],
        terminals=terminals,
        valid=np.ones(count, dtype=np.uint8),
        end_observations=end_observations,
        extras=extras,
    )


def save(
    output: Path,
    dataset: Dataset,
    interface: RobotInterface,
    world: str,
    task: int,
    how: Mapping[str, Any],
) -> DatasetManifest:
    """Write the dataset; the manifest says world, task and how it was made."""
    meta = {"world": world, "task": task} | dict(how)
    return write_dataset(output, dataset, interface, meta)
