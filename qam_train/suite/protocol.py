# SPDX-License-Identifier: Apache-2.0
"""Protocols of the suite: which tasks, data, sizes and settings a published comparison used.

A protocol is a YAML file of layers, each a part of a cell: defaults, the domain's, the method's, the
method's for the domain; later ones on top, key by key. docs/protocols.md says where the numbers
come from. Results of different protocols are never put side by side.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from qam_ros.contract.errors import ConfigError, check_keys, nearest
from qam_ros.runtime.bringup import bringup_folder
from qam_train.agents.registry import METHODS
from qam_train.suite.cell_config import TASKS, CellConfig, cell_from_mapping

Layer = Mapping[str, Any]
NAMED = ("protocol", "method", "domain", "task", "seed")
PUBLISHED = ("qam", "trqam", "none")


@dataclass(frozen=True)
class Protocol:
    """A protocol that was read and checked; every method and domain of it makes a cell.

    Args:
        name: of the file, without its ending; part of the cells' folders.
        about: one sentence.
        published: which published results stand beside ours: "qam", "trqam" or "none".
        seeds: of the published runs, in order.
        defaults: lowest layer.
        domain_layers, method_layers: by name.
        task_numbers: tasks by domain.
        pair_layers: by (method, domain); highest layer.
    """

    name: str
    about: str
    published: str
    seeds: tuple[int, ...]
    defaults: Layer
    domain_layers: Mapping[str, Layer]
    method_layers: Mapping[str, Layer]
    task_numbers: Mapping[str, tuple[int, ...]]
    pair_layers: Mapping[tuple[str, str], Layer] = field(default_factory=dict)

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods, in the file's order."""
        return tuple(self.method_layers)

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains, in the file's order."""
        return tuple(self.domain_layers)

    def tasks(self, domain: str) -> tuple[int, ...]:
        """Tasks of a domain.

        Raises:
            ConfigError: unknown domain; names the nearest.
        """
        self._known("domain", domain, self.domains)
        return self.task_numbers[domain]

    def cell(
        self,
        method: str,
        domain: str,
        task: int,
        seed: int,
        overrides: Sequence[str] = (),
    ) -> CellConfig:
        """Settings of one cell.

        Args:
            method: name, as in the protocol.
            domain: name, as in the protocol.
            task: number, as in the protocol.
            seed: any; `seeds` has the published ones.
            overrides: "dotted.key=value" on top of all layers, e.g. "agent.tau=3".

        Raises:
            ConfigError: unknown method, domain, task, key or setting (names the nearest), or a value
                out of range.
        """
        self._known("method", method, self.methods)
        tasks = self.tasks(domain)
        if task not in tasks:
            raise ConfigError(
                f"protocol {self.name}: domain '{domain}' has no task {task}; "
                f"valid: {', '.join(map(str, tasks))}"
            )
        layers = [
            self.defaults,
            self.domain_layers[domain],
            self.method_layers[method],
            self.pair_layers.get((method, domain), {}),
            *(read_override(text) for text in overrides),
            {"protocol": self.name, "method": method, "domain": domain},
            {"task": task, "seed": seed},
        ]
        merged: dict[str, Any] = {}
        for layer in layers:
            merged = merge(merged, layer)
        return cell_from_mapping(merged, f"protocol {self.name}, {method} on {domain}")

    def _known(self, noun: str, name: str, valid: Collection[str]) -> None:
        if name not in valid:
            raise ConfigError(
                f"protocol {self.name}: no {noun} '{name}'; {nearest(name, valid)}"
            )


def merge(below: Layer, above: Layer) -> dict[str, Any]:
    """`above` on `below`, key by key; neither is changed."""
    merged = dict(below)
    for key, value in above.items():
        held = merged.get(key)
        both = isinstance(held, Mapping) and isinstance(value, Mapping)
        merged[key] = merge(held, value) if both else value  # type: ignore[arg-type]
    return merged


