# SPDX-License-Identifier: Apache-2.0
from collections.abc import Callable

import numpy as np
import pytest

from qam_ros.contract.interface import (
    RobotInterface,
    load_interface,
    measured_value,
    physical_action,
    target_value,
)
from sim.world import Commands, Sensors, World
from sim.worlds import make_world

Drive = Callable[[RobotInterface, Sensors, np.ndarray], Commands]


@pytest.fixture(scope="session")
def cube() -> World:
    return make_world("cube-single", 1)


@pytest.fixture(scope="session")
def twin() -> World:
    """A second world of the same kind, to compare with."""
    return make_world("cube-single", 1)


@pytest.fixture(scope="session")
def maze() -> World:
    return make_world("pointmaze-medium", 1)


@pytest.fixture(scope="session")
def ur5e() -> RobotInterface:
    return load_interface("ur5e_2f85")


@pytest.fixture(scope="session")
def base() -> RobotInterface:
    return load_interface("mobile_base")


@pytest.fixture(scope="session")
def drive() -> Drive:
    """Commands of a normalised action by the rule of the interface, for any robot."""

    def commands_of(
        interface: RobotInterface, sensors: Sensors, action: np.ndarray
    ) -> Commands:
        commands: Commands = {}
        for block in interface.action:
            command = physical_action(
                block, action[interface.action_slices[block.name]]
            )
            if block.mode == "delta":
                raw = sensors[block.measured.topic][block.measured.field]
                command = command + measured_value(block, raw)
            if block.wrap:
                command = (command + np.pi) % (2 * np.pi) - np.pi
            command = np.clip(command, block.low, block.high)
            field = commands.setdefault(block.target.topic, {}).setdefault(
                block.target.field, np.zeros(block.target_size)
            )
            field[list(block.target_indices)] = target_value(block, command)
        return commands

    return commands_of
