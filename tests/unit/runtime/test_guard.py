# SPDX-License-Identifier: Apache-2.0
"""The guard's state machine, input by input."""

import numpy as np
import pytest

from qam_ros.contract.errors import ConfigError
from qam_ros.contract.interface import read_interface
from qam_ros.contract.messages import EpisodeKind
from qam_ros.contract.transition import GuardMode, LimitBit
from qam_ros.runtime.guard_config import guard_config
from qam_ros.runtime.guard_core import GuardCore

ACTION = np.array([0.3, -0.2, 0.5, 0.1, -0.4], dtype=np.float32)
HUGE = np.float32(3e38)


def test_an_action_that_no_limit_touches_is_executed_bit_for_bit(rig):
    generator = np.random.default_rng(0)
    for _ in range(50):
        action = generator.uniform(-1, 1, 5).astype(np.float32)
        report = rig.tick(action).report
        assert report.mode == GuardMode.ACTIVE
        assert report.limit_bits == 0
        assert report.executed.tobytes() == action.tobytes()


@pytest.mark.parametrize("robot", ["ur5e_2f85", "mobile_base"])
def test_limits_of_simulated_robots_do_not_bind_inside_the_box(helpers, robot):
    from qam_ros.contract.interface import load_interface

    interface = load_interface(robot)
    core = GuardCore(guard_config(interface))
    core.on_event(helpers.event())
    generator = np.random.default_rng(1)
    corners = np.array([-1.0, 1.0], dtype=np.float32)
    position = np.array([0.4, 0.0, 0.2])
    for tick in range(300):
        stamp_ns = tick * core.config.period_ns
        # far beyond what the simulated arm does: 2 m/s between extreme actions
        position = position + generator.uniform(-0.1, 0.1, 3)
        position = np.clip(position, [0.25, -0.35, 0.02], [0.6, 0.35, 0.35])
        values = {
            "effector_pose": {
                "pose.position": position,
                "pose.orientation": np.array([1.0, 0.0, 0.0, 0.0]),
            },
            "gripper_state": {"position": generator.uniform(0, 1, 1)},
        }
        core.on_measured(stamp_ns, values)
        action = generator.choice(corners, interface.action_size)
        observation = generator.normal(size=interface.observation_size).astype(
            np.float32
        )
        ages = np.zeros(len(interface.observation), dtype=np.float32)
        proposal = helpers.proposal(
            tick, stamp_ns, action, observation=observation, ages_s=ages
        )
        report = core.tick(stamp_ns, proposal).report
        assert report.limit_bits == 0
        assert report.executed.tobytes() == action.tobytes()


def test_a_delta_is_added_to_the_measured_pose_and_sent_as_absolute_target(rig):
    rig.tick()
    rig.x, rig.y, rig.yaw = 0.1, 0.2, 0.4
    commands = rig.tick(np.array([1.0, -1.0, 1.0, 0.5, 0.25])).commands
    np.testing.assert_allclose(commands["target"]["pose.position"][:2], [0.15, 0.15])
    np.testing.assert_allclose(
        commands["target"]["pose.orientation"], [np.cos(0.35), np.sin(0.35), 0, 0]
    )
    np.testing.assert_allclose(commands["cmd_vel"]["twist.linear"], [0.5, 0.25, 0.0])


def test_executed_action_is_recomputed_from_the_command_where_a_limit_bound(tight):
    tight.tick(np.zeros(5))
    before = np.array([tight.x, tight.y])
    output = tight.tick(np.array([1.0, -1.0, 0.01, 0.01, 0.01], dtype=np.float32))
    position = output.commands["target"]["pose.position"][:2]
    report = output.report
    assert report.limit_bits & LimitBit.ACCELERATION
    np.testing.assert_allclose(
        report.executed[:2], (position - before) / 0.05, atol=1e-6
    )
    assert report.executed[2] == np.float32(0.01)


def test_position_limit_is_reported_and_kept(tight):
    tight.y = 0.599
    reports = [tight.tick([0.0, 1.0, 0.0, 0.0, 0.0]).report for _ in range(30)]
    assert tight.y <= 0.6
    assert reports[-1].limit_bits & LimitBit.POSITION


def test_first_command_and_every_resume_start_at_the_measured_pose(tight):
    def first_step(output, measured):
        step = output.commands["target"]["pose.position"][:2] - measured
        # from rest: a T^2 at most
        assert np.abs(step).max() <= 4.0 * 0.05**2 + 1e-12

    first_step(tight.tick([1, 1, 1, 1, 1]), [0.0, 0.3])
    tight.ticks(5)
    tight.end()
    tight.tick()
    tight.x, tight.y = 0.2, 0.1
    tight.start(2)
    first_step(tight.tick([1, 1, 1, 1, 1]), [0.2, 0.1])
    tight.ticks(3, proposed=False)
    tight.x, tight.y = -0.2, 0.5
    assert tight.core.reset()[0]
    first_step(tight.tick([1, 1, 1, 1, 1]), [-0.2, 0.5])