def read_override(text: str) -> dict[str, Any]:
    """A layer from "dotted.key=value".

    Raises:
        ConfigError: no such form, no YAML value, or a name that says which cell it is.
    """
    key, separator, value = text.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not separator or not all(parts):
        raise ConfigError(f"--set {text}: expected dotted.key=value, e.g. agent.tau=3")
    if parts[0] in NAMED:
        raise ConfigError(
            f"--set {text}: '{parts[0]}' chooses the cell; give it by its own option"
        )
    try:
        layer = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {text}: '{value}' is not a YAML value") from error
    for part in reversed(parts):
        layer = {part: layer}
    return dict(layer)


def protocol_folder() -> Path:
    """Folder of the shipped protocols, of the checkout or of the installed package."""
    return bringup_folder().parent / "suite"


def protocol_names() -> list[str]:
    """Names of the shipped protocols."""
    return sorted(path.stem for path in protocol_folder().glob("*.yaml"))


def load_protocol(name_or_path: str | Path) -> Protocol:
    """Read a protocol and make one cell of every method and domain, so that errors show at once.

    Args:
        name_or_path: name of a shipped one, e.g. "p_qam", or a path that ends in .yaml.

    Raises:
        ConfigError: no such protocol (names the nearest), or anything in it that makes no cell.
    """
    path = Path(name_or_path)
    if path.suffix != ".yaml":
        if str(name_or_path) not in protocol_names():
            hint = nearest(str(name_or_path), protocol_names())
            raise ConfigError(
                f"protocol '{name_or_path}' is not known; {hint}, or the path of a .yaml file"
            )
        path = protocol_folder() / f"{name_or_path}.yaml"
    protocol = _read(path)
    for domain in protocol.domains:
        for method in protocol.methods:
            task, seed = protocol.tasks(domain)[0], protocol.seeds[0]
            protocol.cell(method, domain, task, seed)
    return protocol


def _read(path: Path) -> Protocol:
    """Split a file into its layers."""
    if not path.is_file():
        raise ConfigError(f"{path}: expected a protocol's YAML file, found none")
    try:
        loaded = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not readable as YAML: {error}") from error
    held = _mapping(loaded, str(path))
    check_keys(
        held,
        ("about", "seeds", "defaults", "domains", "methods"),
        ("published",),
        str(path),
    )
    published = held.get("published", "none")
    if published not in PUBLISHED:
        raise ConfigError(
            f"{path}: published: expected one of {', '.join(PUBLISHED)}, got {published!r}"
        )
    domains = _layers(held["domains"], f"{path}: domains")
    methods = _layers(held["methods"], f"{path}: methods")
    pairs: dict[tuple[str, str], Layer] = {}
    for method, layer in methods.items():
        if method not in METHODS:
            raise ConfigError(
                f"{path}: method '{method}' is not known; {nearest(method, METHODS)}"
            )
        where = f"{path}: methods: {method}: domains"
        for domain, own in _layers(layer.pop("domains", {}), where).items():
            if domain not in domains:
                raise ConfigError(
                    f"{where}: '{domain}' is not one of the protocol's; {nearest(domain, domains)}"
                )
            pairs[method, domain] = own
    return Protocol(
        path.stem,
        str(held["about"]),
        published,
        _numbers(held["seeds"], f"{path}: seeds"),
        _mapping(held["defaults"], f"{path}: defaults"),
        domains,
        methods,
        {
            domain: _numbers(layer.pop("tasks", TASKS), f"{path}: {domain}: tasks")
            for domain, layer in domains.items()
        },
        pairs,
    )


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: expected a mapping, got {type(value).__name__}")
    return dict(value)


def _layers(value: Any, where: str) -> dict[str, dict[str, Any]]:
    """Named layers; an empty one may be left out in YAML."""
    return {
        str(name): _mapping({} if layer is None else layer, f"{where}: {name}")
        for name, layer in _mapping(value, where).items()
    }


def _numbers(value: Any, where: str) -> tuple[int, ...]:
    whole = isinstance(value, Sequence) and not isinstance(value, str)
    if not whole or not value or not all(type(item) is int for item in value):
        raise ConfigError(f"{where}: expected a list of whole numbers, got {value!r}")
    return tuple(value)
