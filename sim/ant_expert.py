# SPDX-License-Identifier: Apache-2.0
"""The walking expert of the ant mazes: a small network from the folded state to motor commands."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from qam_ros.contract.errors import ConfigError
from sim.ant_frame import ACTIONS, FEATURES, Array, features, motor_action

EXPERT_FILE: Final = Path(__file__).parent / "data" / "ant_expert.safetensors"
FORMAT: Final = "ant-expert-1"
NOTE: Final = "expert"  # key of the metadata: format and training, as JSON

Weights = Mapping[str, NDArray[np.float32]]
"""'layer/weight' (in, out) and 'layer/bias' (out,), layers counted from 0."""


class AntExpert:
    """Mean action of the trained walker.

    a = tanh(W_n gelu(... gelu(W_0 s + b_0)) + b_n), s the folded state, a the actions of the slots.

    Args:
        weights: of every layer; see `Weights`.
    """

    def __init__(self, weights: Weights) -> None:
        self._layers = [
            (
                np.asarray(weights[f"{layer}/weight"], dtype=np.float64),
                np.asarray(weights[f"{layer}/bias"], dtype=np.float64),
            )
            for layer in range(len(weights) // 2)
        ]

    def actions(self, qpos: Array, qvel: Array, direction: Array) -> Array:
        """Motor commands (N, 8) in [-1, 1].

        Args:
            qpos: (N, 15) generalised positions.
            qvel: (N, 14) generalised velocities.
            direction: (N, 2) unit vectors of the way to walk, in the frame of the world.
        """
        x, k = features(qpos, qvel, direction)
        for weight, bias in self._layers[:-1]:
            x = _gelu(x @ weight + bias)
        weight, bias = self._layers[-1]
        return motor_action(np.tanh(x @ weight + bias), k)


def _gelu(z: Array) -> Array:
    """GELU, tanh form."""
    return np.asarray(
        0.5 * z * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (z + 0.044715 * z**3)))
    )


def write_expert(path: Path, weights: Weights, training: Mapping[str, Any]) -> None:
    """Write an expert with the settings of its training, the same bytes for the same contents."""
    path.parent.mkdir(parents=True, exist_ok=True)
    note = json.dumps({"format": FORMAT, "training": dict(training)}, sort_keys=True)
    save_file(dict(weights), path, metadata={NOTE: note})


def read_expert(path: Path = EXPERT_FILE) -> tuple[AntExpert, dict[str, Any]]:
    """Read an expert and the settings of its training.

    Raises:
        ConfigError: there is no such file, or it holds something else.
    """
    if not path.is_file():
        raise ConfigError(
            f"the walking expert {path} is missing; make it with tools/train_ant_expert.py"
        )
    with safe_open(path, framework="numpy") as file:
        note = json.loads((file.metadata() or {}).get(NOTE, "{}"))
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if note.get("format") != FORMAT or _sizes(weights) != (FEATURES, ACTIONS):
        raise ConfigError(
            f"{path} is no walking expert of format {FORMAT!r} with {FEATURES} features and "
            f"{ACTIONS} actions; make it anew with tools/train_ant_expert.py"
        )
    return AntExpert(weights), note["training"]


def expert_sha256(path: Path = EXPERT_FILE) -> str:
    """Digest (hex) of an expert's file, for the metadata of what it made."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _sizes(weights: Weights) -> tuple[int, int]:
    """Numbers that go in and out; zeros where a layer is missing."""
    last = f"{len(weights) // 2 - 1}/bias"
    if "0/weight" not in weights or last not in weights:
        return 0, 0
    return weights["0/weight"].shape[0], weights[last].shape[0]
