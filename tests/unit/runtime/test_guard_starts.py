# SPDX-License-Identifier: Apache-2.0
"""Where and for whom the guard lets motion start."""

import numpy as np
import pytest

from qam_ros.contract.transition import GuardMode, LimitBit


@pytest.mark.parametrize("proposed", [True, False])
def test_motion_never_starts_from_a_pose_that_may_not_be_commanded(
    helpers, interface, proposed
):
    rig = helpers.guard_rig(interface).start()
    rig.x = 5.0  # a glitch of the sensor, or an arm that somebody left far away
    output = rig.tick(proposed=proposed)
    assert output.report.mode == GuardMode.HOLD
    assert output.report.limit_bits & LimitBit.OUTSIDE
    assert "outside the limits" in output.reason
    assert "target" not in output.commands
    rig.x = 0.45
    assert rig.tick().report.mode == GuardMode.ACTIVE


def test_a_start_a_little_outside_the_box_is_commanded_at_its_edge(tight):
    tight.x = 0.508  # the robot may go 0.01 m in its first period
    output = tight.tick(np.zeros(5))
    assert output.report.mode == GuardMode.ACTIVE
    assert output.commands["target"]["pose.position"][0] == 0.5


def test_a_glitch_in_the_middle_of_a_motion_does_not_move_the_target_faster(tight):
    before = tight.ticks(5)[-1].commands["target"]["pose.position"][:2]
    tight.x = 5.0
    after = tight.tick().commands["target"]["pose.position"][:2]
    assert np.abs(after - before).max() <= 0.5 * 0.05 + 1e-12


def test_two_policies_do_not_take_turns(rig):
    old, new = b"policy-session-0", b"policy-session-1"
    rig.tick(policy_session=old)
    assert rig.tick(policy_session=new).report.mode == GuardMode.ACTIVE
    back = rig.tick(policy_session=old).report  # it was believed dead
    assert back.mode == GuardMode.HOLD
    assert back.limit_bits & LimitBit.MALFORMED
    assert not back.is_row
    assert rig.tick(policy_session=new).report.mode == GuardMode.ACTIVE


def test_a_proposal_that_was_passed_is_not_executed_after_an_older_one(rig):
    rig.ticks(4)
    for number in (1, 2):  # both older than the last one, in order
        assert rig.tick(tick=number).report.limit_bits & LimitBit.MALFORMED


def test_garbage_of_an_unknown_sender_does_not_lock_the_policy_out(rig):
    rig.tick()
    nobody = rig.tick(policy_session=b"somebody-else-00", observation=np.zeros(9))
    assert nobody.report.limit_bits & LimitBit.MALFORMED
    assert rig.tick().report.mode == GuardMode.ACTIVE


def test_nothing_moves_in_a_stop_or_a_hold_before_the_first_motion(helpers, interface):
    rig = helpers.guard_rig(interface)
    rig.core.set_estop(pressed=True)
    rig.start()
    rig.x = 0.508  # the edge would be a motion
    for pressed in (True, False):
        rig.core.set_estop(pressed=pressed)
        assert "target" not in rig.tick(proposed=pressed).commands
    rig.core.reset()
    held = rig.tick(proposed=False)
    assert held.report.mode == GuardMode.HOLD
    assert "target" not in held.commands


def test_a_robot_does_not_start_in_the_hands_that_bring_it_back(helpers, interface):
    rig = helpers.guard_rig(interface).start()
    rig.x = 0.7
    modes = [output.report.mode for output in rig.ticks(5)]
    assert modes == [GuardMode.HOLD] * 2 + [GuardMode.SAFE_STOP] * 3
    rig.core.reset()  # too early: it stops again
    assert rig.ticks(3)[-1].report.mode == GuardMode.SAFE_STOP
    rig.x = 0.4
    assert rig.tick().report.mode == GuardMode.SAFE_STOP
    rig.core.reset()
    assert rig.tick().report.mode == GuardMode.ACTIVE


def test_a_broken_proposal_with_a_high_number_locks_nobody_out(rig):
    rig.tick()
    rig.tick(tick=2**63, observation=np.zeros(9))
    assert rig.tick().report.mode == GuardMode.ACTIVE


def test_what_ends_motion_is_not_lost_with_a_tick_that_fails(rig, helpers, monkeypatch):
    from qam_ros.runtime import guard_core

    rig.ticks(2)
    step = guard_core.step

    def broken(*_):
        raise RuntimeError("broken")

    rig.end()
    rig.core.set_estop(pressed=True)
    rig.core.set_estop(pressed=False)
    monkeypatch.setattr(guard_core, "step", broken)
    with pytest.raises(RuntimeError):
        rig.tick()
    monkeypatch.setattr(guard_core, "step", step)
    assert rig.tick().report.mode == GuardMode.ESTOP
    rig.core.reset()
    assert rig.tick().report.mode == GuardMode.IDLE
