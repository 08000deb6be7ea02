# SPDX-License-Identifier: Apache-2.0
"""The folded view of the ant: a turned ant with renamed legs is the same ant."""

import mujoco
import numpy as np
import pytest

from sim.ant_frame import (
    ACTIONS,
    BEND,
    FEATURES,
    features,
    motor_action,
    quarter_turns,
    upright,
)
from sim.world import World
from sim.worlds import make_world

HIPS = np.array([0.1, -0.2, 0.3, 0.05])
BENDS = np.array([0.9, 0.7, 1.1, 0.8])


@pytest.fixture(scope="module")
def ant() -> World:
    return make_world("antmaze-medium", 1)


def turned(turns: int, angle: float) -> np.ndarray:
    """The ant (15,) turned by an angle and by quarter turns, its legs renamed so as to look alike."""
    yaw = 0.2 + angle - turns * np.pi / 2
    qpos = np.zeros(15)
    qpos[2] = 0.55
    qpos[[3, 6]] = np.cos(yaw / 2), np.sin(yaw / 2)
    source = (np.arange(4) - turns) % 4
    qpos[7::2], qpos[8::2] = HIPS[source], BENDS[source] * BEND
    return qpos


def way(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), np.sin(angle)]])


def walked(world: World, turns: int, angle: float, slots: np.ndarray) -> np.ndarray:
    """Features (T, 29) along a walk with given actions of the slots (T, 8)."""
    model, data = world.environment.model, mujoco.MjData(world.environment.model)
    data.qpos[:] = turned(turns, angle)
    mujoco.mj_forward(model, data)
    rows = []
    for slot in slots:
        row, k = features(data.qpos[None], data.qvel[None], way(angle))
        rows.append(row[0])
        data.ctrl[:] = motor_action(slot[None], k)[0]
        mujoco.mj_step(model, data, nstep=5)
    return np.array(rows)


def test_ant_moves_alike_whatever_its_heading_and_whichever_leg_is_in_front(ant):
    slots = np.random.default_rng(0).uniform(-1, 1, (8, ACTIONS))
    reference = walked(ant, 0, 0.0, slots)
    assert reference.shape == (8, FEATURES)
    assert np.ptp(reference, axis=0).max() > 0.5, "the ant moved"
    for turns in range(4):
        for angle in (0.0, 0.7, 2.5):
            # rounding of 1e-16 in the angles, grown over eight steps with contacts
            np.testing.assert_allclose(
                walked(ant, turns, angle, slots), reference, rtol=0, atol=1e-9
            )


def test_torso_lies_within_an_eighth_of_a_turn_of_the_way():
    rng = np.random.default_rng(1)
    for _ in range(50):
        row, _ = features(
            turned(int(rng.integers(4)), rng.uniform(-3, 3))[None],
            np.zeros((1, 14)),
            way(rng.uniform(-3, 3)),
        )
        forward_x, forward_y = row[0, 1:3]
        assert abs(np.arctan2(forward_y, forward_x)) <= np.pi / 4 + 1e-9


def test_actions_of_the_slots_reach_the_motors_of_their_legs():
    qpos = turned(0, 0.0)
    slots = np.arange(1.0, 9.0)[None]  # hips 1 2 3 4, bends 5 6 7 8
    k = quarter_turns(qpos[None], way(0.0))
    assert k[0] == 0
    # motors: hip and ankle of leg 3, 0, 1, 2; ankles of legs 1 and 2 bend the other way
    np.testing.assert_array_equal(motor_action(slots, k)[0], [4, 8, 1, 5, 2, -6, 3, -7])


def test_upright_is_one_standing_and_minus_one_on_the_back():
    poses = np.zeros((3, 15))
    poses[0, 3] = 2.0  # not normalised
    poses[1, 4] = 1.0  # half a turn about x
    poses[2, [3, 5]] = np.sqrt(0.5)  # a quarter turn about y
    np.testing.assert_allclose(upright(poses), [1.0, -1.0, 0.0], atol=1e-12)
