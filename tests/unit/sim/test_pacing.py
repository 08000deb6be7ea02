# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest

from qam_ros.contract.transition import EpisodeKind
from sim.pacing import HEARTBEAT_TIMEOUT_S, Credit, PaceConfig, PlantLoop
from sim.plant import Plant
from sim.timing import EpisodeLog, PlantTiming
from sim.world import StepResult

PERIOD_S = 0.05
PERIOD_NS = 50_000_000


class Rail:
    """A world of one number: the commanded position is reached at once; the goal is 1."""

    name = "rail"
    task = 1
    control_period_s = PERIOD_S
    max_episode_steps = 6

    def reset(self, seed):
        self.position = 0.0
        self.steps = 0
        self.seed = seed

    def sensors(self):
        return {"position": {"data": np.array([self.position])}}

    def apply(self, commands):
        if "target" in commands:
            self.position = float(commands["target"]["data"][0])

    def step(self):
        success = self.position >= 1.0
        self.steps += 1
        truncated = not success and self.steps >= self.max_episode_steps
        return StepResult(float(success) - 1.0, success, truncated, success)


class Port:
    """Records everything; answers with `answer(stamp)`; time passes only here."""

    def __init__(self, answer=lambda stamp: 0.1):
        self.log = []
        self.now_s = 100.0
        self.answer = answer
        self.reply_s = 0.001
        self.credits = None
        self.stop_after = math.inf
        self.on_sleep = lambda: None

    def monotonic_s(self):
        return self.now_s

    def ros_now_ns(self):
        return round(self.now_s * 1e9)

    def publish_clock(self, stamp_ns):
        self.log.append(("clock", stamp_ns))

    def publish_sensors(self, stamp_ns, sensors):
        self.log.append(("sensors", stamp_ns, self.now_s))

    def publish_reward(self, reward):
        self.log.append(("reward", reward.stamp_ns, reward))

    def publish_event(self, event):
        self.log.append((EpisodeKind(event.kind).name, event.stamp_ns, event))

    def wait_commands(self, stamp_ns, until_s):
        value = self.answer(stamp_ns)
        if value is None:
            self.now_s = until_s
            return {}, False
        self.now_s += self.reply_s
        return {"target": {"data": np.array([value])}}, True

    def credit(self):
        return self.credits

    def sleep(self, until_s):
        self.on_sleep()
        self.now_s = max(self.now_s, until_s)

    @property
    def stopping(self):
        return self.now_s >= self.stop_after or len(self.log) > 5000

    def kinds(self):
        return [entry[0] for entry in self.log]

    def of(self, kind):
        return [entry for entry in self.log if entry[0] == kind]


def play(port, **config):
    plant = Plant(Rail(), seed=0)
    timing = PlantTiming()
    loop = PlantLoop(
        plant,
        port,
        PaceConfig(**config),
        monotonic_s=port.monotonic_s,
        ros_now_ns=port.ros_now_ns,
        timing=timing,
        on_episode=lambda: None,
    )
    loop.run()
    return plant, timing


def test_lockstep_order_of_one_episode_is_as_promised():
    port = Port()
    play(port, episodes=1)
    step = ["clock", "sensors", "reward"]
    assert port.kinds() == ["START", *step * 6, "END", "clock", "sensors"]
    start, end = port.of("START")[0][2], port.of("END")[0][2]
    stamps = [entry[1] for entry in port.of("sensors")]
    assert start.stamp_ns == stamps[0]
    assert end.stamp_ns == stamps[-1]
    assert np.all(np.diff(stamps) == PERIOD_NS)
    assert [entry[1] for entry in port.of("reward")] == stamps[:-1]
    assert [entry[2].step for entry in port.of("reward")] == list(range(6))
    assert (end.truncated, end.terminated, end.success) == (True, False, False)
    assert (end.steps, end.episode_return) == (6, -6.0)


def test_simulated_time_increases_over_resets_and_starts_at_wall_time():
    port = Port()
    play(port, episodes=3, episode_gap_s=0.12)
    clock = [entry[1] for entry in port.of("clock")]
    assert clock[0] == 100_000_000_000
    assert np.all(np.diff(clock) > 0)
    starts = [entry[1] for entry in port.of("START")]
    ends = [entry[1] for entry in port.of("END")]
    assert starts[1] - ends[0] == 3 * PERIOD_NS


