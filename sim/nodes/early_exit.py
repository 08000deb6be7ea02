# SPDX-License-Identifier: Apache-2.0
"""Ending at once on a signal while the process is still being set up in C."""

from __future__ import annotations

import os
import signal
import threading


class ExitOnSignal:
    """From its creation until `end`, a handled signal ends the process with exit code 0.

    Python runs signal handlers between bytecodes only, and compiling a scene stays in C for seconds
    on a busy machine. The interpreter's own C handler writes to a file descriptor at once, though,
    and a thread that waits for it runs, since the compiler releases the interpreter lock. There is
    nothing to save yet. Create it in the main thread.
    """

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)  # as set_wakeup_fd demands
        self._previous = signal.set_wakeup_fd(self._write)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Leave signals to their handlers alone."""
        signal.set_wakeup_fd(self._previous)
        os.close(self._write)
        self._thread.join()
        os.close(self._read)

    def _watch(self) -> None:
        if os.read(self._read, 1):  # nothing when the other end was closed
            os._exit(0)
