# SPDX-License-Identifier: Apache-2.0
"""When the guard holds, stops and goes on again, and who drives."""

import numpy as np
import pytest

from qam_ros.contract.interface import load_interface
from qam_ros.contract.messages import HumanAction
from qam_ros.contract.transition import ActionSource, GuardMode, LimitBit
from qam_ros.runtime.guard_config import guard_config
from qam_ros.runtime.guard_core import GuardCore

ACTION = np.array([0.3, -0.2, 0.5, 0.1, -0.4], dtype=np.float32)
HUGE = np.float32(3e38)


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
        (LimitBit.MALFORMED, {"ages_s": np.array([0, 0, -0.011], np.float32)}),
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


def test_an_age_a_little_below_zero_is_the_clocks_own_error(rig):
    rig.ticks(2)
    ages = np.array([0, 0, -0.009], np.float32)
    assert rig.tick(ages_s=ages).report.mode == GuardMode.ACTIVE


def test_a_negative_age_does_not_make_a_late_observation_young(rig):
    rig.ticks(2)
    ages = np.full(3, -0.009, np.float32)
    rig.measure()
    now_ns = (rig.k + 1) * rig.period_ns + 151_000_000
    rig.core.on_measured(now_ns, {"pose": rig.core._measured["pose"][1]})
    report = rig.tick(ages_s=ages, now_ns=now_ns, measured=False).report
    assert report.limit_bits & LimitBit.STALE_OBSERVATION


def test_an_observation_from_the_future_is_refused(rig):
    rig.ticks(2)
    early = rig.tick(stamp_ns=(rig.k + 1) * rig.period_ns + 9_000_000).report
    assert early.mode == GuardMode.ACTIVE
    late = rig.tick(stamp_ns=(rig.k + 1) * rig.period_ns + 11_000_000).report
    assert late.limit_bits & LimitBit.MALFORMED
    assert not late.is_row


def test_a_stamp_from_the_far_future_is_refused(rig):
    rig.ticks(2)
    report = rig.tick(stamp_ns=(rig.k + 5) * rig.period_ns).report
    assert report.limit_bits & LimitBit.MALFORMED
    assert rig.tick().report.mode == GuardMode.ACTIVE


def test_a_measurement_from_the_future_is_not_fresh(rig):
    rig.ticks(2)
    stamp_ns = (rig.k + 1) * rig.period_ns
    pose = rig.core._measured["pose"][1]
    rig.core.on_measured(stamp_ns + rig.period_ns, {"pose": pose})  # next step's
    assert rig.tick(measured=False).report.mode == GuardMode.ACTIVE
    rig.core.on_measured(stamp_ns + 3 * rig.period_ns, {"pose": pose})
    report = rig.tick(measured=False).report
    assert report.limit_bits & LimitBit.STALE_PROPRIOCEPTION


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


@pytest.fixture
def base(helpers):
    """Drives a base at 2 m/s; its odometry repeats one value."""

    def drive(ticks, *, position=(1.0, 2.0), noise=0.0, **settings):
        config = guard_config(load_interface("mobile_base"), **settings)
        core, reports = GuardCore(config, lockstep=False), []
        core.on_event(helpers.event())
        generator = np.random.default_rng(0)
        for k in range(ticks):
            stamp_ns = k * config.period_ns
            observation = np.array(position) + noise * generator.normal(size=2)
            proposal = helpers.proposal(
                k, stamp_ns, [1.0, 0.0], observation=observation.astype(np.float32),
                ages_s=np.zeros(1, np.float32),
            )  # fmt: skip
            output = core.tick(stamp_ns, proposal, stamp_ns)
            reports.append(output.report)
        return reports, output

    return drive


def test_frozen_odometry_stops_a_base_within_maximum_age_and_three_periods(base):
    reports, output = base(30, watch_odometry=True)
    first = next(k for k, r in enumerate(reports) if r.limit_bits & LimitBit.FROZEN)
    stop = next(k for k, r in enumerate(reports) if r.mode == GuardMode.SAFE_STOP)
    assert reports[first].mode == GuardMode.HOLD
    assert first * 0.1 > 0.3
    assert stop * 0.1 <= 0.3 + 3 * 0.1 + 1e-9
    np.testing.assert_array_equal(output.commands["cmd_vel"]["twist.linear"], 0.0)


@pytest.mark.parametrize(
    "settings", [{"watch_odometry": True, "noise": 1e-3}, {"watch_odometry": False}]
)
def test_a_base_that_is_seen_to_move_or_is_simulated_goes_on(base, settings):
    reports, _ = base(30, **settings)
    assert all(report.mode == GuardMode.ACTIVE for report in reports)


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
