# SPDX-License-Identifier: Apache-2.0
"""What a control thread may ask of Linux and of the interpreter, and in words what it was not given.

Without asking for anything: timers of the thread fire within microseconds instead of 50, an ordinary
scheduler lets it in ahead of threads that may run for longer (Linux 6.12 and newer), other Python
threads give up the interpreter after 0.05 ms instead of 5, garbage is collected between ticks only.
Asked for by parameters, because they can starve others: SCHED_FIFO, cores, locked memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
import resource
import struct
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qam_ros.contract.errors import ConfigError

SWITCH_S: Final = 0.00005
"""A thread that waits for the interpreter asks the one that has it to let go after so long [s].

Python's default is 5 ms, a whole period at 200 Hz.
"""
COLLECT_NS: Final = 1_000_000_000
"""Garbage is collected this often [ns]."""
PR_SET_TIMERSLACK: Final = 29
SLICE_NS: Final = 100_000
"""Time that an ordinary thread asks to run at a time; the shortest that the kernel takes [ns]."""
SCHED_SETATTR: Final = {"x86_64": 314, "aarch64": 274}
"""Number of the system call, which the C library has no function for."""
MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4
CAP_IPC_LOCK: Final = 14
GRANT: Final = (
    "grant it in /etc/security/limits.conf ('@realtime - {limit}', then log in again), in a systemd "
    "unit ({unit}), to a container ({container}), or with the capability {capability}"
)


@dataclass(frozen=True)
class RealTime:
    """What is asked of the system for a control thread.

    Args:
        priority: SCHED_FIFO priority from 1 to 99; 0 leaves the scheduler alone.
        cores: processor cores that the thread is kept on; empty for any.
        lock_memory: keep the memory of the process from being paged out.
        collect_between_ticks: freeze what lives after warm-up, and collect garbage after a tick only.
    """

    priority: int = 0
    cores: frozenset[int] = frozenset()
    lock_memory: bool = False
    collect_between_ticks: bool = True

    def below(self) -> RealTime:
        """For a thread that this one depends on: one priority lower, on any core."""
        return RealTime(priority=max(1, self.priority - 1) if self.priority else 0)


def parse_cores(text: str) -> frozenset[int]:
    """Cores from a list such as ``2,3`` or ``2-3``; an empty text is no core.

    Raises:
        ConfigError: it is no such list.
    """
    cores: set[int] = set()
    for part in filter(None, (item.strip() for item in text.split(","))):
        first, _, last = part.partition("-")
        try:
            cores |= set(range(int(first), int(last or first) + 1))
        except ValueError:
            raise ConfigError(
                f"cores: '{text}' is no list of cores; write for example 2,3 or 2-3"
            ) from None
    return frozenset(cores)


def enter(settings: RealTime) -> tuple[str, ...]:
    """Give the calling thread what was asked for.

    Returns:
        What was not granted, each with the reason and how to grant it; the thread runs without.
    """
    _set_timer_slack()
    _set_slice()
    problems = [_set_cores(settings.cores), _set_priority(settings.priority)]
    if settings.lock_memory:
        problems.append(_lock_memory())
    return tuple(problem for problem in problems if problem)


def enter_others(settings: RealTime, ordinary: Collection[int] = ()) -> None:
    """Put every thread that the process has now one priority below a control thread.

    Callbacks hold the interpreter at times and threads of DDS hold locks of a publisher: where these
    are pushed aside by somebody else's work, the control thread waits for them at any priority. What
    is refused is not repeated here: the control thread says it.

    Args:
        settings: of the control thread, which is started after this.
        ordinary: native ids of threads that are left as they are.
    """
    if settings.priority == 0:
        return
    param = os.sched_param(settings.below().priority)
    for task in {int(path.name) for path in Path("/proc/self/task").iterdir()}:
        if task not in ordinary:
            with contextlib.suppress(OSError):  # not allowed, or it has ended
                os.sched_setscheduler(task, os.SCHED_FIFO, param)


def describe() -> str:
    """Scheduling of the calling thread in words, such as ``SCHED_FIFO 20, cores 2 3``."""
    fifo = os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK == os.SCHED_FIFO
    policy = f"SCHED_FIFO {os.sched_getparam(0).sched_priority}" if fifo else "ordinary"
    return f"{policy}, cores {' '.join(map(str, sorted(os.sched_getaffinity(0))))}"


def _set_timer_slack() -> None:
    """Let timers of the calling thread fire when they are due; needs no right. FIFO has no slack."""
    ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)


def _set_slice() -> None:
    """Ask an ordinary scheduler for short turns, which come sooner; needs no right.

    Older kernels ignore the request. Measured with four busy processes per core, 100 Hz, net 2 x 256,
    400 ticks: 62 missed instead of 164.
    """
    number = SCHED_SETATTR.get(platform.machine())
    if number is None or os.sched_getscheduler(0) != os.SCHED_OTHER:
        return
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    attributes = struct.pack("=IIQiIQQQ", 48, 0, 0, nice, 0, SLICE_NS, 0, 0)
    ctypes.CDLL(None).syscall(number, 0, attributes, 0)


def _set_priority(priority: int) -> str:
    if priority == 0:
        return ""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    except OSError as problem:
        allowed, _ = resource.getrlimit(resource.RLIMIT_RTPRIO)
        help_ = GRANT.format(
            limit=f"rtprio {priority}",
            unit=f"LimitRTPRIO={priority}",
            container=f"--ulimit rtprio={priority}",
            capability="cap_sys_nice",
        )
        return (
            f"SCHED_FIFO priority {priority} refused: {problem.strerror}; ulimit -r allows {allowed}; "
            f"{help_}"
        )
    return ""


def _set_cores(cores: frozenset[int]) -> str:
    if not cores:
        return ""
    before = os.sched_getaffinity(0)
    missing = sorted(cores - before)
    if missing:
        return (
            f"cores {_list(sorted(cores))} refused: core {_list(missing)} is not among those this "
            f"process may use ({_list(sorted(before))}); see taskset or the container's cpuset"
        )
    os.sched_setaffinity(0, cores)
    return ""


def _list(cores: Sequence[int]) -> str:
    return ",".join(map(str, cores))


def _lock_memory() -> str:
    """Lock all pages in use now and later.

    Under a limit the kernel would not refuse the call but later allocations, which ends the process;
    so a limit is refused here.
    """
    help_ = GRANT.format(
        limit="memlock unlimited",
        unit="LimitMEMLOCK=infinity",
        container="--ulimit memlock=-1",
        capability="cap_ipc_lock",
    )
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if limit != resource.RLIM_INFINITY and not _may_lock():
        return f"locked memory refused: ulimit -l allows {limit // 1024} KiB; {help_}"
    libc = ctypes.CDLL(None, use_errno=True)
    # On fault: what was never touched (thread stacks of 8 MB each) does not become resident.
    if libc.mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT):
        return f"locked memory refused: {os.strerror(ctypes.get_errno())}; {help_}"
    return ""


def _may_lock() -> bool:
    """Whether the process has CAP_IPC_LOCK, which lifts the limit."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> CAP_IPC_LOCK & 1)
    return False


