# SPDX-License-Identifier: Apache-2.0
"""Recordings of the official implementation: reading them, and what a comparison is.

The format is described in tests/parity/README.md.
"""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qam_ros.contract.errors import ConfigError
from qam_train.networks import Params

PRECISIONS = {"float64": torch.float64, "float32": torch.float32}
KINDS = {
    "Dense/kernel": "weight",
    "Dense/bias": "bias",
    "LayerNorm/scale": "norm_scale",
    "LayerNorm/bias": "norm_shift",
}
# Largest errors a correct port shows, from float64 and float32 ports of every recording.
TOLERANCES = {
    "loss": {"float64": 1e-10, "float32": 1e-5},
    "info": {"float64": 1e-10, "float32": 1e-5},
    "intermediates": {"float64": 1e-10, "float32": 1e-4},
    "gradients": {"float64": 1e-10, "float32": 1e-5},
    "untouched": {"float64": 0.0, "float32": 0.0},
    "parameters, 99%": {"float64": 1e-10, "float32": 1e-6},
    "actions": {"float64": 1e-10, "float32": 1e-4},
    "rewards": {"float64": 1e-6, "float32": 1e-6},  # recorded after rounding to float32
    "updates": {"float64": 1e-9, "float32": 1e-4},
    "dual rule": {"float64": 1e-12, "float32": 1e-5},
    "other fields": {"float64": 0.0, "float32": 0.0},
}


class UnsupportedRecordingError(ConfigError):
    """No method here stands for the recording."""


class OfficialSettings(dict[str, Any]):
    """The official configuration; an entry that is asked for and not there is named."""

    def __missing__(self, name: str) -> Any:
        raise UnsupportedRecordingError(
            f"config has no entry '{name}', which the method needs"
        )


