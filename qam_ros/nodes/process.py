# SPDX-License-Identifier: Apache-2.0
"""How every node process begins and ends: signals are handled before anything heavy is imported."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import traceback
from types import FrameType
from typing import Final, NoReturn

from qam_ros.contract.errors import QamError

REFUSED: Final = os.EX_CONFIG
"""Exit code of a node that refuses its settings; a restart would end the same way."""


class Stop:
    """Whether SIGINT or SIGTERM asked the process to end.

    Until ``armed`` a signal ends the process at once; from then on it only sets ``requested``.
    """

    def __init__(self) -> None:
        self.requested = False
        self.armed = False
        self._setup: _ExitOnSignal | None = None

    def listen(self) -> None:
        """Install the signal handlers; call this in the main thread."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.handle)
        self._setup = _ExitOnSignal()

    def arm(self) -> None:
        """Whoever calls this is set up, and watches ``requested`` from now on."""
        self.armed = True
        if self._setup is not None:
            self._setup.end()
            self._setup = None

    def handle(self, _number: int, _frame: FrameType | None) -> None:
        """Signal handler."""
        self.requested = True


class _ExitOnSignal:
    """From its creation until ``end``, a handled signal ends the process with exit code 0.

    Python runs signal handlers between bytecodes only, and loading libraries or compiling a scene or
    a network stays in C for seconds on a busy machine. The interpreter's own C handler writes to a
    file descriptor at once, though, and a thread waits for that. There is nothing to save yet.
    """

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)  # as set_wakeup_fd demands
        signal.set_wakeup_fd(self._write)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Leave signals to their handlers alone."""
        signal.set_wakeup_fd(-1)
        os.close(self._write)
        self._thread.join()
        os.close(self._read)

    def _watch(self) -> None:
        if os.read(self._read, 1):  # nothing when the other end was closed
            os._exit(0)


def run_process(module: str, args: list[str] | None) -> int:
    """Run a node process: the function ``run(stop, args) -> int`` of a module.

    Args:
        module: where ``run`` is; imported after the signal handlers are in place.
        args: command line; None for that of the process.

    Returns:
        Exit code: 0 also when a signal ended it; after an error meant for the user ``REFUSED`` if
        it came before the node was set up, else 1. A library that is missing is such an error.
    """
    stop = Stop()
    stop.listen()
    try:
        code = importlib.import_module(module).run(stop, args)
    except QamError as problem:
        sys.stderr.write(f"error: {problem}\n")
        return 1 if stop.armed else REFUSED
    except ImportError:
        if stop.armed:
            raise
        traceback.print_exc()
        return REFUSED
    return int(code)


def leave(code: int) -> NoReturn:
    """End the process at once, for nodes that have saved everything and must be gone quickly.

    Python would first take every module apart, half a second on a busy machine.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
