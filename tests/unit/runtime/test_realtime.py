# SPDX-License-Identifier: Apache-2.0
"""What a control thread asks of the system, with and without the rights."""

import ctypes
import gc
import os
import resource
import sys
import threading

import pytest

from qam_ros.contract.errors import ConfigError
from qam_ros.runtime import realtime
from qam_ros.runtime.realtime import (
    QuietInterpreter,
    RealTime,
    enter,
    enter_others,
    parse_cores,
)


class FakeSystem:
    """Stands for the parts of ``os`` that would change this process."""

    def __init__(self, monkeypatch, *, allowed=(0, 1, 2), right=True):
        self.calls = []

        def schedule(pid, policy, param):
            if not right:
                raise PermissionError(1, "Operation not permitted")
            self.calls.append(("schedule", policy, param.sched_priority))

        monkeypatch.setattr(os, "sched_setscheduler", schedule)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(allowed))
        monkeypatch.setattr(
            os, "sched_setaffinity", lambda _, c: self.calls.append(("cores", set(c)))
        )


@pytest.mark.parametrize(
    ("text", "cores"),
    [("", set()), ("3", {3}), ("2, 3", {2, 3}), ("0-2,5", {0, 1, 2, 5})],
)
def test_cores_are_read_from_lists_and_ranges(text, cores):
    assert parse_cores(text) == cores


@pytest.mark.parametrize("text", ["a", "1-b", "-1", "1;2"])
def test_what_is_no_list_of_cores_is_refused_with_an_example(text):
    with pytest.raises(ConfigError, match="write for example 2,3 or 2-3"):
        parse_cores(text)


def test_nothing_asked_for_is_nothing_done(monkeypatch):
    system = FakeSystem(monkeypatch)
    assert enter(RealTime()) == ()
    assert system.calls == []


def test_an_ordinary_thread_keeps_its_scheduler_and_niceness():
    seen = []

    def body():
        nice = os.getpriority(os.PRIO_PROCESS, 0)
        assert enter(RealTime()) == ()
        after = os.getpriority(os.PRIO_PROCESS, 0)
        seen.append((os.sched_getscheduler(0), after - nice))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [(os.SCHED_OTHER, 0)]


def test_priority_and_cores_are_set_for_the_calling_thread(monkeypatch):
    system = FakeSystem(monkeypatch)
    assert enter(RealTime(priority=20, cores=frozenset({1, 2}))) == ()
    assert ("schedule", os.SCHED_FIFO, 20) in system.calls
    assert ("cores", {1, 2}) in system.calls


def test_without_the_right_the_thread_goes_on_and_hears_how_to_get_it(monkeypatch):
    FakeSystem(monkeypatch, right=False)
    (problem,) = enter(RealTime(priority=20))
    for words in ("priority 20 refused", "limits.conf", "rtprio 20", "cap_sys_nice"):
        assert words in problem


def test_a_core_that_is_not_there_is_named_with_those_that_are(monkeypatch):
    system = FakeSystem(monkeypatch)
    (problem,) = enter(RealTime(cores=frozenset({1, 7})))
    assert "core 7 is not among those this process may use (0,1,2)" in problem
    assert system.calls == []


def test_memory_is_not_locked_under_a_limit_that_would_end_the_process(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (8 << 20, 8 << 20))
    monkeypatch.setattr(realtime, "_may_lock", lambda: False)
    monkeypatch.setattr(
        ctypes, "CDLL", lambda *_, **__: pytest.fail("asked the kernel for it")
    )
    problem = realtime._lock_memory()
    assert "ulimit -l allows 8192 KiB" in problem
    assert "memlock unlimited" in problem
    assert "cap_ipc_lock" in problem


def test_one_below_keeps_the_order_of_threads():
    assert RealTime(priority=20, cores=frozenset({1})).below() == RealTime(priority=19)
    assert RealTime(priority=1).below().priority == 1
    assert RealTime().below().priority == 0


def test_all_other_threads_go_one_below_except_those_named(monkeypatch):
    system = FakeSystem(monkeypatch)
    changed = {}
    monkeypatch.setattr(
        os, "sched_setscheduler", lambda task, _, p: changed.update({task: p})
    )
    done = threading.Event()
    threads = [threading.Thread(target=done.wait) for _ in range(2)]
    for thread in threads:
        thread.start()
    enter_others(RealTime(priority=20), ordinary={threads[1].native_id})
    enter_others(RealTime())
    done.set()
    assert changed[threads[0].native_id].sched_priority == 19
    assert os.getpid() in changed
    assert threads[1].native_id not in changed
    assert system.calls == []


def test_others_are_left_alone_without_the_right(monkeypatch):
    FakeSystem(monkeypatch, right=False)
    enter_others(RealTime(priority=20))


def test_garbage_is_collected_after_ticks_only_and_everything_is_put_back():
    class Node:
        pass

    before = sys.getswitchinterval()
    quiet = QuietInterpreter()
    quiet.start()
    try:
        assert not gc.isenabled()
        assert gc.get_freeze_count() > 1000
        assert sys.getswitchinterval() < before
        first = Node()
        first.self = first
        watched = id(first)
        del first
        now_ns = quiet._due_ns
        quiet.after_tick(now_ns - 1)
        assert any(id(o) == watched for o in gc.get_objects())
        quiet.after_tick(now_ns)
        assert not any(
            id(o) == watched and isinstance(o, Node) for o in gc.get_objects()
        )
        quiet.after_tick(now_ns + 1)
        assert quiet.collections == 1
    finally:
        quiet.stop()
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
    assert sys.getswitchinterval() == before