class SteadyClock:
    """Time that never steps, and waiting for it; tests put another one in its place."""

    def now_ns(self) -> int:
        """Monotonic time [ns]."""
        return time.monotonic_ns()

    def sleep_until(self, deadline_ns: int) -> None:
        """Wait for a monotonic time [ns]."""
        rest_ns = deadline_ns - time.monotonic_ns()
        if rest_ns > 0:
            time.sleep(rest_ns * 1e-9)


class QuietInterpreter:
    """Keeps the interpreter's own work out of the ticks, from ``start`` to ``stop``.

    What lives at ``start`` is never looked at again, so that a collection costs what was allocated
    since; it happens in ``after_tick``, when the control thread has nothing else to do.
    """

    def __init__(self) -> None:
        self.collections = 0
        self.longest_ns = 0
        self._due_ns = 0
        self._before: float | None = None

    def start(self) -> None:
        """Call after warm-up, before the first tick."""
        if self._before is None:
            self._before = sys.getswitchinterval()
            sys.setswitchinterval(min(SWITCH_S, self._before))
            gc.collect()
            gc.freeze()
            gc.disable()
            self._due_ns = time.monotonic_ns() + COLLECT_NS

    def after_tick(self, now_ns: int) -> None:
        """Collect garbage when it is time; call right after something was published.

        Args:
            now_ns: monotonic time [ns].
        """
        if self._before is None or now_ns < self._due_ns:
            return
        self._due_ns = now_ns + COLLECT_NS
        started_ns = time.perf_counter_ns()
        gc.collect()
        self.longest_ns = max(self.longest_ns, time.perf_counter_ns() - started_ns)
        self.collections += 1

    def stop(self) -> None:
        """Everything as it was before ``start``."""
        if self._before is not None:
            sys.setswitchinterval(self._before)
            gc.unfreeze()
            gc.enable()
            self._before = None