def test_success_ends_the_episode_as_terminated():
    port = Port(lambda stamp: 1.0)
    play(port, episodes=1)
    end = port.of("END")[0][2]
    assert (end.terminated, end.truncated, end.success) == (True, False, True)
    assert end.steps == 1
    reward = port.of("reward")[0][2]
    assert (reward.reward, reward.terminated, reward.truncated) == (0.0, True, False)


def test_lockstep_goes_on_without_commands_after_the_timeout():
    port = Port(lambda stamp: None)
    plant, timing = play(port, episodes=1, command_timeout_s=0.5)
    assert plant.total_steps == 6
    assert timing.timeouts == 6
    assert port.now_s >= 103.0


def test_a_missing_command_keeps_the_last_target():
    answers = iter([0.25, None, None])
    port = Port(lambda stamp: next(answers, 0.5))
    plant, _ = play(port, episodes=1)
    assert plant.sensors()["position"]["data"][0] == 0.5
    plant = Plant(Rail(), seed=0)
    plant.start(0)
    plant.advance(0, PERIOD_NS, {"target": {"data": np.array([0.25])}})
    plant.advance(PERIOD_NS, 2 * PERIOD_NS, None)
    assert plant.sensors()["position"]["data"][0] == 0.25


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_commands_that_are_not_finite_are_refused_and_counted(value):
    plant = Plant(Rail(), seed=0)
    plant.start(0)
    plant.advance(0, PERIOD_NS, {"target": {"data": np.array([0.25])}})
    plant.advance(PERIOD_NS, 2 * PERIOD_NS, {"target": {"data": np.array([value])}})
    assert plant.sensors()["position"]["data"][0] == 0.25
    assert plant.refused_commands == 1


@pytest.mark.parametrize(("norm", "refused"), [(0.0, 1), (1e-7, 1), (1e-5, 0)])
def test_orientation_without_a_direction_is_refused_and_counted(norm, refused):
    applied = []
    world = Rail()
    world.apply = applied.append
    plant = Plant(world, seed=0)
    plant.start(0)
    pose = {
        "pose.position": np.zeros(3),
        "pose.orientation": np.array([0.0, 0.0, norm, 0.0]),
    }
    gripper = {"position": np.array([0.5])}
    plant.advance(0, PERIOD_NS, {"target_pose": pose, "gripper_command": gripper})
    assert plant.refused_commands == refused
    assert ("target_pose" in applied[0]) == (refused == 0)
    assert "gripper_command" in applied[0]


def test_credit_holds_the_plant_before_the_first_step_that_is_not_allowed():
    port = Port()
    port.credits = Credit(allowed_steps=4, rows=0, age_s=0.0)
    port.stop_after = 130.0
    plant, timing = play(port, credit=True)
    assert plant.total_steps == 4
    assert port.kinds()[-1] == "ABORT"
    times = [entry[2] for entry in port.of("sensors")]
    assert len(port.of("clock")) == len(times) == 5
    assert times[3] < 101.0, "simulated time stands still during the pause"
    assert times[4] >= 130.0, "the last observation is shown when all ends"
    assert timing.credit_wait_s > 29.0


def test_more_credit_lets_the_plant_go_on():
    port = Port()
    port.credits = Credit(allowed_steps=3, rows=0, age_s=0.0)

    def grant():
        if port.now_s > 101.0:
            port.credits = Credit(allowed_steps=100, rows=0, age_s=0.0)

    port.on_sleep = grant
    plant, _ = play(port, credit=True, episodes=2)
    assert plant.total_steps == 12
    times = [entry[2] for entry in port.of("sensors")]
    assert times[2] < 100.1
    assert times[3] > 101.0


def test_a_plant_that_joins_a_resumed_run_counts_the_steps_before_it():
    port = Port()
    port.credits = Credit(allowed_steps=1550, rows=1500, age_s=0.0)
    port.stop_after = 130.0
    plant, _ = play(port, credit=True)
    assert plant.total_steps == 50


