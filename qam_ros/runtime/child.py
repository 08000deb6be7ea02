# SPDX-License-Identifier: Apache-2.0
"""One supervised process: start, signal, kill, and the promise that it does not outlive us."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

PR_SET_PDEATHSIG: Final = 1
YOUNG_S: Final = 3.0  # an interpreter that still imports has no signal handlers yet


def end_with_parent(parent: int) -> Callable[[], None]:
    """Function for `preexec_fn`: the kernel sends SIGTERM when the parent process dies.

    Args:
        parent: process id of the parent, taken before the fork.
    """
    libc = ctypes.CDLL(None)

    def prepare() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died between fork and prctl
            os.kill(os.getpid(), signal.SIGTERM)

    return prepare


class Child:
    """A running process whose output goes to a file.

    Args:
        command: executable and arguments.
        log: file that its output is appended to.
        environment: its whole environment.
    """

    def __init__(
        self, command: Sequence[str], log: Path, environment: Mapping[str, str]
    ) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        self.started_at = time.monotonic()
        self._asked_young = False
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,  # a terminal's Ctrl-C reaches it through us alone
                preexec_fn=end_with_parent(os.getpid()),  # noqa: PLW1509 - touches no lock
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def exit_code(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self.process.poll()

    def age_s(self) -> float:
        """Time since it was started [s]."""
        return time.monotonic() - self.started_at

    def ask_to_stop(self, number: signal.Signals) -> None:
        """Send it a signal to end by itself."""
        self._asked_young = self.age_s() < YOUNG_S
        if self.process.poll() is None:
            self.process.send_signal(number)

    def wait(self, timeout_s: float) -> int | None:
        """Wait for its end; None when it still runs after that time."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        """End it and everything it started, now."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def ended_cleanly(self) -> bool:
        """Whether it ended with code 0, or by our signal before it could have had a handler."""
        code = self.process.poll()
        return code == 0 or (
            self._asked_young and code in (-signal.SIGTERM, -signal.SIGINT)
        )

    def last_lines(self, count: int) -> list[str]:
        """The end of its output."""
        with self.log.open("rb") as output:
            output.seek(0, os.SEEK_END)
            output.seek(max(0, output.tell() - 200 * count))
            return output.read().decode(errors="replace").splitlines()[-count:]
