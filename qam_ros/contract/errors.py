# SPDX-License-Identifier: Apache-2.0
"""Errors a user can meet: what was expected, what came, where, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

MAX_MESSAGE: Final = 4000
MAX_NAME: Final = 200
"""Characters of a message, and of a name to compare: both may come from a file made to harm."""


class QamError(Exception):
    """Base of every error that is meant for a user.

    Args:
        message: expected, found, where, what to do; one sentence or two. What is longer than
            MAX_MESSAGE is cut in the middle.
        details: the evidence, kept on the exception as ``details``.
    """

    def __init__(self, message: str, **details: object) -> None:
        if len(message) > MAX_MESSAGE:
            half = MAX_MESSAGE // 2
            message = f"{message[:half]} ... ({len(message)} characters) ... {message[-half:]}"
        super().__init__(message)
        self.details: dict[str, object] = details


class InterfaceError(QamError):
    """A robot interface is malformed, or two interfaces do not fit together."""


class TransitionError(QamError):
    """Transitions do not have the agreed layout, or hold values that may not be stored."""


class DatasetError(QamError):
    """A training dataset is missing, damaged, of another version or of another robot."""


class ArtifactError(QamError):
    """A policy artifact is missing, damaged, of another version or oversize."""


class StreamError(QamError):
    """The transition stream received or holds something that breaks its protocol."""


class ConfigError(QamError):
    """A configuration file or a command line override is wrong."""


def nearest(name: str, valid: Collection[str]) -> str:
    """Hint for a mistyped name: the closest valid one and the whole list.

    Args:
        name: what the user wrote.
        valid: what would have been accepted.

    Returns:
        ``"did you mean 'x'? valid: x, y"``, or only the list when nothing is close.
    """
    names = sorted(str(item) for item in valid)
    listing = "valid: " + (", ".join(names) if names else "none")
    close = difflib.get_close_matches(str(name)[:MAX_NAME], names, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'? {listing}" if close else listing


def check_keys(
    mapping: Mapping[str, Any],
    required: Collection[str],
    optional: Collection[str],
    where: str,
    error: type[QamError] = ConfigError,
    noun: str = "key",
) -> None:
    """Refuse unknown and missing keys of a mapping read from a file.

    Args:
        mapping: what was read.
        required: keys that must be there.
        optional: keys that may be there.
        where: file and section, for the message.
        error: class to raise.
        noun: what the keys are, for the message.

    Raises:
        QamError: (of class ``error``) naming the key, the nearest valid key and ``where``.
    """
    valid = [*required, *optional]
    for key in mapping:
        if key not in valid:
            raise error(
                f"{where}: unknown {noun} '{key}'; {nearest(str(key), valid)}", key=key
            )
    for key in required:
        if key not in mapping:
            raise error(
                f"{where}: {noun} '{key}' is missing; "
                f"it has {', '.join(map(str, mapping)) or 'none'}",
                key=key,
            )


def check_shape(
    name: str,
    array: npt.NDArray[Any],
    shape: Sequence[int | None],
    where: str,
    error: type[QamError] = QamError,
) -> None:
    """Refuse an array of another shape.

    Args:
        name: name of the array, for the message.
        array: the array.
        shape: expected sizes; None stands for any size.
        where: file, topic or function, for the message.
        error: class to raise.

    Raises:
        QamError: (of class ``error``) with expected and found shape.
    """
    found = np.shape(array)
    fits = len(found) == len(shape) and all(
        want is None or want == have for want, have in zip(shape, found, strict=True)
    )
    if not fits:
        sizes = ["any" if size is None else str(size) for size in shape]
        expected = f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"
        raise error(
            f"{where}: '{name}' has shape {found}, expected {expected}",
            name=name,
            found=found,
            expected=tuple(shape),
        )
