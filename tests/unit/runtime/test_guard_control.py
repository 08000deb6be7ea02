# SPDX-License-Identifier: Apache-2.0
"""The guard's control thread, without ROS."""

import threading
import time

import pytest

from qam_ros.contract.messages import EpisodeKind
from qam_ros.contract.transition import GuardMode
from qam_ros.nodes.guard_control import GuardControl
from qam_ros.runtime.guard_config import guard_config
from qam_ros.runtime.guard_core import GuardCore

DRIVE = [0, 0, 0, 1, 1]


class Driven:
    """A control thread, its outputs, and a clock that goes on step by step."""

    def __init__(self, interface, helpers):
        self.helpers, self.k, self.outputs = helpers, -1, []
        self.control = GuardControl(
            GuardCore(guard_config(interface)),
            send=self.outputs.append,
            report=lambda _: None,
            clock_ns=lambda: self.k * helpers.period_ns,
            log=None,
        )
        self.control.start()

    def step(self, action=None):
        """One step of the world, with a proposal or without."""
        self.k += 1
        stamp_ns = self.k * self.helpers.period_ns
        self.control.on_clock(stamp_ns)
        self.control.on_measured(stamp_ns, self.helpers.pose())
        before = len(self.outputs)
        if action is not None:
            self.control.on_proposal(self.helpers.proposal(self.k, stamp_ns, action))
        deadline = time.monotonic() + (2.0 if action is not None else 0.05)
        while len(self.outputs) == before and time.monotonic() < deadline:
            time.sleep(0.001)


@pytest.fixture
def driven(interface, helpers):
    driven = Driven(interface, helpers)
    yield driven
    driven.control.stop()


def test_a_base_comes_to_rest_when_the_policy_dies_right_after_the_end(driven, helpers):
    driven.control.on_event(helpers.event())
    for _ in range(8):
        driven.step(DRIVE)
    end_ns = driven.k * helpers.period_ns + 1
    driven.control.on_event(helpers.event(EpisodeKind.END, stamp_ns=end_ns))
    driven.step([])  # the final observation, the policy's last proposal
    core = driven.control.core
    assert core.state.mode == GuardMode.IDLE
    assert core.moves()
    for _ in range(12):
        driven.step()
    assert not core.moves()
    assert not driven.outputs[-1].commands["cmd_vel"]["twist.linear"].any()
    resting = len(driven.outputs)
    driven.step()
    driven.step()
    assert len(driven.outputs) == resting


class RealTime:
    """A guard in real time; ``broken`` makes its commands fail."""

    def __init__(self, interface, helpers):
        self.helpers, self.outputs, self.k = helpers, [], 0
        self.broken, self.warnings = False, []
        self.gave_up = threading.Event()
        self.control = GuardControl(
            GuardCore(guard_config(interface), lockstep=False),
            send=self.send,
            report=lambda _: None,
            clock_ns=time.monotonic_ns,
            log=None,
            warn=self.warnings.append,
            gave_up=self.gave_up.set,
        )
        self.control.start()
        self.control.on_event(helpers.event(stamp_ns=time.monotonic_ns()))

    def send(self, output):
        if self.broken:
            raise RuntimeError("publish failed")
        self.outputs.append(output)

    def mode(self):
        return GuardMode(self.outputs[-1].report.mode)

    def propose(self, *, measured=True):
        stamp_ns, self.k = time.monotonic_ns(), self.k + 1
        if measured:
            self.control.on_measured(stamp_ns, self.helpers.pose())
        self.control.on_proposal(self.helpers.proposal(self.k, stamp_ns, DRIVE))

    def drive(self, count=6):
        for _ in range(count):
            self.propose()
            time.sleep(self.helpers.period_ns * 1e-9)
        assert self.mode() == GuardMode.ACTIVE

    def wait(self, condition, timeout_s=3.0):
        deadline = time.monotonic() + timeout_s
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.005)
        assert condition()


@pytest.fixture
def real_time(interface, helpers):
    driven = RealTime(interface, helpers)
    yield driven
    driven.broken = False
    driven.control.stop()


def test_a_flood_of_proposals_without_measurements_does_not_silence_the_guard(
    real_time,
):
    real_time.drive()
    deadline = time.monotonic() + 0.15 + 5 * 0.05  # the age of the pose, and the stop
    while time.monotonic() < deadline:
        real_time.propose(measured=False)
        time.sleep(0.001)
    assert real_time.mode() == GuardMode.SAFE_STOP


def test_an_emergency_stop_is_commanded_in_a_flood_of_proposals(real_time):
    real_time.drive()
    real_time.control.on_estop("button", pressed=True)
    pressed = time.monotonic()
    while real_time.mode() != GuardMode.ESTOP and time.monotonic() < pressed + 1.0:
        real_time.propose(measured=False)
        time.sleep(0.001)
    assert real_time.mode() == GuardMode.ESTOP


def test_a_tick_that_fails_stops_the_robot_until_a_reset(real_time):
    real_time.drive()
    real_time.broken = True
    real_time.propose()
    real_time.wait(lambda: real_time.control.failures == 1)
    real_time.broken = False
    real_time.wait(lambda: real_time.mode() == GuardMode.SAFE_STOP)
    assert "publish failed" in real_time.control.problem
    assert real_time.warnings
    assert real_time.control.reset()[0]
    assert real_time.control.problem == ""
    real_time.drive(2)


def test_a_guard_whose_ticks_keep_failing_says_so_and_gives_up(real_time):
    real_time.drive()
    real_time.broken = True
    assert real_time.gave_up.wait(3.0)
    assert not real_time.control.running
    assert "gave up" in real_time.control.reason
    assert real_time.control.stop()  # and nothing is raised by what still fails


def test_a_policy_that_was_replaced_does_not_take_the_ticks_of_the_other(real_time):
    real_time.drive()
    old, new = real_time.helpers.session, b"policy-session-1"
    for period in range(11):
        for session in (old, new)[period == 0 :]:  # the old one comes back, and first
            stamp_ns, real_time.k = time.monotonic_ns(), real_time.k + 1
            real_time.control.on_measured(stamp_ns, real_time.helpers.pose())
            proposal = real_time.helpers.proposal(
                real_time.k, stamp_ns, DRIVE, policy_session=session
            )
            real_time.control.on_proposal(proposal)
            time.sleep(0.005 if session == old else 0.045)
    assert real_time.mode() == GuardMode.ACTIVE
    assert real_time.control.retired == 10