def test_a_learner_that_is_heard_late_has_rows_of_the_plant_itself():
    port = Port()
    port.stop_after = 130.0

    def heard():
        if port.now_s > 100.2 and port.credits is None:
            port.credits = Credit(allowed_steps=20, rows=3, age_s=0.0)

    port.on_sleep = heard
    plant, _ = play(port, credit=True)
    assert plant.total_steps == 20


@pytest.mark.parametrize(
    "credit", [None, Credit(allowed_steps=0, rows=0, age_s=HEARTBEAT_TIMEOUT_S + 0.1)]
)
def test_a_silent_learner_lets_the_plant_go_on_in_real_time(credit):
    port = Port()
    port.credits = credit
    plant, _ = play(port, credit=True, episodes=1)
    assert plant.total_steps == 6
    times = np.array([entry[2] for entry in port.of("sensors")])
    np.testing.assert_allclose(np.diff(times[:6]), PERIOD_S, atol=2e-3)


def test_free_steps_need_no_credit():
    port = Port()
    port.credits = Credit(allowed_steps=0, rows=0, age_s=0.0)
    port.stop_after = 110.0
    plant, _ = play(port, credit=True, initial_steps_free=5)
    assert plant.total_steps == 5


def test_real_time_meets_absolute_deadlines():
    port = Port()
    play(port, pace="realtime", episodes=1)
    assert not port.of("clock")
    entries = port.of("sensors")
    stamps = np.array([entry[1] for entry in entries])
    times = np.array([entry[2] for entry in entries])
    np.testing.assert_allclose(stamps * 1e-9, times, atol=1e-6)
    np.testing.assert_allclose(np.diff(times), PERIOD_S, atol=1e-6)


def test_real_time_waits_at_most_half_a_period_for_commands():
    port = Port(lambda stamp: None)
    _, timing = play(port, pace="realtime", episodes=1)
    assert timing.timeouts == 6
    times = np.array([entry[2] for entry in port.of("sensors")])
    np.testing.assert_allclose(np.diff(times), PERIOD_S, atol=1e-6)


def test_real_time_skips_periods_that_have_passed_and_counts_them():
    port = Port()
    delays = iter([0.001, 0.13])
    answer = port.answer

    def slow(stamp):
        port.reply_s = next(delays, 0.001)
        return answer(stamp)

    port.answer = slow
    _, timing = play(port, pace="realtime", episodes=1)
    stamps = [entry[1] for entry in port.of("sensors")]
    assert list(np.diff(stamps)) == [PERIOD_NS, 3 * PERIOD_NS] + [PERIOD_NS] * 4
    assert timing.skipped == 2


def test_stopping_in_an_episode_aborts_it_at_an_observation_without_a_step():
    port = Port()
    port.stop_after = 100.0035
    plant, _ = play(port, episodes=5)
    assert port.kinds()[-3:] == ["clock", "sensors", "ABORT"]
    assert port.log[-1][1] == port.log[-2][1] == port.of("reward")[-1][1] + PERIOD_NS
    assert plant.last_record.steps == len(port.of("reward")) == 3
    assert not plant.last_record.success


def test_episode_seeds_depend_on_seed_and_index_alone():
    seeds = []
    for first in (0, 2):
        world = Rail()
        plant = Plant(world, seed=3, first_episode=first)
        for _ in range(4):
            plant.start(0)
            seeds.append(world.seed)
    assert seeds[2:4] == seeds[4:6]
    assert len(set(seeds)) == 6


def test_timing_and_episodes_are_written_and_read_back(tmp_path):
    port = Port()
    plant, timing = play(port, episodes=1)
    timing.write(tmp_path)
    with np.load(tmp_path / "plant_timing.npz", allow_pickle=False) as file:
        assert len(file["stamp_ns"]) == 6
        np.testing.assert_allclose(file["command_latency_ns"], 1e6, atol=10)
    log = EpisodeLog(tmp_path)
    log.append(plant.last_record)
    log.close()
    lines = (tmp_path / "episodes.csv").read_text().splitlines()
    assert lines[0].startswith("episode,seed,start_stamp_ns")
    assert lines[1].split(",")[4:] == ["6", "-6.0", "0", "0", "1"]
