# SPDX-License-Identifier: Apache-2.0
import csv
import os
import signal
import time

import numpy as np
import pytest

from qam_ros.contract.interface import (
    assemble,
    load_interface,
    measured_value,
    physical_action,
    target_value,
)
from qam_ros.contract.messages import (
    EpisodeEvent,
    GuardReport,
    LearnerStatus,
    StepReward,
)
from qam_ros.contract.transition import EpisodeKind
from sim.seeding import SeedStream, episode_seed
from sim.worlds import make_world

SPEED_UP = {"start_timeout_s": 30.0, "episode_gap_s": 0.01}


def report_of_a_proposal():
    from qam_ros.nodes.convert import ros_type

    report = ros_type(GuardReport)()
    report.policy_session[0] = 1
    return report


class Robot:
    """The robot's side of a plant under test: answers every complete observation."""

    def __init__(self, graph, interface, act):
        from rosgraph_msgs.msg import Clock

        from qam_ros.nodes import qos
        from qam_ros.nodes.convert import from_ros, ros_type
        from qam_ros.nodes.sensors import command_codecs, sensor_codecs

        self.interface = interface
        self.act = act
        self.raw: dict[int, dict] = {}
        self.observations: dict[int, np.ndarray] = {}
        self.commands: dict[int, dict] = {}
        self.rewards, self.events, self.clock = [], [], []
        self.times_s: dict[int, float] = {}
        self.answering = True
        self.ready = True
        node = graph.node
        self.sensors = sensor_codecs(interface)
        for codec in self.sensors.values():
            node.create_subscription(
                codec.message_type, codec.topic, self.on_sensor(codec), qos.SENSOR_OUT
            )
        self.targets = {
            codec.topic: (
                codec,
                node.create_publisher(codec.message_type, codec.topic, qos.COMMAND),
            )
            for codec in command_codecs(interface).values()
        }

        self.reports = node.create_publisher(
            ros_type(GuardReport), "guard_report", qos.HISTORY
        )

        def listen(kind, topic, received):
            node.create_subscription(
                ros_type(kind),
                topic,
                lambda message: received.append(from_ros(message, kind)),
                qos.HISTORY,
            )

        listen(StepReward, "step_reward", self.rewards)
        listen(EpisodeEvent, "episode_event", self.events)
        node.create_subscription(
            Clock,
            "/clock",
            lambda m: self.clock.append(m.clock.sec * 10**9 + m.clock.nanosec),
            100,
        )

    def on_sensor(self, codec):
        def received(message):
            stamp_ns, fields = codec.decode(message)
            raw = self.raw.setdefault(stamp_ns, {})
            raw |= {(codec.topic, field): values for field, values in fields.items()}
            if {topic for topic, _ in raw} == set(self.sensors):
                self.times_s[stamp_ns] = time.monotonic()
                self.observations[stamp_ns] = assemble(self.interface, raw)
                if not self.events:
                    self.join()
                if self.answering:
                    self.answer(stamp_ns, raw)

        return received

    def join(self):
        """Report as a guard does, as soon as the plant listens to the commands."""
        matched = all(p.get_subscription_count() for _, p in self.targets.values())
        if self.ready and matched:
            self.reports.publish(report_of_a_proposal())

    def answer(self, stamp_ns, raw):
        action = np.asarray(self.act(len(self.commands)), dtype=np.float64)
        fields: dict[str, dict[str, np.ndarray]] = {}
        for block in self.interface.action:
            command = physical_action(
                block, action[self.interface.action_slices[block.name]]
            )
            if block.mode == "delta":
                command = command + measured_value(block, raw[block.measured.key])
            field = fields.setdefault(block.target.topic, {}).setdefault(
                block.target.field, np.zeros(block.target_size)
            )
            field[list(block.target_indices)] = target_value(block, command)
        self.commands[stamp_ns] = fields
        for topic, (codec, publisher) in self.targets.items():
            publisher.publish(codec.encode(stamp_ns, fields[topic]))

    def of(self, kind):
        return [event for event in self.events if event.kind == kind]


def check_labels(graph, robot, episodes, period_ns):
    """Stamps, steps and sums of whole episodes agree between the three topics."""
    last_ns = robot.of(EpisodeKind.END)[episodes - 1].stamp_ns
    assert graph.wait(lambda: last_ns in robot.observations, 5), "the final observation"
    for start, end in zip(
        robot.of(EpisodeKind.START)[:episodes],
        robot.of(EpisodeKind.END)[:episodes],
        strict=True,
    ):
        assert start.episode == end.episode
        rewards = [r for r in robot.rewards if r.episode == start.episode]
        stamps = [r.stamp_ns for r in rewards]
        expected = range(start.stamp_ns, end.stamp_ns, period_ns)
        assert stamps == list(expected)
        assert [r.step for r in rewards] == list(range(end.steps))
        assert end.episode_return == pytest.approx(sum(r.reward for r in rewards))
        last = rewards[-1]
        assert (last.terminated, last.truncated) == (end.terminated, end.truncated)


