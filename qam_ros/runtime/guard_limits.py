# SPDX-License-Identifier: Apache-2.0
"""Limits of a command sequence: position, rate, acceleration, and room to brake.

A tick comes d_k after the one before, between h = T / 2 and T (control period; more counts as T).
With command c_k and its rate v_k = (c_k - c_{k-1}) / d_k, every step keeps
    |v_k| <= v_max,   |v_k - v_{k-1}| <= a d_k,   low <= c_k <= high.
The three never contradict each other because v_k is also kept below the rate from which the sequence
can still stop in front of the limit, however soon the next ticks come: braking from v in ticks of h,
each taking u = a h off the rate, travels
    R(v) = h (n v - u n (n + 1) / 2),   n = floor(v / u),
longer ticks travel less, and v_k d_k + R(v_k) <= high - c_{k-1} leaves v_k - a d_{k+1} feasible for
ever.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qam_ros.contract.robot_interface import RobotInterface
from qam_ros.contract.transition import LimitBit

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class CommandLimits:
    """Limits of the command vector of a robot, all (A,) float64.

    Args:
        low: lowest command.
        high: highest command.
        max_rate: largest change per second.
        max_acceleration: largest change of the rate per second.
        wrap: the element is an angle.
        periodic: the element is an angle whose limits leave out no angle.
        period_s: control period T [s].
    """

    low: FloatArray
    high: FloatArray
    max_rate: FloatArray
    max_acceleration: FloatArray
    wrap: BoolArray
    periodic: BoolArray
    period_s: float


def command_limits(interface: RobotInterface) -> CommandLimits:
    """Collect the limits of all action blocks of an interface."""

    def collect(values: list[tuple[float, ...]]) -> FloatArray:
        return np.asarray(
            [value for block in values for value in block], dtype=np.float64
        )

    low = collect([block.low for block in interface.action])
    high = collect([block.high for block in interface.action])
    wrap = np.concatenate(
        [np.full(block.size, block.wrap) for block in interface.action]
    )
    return CommandLimits(
        low=low,
        high=high,
        max_rate=collect([block.max_rate for block in interface.action]),
        max_acceleration=collect(
            [block.max_acceleration for block in interface.action]
        ),
        wrap=wrap,
        # A file writes pi with a few digits only, hence the tolerance.
        periodic=wrap & (low <= -np.pi + 1e-6) & (high >= np.pi - 1e-6),
        period_s=interface.control_period_s,
    )


def wrap_angle(angle: FloatArray, where: BoolArray) -> FloatArray:
    """Bring angles into [-pi, pi]; values already inside, and other elements, stay bitwise the same.

    Args:
        angle: (A,) [rad].
        where: (A,), which elements are angles.
    """
    outside = where & (np.abs(angle) > np.pi)
    if not outside.any():
        return angle
    wrapped = angle - 2 * np.pi * np.round(angle / (2 * np.pi))
    return np.where(outside, np.clip(wrapped, -np.pi, np.pi), angle)  # (A,)


def bound_position(limits: CommandLimits, target: FloatArray) -> FloatArray:
    """Clip a target into [low, high]; an angle without a forbidden sector is wrapped instead."""
    wrapped = wrap_angle(target, limits.periodic)
    clipped = np.minimum(np.maximum(wrapped, limits.low), limits.high)
    return np.where(limits.periodic, wrapped, clipped)  # (A,)


def braking_rate(
    distance: FloatArray,
    acceleration: FloatArray,
    elapsed_s: FloatArray,
    shortest_s: FloatArray,
) -> FloatArray:
    """Largest rate v with v d + R(v) <= distance: the sequence can still stop within the distance.

    Args:
        distance: (A,) room in front of the limit; below 0 counts as 0.
        acceleration: (A,) a, largest change of the rate per second; may be infinite.
        elapsed_s: (A,) d, time since the last command [s].
        shortest_s: (A,) h, shortest time to the next commands [s], at most d.

    Returns:
        (A,) largest rate [unit/s]; infinite where the distance is.
    """
    room = np.maximum(distance, 0.0)
    bounded = np.isfinite(acceleration) & np.isfinite(room)
    d, h = elapsed_s, shortest_s
    u = np.where(bounded, acceleration, 1.0) * h
    # n is the largest integer with n u d + R(n u) = n u d + h u n (n - 1) / 2 <= room.
    lead = d - h / 2.0
    n = np.floor(
        (np.sqrt(lead**2 + 2.0 * h * np.where(bounded, room, 0.0) / u) - lead) / h
    )
    with_steps = (room + h * u * n * (n + 1.0) / 2.0) / (d + n * h)
    return np.where(bounded, with_steps, room / d)  # (A,)


def limit_command(
    limits: CommandLimits,
    last: FloatArray,
    rate: FloatArray,
    target: FloatArray,
    ramp: float,
    elapsed_s: FloatArray,
) -> tuple[FloatArray, FloatArray, int]:
    """Move from the last command towards the target as far as the limits allow.

    A last command outside [low, high] (the robot was pushed there) only moves inwards.

    Args:
        limits: the limits.
        last: (A,) last command.
        rate: (A,) its rate [unit/s].
        target: (A,) wanted command, finite; inside [low, high] where it is to be reached.
        ramp: in (0, 1], scales rate and acceleration after a start.
        elapsed_s: (A,) time since the last command, in (0, T] [s].

    Returns:
        New command (A,), bitwise the target where nothing bound; its rate (A,); LimitBit flags.
    """
    wanted = wrap_angle(target - last, limits.periodic) / elapsed_s
    top = limits.max_rate * ramp
    in_rate = np.minimum(np.maximum(wanted, -top), top)
    acceleration = limits.max_acceleration * ramp
    step = acceleration * elapsed_s
    new = np.minimum(np.maximum(in_rate, rate - step), rate + step)
    shortest_s = np.minimum(elapsed_s, limits.period_s / 2.0)
    up = braking_rate(limits.high - last, acceleration, elapsed_s, shortest_s)
    down = braking_rate(last - limits.low, acceleration, elapsed_s, shortest_s)
    braked = np.minimum(np.maximum(new, -down), up)
    # From outside the box the way in may be longer than the braking room behind, which is none.
    new = np.where(limits.periodic, new, braked)
    free = new == wanted
    command = wrap_angle(np.where(free, target, last + new * elapsed_s), limits.wrap)
    inside = (last >= limits.low) & (last <= limits.high) & ~limits.periodic
    clipped = np.minimum(np.maximum(command, limits.low), limits.high)
    command = np.where(inside, clipped, command)  # rounding only
    bits = 0
    if not free.all():
        bits |= int(LimitBit.RATE) if (in_rate != wanted).any() else 0
        bits |= int(LimitBit.ACCELERATION) if (new != in_rate).any() else 0
    return command, new, bits
