# SPDX-License-Identifier: Apache-2.0
"""Transitions: one packed row per tick of an episode. Format: docs/formats/transition.md.

A batch of transitions is everywhere a 1-D structured array of ``transition_dtype``; what is sent and
stored is that array's memory. The key (robot, session, seq) of a row is unique for ever: session is
the guard's uuid, seq counts its rows from 0.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from qam_ros.contract.errors import TransitionError
from qam_ros.contract.robot_interface import RobotInterface

TRANSITION_VERSION: Final = 1
MAX_SEQ: Final = 2**63 - 1

Rows = npt.NDArray[np.void]
"""(N,) structured array of ``transition_dtype``."""

Rule = tuple[str, str, npt.NDArray[np.bool_]]
"""Field, what is wrong with a row that breaks it, (N,) whether each row keeps it."""


class ActionSource(IntEnum):
    """Who chose the executed action."""

    POLICY = 0
    HUMAN = 1
    SAFE = 2


class GuardMode(IntEnum):
    """State of the guard during a tick."""

    IDLE = 0
    RAMP = 1
    ACTIVE = 2
    HOLD = 3
    SAFE_STOP = 4
    ESTOP = 5
    DRY_RUN = 6


class EpisodeKind(IntEnum):
    """What an EpisodeEvent announces."""

    START = 0
    END = 1
    ABORT = 2


class LimitBit(IntFlag):
    """Why the guard changed or refused a proposal."""

    NON_FINITE = 1
    BOX = 2
    POSITION = 4
    RATE = 8
    ACCELERATION = 16
    MISSING = 32
    STALE_OBSERVATION = 64
    STALE_PROPRIOCEPTION = 128
    MALFORMED = 256
    FROZEN = 512
    OUTSIDE = 1024


ALL_LIMIT_BITS: Final = sum(LimitBit)
_FLAGS: Final = ("terminated", "truncated", "masked", "has_next")


def transition_dtype(interface: RobotInterface) -> np.dtype[np.void]:
    """Packed little-endian row layout for a robot.

    Args:
        interface: gives O (observation size), A (action size) and the number of blocks.

    Returns:
        Structured dtype; stamps in ns, ages in s, actions normalised.
    """
    observation, action = interface.observation_size, interface.action_size
    return np.dtype(
        [
            ("session", "u1", (16,)),
            ("seq", "<u8"),
            ("observation_stamp_ns", "<i8"),
            ("action_stamp_ns", "<i8"),
            ("episode", "<u8"),
            ("step", "<u4"),
            ("observation", "<f4", (observation,)),
            ("proposed", "<f4", (action,)),
            ("executed", "<f4", (action,)),
            ("source", "u1"),
            ("policy_version", "<u8"),
            ("chunk_id", "<u8"),
            ("chunk_index", "<u2"),
            ("guard_mode", "u1"),
            ("limit_bits", "<u4"),
            ("reward", "<f4"),
            ("terminated", "u1"),
            ("truncated", "u1"),
            ("masked", "u1"),
            ("ages_s", "<f4", (len(interface.observation),)),
            ("has_next", "u1"),
            ("next_observation", "<f4", (observation,)),
        ]
    )


def encode(rows: Rows) -> bytes:
    """Memory of the rows, as sent and stored; ``decode`` reads it back."""
    return rows.tobytes()


def decode(data: bytes, interface: RobotInterface, count: int) -> Rows:
    """Rows from their memory, as a writable copy.

    Args:
        data: what ``encode`` made.
        interface: the robot the rows belong to.
        count: number of rows announced with the data.

    Raises:
        TransitionError: the data has another length than ``count`` rows of this robot.
    """
    dtype = transition_dtype(interface)
    if count < 0 or len(data) != count * dtype.itemsize:
        raise TransitionError(
            f"transitions: {len(data)} bytes arrived, {count} rows of robot '{interface.robot}' "
            f"take {count * dtype.itemsize} ({dtype.itemsize} each); the data is truncated or made "
            "for another robot interface",
            found=len(data),
            expected=count * dtype.itemsize,
        )
    return np.frombuffer(data, dtype=dtype, count=count).copy()


def validate_transitions(rows: npt.NDArray[Any], interface: RobotInterface) -> None:
    """Refuse rows that may not be stored.

    Masked rows keep what happened, so their observation and proposal may be anything; every other
    number that learning reads must be finite, every executed action inside the box.

    Args:
        rows: (N,) rows.
        interface: the robot they belong to.

    Raises:
        TransitionError: another layout, or the first row and field that breaks a rule.
    """
    _check_layout(rows, interface)
    for field, rule, good in (*_number_rules(rows), *_code_rules(rows)):
        _require(good, rows, field, rule)


def mask_unusable(rows: Rows, interface: RobotInterface) -> tuple[Rows, int]:
    """Rows from outside, with those masked whose numbers learning cannot use.

    So a bad row neither stops the stream behind it nor is ever trained on. An executed action that
    breaks its rule becomes 0; everything else stays as it came.

    Args:
        rows: (N,) rows as they arrived; not changed.
        interface: the robot they belong to.

    Returns:
        Rows that ``validate_transitions`` accepts, (N,), and how many of them were masked here.

    Raises:
        TransitionError: another layout, or a key, flag or enumeration that no row can have.
    """
    _check_layout(rows, interface)
    for field, rule, good in _code_rules(rows):
        _require(good, rows, field, rule)
    usable = np.ones(len(rows), dtype=bool)
    acted = np.ones(len(rows), dtype=bool)
    for field, _, good in _number_rules(rows):
        usable &= good
        if field == "executed":
            acted &= good
    if usable.all():
        return rows, 0
    rows = rows.copy()
    rows["masked"][~usable] = 1
    rows["executed"][~acted] = 0.0
    return rows, int((~usable).sum())


def _check_layout(rows: npt.NDArray[Any], interface: RobotInterface) -> None:
    dtype = transition_dtype(interface)
    if rows.dtype != dtype or rows.ndim != 1:
        raise TransitionError(
            f"transitions: layout {rows.dtype.names} of {rows.dtype.itemsize} bytes, shape "
            f"{rows.shape}; robot '{interface.robot}' has {dtype.names} of {dtype.itemsize} bytes, "
            "one axis; use transition_dtype(interface)",
            found=rows.dtype,
            expected=dtype,
        )


def _number_rules(rows: Rows) -> list[Rule]:
    """What learning reads must be finite and inside its range."""
    used = rows["masked"] == 0
    proposes = used & (rows["source"] == ActionSource.POLICY)
    follows = used & (rows["has_next"] == 1)
    ages = _finite(rows["ages_s"]) & (rows["ages_s"] >= 0).all(axis=1)
    inside = (np.abs(rows["executed"]) <= 1.0).all(axis=1)
    return [
        ("executed", "must be finite", _finite(rows["executed"])),
        ("executed", "leaves [-1, 1]", inside),
        ("observation", "must be finite", _finite(rows["observation"]) | ~used),
        ("proposed", "must be finite", _finite(rows["proposed"]) | ~proposes),
        ("reward", "must be finite", np.isfinite(rows["reward"]) | ~used),
        ("ages_s", "must be finite and not negative", ages | ~used),
        (
            "next_observation",
            "must be finite",
            _finite(rows["next_observation"]) | ~follows,
        ),
    ]


def _code_rules(rows: Rows) -> list[Rule]:
    """Keys, flags and enumerations; a store keeps seq as a signed integer."""
    return [
        ("seq", f"is above {MAX_SEQ}", rows["seq"] <= MAX_SEQ),
        *((flag, "must be 0 or 1", rows[flag] <= 1) for flag in _FLAGS),
        ("source", "is unknown", rows["source"] <= max(ActionSource)),
        ("guard_mode", "is unknown", rows["guard_mode"] <= max(GuardMode)),
        ("limit_bits", "has unknown bits", rows["limit_bits"] <= ALL_LIMIT_BITS),
    ]


def _finite(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    finite: npt.NDArray[np.bool_] = np.isfinite(values).all(axis=1)
    return finite  # (N,)


def _require(good: npt.NDArray[np.bool_], rows: Rows, field: str, rule: str) -> None:
    if good.all():
        return
    index = int(np.argmin(good))
    row = rows[index]
    session = bytes(row["session"]).hex()
    raise TransitionError(
        f"transition {index} of {len(rows)} (session {session[:8]}, seq {row['seq']}): field "
        f"'{field}' {rule}, found {row[field]}; the row is refused",
        row=index,
        field=field,
        session=session,
        seq=int(row["seq"]),
        found=row[field],
    )
