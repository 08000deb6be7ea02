# SPDX-License-Identifier: Apache-2.0
"""Bus, timing, phase."""

import numpy as np
import pytest

from qam_ros.runtime.bus import Bus
from qam_ros.runtime.phase import PhasePacer
from qam_ros.runtime.timing import (
    TimingRing,
    periods,
    quantiles,
    read_timing,
    write_timing,
)


def test_bus_delivers_in_order_of_publication_without_recursion():
    bus, seen = Bus(), []

    def first(message):
        seen.append(("first", message))
        if message < 3:
            bus.publish("a", message + 1)

    bus.subscribe("a", first)
    bus.subscribe("a", lambda message: seen.append(("second", message)))
    bus.publish("a", 2)
    assert seen == []
    assert bus.spin() == 4
    assert seen == [("first", 2), ("second", 2), ("first", 3), ("second", 3)]


def test_bus_keeps_the_last_messages_for_those_who_come_later():
    bus, seen = Bus(), []
    bus.keep("status", 2)
    for number in range(4):
        bus.publish("status", number)
    bus.subscribe("status", seen.append)
    bus.spin()
    assert seen == [2, 3]


def test_bus_forgets_those_who_leave():
    bus, seen = Bus(), []
    leave = bus.subscribe("a", seen.append)
    bus.subscribe("a", lambda message: seen.append(-message))
    bus.publish("a", 1)
    leave()
    bus.publish("a", 2)
    bus.spin()
    assert seen == [-1, -2]


def test_ring_keeps_the_newest_values_in_order():
    ring = TimingRing(4)
    assert ring.values().size == 0
    for value in range(10):
        ring.append(value)
    np.testing.assert_array_equal(ring.values(), [6, 7, 8, 9])
    np.testing.assert_array_equal(ring.values(2), [8, 9])
    assert ring.count == 10


def test_quantiles_and_periods():
    assert quantiles(np.zeros(0)) == {}
    assert quantiles(np.arange(101)) == {"p50": 50.0, "p99": 99.0, "max": 100.0}
    np.testing.assert_array_equal(periods(np.array([1, 4, 9])), [3, 5])


def test_timing_file_gives_back_its_series(tmp_path):
    series = {"tick_ns": np.arange(5), "swap_ns": np.zeros(0, dtype=np.int64)}
    write_timing(tmp_path / "run" / "timing.npz", series)
    read = read_timing(tmp_path / "run" / "timing.npz")
    assert read.keys() == series.keys()
    np.testing.assert_array_equal(read["tick_ns"], series["tick_ns"])
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["timing.npz"]


PERIOD = 50_000_000


@pytest.mark.parametrize("phase", [0, 3_000_000, 20_000_000, 26_000_000, 49_000_000])
def test_deadlines_settle_behind_the_observations_the_shorter_way(phase):
    pacer = PhasePacer(PERIOD, 4_000_000, start_ns=phase)
    for _ in range(60):
        lag = pacer.deadline_ns % PERIOD  # observations come at multiples of the period
        before = pacer.deadline_ns
        pacer.advance(pacer.deadline_ns + 1000, lag)
        step = pacer.deadline_ns - before
        assert abs(step - PERIOD) <= PERIOD // 100
    assert abs(pacer.deadline_ns % PERIOD - 4_000_000) < PERIOD // 100
    assert pacer.skipped == 0


@pytest.mark.parametrize("sensor_ns", [1_000_000, 2_000_000, 8_000_000])
def test_sensors_much_faster_than_control_do_not_change_its_rate(sensor_ns):
    pacer = PhasePacer(PERIOD, 4_000_000, start_ns=1_234_567)
    for _ in range(100):
        pacer.advance(pacer.deadline_ns + 1, pacer.deadline_ns % sensor_ns + 300_000)
    before = pacer.deadline_ns
    for _ in range(1000):
        pacer.advance(pacer.deadline_ns + 1, pacer.deadline_ns % sensor_ns + 300_000)
    assert abs((pacer.deadline_ns - before) / 1000 - PERIOD) < PERIOD / 10_000


def test_a_driver_that_starts_anew_at_another_phase_is_followed_again():
    pacer = PhasePacer(PERIOD, 4_000_000, start_ns=0)
    for phase in (0, 20_000_000, 44_000_000, 10_000_000):
        for _ in range(120):
            lag = (pacer.deadline_ns - phase) % PERIOD
            pacer.advance(pacer.deadline_ns + 1, lag)
        assert abs((pacer.deadline_ns - phase) % PERIOD - 4_000_000) < PERIOD // 100


def test_deadlines_that_passed_are_left_out_and_counted():
    pacer = PhasePacer(PERIOD, 0, start_ns=0)
    pacer.advance(3 * PERIOD + 5, None)
    assert pacer.deadline_ns == 4 * PERIOD
    assert pacer.skipped == 3
    pacer.advance(4 * PERIOD + 5, None)
    assert pacer.deadline_ns == 5 * PERIOD
