# SPDX-License-Identifier: Apache-2.0
"""`qam up`: run the processes of a bringup, restart what may be restarted, end all cleanly.

Policy, learner and stream come back after a failure, with growing pauses; whatever moves the robot
never does: when it ends, so does the whole graph. Processes are asked to stop one after another, in
the reverse of the order in which they were started.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Final

from qam_ros.contract.errors import ConfigError
from qam_ros.runtime.bringup import (
    Bringup,
    ProcessSpec,
    list_bringups,
    load_bringup,
    read_bringup,
    write_parameters,
)
from qam_ros.runtime.child import Child

logger = logging.getLogger(__name__)

POLL_S: Final = 0.05
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Backoff:
    """Pauses before restarts.

    Args:
        first_s: before the first restart; doubles with each further one [s].
        longest_s: upper limit of the pause [s].
        stable_s: a run this long starts the count of restarts anew [s].
    """

    first_s: float = 0.5
    longest_s: float = 10.0
    stable_s: float = 30.0

    def pause_s(self, restart: int) -> float:
        """Pause before a restart, the first in a row being number 1 [s]."""
        return min(self.longest_s, self.first_s * 2.0 ** (restart - 1))


class _Slot:
    """What is known of one process of the graph."""

    def __init__(self, spec: ProcessSpec, command: tuple[str, ...]) -> None:
        self.spec = spec
        self.command = command
        self.child: Child | None = None
        self.state = "waiting"  # then running, finished, failed or given up
        self.restarts = 0
        self.in_a_row = 0
        self.start_at = 0.0

    def summary(self) -> dict[str, object]:
        """Entry of `processes.json`."""
        return {
            "pid": self.child.pid if self.child else None,
            "state": self.state,
            "restarts": self.restarts,
            "exit_code": self.child.exit_code() if self.child else None,
            "command": list(self.command),
        }


class Supervisor:
    """Runs a process graph until it ends, `stop` is called or a signal comes.

    Args:
        bringup: the graph; logs, parameter files and `processes.json` go below its run_dir.
        backoff: pauses before restarts.
    """

    def __init__(self, bringup: Bringup, backoff: Backoff | None = None) -> None:
        self._bringup = bringup
        self._backoff = backoff or Backoff()
        self._run_dir = bringup.run_dir.resolve()
        self._slots = [_Slot(spec, self._command(spec)) for spec in bringup.processes]
        self._signal = signal.SIGTERM
        self._asked = 0
        self._failed = False

    def run(self) -> int:
        """Start everything and stay until the end.

        Returns:
            0 when every process ended with code 0 after it was asked to, or by itself; else 1.
        """
        in_main = threading.current_thread() is threading.main_thread()
        before = (
            {number: signal.signal(number, self._on_signal) for number in SIGNALS}
            if in_main
            else {}
        )
        try:
            while not self._asked and self._poll():
                time.sleep(POLL_S)
            self._stop_all()
        finally:
            for slot in self._slots:
                if slot.child:
                    slot.child.kill()
            self._record()
            for number, handler in before.items():
                signal.signal(number, handler)
        return 1 if self._failed else 0

    def stop(self) -> None:
        """Ask for the end, as SIGTERM does; a second time: kill."""
        self._asked += 1

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._signal = signal.Signals(number)
        self._asked += 1

    def _command(self, spec: ProcessSpec) -> tuple[str, ...]:
        parameters = write_parameters(spec, self._run_dir / "logs" / "parameters")
        names = ["-r", f"__node:={spec.name}"]
        if spec.namespace:
            names += ["-r", f"__ns:=/{spec.namespace.strip('/')}"]
        return (*spec.command, "--ros-args", *names, "--params-file", str(parameters))

    def _poll(self) -> bool:
        """Look at every process once; returns whether the graph goes on."""
        goes_on = False
        for slot in self._slots:
            if slot.state == "waiting" and time.monotonic() >= slot.start_at:
                self._start(slot)
            elif (
                slot.child
                and slot.state == "running"
                and slot.child.exit_code() is not None
            ):
                self._ended(slot, slot.child)
                if slot.state == "failed" or not slot.spec.respawn:
                    logger.info("%s is needed: stopping the rest", slot.spec.name)
                    return False
            goes_on = goes_on or slot.state in ("waiting", "running")
        return goes_on

    def _start(self, slot: _Slot) -> None:
        environment = {
            **(slot.spec.environment or {}),
            **os.environ,
            "ROS_LOG_DIR": str(self._run_dir / "logs" / "ros"),
            "PYTHONUNBUFFERED": "1",
        }
        log = self._run_dir / "logs" / f"{slot.spec.name}.log"
        slot.child = Child(slot.command, log, environment)
        slot.state = "running"
        logger.info("%s started (pid %d)", slot.spec.name, slot.child.pid)
        self._record()

    def _ended(self, slot: _Slot, child: Child) -> None:
        """Decide what follows the end of a process that nobody asked to end."""
        name, code = slot.spec.name, child.exit_code()
        if code == 0:
            slot.state = "finished"
            logger.info("%s finished", name)
        elif not slot.spec.respawn or self._is_hopeless(slot, child):
            slot.state, self._failed = "failed", True
            logger.error("%s failed (code %s), see %s", name, code, child.log)
        elif slot.in_a_row >= slot.spec.max_restarts:
            slot.state, self._failed = "given up", True
            logger.error(
                "%s failed %d times: given up, the others go on", name, slot.in_a_row
            )
        else:
            stable = child.age_s() >= self._backoff.stable_s
            slot.in_a_row = 1 if stable else slot.in_a_row + 1
            slot.restarts += 1
            pause_s = self._backoff.pause_s(slot.in_a_row)
            slot.state, slot.start_at = "waiting", time.monotonic() + pause_s
            logger.warning("%s failed (code %s): again in %.1f s", name, code, pause_s)
        for line in child.last_lines(5) if code != 0 else ():
            logger.info("    %s: %s", name, line)
        self._record()

    def _is_hopeless(self, slot: _Slot, child: Child) -> bool:
        """A node that refuses its settings when it first starts will do so again."""
        return slot.restarts == 0 and child.exit_code() == os.EX_CONFIG

    def _stop_all(self) -> None:
        """Ask one after another to end, in reverse order; a second request kills the rest."""
        asked = self._asked
        for slot in reversed(self._slots):
            child = slot.child
            if slot.state != "running" or child is None:
                continue
            self._wait_for(child, slot.spec.settle_s, asked)
            child.ask_to_stop(self._signal)
            self._wait_for(child, slot.spec.stop_timeout_s, asked)
            child.kill()
            clean = child.ended_cleanly()
            slot.state = "finished" if clean else "failed"
            self._failed = self._failed or not clean
            logger.log(
                logging.INFO if clean else logging.ERROR,
                "%s stopped (code %s)",
                slot.spec.name,
                child.exit_code(),
            )
            self._record()

    def _wait_for(self, child: Child, timeout_s: float, asked: int) -> None:
        """Wait until a process ended, the time is over, or the end is asked for once more."""
        deadline = time.monotonic() + timeout_s
        while child.exit_code() is None and time.monotonic() < deadline:
            if self._asked > asked:
                return
            time.sleep(POLL_S)

    def _record(self) -> None:
        """Write `processes.json`, whole or not at all."""
        content = {
            "bringup": self._bringup.name,
            "supervisor": os.getpid(),
            "processes": {slot.spec.name: slot.summary() for slot in self._slots},
        }
        path = self._run_dir / "processes.json"
        scratch = path.with_suffix(".part")
        scratch.write_text(json.dumps(content, indent=2) + "\n")
        scratch.replace(path)


def command(argv: Sequence[str]) -> int:
    """Start the processes of a bringup and keep them running.

    Args:
        argv: name of a bringup (or a path to one) and `argument:=value` pairs.

    Returns:
        Exit code: 0 after a clean end, 1 otherwise.
    """
    parser = argparse.ArgumentParser(
        prog="qam up", description="Start the processes of a bringup."
    )
    parser.add_argument(
        "name", nargs="?", help="bringup in config/bringup, or a path to a YAML file"
    )
    parser.add_argument("arguments", nargs="*", metavar="argument:=value")
    parser.add_argument(
        "--show-args", action="store_true", help="describe the arguments and leave"
    )
    options = parser.parse_args(argv)
    logging.basicConfig(
        format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO
    )
    if options.name is None:
        sys.stdout.write(_describe_all())
        return 0
    if options.show_args:
        sys.stdout.write(_describe(options.name))
        return 0
    bringup = load_bringup(options.name, parse_overrides(options.arguments))
    logger.info("%s: logs in %s", bringup.name, bringup.run_dir / "logs")
    return Supervisor(bringup).run()


def parse_overrides(words: Sequence[str]) -> dict[str, str]:
    """Arguments from words such as `robot:=mobile_base`.

    Raises:
        ConfigError: a word of another form.
    """
    overrides = {}
    for word in words:
        name, separator, value = word.partition(":=")
        if not separator or not name:
            raise ConfigError(f"expected argument:=value, found '{word}'")
        overrides[name] = value
    return overrides


def _describe_all() -> str:
    names = list_bringups()
    width = max(len(name) for name in names)
    lines = [f"  {name:{width}}  {read_bringup(name).description}" for name in names]
    return "\n".join(["qam up NAME [argument:=value ...]", *lines, ""])


def _describe(name: str) -> str:
    file = read_bringup(name)
    lines = [f"{file.name}: {file.description}"]
    for argument in file.arguments.values():
        default = "required" if argument.required else f"default {argument.default!r}"
        lines.append(f"  {argument.name}:=  ({argument.kind}, {default})")
        lines.append(f"      {argument.description}")
        if argument.choices:
            lines.append(f"      one of {', '.join(argument.choices)}")
    return "\n".join([*lines, ""])
