# SPDX-License-Identifier: Apache-2.0
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from qam_ros.contract.transition import LimitBit
from qam_ros.runtime.guard_limits import (
    CommandLimits,
    bound_position,
    braking_rate,
    limit_command,
    wrap_angle,
)

PERIOD_S = 0.05
number = st.floats(-3.0, 3.0)


FULL = np.full(1, PERIOD_S)


def make_limits(low, high, rate, acceleration, *, wrap=False, period_s=PERIOD_S):
    one = np.ones(1)
    periodic = np.array([wrap and low <= -np.pi and high >= np.pi])
    return CommandLimits(
        low * one, high * one, rate * one, acceleration * one, np.array([wrap]), periodic, period_s
    )  # fmt: skip


def brake(limits, last, rate, ticks):
    """Commands of a sequence that is told to stop."""
    commands = []
    for _ in range(ticks):
        last, rate, _ = limit_command(limits, last, rate, last, 1.0, FULL)
        commands.append(last[0])
    return commands, rate[0]


@settings(max_examples=100, deadline=None)
@given(
    start=st.floats(0.0, 1.0),
    targets=st.lists(st.floats(-2.0, 3.0), min_size=1, max_size=40),
    rate=st.floats(0.05, 20.0),
    acceleration=st.floats(0.05, 500.0),
    seed=st.integers(0, 1000),
)
def test_every_command_keeps_position_rate_and_acceleration(
    start, targets, rate, acceleration, seed
):
    parts = np.random.default_rng(seed)
    limits = make_limits(0.0, 1.0, rate, acceleration)
    last, old_rate = np.array([start]), np.zeros(1)
    for target in targets:
        aim = bound_position(limits, np.array([target]))
        elapsed = PERIOD_S * parts.choice([0.5, 1.0, parts.uniform(0.5, 1.0)], 1)
        command, new_rate, _ = limit_command(limits, last, old_rate, aim, 1.0, elapsed)
        step, elapsed_s = command[0] - last[0], elapsed[0]
        assert 0.0 <= command[0] <= 1.0
        assert abs(step) <= rate * elapsed_s + 1e-9
        change = step - old_rate[0] * elapsed_s
        # rounding of positions near 1, seen through a difference of differences
        assert abs(change) <= acceleration * elapsed_s**2 + 1e-9
        last, old_rate = command, new_rate


@settings(max_examples=100, deadline=None)
@given(
    targets=st.lists(st.floats(-2.0, 3.0), min_size=1, max_size=20),
    rate=st.floats(0.05, 20.0),
    acceleration=st.floats(5.0, 500.0),
)
def test_a_sequence_can_always_stop_inside_the_box(targets, rate, acceleration):
    limits = make_limits(0.0, 1.0, rate, acceleration)
    last, old_rate = np.array([0.5]), np.zeros(1)
    for target in targets:
        aim = bound_position(limits, np.array([target]))
        last, old_rate, _ = limit_command(limits, last, old_rate, aim, 1.0, FULL)
    ticks = int(rate / (acceleration * PERIOD_S)) + 2
    commands, final = brake(limits, last, old_rate, ticks)
    assert min(commands) >= 0.0
    assert max(commands) <= 1.0
    assert abs(final) < 1e-9


@settings(deadline=None)
@given(
    distance=st.floats(1e-6, 10.0),
    acceleration=st.floats(0.02, 200.0),
    part=st.floats(0.5, 1.0),
)
def test_braking_rate_uses_the_whole_distance(distance, acceleration, part):
    elapsed_s, shortest_s = part * PERIOD_S, 0.5 * PERIOD_S
    room, a = np.array([distance]), np.array([acceleration])
    rate = braking_rate(room, a, elapsed_s * np.ones(1), shortest_s * np.ones(1))[0]
    step = acceleration * shortest_s
    later = rate - step * np.arange(1, int(rate / step) + 2)
    travelled = rate * elapsed_s + np.maximum(later, 0.0).sum() * shortest_s
    np.testing.assert_allclose(travelled, distance, rtol=1e-9)


