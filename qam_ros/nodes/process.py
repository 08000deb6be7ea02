# SPDX-License-Identifier: Apache-2.0
"""How every node process begins and ends: signals are handled before anything heavy is imported."""

from __future__ import annotations

import importlib
import signal
import sys
from types import FrameType

from qam_ros.contract.errors import QamError


class _StoppedEarlyError(BaseException):
    """A signal came before there was anything to stop."""


class Stop:
    """Whether SIGINT or SIGTERM asked the process to end.

    Until ``armed`` a signal ends the process at once; from then on it only sets ``requested``.
    """

    def __init__(self) -> None:
        self.requested = False
        self._armed = False

    def arm(self) -> None:
        """Whoever calls this watches ``requested`` from now on."""
        self._armed = True

    def handle(self, _number: int, _frame: FrameType | None) -> None:
        """Signal handler."""
        self.requested = True
        if not self._armed:
            raise _StoppedEarlyError


def run_process(module: str, args: list[str] | None) -> int:
    """Run a node process: the function ``run(stop, args) -> int`` of a module.

    Args:
        module: where ``run`` is; imported after the signal handlers are in place.
        args: command line; None for that of the process.

    Returns:
        Exit code: 0 also when a signal ended it, 1 after an error meant for the user.
    """
    stop = Stop()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop.handle)
    try:
        code = importlib.import_module(module).run(stop, args)
    except _StoppedEarlyError:
        return 0
    except QamError as problem:
        sys.stderr.write(f"error: {problem}\n")
        return 1
    return int(code)
