# SPDX-License-Identifier: Apache-2.0
"""Settings as frozen dataclasses; YAML keys equal field names, unknown keys are errors.

Defaults are the published sizes. Every field is a number (or a tuple of numbers): which algorithm
runs is decided by the class that reads the settings, never by a setting.
"""

from __future__ import annotations

import dataclasses
import math
import os
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from qam_ros.contract.errors import ConfigError, nearest

T = TypeVar("T")
BOUNDS = ("clip_norm", "action_clip", "noise_clip")  # .inf switches them off


@dataclass(frozen=True)
class NetworkConfig:
    """One MLP: hidden widths, and whether a LayerNorm follows each activation."""

    widths: tuple[int, ...] = (512, 512, 512, 512)
    layer_norm: bool = False

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1:
            raise ConfigError(
                f"widths: expected one or more positive layer widths, got {self.widths}"
            )


@dataclass(frozen=True)
class MethodConfig:
    """Numbers every method has (symbols as in docs/notation.md).

    Args:
        chunk: H, actions in a chunk [control periods].
        horizon: steps in the return R_h and the bootstrap gamma^h; None: the chunk length.
        discount: gamma per control period.
        rho: pessimism, ensemble standard deviations taken off the bootstrap value.
        ema: rate of the moving averages per update.
        lr: Adam learning rate.
        clip_norm: largest joint gradient norm; .inf switches the clip off.
        batch_size: rows per update.
        critics: E, members of the critic ensemble.
        actor: nets of the policy.
        critic: critic and value nets.
    """

    chunk: int = 5
    horizon: int | None = None
    discount: float = 0.99
    rho: float = 0.5
    ema: float = 0.005
    lr: float = 3e-4
    clip_norm: float = float("inf")
    batch_size: int = 256
    critics: int = 10
    actor: NetworkConfig = field(default_factory=NetworkConfig)
    critic: NetworkConfig = field(
        default_factory=lambda: NetworkConfig(layer_norm=True)
    )

    def __post_init__(self) -> None:
        require_finite(self)
        for name in ("chunk", "batch_size", "critics"):
            require_positive(self, name)
        require(
            self.return_steps >= self.chunk,
            "horizon",
            f"at least chunk = {self.chunk}",
            self.horizon,
        )
        require(
            0.0 <= self.discount <= 1.0, "discount", "a number in [0, 1]", self.discount
        )
        require(0.0 <= self.ema <= 1.0, "ema", "a number in [0, 1]", self.ema)
        require(self.lr > 0.0, "lr", "a positive number", self.lr)
        require(
            self.clip_norm > 0.0,
            "clip_norm",
            "a positive number or .inf",
            self.clip_norm,
        )

    @property
    def return_steps(self) -> int:
        """Steps h of the return inside a chunk."""
        return self.chunk if self.horizon is None else self.horizon


@dataclass(frozen=True)
class FlowConfig(MethodConfig):
    """Numbers of a method whose policy is a flow.

    Args:
        flow_steps: n, Euler steps of the flow in training and deployment.
        best_of: candidates N per action; the one with the highest mean value is taken.
    """

    flow_steps: int = 10
    best_of: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.flow_steps >= 2, "flow_steps", "at least 2", self.flow_steps)
        require_positive(self, "best_of")


@dataclass(frozen=True)
class MaskedConfig(FlowConfig):
    """Numbers of a method that improves its policy at all rows of the batch, or at the valid ones.

    Args:
        masked: rows whose chunk crosses an episode's end or touches an untrusted row (valid = 0)
            weigh 0 in the policy's improvement, too; its means stay over all rows. No critic has
            learnt at such rows, so its gradient there is a guess. False: they weigh 1 (official
            code).
    """

    masked: bool = False


@dataclass(frozen=True)
class AdjointConfig(MaskedConfig):
    """Numbers of a method that tunes a flow against its behaviour flow.

    Args:
        action_clip: half width of the box end points are clipped to before the critic's gradient.
        adjoint_batch: rows of each batch that enter adjoint matching; None: all.
    """

    clip_norm: float = 1.0
    action_clip: float = 1.0
    adjoint_batch: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            1 <= self.adjoint_rows <= self.batch_size,
            "adjoint_batch",
            "1 to batch_size",
            self.adjoint_batch,
        )

    @property
    def adjoint_rows(self) -> int:
        """Rows of a batch that enter adjoint matching."""
        return self.batch_size if self.adjoint_batch is None else self.adjoint_batch


@dataclass(frozen=True)
class AgentConfig(AdjointConfig):
    """Numbers of QAM.

    Args:
        tau: inverse temperature of the policy improvement; 0 leaves the behaviour unchanged.
    """

    tau: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.tau >= 0.0, "tau", "a number >= 0", self.tau)


@dataclass(frozen=True)
class StageConfig:
    """One training stage: number of updates and its learning rate, linear from start to end."""

    updates: int = 0
    lr_start: float = 3e-4
    lr_end: float = 3e-4

    def __post_init__(self) -> None:
        require_finite(self)
        require(self.updates >= 0, "updates", "a number >= 0", self.updates)
        require(
            min(self.lr_start, self.lr_end) >= 0.0,
            "lr_start, lr_end",
            "numbers >= 0",
            self.lr_start,
        )

    def learning_rate(self, update: int) -> float:
        """Learning rate of one update, counted from 0."""
        share = update / max(1, self.updates - 1)
        return self.lr_start + (self.lr_end - self.lr_start) * share


