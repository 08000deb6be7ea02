# SPDX-License-Identifier: Apache-2.0
"""The guard's state machine, input by input."""

import numpy as np
import pytest

from qam_ros.contract.errors import ConfigError
from qam_ros.contract.interface import read_interface
from qam_ros.contract.messages import EpisodeKind, HumanAction
from qam_ros.contract.transition import ActionSource, GuardMode, LimitBit
from qam_ros.runtime.guard_config import guard_config
from qam_ros.runtime.guard_core import GuardCore

ACTION = np.array([0.3, -0.2, 0.5, 0.1, -0.4], dtype=np.float32)
HUGE = np.float32(3e38)


class Rig:
    """A guard in lockstep with a robot that goes where it is told."""

    def __init__(self, helpers, interface, **settings):
        self.helpers = helpers
        self.period_ns = helpers.period_ns
        self.core = GuardCore(guard_config(interface, **settings), session=b"g" * 16)
        self.k = -1
        self.x, self.y, self.yaw = 0.0, 0.3, 0.0

    def start(self, episode=1):
        self.core.on_event(
            self.helpers.event(episode=episode, stamp_ns=(self.k + 1) * self.period_ns)
        )
        self.episode = episode
        return self

    def end(self, kind=EpisodeKind.END):
        self.core.on_event(self.helpers.event(kind, self.episode, self.k + 1))

    def measure(self, **pose):
        values = {"x": self.x, "y": self.y, "yaw": self.yaw} | pose
        self.core.on_measured(self.k * self.period_ns, self.helpers.pose(**values))

    def tick(
        self, action=ACTION, *, measured=True, proposed=True, now_ns=None, **changes
    ):
        """One tick of the clock; returns the guard's output."""
        self.k += 1
        stamp_ns = self.k * self.period_ns
        if measured:
            self.measure()
        proposal = None
        if proposed:
            changes = {"episode": self.episode} | changes
            proposal = self.helpers.proposal(self.k, stamp_ns, action, **changes)
        now_ns = stamp_ns if now_ns is None else now_ns
        output = self.core.tick(now_ns, proposal, None if proposed else stamp_ns)
        position = output.commands.get("target", {}).get("pose.position")
        if position is not None:
            self.x, self.y = position[:2]
        return output

    def ticks(self, count, *args, **changes):
        return [self.tick(*args, **changes) for _ in range(count)]


@pytest.fixture
def rig(helpers, free_interface):
    return Rig(helpers, free_interface).start()


@pytest.fixture
def tight(helpers, interface):
    return Rig(helpers, interface).start()


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


def test_limits_open_over_the_ramp(helpers, interface):
    rig = Rig(helpers, interface, ramp_s=0.5).start()
    modes = [rig.tick().report.mode for _ in range(12)]
    assert modes == [GuardMode.RAMP] * 10 + [GuardMode.ACTIVE] * 2


def test_hold_repeats_the_last_absolute_target(rig):
    target = rig.ticks(3)[-1].commands
    rig.x += 0.02  # the arm sags, the target must not follow
    held = rig.tick(proposed=False)
    assert held.report.mode == GuardMode.HOLD
    for path, values in target["target"].items():
        np.testing.assert_array_equal(held.commands["target"][path], values)
    np.testing.assert_array_equal(
        held.commands["cmd_vel"]["twist.linear"], target["cmd_vel"]["twist.linear"]
    )


def test_third_missing_tick_stops_and_latches_until_reset(rig):
    rig.ticks(2)
    reports = [output.report for output in rig.ticks(4, proposed=False)]
    assert [report.mode for report in reports] == [
        GuardMode.HOLD,
        GuardMode.HOLD,
        GuardMode.SAFE_STOP,
        GuardMode.SAFE_STOP,
    ]
    assert all(report.masked and not report.is_row for report in reports)
    assert all(report.limit_bits & LimitBit.MISSING for report in reports)
    resumed = rig.tick()
    assert resumed.report.mode == GuardMode.SAFE_STOP
    assert resumed.report.source == ActionSource.SAFE
    assert "until reset" in resumed.reason
    assert rig.core.reset()[0]
    assert rig.tick().report.mode == GuardMode.ACTIVE


def test_a_stop_brings_velocities_to_zero_inside_the_limits(tight):
    tight.ticks(10, [0, 0, 0, 1, -1])
    speeds = [
        tight.tick(proposed=False).commands["cmd_vel"]["twist.linear"]
        for _ in range(12)
    ]
    np.testing.assert_array_equal(speeds[-1], 0.0)
    assert np.abs(np.diff(speeds, axis=0)).max() <= 4.0 * 0.05 + 1e-9