@pytest.mark.parametrize("part", [0.5, 0.55, 0.8, 1.0, 1.4])
def test_proposals_that_come_faster_than_the_period_do_not_move_faster(
    helpers, interface, part
):
    rig = helpers.guard_rig(interface)
    rig.core.lockstep = False
    rig.start()
    step_ns, commands = int(part * rig.period_ns), []
    for k in range(40):
        rig.core.on_measured(k * step_ns, helpers.pose(x=rig.x))
        proposal = helpers.proposal(k, k * step_ns, [1, 0, 0, 1, 0])
        output = rig.core.tick(k * step_ns, proposal, k * step_ns)
        rig.x = output.commands["target"]["pose.position"][0]
        commands.append((rig.x, output.commands["cmd_vel"]["twist.linear"][0]))
    elapsed_s = min(step_ns, rig.period_ns) * 1e-9
    rates = np.diff(commands, axis=0) / elapsed_s
    assert (np.abs(rates) <= [0.5 + 1e-9, 4.0 + 1e-9]).all()
    assert rates[:, 0].max() > 0.49  # and no slower than they may
    change = np.abs(np.diff(rates, axis=0)) / elapsed_s
    assert (change <= [4.0 + 1e-6, 100.0 + 1e-6]).all()


def test_limits_open_over_the_ramp(helpers, interface):
    rig = helpers.guard_rig(interface, ramp_s=0.5).start()
    modes = [rig.tick().report.mode for _ in range(12)]
    assert modes == [GuardMode.RAMP] * 10 + [GuardMode.ACTIVE] * 2


def test_no_motion_and_no_rows_between_episodes(rig):
    last = rig.ticks(3)[-1].commands["target"]["pose.position"]
    rig.end()
    outputs = rig.ticks(3)
    assert all(output.report.mode == GuardMode.IDLE for output in outputs)
    assert not any(output.report.is_row for output in outputs)
    silent = rig.tick(proposed=False).report
    assert (silent.mode, silent.limit_bits) == (GuardMode.IDLE, 0)
    # once braked, positions are left to the controller; a velocity is brought to zero
    np.testing.assert_array_equal(outputs[0].commands["target"]["pose.position"], last)
    assert all("target" not in output.commands for output in outputs[1:])
    np.testing.assert_array_equal(outputs[-1].commands["cmd_vel"]["twist.linear"], 0.0)
    rig.start(2)
    assert rig.tick().report.is_row


@pytest.mark.parametrize("kind", [EpisodeKind.END, EpisodeKind.ABORT])
def test_only_the_running_episode_can_end(rig, helpers, kind):
    rig.tick()
    rig.core.on_event(helpers.event(kind, episode=9))
    assert rig.tick(episode=1).report.mode == GuardMode.ACTIVE
    rig.core.on_event(helpers.event(kind, episode=1))
    assert rig.tick(episode=1).report.mode == GuardMode.IDLE


def test_rows_are_counted_without_gaps_and_only_for_new_observations(rig):
    seqs = [rig.tick().report.seq for _ in range(3)]
    assert seqs == [0, 1, 2]
    assert not rig.tick(proposed=False).report.is_row
    old = rig.tick(stamp_ns=(rig.k - 1) * rig.period_ns)
    assert not old.report.is_row
    report = rig.tick().report
    assert report.is_row
    assert report.seq == 3


def test_a_second_tick_in_one_period_commands_nothing(rig):
    rig.ticks(2)
    rig.k -= 1
    output = rig.tick(tick=99)
    assert output.commands == {}
    assert not output.report.is_row
    assert output.report.limit_bits & LimitBit.MALFORMED
    assert rig.tick(tick=100).report.mode == GuardMode.ACTIVE


def test_dry_run_commands_nothing_and_masks_every_row(helpers, free_interface):
    rig = helpers.guard_rig(free_interface, dry_run=True).start()
    for output in [*rig.ticks(3), *rig.ticks(3, proposed=False)]:
        assert output.commands == {}
        assert output.report.masked
        assert output.report.executed.size == 0
    assert rig.core.state.latch == GuardMode.SAFE_STOP
    assert helpers.guard_rig(
        free_interface, dry_run=True
    ).start().tick().report.mode == (GuardMode.DRY_RUN)


def test_after_a_gap_motion_starts_from_rest(tight):
    tight.ticks(10, [1, 0, 0, 0, 0])
    before = tight.x
    tight.k += 1
    tight.core.tick(0, None, 0)  # refused: an old tick
    output = tight.tick([1, 0, 0, 0, 0])
    step = output.commands["target"]["pose.position"][0] - before
    assert abs(step) <= 4.0 * 0.05**2 + 1e-12
    tight.k += 10
    tight.x = -0.3
    output = tight.tick([1, 0, 0, 0, 0])
    step = output.commands["target"]["pose.position"][0] + 0.3
    assert abs(step) <= 4.0 * 0.05**2 + 1e-12


def test_a_restarted_simulation_waits_for_its_first_episode(rig):
    rig.k = 100
    rig.start(2).ticks(3)
    rig.k = -1
    assert rig.tick(tick=200).report.mode == GuardMode.IDLE
    rig.start(3)
    assert rig.tick(tick=201).report.mode == GuardMode.ACTIVE


def test_a_stepped_wall_clock_does_not_end_the_episode(helpers, free_interface):
    rig = helpers.guard_rig(free_interface)
    rig.core.lockstep = False
    hour_ns = 3600 * 10**9
    rig.start()
    modes = []
    for k in range(12):
        now_ns = hour_ns + k * rig.period_ns - (hour_ns if k >= 6 else 0)
        rig.core.on_measured(now_ns, helpers.pose())
        proposal = helpers.proposal(k, now_ns, ACTION)
        modes.append(rig.core.tick(now_ns, proposal, k * rig.period_ns).report.mode)
    assert modes == [GuardMode.ACTIVE] * 12


def test_absolute_block_without_measured_pose_is_refused(helpers):
    block = dict(helpers.robot["action"][0]) | {"mode": "absolute"}
    del block["measured"]
    with pytest.raises(ConfigError, match="'reach' has no measured source"):
        guard_config(read_interface({**helpers.robot, "action": [block]}))