def require(holds: bool, name: str, expected: str, got: object) -> None:  # noqa: FBT001
    """Refuse a setting that does not hold.

    Raises:
        ConfigError: names the setting, what was expected and what came.
    """
    if not holds:
        raise ConfigError(f"{name}: expected {expected}, got {got}")


def require_positive(config: Any, name: str) -> None:
    """Refuse a whole number below 1."""
    require(
        getattr(config, name) >= 1, name, "a positive number", getattr(config, name)
    )


def require_finite(config: Any, prefix: str = "") -> None:
    """Refuse NaN and infinity in settings and those inside them; BOUNDS may be infinite."""
    for item in dataclasses.fields(config):
        value, name = getattr(config, item.name), prefix + item.name
        if dataclasses.is_dataclass(value):
            require_finite(value, f"{name}.")
        elif isinstance(value, float):
            fine = math.isfinite(value) or (item.name in BOUNDS and value == math.inf)
            require(fine, name, "a finite number", value)


def from_mapping(kind: type[T], mapping: Mapping[str, Any], where: str = "config") -> T:
    """Build a settings dataclass from nested mappings.

    A dataclass whose fields' classes depend on its other keys says so in a classmethod
    `field_types(mapping)`: field name -> dataclass; such a field need not be in the mapping.

    Args:
        kind: the dataclass.
        mapping: field names to values; missing fields keep their defaults.
        where: named in errors, e.g. the file.

    Raises:
        ConfigError: unknown key (names the nearest valid one), wrong type or value.
    """
    hints = typing.get_type_hints(kind)
    valid = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
    chosen = _chosen_types(kind, mapping, where)
    values: dict[str, Any] = {
        name: from_mapping(chosen[name], {}, where) for name in chosen.keys() - mapping
    }
    hints |= chosen
    for key, value in mapping.items():
        if key not in valid:
            raise ConfigError(
                f"{where}: unknown key '{key}'; {nearest(str(key), valid)}"
            )
        values[key] = _convert(hints[key], value, f"{where}: {key}")
    try:
        return kind(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _chosen_types(
    kind: type, mapping: Mapping[str, Any], where: str
) -> dict[str, type]:
    choose = getattr(kind, "field_types", None)
    if choose is None:
        return {}
    try:
        found: dict[str, type] = choose(mapping)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    return found


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Check one YAML value against a field's type; integers pass as floats, lists as tuples."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        hint = next(a for a in arguments if a is not type(None))
        return _convert(hint, value, where)
    if origin is typing.Literal:
        if value not in arguments:
            raise ConfigError(
                f"{where}: expected one of {list(arguments)}, got {value!r}"
            )
        return value
    if origin is tuple:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise ConfigError(f"{where}: expected a list, got {value!r}")
        return tuple(_convert(arguments[0], item, where) for item in value)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: expected a mapping of settings, got {value!r}")
        return from_mapping(typing.cast(type, hint), value, where)
    return _convert_scalar(hint, value, where)


def _convert_scalar(hint: type, value: Any, where: str) -> Any:
    if hint is float and isinstance(value, str):
        try:
            return float(value)  # YAML 1.1 reads 1e-3 as text
        except ValueError:
            pass
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, bool) != (hint is bool) or not isinstance(value, hint):
        raise ConfigError(f"{where}: expected {hint.__name__}, got {value!r}")
    return value


def to_mapping(config: Any) -> dict[str, Any]:
    """Nested plain mapping of a settings dataclass; from_mapping restores it."""
    mapping: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            mapping[item.name] = to_mapping(value)
        else:
            mapping[item.name] = list(value) if isinstance(value, tuple) else value
    return mapping


def load_config(kind: type[T], path: Path | None, overrides: Sequence[str] = ()) -> T:
    """Read a YAML file (None: defaults) and apply 'dotted.key=value' overrides on top.

    Raises:
        ConfigError: the file is missing or no mapping, or as in from_mapping.
    """
    mapping: dict[str, Any] = {}
    if path is not None:
        if not path.is_file():
            raise ConfigError(
                f"{path}: expected a YAML file of {kind.__name__} settings, found none"
            )
        try:
            loaded = yaml.safe_load(path.read_text())
        except yaml.YAMLError as error:
            raise ConfigError(f"{path}: not readable as YAML: {error}") from error
        if loaded is not None and not isinstance(loaded, dict):
            raise ConfigError(
                f"{path}: expected a mapping of settings, got {type(loaded).__name__}"
            )
        mapping = loaded or {}
    for override in overrides:
        _apply_override(mapping, override)
    return from_mapping(kind, mapping, str(path) if path is not None else kind.__name__)


def saved_settings(run_dir: Path, *, given: bool) -> Path | None:
    """Settings file of a run that is to be resumed; None where it left none and others are given.

    Raises:
        ConfigError: there is no run, and nothing says what a new one should be.
    """
    path = run_dir / "config.yaml"
    if path.is_file():
        return path
    if not given:
        raise ConfigError(
            f"{path}: no such file, so there is no run to resume; check --run-dir, or start one "
            "without --resume"
        )
    return None


def _apply_override(mapping: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(
            f"--set {override}: expected dotted.key=value, e.g. agent.tau=3"
        )
    *parents, last = key.strip().split(".")
    for parent in parents:
        inner = mapping.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise ConfigError(
                f"--set {override}: '{parent}' is a value, not a group of settings"
            )
        mapping = inner
    try:
        mapping[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: '{text}' is not a YAML value") from error


def save_config(config: Any, path: Path) -> None:
    """Write a settings dataclass as YAML, whole or not at all."""
    text = yaml.safe_dump(to_mapping(config), sort_keys=False)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