@dataclass(frozen=True)
class Comparison:
    """One quantity of one recording: its largest error and what is allowed."""

    method: str
    precision: str
    quantity: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the error is finite and within tolerance."""
        return self.error <= self.tolerance


class Recording:
    """One npz file; arrays are handed out as tensors of one precision."""

    def __init__(self, path: Path, precision: str) -> None:
        """Open a file.

        Raises:
            UnsupportedRecordingError: not an npz of the documented format.
        """
        self._arrays: Mapping[str, npt.NDArray[Any]] = _arrays(path)
        if "meta" not in self._arrays:
            raise UnsupportedRecordingError(
                "no 'meta' entry, not a recording", file=path.name
            )
        self.precision = precision
        self.method = path.stem
        lr = self.settings().get("lr", 3e-4)
        # Adam's first step is lr sign(g): a tiny gradient of the other sign is 2 lr away
        largest_step = {"float64": 1e-10, "float32": 2.0 * lr}
        self.tolerances = {**TOLERANCES, "parameters, all": largest_step}

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def settings(self) -> OfficialSettings:
        """The official configuration, empty where the file has none."""
        return OfficialSettings(self._json("config") if "config" in self else {})

    def meta(self) -> dict[str, Any]:
        """The description of the file."""
        return self._json("meta")

    def _json(self, name: str) -> dict[str, Any]:
        try:
            return dict(json.loads(str(self._arrays[name])))
        except (ValueError, TypeError) as error:
            raise UnsupportedRecordingError(
                f"'{name}' is not a JSON object: {error}"
            ) from error

    def array(self, name: str) -> npt.NDArray[Any]:
        """One array as stored.

        Raises:
            UnsupportedRecordingError: the file does not hold it.
        """
        if name not in self._arrays:
            raise UnsupportedRecordingError(
                f"array '{name}' is missing: the file is damaged, or of another format than "
                "tests/parity/README.md describes"
            )
        return self._arrays[name]

    def tensor(self, name: str) -> Tensor:
        """One array in the precision of the comparison."""
        return torch.from_numpy(self.array(name)).to(PRECISIONS[self.precision])

    def numbers(self, letter: str) -> list[int]:
        """Every n for which there are arrays below '<letter><n>/', in order: updates, horizons."""
        found = (re.match(rf"{letter}(\d+)/", name) for name in self._arrays)
        return sorted({int(match[1]) for match in found if match})

    def scalars(self, prefix: str) -> dict[str, float]:
        """All 0-d arrays below a prefix."""
        return {
            k.removeprefix(prefix): float(v)
            for k, v in self._arrays.items()
            if k.startswith(prefix)
        }

    def below(self, prefix: str) -> dict[str, npt.NDArray[Any]]:
        """All arrays below a prefix, by the rest of their names."""
        start = f"{prefix}/"
        return {
            k.removeprefix(start): v
            for k, v in self._arrays.items()
            if k.startswith(start)
        }

    def groups(self, prefix: str) -> list[str]:
        """First parts of the names below a prefix, in order, each once."""
        return list(dict.fromkeys(name.split("/")[0] for name in self.below(prefix)))

    def parameters(
        self, prefix: str, nets: Mapping[str, str], *, exact: bool = False
    ) -> Params:
        """All tensors of some nets below a prefix, under our names.

        Args:
            prefix: 'params0' or such.
            nets: our name of each net to the official one.
            exact: hand them out in float64 whatever the precision of the comparison.
        """
        dtype = torch.float64 if exact else PRECISIONS[self.precision]
        return {
            ours: torch.from_numpy(np.asarray(self._arrays[f"{prefix}/{name}"])).to(
                dtype
            )
            for name, ours in self.bound_names(prefix, nets).items()
        }

    def bound_names(self, prefix: str, nets: Mapping[str, str]) -> dict[str, str]:
        """Official name of every bound array below a prefix -> our name."""
        found: dict[str, str] = {}
        present = self.below(prefix)
        for ours, theirs in nets.items():
            for name in present:
                rest = name.removeprefix(f"{theirs}/")
                if rest != name and rest.count("/") < 2:
                    found[name] = _our_name(ours, rest)
        return found

    def row(self, quantity: str, error: float) -> Comparison:
        """Result of one quantity."""
        tolerance = self.tolerances[quantity.split(":")[0]][self.precision]
        return Comparison(self.method, self.precision, quantity, error, tolerance)


def _arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Everything in an npz.

    Raises:
        UnsupportedRecordingError: not readable as one.
    """
    damaged = (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error)
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise ValueError("it is a single array")
            with archive:
                return {k: archive[k] for k in archive.files}
    except damaged as error:
        raise UnsupportedRecordingError(
            f"not readable as npz: {error}", file=path.name
        ) from error


def _our_name(net: str, official: str) -> str:
    """'Dense_1/kernel' of a net -> 'net/1/weight'; a bare 'kernel' is layer 0, or the named one."""
    module, _, kind = official.rpartition("/")
    if kind == "log_value":
        return f"{net}/log"
    if not module and net.rpartition("/")[2].isdigit():
        return f"{net}/{KINDS[f'Dense/{kind}']}"
    module, _, layer = (module or "Dense_0").partition("_")
    return f"{net}/{layer}/{KINDS[f'{module}/{kind}']}"


def absolute(value: Tensor, reference: npt.NDArray[Any]) -> float:
    """Largest absolute difference; infinite where the shapes differ."""
    found = value.detach().double().numpy()
    if found.shape != reference.shape:
        return float("inf")
    return float(np.abs(found - reference.astype(np.float64)).max(initial=0.0))


def scaled(value: Tensor, reference: npt.NDArray[Any]) -> float:
    """Largest absolute difference over the largest reference entry."""
    size = float(np.abs(reference).max(initial=0.0))
    return absolute(value, reference) / (size or 1.0)


def relative(value: float, reference: float) -> float:
    """Relative error of a number; below 0.1 it counts absolutely, ten times."""
    return abs(value - reference) / max(abs(reference), 0.1)


def largest(errors: Iterable[float]) -> float:
    """Largest error, NaN if one is; 0 where there is none."""
    return float(np.max(list(errors), initial=0.0))