def test_braking_rate_is_zero_without_room_and_free_without_limits():
    acceleration = np.array([20.0, 20.0, np.inf, 20.0])
    room = np.array([0.0, -3.0, 0.1, np.inf])
    rate = braking_rate(room, acceleration, np.full(4, PERIOD_S), np.full(4, PERIOD_S))
    np.testing.assert_array_equal(rate[:2], 0.0)
    np.testing.assert_allclose(rate[2], 2.0)
    assert np.isinf(rate[3])


@settings(max_examples=30, deadline=None)
@given(start=st.one_of(st.floats(1.001, 3.0), st.floats(-3.0, -0.001)), target=number)
def test_from_outside_a_command_only_moves_inwards(start, target):
    limits = make_limits(0.0, 1.0, 1.0, 10.0)
    last, rate = np.array([start]), np.zeros(1)
    outside = abs(start - np.clip(start, 0.0, 1.0))
    for _ in range(150):
        aim = bound_position(limits, np.array([target]))
        command, rate, _ = limit_command(limits, last, rate, aim, 1.0, FULL)
        now = abs(command[0] - np.clip(command[0], 0.0, 1.0))
        assert now <= outside
        last, outside = command, now
    assert outside == 0.0


@settings(deadline=None)
@given(start=st.floats(0.0, 1.0), target=st.floats(0.0, 1.0))
def test_a_command_that_no_limit_touches_is_bitwise_the_target(start, target):
    limits = make_limits(0.0, 1.0, 1e3, np.inf)
    command, _, bits = limit_command(
        limits, np.array([start]), np.zeros(1), np.array([target]), 1.0, FULL
    )
    assert command[0] == target
    assert bits == 0


def test_bits_name_the_limit_that_bound():
    slow = make_limits(0.0, 1.0, 0.1, np.inf)
    weak = make_limits(0.0, 1.0, 100.0, 1.0)
    start, aim, rest = np.array([0.2]), np.array([0.8]), np.zeros(1)
    assert limit_command(slow, start, rest, aim, 1.0, FULL)[2] == LimitBit.RATE
    assert limit_command(weak, start, rest, aim, 1.0, FULL)[2] == LimitBit.ACCELERATION


def test_the_ramp_scales_rate_and_acceleration():
    limits = make_limits(0.0, 1.0, 1.0, np.inf)
    start, aim, rest = np.array([0.2]), np.array([0.8]), np.zeros(1)
    command, _, _ = limit_command(limits, start, rest, aim, 0.1, FULL)
    np.testing.assert_allclose(command[0] - 0.2, 0.1 * PERIOD_S)


@settings(deadline=None)
@given(start=st.floats(-np.pi, np.pi), turn=st.floats(-0.2, 0.2))
def test_an_angle_goes_the_short_way_over_pi(start, turn):
    limits = make_limits(-np.pi, np.pi, 100.0, np.inf, wrap=True)
    aim = bound_position(limits, np.array([start + turn]))
    command, rate, _ = limit_command(
        limits, np.array([start]), np.zeros(1), aim, 1.0, FULL
    )
    assert abs(command[0]) <= np.pi
    np.testing.assert_allclose(rate[0] * PERIOD_S, turn, atol=1e-12)


def test_an_angle_with_a_forbidden_sector_never_crosses_it():
    limits = make_limits(-2.0, 2.0, 1.0, np.inf, wrap=True)
    last, rate = np.array([1.9]), np.zeros(1)
    for _ in range(100):
        aim = bound_position(limits, np.array([-1.9]))
        last, rate, _ = limit_command(limits, last, rate, aim, 1.0, FULL)
        assert -2.0 <= last[0] <= 2.0
    np.testing.assert_allclose(last[0], -1.9)


@settings(deadline=None)
@given(st.floats(-50.0, 50.0))
def test_wrapping_keeps_the_direction_and_what_is_inside(angle):
    wrapped = wrap_angle(np.array([angle, angle]), np.array([True, False]))
    assert abs(wrapped[0]) <= np.pi
    assert wrapped[1] == angle
    np.testing.assert_allclose(np.exp(1j * wrapped[0]), np.exp(1j * angle), atol=1e-12)
    if abs(angle) <= np.pi:
        assert wrapped[0] == angle