def test_two_missing_ticks_are_bridged(rig):
    rig.ticks(2)
    rig.ticks(2, proposed=False)
    report = rig.tick().report
    assert report.mode == GuardMode.ACTIVE
    assert report.executed.tobytes() == ACTION.tobytes()


def test_nothing_is_counted_as_missing_before_the_first_motion(rig):
    for output in rig.ticks(6, proposed=False):
        assert output.report.mode == GuardMode.HOLD
        # held where it stands, so that a plant in lockstep need not wait
        np.testing.assert_allclose(
            output.commands["target"]["pose.position"][:2], [0.0, 0.3]
        )
    assert rig.tick().report.mode == GuardMode.ACTIVE


@pytest.mark.parametrize(
    ("bit", "changes"),
    [
        (LimitBit.NON_FINITE, {"action": [np.nan, 0, 0, 0, 0]}),
        (LimitBit.NON_FINITE, {"action": [0, np.inf, 0, 0, 0]}),
        (LimitBit.NON_FINITE, {"observation": np.full(6, np.nan, np.float32)}),
        (LimitBit.NON_FINITE, {"ages_s": np.full(3, np.inf, np.float32)}),
        (LimitBit.MALFORMED, {"action": [0.1]}),
        (LimitBit.MALFORMED, {"observation": np.zeros(5, np.float32)}),
        (LimitBit.MALFORMED, {"ages_s": np.zeros(2, np.float32)}),
        (LimitBit.MALFORMED, {"tick": 0}),
        (LimitBit.STALE_OBSERVATION, {"ages_s": np.array([0, 0, 0.21], np.float32)}),
        (LimitBit.MISSING, {"action": []}),
        (LimitBit.MISSING, {"episode": 7}),
        (LimitBit.STALE_PROPRIOCEPTION, {"measured": False, "now_ns": 10**9}),
    ],
)
def test_bad_input_is_held_and_named(rig, bit, changes):
    rig.ticks(2)
    report = rig.tick(**changes).report
    assert report.mode == GuardMode.HOLD
    assert report.limit_bits & bit
    assert report.masked
    assert np.isfinite(report.executed).all()


def test_huge_actions_are_cut_to_the_box(rig):
    report = rig.tick([HUGE, -HUGE, 2.0, 0.0, 0.0]).report
    assert report.mode == GuardMode.ACTIVE
    assert report.limit_bits & LimitBit.BOX
    np.testing.assert_array_equal(report.executed[:3], [1, -1, 1])


def test_a_stamp_from_the_future_is_refused(rig):
    rig.ticks(2)
    report = rig.tick(stamp_ns=(rig.k + 5) * rig.period_ns).report
    assert report.limit_bits & LimitBit.MALFORMED
    assert rig.tick().report.mode == GuardMode.ACTIVE


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"pose.position": np.array([np.nan, 0, 0]), "pose.orientation": np.ones(4)},
        {"pose.position": np.zeros(3), "pose.orientation": np.full(4, np.inf)},
        {"pose.position": np.zeros(2), "pose.orientation": np.ones(4)},
    ],
)
def test_unusable_measurements_are_held(rig, fields):
    rig.ticks(2)
    rig.core.on_measured((rig.k + 1) * rig.period_ns, {"pose": fields})
    report = rig.tick(measured=False).report
    assert report.mode == GuardMode.HOLD
    assert report.limit_bits & LimitBit.STALE_PROPRIOCEPTION


def test_stale_observation_stops_within_maximum_age_and_three_periods(rig):
    rig.ticks(2)
    silent_s = 0.0
    for count in range(1, 20):
        silent_s = count * 0.05
        ages = np.array([silent_s, silent_s, 0.0], dtype=np.float32)
        if rig.tick(ages_s=ages).report.mode == GuardMode.SAFE_STOP:
            break
    assert silent_s <= 0.15 + 3 * 0.05 + 1e-9


def test_frozen_proprioception_stops_within_maximum_age_and_three_periods(rig):
    rig.ticks(3)
    stuck = np.full(6, 5.0, dtype=np.float32)
    rig.tick(observation=stuck)
    reports = [rig.tick(observation=stuck).report for _ in range(8)]
    first = next(k for k, r in enumerate(reports) if r.limit_bits & LimitBit.FROZEN)
    stop = next(k for k, r in enumerate(reports) if r.mode == GuardMode.SAFE_STOP)
    assert (first + 1) * 0.05 > 0.15
    assert (stop + 1) * 0.05 <= 0.2 + 3 * 0.05 + 1e-9