def test_lockstep_over_dds_equals_the_world_in_this_process(graph, spawn, tmp_path):
    rng = np.random.default_rng(0)
    interface = load_interface("ur5e_2f85")
    robot = Robot(graph, interface, lambda _: rng.uniform(-1, 1, 5))
    plant = spawn(
        "plant_node",
        {
            **SPEED_UP,
            "world": "cube-single",
            "seed": 7,
            "episodes": 2,
            "max_episode_steps": 30,
            "command_timeout_s": 5.0,
            "run_dir": str(tmp_path / "run"),
        },
    )
    assert graph.wait(lambda: len(robot.of(EpisodeKind.END)) == 2, 60)
    graph.wait(lambda: plant.exit_code() is not None, 5)
    assert plant.exit_code() == 0, plant.text()
    check_labels(graph, robot, 2, 50_000_000)
    assert np.all(np.diff(robot.clock) > 0)
    assert [event.steps for event in robot.of(EpisodeKind.END)] == [30, 30]
    world = make_world("cube-single", 1)
    for start in robot.of(EpisodeKind.START):
        world.reset(episode_seed(7, start.episode, SeedStream.PLANT))
        for step in range(31):
            stamp_ns = start.stamp_ns + step * 50_000_000
            np.testing.assert_array_equal(
                robot.observations[stamp_ns], world.observation().astype(np.float32)
            )
            if step < 30:
                world.apply(robot.commands[stamp_ns])
                world.step()
    with (tmp_path / "run" / "episodes.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["steps"] for line in lines] == ["30", "30"]
    with np.load(tmp_path / "run" / "plant_timing.npz") as timing:
        assert len(timing["stamp_ns"]) == 60
        assert timing["timeouts"][0] == 0


def test_mobile_base_runs_behind_twist_without_stamps(graph, spawn):
    interface = load_interface("mobile_base", "mobile_base.twist")
    robot = Robot(graph, interface, lambda _: (0.5, -0.25))
    spawn(
        "plant_node",
        {
            **SPEED_UP,
            "world": "pointmaze-medium",
            "overlay": "mobile_base.twist",
            "max_episode_steps": 12,
            "episodes": 1,
            "command_timeout_s": 5.0,
        },
    )
    assert graph.wait(lambda: robot.of(EpisodeKind.END), 30)
    graph.spin(0.2)
    check_labels(graph, robot, 1, 100_000_000)
    world = make_world("pointmaze-medium", 1)
    world.reset(episode_seed(0, 0, SeedStream.PLANT))
    start = robot.of(EpisodeKind.START)[0].stamp_ns
    for step in range(13):
        observed = robot.observations[start + step * 100_000_000]
        np.testing.assert_array_equal(observed, world.observation().astype(np.float32))
        world.apply({"cmd_vel": {"twist.linear": np.array([1.0, -0.5, 0.0])}})
        world.step()


def test_lockstep_goes_on_when_nobody_commands(graph, spawn):
    robot = Robot(graph, load_interface("mobile_base"), lambda _: (0.0, 0.0))
    robot.answering = False
    spawn(
        "plant_node",
        {
            **SPEED_UP,
            "world": "pointmaze-medium",
            "max_episode_steps": 5,
            "command_timeout_s": 0.05,
        },
    )
    assert graph.wait(lambda: len(robot.of(EpisodeKind.END)) >= 2, 30)
    check_labels(graph, robot, 2, 100_000_000)


def test_plant_waits_for_the_guard_to_report_a_proposal(graph, spawn):
    from qam_ros.nodes.convert import ros_type

    robot = Robot(graph, load_interface("mobile_base"), lambda _: (0.0, 0.0))
    robot.ready = False
    spawn("plant_node", {"world": "pointmaze-medium", "max_episode_steps": 5})
    assert graph.wait(lambda: len(robot.observations) > 5, 30)
    assert np.all(np.diff(robot.clock) > 0), "time goes on meanwhile"
    assert graph.wait(robot.reports.get_subscription_count)
    robot.reports.publish(ros_type(GuardReport)())
    graph.spin(0.5)
    assert not robot.events, "a report without a proposal is not enough"
    robot.ready = True
    assert graph.wait(lambda: robot.of(EpisodeKind.END), 10)


def test_plant_starts_without_a_policy_after_the_timeout(graph, spawn):
    robot = Robot(graph, load_interface("mobile_base"), lambda _: (0.0, 0.0))
    robot.ready = False
    plant = spawn("plant_node", {"world": "pointmaze-medium", "start_timeout_s": 0.5})
    assert graph.wait(lambda: robot.of(EpisodeKind.START), 30)
    assert "start without a policy" in plant.text()


def test_credit_pauses_the_world_until_the_learner_allows_more_or_falls_silent(
    graph, spawn
):
    from qam_ros.nodes import qos
    from qam_ros.nodes.convert import ros_type, to_ros

    robot = Robot(graph, load_interface("mobile_base"), lambda _: (0.1, 0.0))
    status = LearnerStatus(0, "run", 0, 0, 10, 0, False, 0.0)
    publisher = graph.publisher(ros_type(LearnerStatus), "learner_status", qos.STATUS)

    def beat(allowed_steps, duration_s):
        deadline = time.monotonic() + duration_s
        while time.monotonic() < deadline:
            message = to_ros(status)
            message.allowed_steps = allowed_steps
            publisher.publish(message)
            graph.spin(0.1)

    publisher.publish(to_ros(status))
    spawn(
        "plant_node",
        {**SPEED_UP, "world": "pointmaze-medium", "credit": True},
    )
    graph.wait(lambda: publisher.get_subscription_count() > 0, 30)
    beat(10, 2.0)
    assert len(robot.rewards) == 10
    paused = robot.clock[-1]
    beat(10, 0.5)
    assert robot.clock[-1] == paused
    beat(25, 1.5)
    assert len(robot.rewards) == 25
    started = time.monotonic()
    assert graph.wait(lambda: len(robot.rewards) >= 35, 10)
    elapsed = time.monotonic() - started
    assert elapsed > 0.9, "ten steps of 0.1 s at real-time pace"


def test_real_time_keeps_the_control_period(graph, spawn, tmp_path):
    robot = Robot(graph, load_interface("mobile_base"), lambda _: (0.1, 0.0))
    plant = spawn(
        "plant_node",
        {
            **SPEED_UP,
            "world": "pointmaze-medium",
            "pace": "realtime",
            "run_dir": str(tmp_path / "run"),
        },
    )
    assert graph.wait(lambda: len(robot.times_s) >= 25, 30)
    assert plant.stop() == 0, plant.text()
    assert not robot.clock, "simulated time is for lockstep"
    stamps = np.array(sorted(robot.times_s))
    times = np.array([robot.times_s[stamp] for stamp in stamps])
    # Medians tolerate that a shared machine delays single messages.
    assert np.median(np.diff(times)) == pytest.approx(0.1, abs=0.01)
    assert np.median(np.diff(stamps)) == 100_000_000
    with np.load(tmp_path / "run" / "plant_timing.npz") as timing:
        assert np.median(timing["lateness_ns"]) < 10e6


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_an_episode_within_a_second(graph, spawn, number):
    robot = Robot(graph, load_interface("mobile_base"), lambda _: (0.0, 0.0))
    plant = spawn("plant_node", {**SPEED_UP, "world": "pointmaze-medium"})
    assert graph.wait(lambda: len(robot.rewards) > 3, 30)
    started = time.monotonic()
    assert plant.stop(number) == 0, plant.text()
    assert time.monotonic() - started < 1.0
    assert graph.wait(lambda: robot.of(EpisodeKind.ABORT), 2), "the abort is delivered"


def catches(process, number):
    """Whether a process has a handler for a signal, so from its first lines on."""
    with open(f"/proc/{process.pid}/status") as file:
        masks = dict(line.split(":", 1) for line in file)
    return bool(int(masks["SigCgt"], 16) >> (number - 1) & 1)


def test_a_signal_while_starting_or_waiting_ends_within_a_second(graph, spawn):
    plant = spawn("plant_node", {"world": "cube-single"})
    assert graph.wait(lambda: catches(plant, signal.SIGTERM), 10)
    started = time.monotonic()
    assert plant.stop() == 0, plant.text()
    assert time.monotonic() - started < 1.0
    robot = Robot(graph, load_interface("mobile_base"), lambda _: (0.0, 0.0))
    plant = spawn("plant_node", {"world": "pointmaze-medium"})
    assert graph.wait(lambda: robot.observations, 30)
    started = time.monotonic()
    assert plant.stop() == 0, plant.text()
    assert time.monotonic() - started < 1.0


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"world": "cube-singel"}, "did you mean 'cube-single'"),
        ({"pace": "fast"}, "valid: lockstep, realtime"),
        ({"world": "cube-single", "robot": "mobile_base"}, "has no sensor odom"),
        ({"seed": -1}, "parameter 'seed'"),
    ],
)
def test_wrong_parameters_end_the_process_in_words(graph, spawn, parameters, message):
    plant = spawn("plant_node", parameters)
    assert graph.wait(lambda: plant.exit_code() is not None, 30)
    assert plant.exit_code() == os.EX_CONFIG
    assert message in plant.text()
    assert "Traceback" not in plant.text()
