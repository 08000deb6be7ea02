# SPDX-License-Identifier: Apache-2.0
"""Two robots, two families of messages, one code: what differs between them stands in their YAML."""

import ast
from pathlib import Path

import numpy as np
import pytest

import qam_ros
from qam_ros.contract.interface import load_interface
from qam_ros.contract.messages import ActionProposal, EpisodeEvent, EpisodeKind
from qam_ros.contract.transition import GuardMode
from qam_ros.runtime.guard_config import guard_config
from qam_ros.runtime.guard_core import GuardCore

ROBOTS = ["ur5e_2f85", "mobile_base"]
START_NS = 10**9
POSES = {
    "effector_pose": {
        "pose.position": np.array([0.4, 0.0, 0.2]),
        "pose.orientation": np.array([1.0, 0.0, 0.0, 0.0]),
    },
    "gripper_state": {"position": np.array([0.5])},
}


def own_words(robot):
    """Names that belong to one robot: its own, and those of its topics."""
    interface = load_interface(robot)
    sources = [block.source for block in interface.observation]
    sources += [block.target for block in interface.action]
    return {robot} | {source.topic for source in sources}


def texts(path):
    """Texts in a module's code, docstrings left out, and all names."""
    tree = ast.parse(path.read_text())
    comments = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in comments:
            yield str(node.value)
        elif isinstance(node, ast.Name | ast.Attribute):
            yield getattr(node, "id", "") or getattr(node, "attr", "")


@pytest.mark.parametrize("robot", ROBOTS)
def test_no_module_of_the_robot_side_knows_a_robot(robot):
    words = own_words(robot)
    assert len(words) >= 3
    files = sorted(Path(qam_ros.__file__).parent.rglob("*.py"))
    assert len(files) > 50
    found = {(file.name, text) for file in files for text in texts(file)} & {
        (file.name, word) for file in files for word in words
    }
    assert not found


class Driven:
    """A guard that follows a policy; every tick one period later."""

    def __init__(self, robot, overlay=None):
        self.interface = load_interface(robot, overlay)
        self.guard = GuardCore(guard_config(self.interface))
        self.period_ns = round(self.interface.control_period_s * 1e9)
        self.now_ns = START_NS
        self.tick = 0
        event = EpisodeEvent(
            START_NS, 0, EpisodeKind.START, False, False, False, 0, 0.0
        )
        self.guard.on_event(event)

    def step(self, action=None):
        """One tick with an action, or without a proposal; the guard's output."""
        stamp_ns, self.now_ns = self.now_ns, self.now_ns + self.period_ns
        self.guard.on_measured(stamp_ns, POSES)
        if action is None:
            return self.guard.tick(stamp_ns, None, stamp_ns)
        self.tick += 1
        proposal = ActionProposal(
            stamp_ns=stamp_ns,
            policy_session=bytes([1] * 16),
            tick=self.tick,
            episode=0,
            step=self.tick,
            # Sensors that never change would count as frozen.
            observation=np.full(self.interface.observation_size, self.tick, np.float32),
            ages_s=np.zeros(len(self.interface.observation), np.float32),
            action=np.full(self.interface.action_size, action, np.float32),
            policy_version=1,
            chunk_id=self.tick,
            chunk_index=0,
        )
        return self.guard.tick(stamp_ns, proposal)


def numbers(output):
    """All command values of an output, in a fixed order."""
    return np.concatenate(
        [
            values
            for _, fields in sorted(output.commands.items())
            for _, values in sorted(fields.items())
        ]
    )


@pytest.mark.parametrize("robot", ROBOTS)
def test_each_robot_holds_for_two_ticks_and_then_takes_its_own_safe_action(robot):
    driven = Driven(robot)
    moving = [driven.step(0.5) for _ in range(3)][-1]
    missing = [driven.step() for _ in range(3)]
    modes = [output.report.mode for output in missing]
    assert modes == [GuardMode.HOLD, GuardMode.HOLD, GuardMode.SAFE_STOP]
    held, safe = numbers(missing[0]), numbers(missing[2])
    np.testing.assert_array_equal(held, numbers(moving))
    assert held.any()
    if driven.interface.safe_action == "zero_velocity":
        assert not safe.any()
    else:
        np.testing.assert_array_equal(safe, held)


def test_both_drivers_of_the_base_get_the_same_velocities():
    stamped, plain = Driven("mobile_base"), Driven("mobile_base", "mobile_base.twist")
    for action in (0.3, -1.0, 0.7):
        one, other = stamped.step(action), plain.step(action)
        np.testing.assert_array_equal(numbers(one), numbers(other))
        assert numbers(one)[:2] == pytest.approx(2.0 * np.float32(action))
    assert stamped.interface.semantic_hash == plain.interface.semantic_hash