def test_a_robot_told_to_rest_may_have_constant_sensors(rig):
    stuck = np.full(6, 5.0, dtype=np.float32)
    outputs = rig.ticks(20, np.zeros(5, np.float32), observation=stuck)
    assert all(output.report.mode == GuardMode.ACTIVE for output in outputs)


def test_motion_again_after_the_sensor_recovered_and_reset(rig):
    rig.ticks(2)
    stuck = np.full(6, 5.0, dtype=np.float32)
    rig.ticks(12, observation=stuck)
    assert rig.core.state.latch == GuardMode.SAFE_STOP
    rig.core.reset()
    assert rig.tick().report.mode == GuardMode.ACTIVE


def test_emergency_stop_is_latched_until_released_and_reset(rig):
    rig.ticks(2)
    rig.core.set_estop(pressed=True)
    assert rig.tick().report.mode == GuardMode.ESTOP
    assert not rig.core.reset()[0]
    assert rig.tick().report.mode == GuardMode.ESTOP
    rig.core.set_estop(pressed=False)
    assert "emergency" in rig.tick().reason
    rig.start(2)
    assert rig.tick().report.mode == GuardMode.ESTOP
    assert rig.core.reset() == (True, "the next motion starts at the measured pose")
    assert rig.tick().report.mode == GuardMode.ACTIVE
    assert rig.core.reset() == (True, "no stop is latched")


def test_a_short_press_between_two_ticks_latches(rig):
    rig.ticks(2)
    rig.core.set_estop(pressed=True)
    rig.core.set_estop(pressed=False)
    assert rig.tick().report.mode == GuardMode.ESTOP


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
def test_only_the_running_episode_can_end(rig, kind):
    rig.tick()
    rig.core.on_event(rig.helpers.event(kind, episode=9))
    assert rig.tick(episode=1).report.mode == GuardMode.ACTIVE
    rig.core.on_event(rig.helpers.event(kind, episode=1))
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


def test_a_person_drives_with_the_same_limits_and_is_named(rig):
    rig.ticks(2)
    action = np.array([0.5, 0.5, 2.0, 0.0, 0.0], dtype=np.float32)
    rig.core.on_human(
        (rig.k + 1) * rig.period_ns, HumanAction(0, True, "mouse", action)
    )
    report = rig.tick().report
    assert report.source == ActionSource.HUMAN
    assert report.limit_bits == LimitBit.BOX
    np.testing.assert_array_equal(report.executed, [0.5, 0.5, 1.0, 0.0, 0.0])
    alone = rig.tick(proposed=False).report
    assert alone.source == ActionSource.HUMAN
    assert alone.mode == GuardMode.ACTIVE
    rig.core.on_human(rig.k * rig.period_ns, HumanAction(0, False, "mouse", action))
    assert rig.tick().report.source == ActionSource.POLICY


@pytest.mark.parametrize(
    ("action", "late_ns", "bit"),
    [
        (np.zeros(5, np.float32), -(10**9), LimitBit.MISSING),
        (np.zeros(4, np.float32), 0, LimitBit.MALFORMED),
        (np.full(5, np.nan, np.float32), 0, LimitBit.NON_FINITE),
    ],
)
def test_a_person_who_falls_silent_or_sends_nonsense_is_held(rig, action, late_ns, bit):
    rig.ticks(2)
    arrival_ns = (rig.k + 1) * rig.period_ns + late_ns
    rig.core.on_human(arrival_ns, HumanAction(0, True, "mouse", action))
    report = rig.tick().report
    assert report.mode == GuardMode.HOLD
    assert report.limit_bits & bit


def test_rows_that_a_person_drove_on_old_observations_are_masked(rig):
    rig.ticks(2)
    arrival_ns = (rig.k + 1) * rig.period_ns
    rig.core.on_human(arrival_ns, HumanAction(0, True, "mouse", ACTION))
    report = rig.tick(ages_s=np.full(3, 0.5, np.float32)).report
    assert report.mode == GuardMode.ACTIVE
    assert report.masked


def test_dry_run_commands_nothing_and_masks_every_row(helpers, free_interface):
    rig = Rig(helpers, free_interface, dry_run=True).start()
    for output in [*rig.ticks(3), *rig.ticks(3, proposed=False)]:
        assert output.commands == {}
        assert output.report.masked
        assert output.report.executed.size == 0
    assert rig.core.state.latch == GuardMode.SAFE_STOP
    assert Rig(helpers, free_interface, dry_run=True).start().tick().report.mode == (
        GuardMode.DRY_RUN
    )


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
    rig = Rig(helpers, free_interface)
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
