# SPDX-License-Identifier: Apache-2.0
"""OGBench and its simulators: imported, looked up and kept quiet."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any


def environment_class(environment_id: str) -> tuple[Any, dict[str, Any], int]:
    """Constructor, arguments and step limit that OGBench registered for an environment.

    The worlds hold the bare environment: gymnasium's wrappers add nothing that they need.

    Args:
        environment_id: e.g. `cube-single-singletask-task1-v0`.
    """
    gymnasium = import_ogbench()
    spec = gymnasium.spec(environment_id)
    module, _, attribute = spec.entry_point.partition(":")
    with quiet_simulators():
        constructor = getattr(import_module(module), attribute)
    return constructor, dict(spec.kwargs), int(spec.max_episode_steps)


def import_ogbench() -> Any:
    """Import OGBench (a second or so), which registers its environments; returns gymnasium."""
    with quiet_simulators():
        import gymnasium
        import ogbench  # noqa: F401 - registers the environments
    return gymnasium


class quiet_simulators(warnings.catch_warnings):  # noqa: N801 - a context manager
    """Silence what the simulators warn of without harm: no X display, float32 action boxes."""

    def __enter__(self) -> None:
        """Add the filters."""
        super().__enter__()
        warnings.filterwarnings("ignore", message=".*X11.*")
        warnings.filterwarnings("ignore", message=".*precision lowered.*")
