# SPDX-License-Identifier: Apache-2.0
"""Every method by name: the agents of this package that have one."""

from __future__ import annotations

import inspect
import pkgutil
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from qam_ros.contract.errors import ConfigError, nearest
from qam_train import agents
from qam_train.agents.base import Agent
from qam_train.config import MethodConfig


@dataclass(frozen=True)
class Method:
    """One method: the class that trains and acts, and the dataclass of its numbers."""

    agent: type[Agent[Any, Any]]
    config: type[MethodConfig]


def _agents() -> list[type[Agent[Any, Any]]]:
    """Agent classes of this package that say their name, in the order of their modules."""
    found = []
    for module in pkgutil.iter_modules(agents.__path__, f"{agents.__name__}."):
        if module.name == __name__:
            continue
        members = vars(import_module(module.name)).values()
        found += [
            member
            for member in members
            if inspect.isclass(member)
            and issubclass(member, Agent)
            and "algorithm" in vars(member)
            and member.__module__ == module.name
        ]
    return found


METHODS: dict[str, Method] = {
    agent.algorithm: Method(agent, agent.settings) for agent in _agents()
}


def find_method(name: str) -> Method:
    """Method by name.

    Raises:
        ConfigError: unknown; names the nearest.
    """
    if name not in METHODS:
        raise ConfigError(f"method '{name}' is not known; {nearest(name, METHODS)}")
    return METHODS[name]
