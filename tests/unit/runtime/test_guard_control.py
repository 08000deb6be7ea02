# SPDX-License-Identifier: Apache-2.0
"""The guard's control thread in lockstep, without ROS."""

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
