# SPDX-License-Identifier: Apache-2.0
"""The plant on ROS 2: sensors, clock, rewards and episode events out, commands and credit in.

One thread does everything: while it waits for commands it spins the executor. Handing messages from
an executor thread to a simulation thread would cost a switch of the interpreter lock each way.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args

import rclpy
from rclpy.clock import Clock, ClockType  # type: ignore[attr-defined]
from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rosgraph_msgs.msg import Clock as ClockMessage

from qam_ros.contract.errors import ConfigError, QamError, nearest
from qam_ros.contract.interface import RobotInterface, load_interface
from qam_ros.contract.messages import (
    EpisodeEvent,
    GuardReport,
    LearnerStatus,
    StepReward,
)
from qam_ros.contract.transition import EpisodeKind
from qam_ros.nodes import qos
from qam_ros.nodes.convert import from_ros, ros_type, to_ros, to_time
from qam_ros.nodes.parameters import COMMON, Parameter, read_parameters
from qam_ros.nodes.process import Stop
from qam_ros.nodes.ros import WAKE_S, Diagnostics, Report
from qam_ros.nodes.sensors import TopicCodec, command_codecs, sensor_codecs
from sim.pacing import Credit, Pace, PaceConfig, PlantLoop
from sim.plant import Plant
from sim.timing import EpisodeLog, PlantTiming
from sim.wiring import Wiring
from sim.world import Commands, Sensors, World
from sim.worlds import make_world, world_info

DRY_RUN_S = 1.0  # wait this long for publishers of commands
FLUSH_S = 0.2  # last rewards and events are given this long to be acknowledged

PARAMETERS = (
    *(row for row in COMMON if row.name in ("robot", "overlay", "run_dir")),
    Parameter("world", "cube-single", "World, e.g. cube-single or pointmaze-medium."),
    Parameter("task", 1, "Task of the world.", low=1, high=5),
    Parameter("seed", 0, "Seed of the episodes.", low=0, high=2**31 - 1),
    Parameter("pace", "lockstep", "lockstep or realtime."),
    Parameter("credit", default=False, description="Wait for the learner's credit."),
    Parameter("command_timeout_s", 0.5, "Wait for a command.", "s", 0.01, 60.0),
    Parameter("episode_gap_s", 0.05, "Pause between episodes.", "s", 0.0, 60.0),
    Parameter("episodes", 0, "Episodes to play; 0: endless.", low=0, high=10**9),
    Parameter("max_episode_steps", 0, "Step limit; 0: the world's.", low=0, high=10**9),
    Parameter("initial_steps_free", 0, "Steps without credit.", low=0, high=2**31 - 1),
    Parameter("start_timeout_s", 60.0, "Wait for guard and policy.", "s", 0.0, 3600.0),
)


@dataclass(frozen=True)
class PlantParameters:
    """Parameters of the node; see `PARAMETERS`."""

    robot: str
    overlay: str
    run_dir: str
    world: str
    task: int
    seed: int
    pace: str
    credit: bool
    command_timeout_s: float
    episode_gap_s: float
    episodes: int
    max_episode_steps: int
    initial_steps_free: int
    start_timeout_s: float

    def pace_config(self) -> PaceConfig:
        """How the plant keeps time.

        Raises:
            ConfigError: no such pace.
        """
        if self.pace not in get_args(Pace):
            raise ConfigError(
                f"parameter 'pace' is {self.pace!r}: {nearest(self.pace, get_args(Pace))}"
            )
        return PaceConfig(
            pace=cast(Pace, self.pace),
            command_timeout_s=self.command_timeout_s,
            episode_gap_s=self.episode_gap_s,
            episodes=self.episodes,
            credit=self.credit,
            initial_steps_free=self.initial_steps_free,
        )


class PlantNode(Node):
    """The plant's topics; implements `PlantPort`.

    Args:
        stop: set by signals.
        executor: spun whenever the plant waits.
    """

    def __init__(self, stop: Stop, executor: SingleThreadedExecutor) -> None:
        super().__init__("plant")
        self._stop = stop
        self._spinner = executor
        executor.add_node(self)
        self.settings = read_parameters(self, PARAMETERS, PlantParameters)
        plain, deployed = _interfaces(self.settings)
        self.wiring = Wiring(plain, deployed)
        self._wall = Clock(clock_type=ClockType.SYSTEM_TIME)
        self._sensor_out: dict[str, tuple[TopicCodec, Any]] = {
            codec.topic: (
                codec,
                self.create_publisher(codec.message_type, codec.topic, qos.SENSOR_OUT),
            )
            for codec in sensor_codecs(deployed).values()
        }
        self._clock_out = self.create_publisher(ClockMessage, "/clock", qos.CLOCK_OUT)
        self._reward_out = self.create_publisher(
            ros_type(StepReward), "step_reward", qos.HISTORY
        )
        self._event_out = self.create_publisher(
            ros_type(EpisodeEvent), "episode_event", qos.HISTORY
        )
        self._codecs = command_codecs(deployed)
        self._pending: dict[str, tuple[int, Commands]] = {}
        self._sensors_stamp_ns = 0
        self.malformed_commands = 0
        for codec in self._codecs.values():
            self._subscribe_command(codec)
        self._credit: Credit | None = None
        self._credit_heard_s = 0.0
        self.create_subscription(
            ros_type(LearnerStatus), "learner_status", self._on_learner, qos.STATUS
        )

    @property
    def command_topics(self) -> list[str]:
        """Topics that commands come on."""
        return list(self._codecs)

    @property
    def stopping(self) -> bool:
        """A signal asked the process to end."""
        return self._stop.requested

    def ros_now_ns(self) -> int:
        """Wall time [ns], also when other nodes live in simulated time."""
        return int(self._wall.now().nanoseconds)

    def publish_clock(self, stamp_ns: int) -> None:
        """Set simulated time."""
        self._clock_out.publish(ClockMessage(clock=to_time(stamp_ns)))

    def publish_sensors(self, stamp_ns: int, sensors: Sensors) -> None:
        """Publish every sensor message with this stamp."""
        self._sensors_stamp_ns = stamp_ns
        for topic, fields in self.wiring.outgoing(sensors).items():
            codec, publisher = self._sensor_out[topic]
            publisher.publish(codec.encode(stamp_ns, fields))

    def publish_reward(self, reward: StepReward) -> None:
        """Publish the labels of a step."""
        self._reward_out.publish(to_ros(reward))

    def publish_event(self, event: EpisodeEvent) -> None:
        """Publish an episode event; what was commanded before a start is void."""
        if event.kind == EpisodeKind.START:
            self._pending.clear()
        self._event_out.publish(to_ros(event))

    def wait_commands(self, stamp_ns: int, until_s: float) -> tuple[Commands, bool]:
        """Wait for commands with stamp >= `stamp_ns` on every command topic.

        A command that came too late for its own step is applied at this one, as a robot's driver
        would, unless a newer one is there.
        """

        def complete() -> bool:
            fresh = sum(stamp >= stamp_ns for stamp, _ in self._pending.values())
            return fresh == len(self._codecs)

        while not complete() and self._spin(until_s):
            pass
        answered = complete()
        commands: Commands = {}
        for _, part in self._pending.values():
            for topic, fields in part.items():
                commands.setdefault(topic, {}).update(fields)
        self._pending.clear()
        return commands, answered

    def credit(self) -> Credit | None:
        """The learner's last word."""
        if self._credit is None:
            return None
        age_s = time.monotonic() - self._credit_heard_s
        return replace(self._credit, age_s=age_s)

    def sleep(self, until_s: float) -> None:
        """Handle messages until this monotonic time."""
        while self._spin(until_s):
            pass

    def flush(self) -> None:
        """Give the last labels a moment to be acknowledged."""
        for publisher in (self._reward_out, self._event_out):
            publisher.wait_for_all_acked(Duration(seconds=FLUSH_S))

    def _spin(self, until_s: float) -> bool:
        """Handle one message; False when the time is over or the process shall end."""
        remaining_s = until_s - time.monotonic()
        if remaining_s <= 0.0 or self._stop.requested:
            return False
        self._spinner.spin_once(timeout_sec=min(remaining_s, WAKE_S))
        return True

    def _subscribe_command(self, codec: TopicCodec) -> None:
        def received(message: Any) -> None:
            try:
                stamp_ns, fields = codec.decode(message)
                commands = self.wiring.incoming(codec.topic, fields)
            except QamError as error:
                self.malformed_commands += 1
                self.get_logger().warning(str(error), throttle_duration_sec=5.0)
                return
            # A type without header answers the observation that was published last.
            stamp_ns = self._sensors_stamp_ns if stamp_ns is None else stamp_ns
            self._pending[codec.topic] = (stamp_ns, commands)

        self.create_subscription(codec.message_type, codec.topic, received, qos.COMMAND)

    def _on_learner(self, message: Any) -> None:
        status = from_ros(message, LearnerStatus)
        self._credit = Credit(status.allowed_steps, status.rows, age_s=0.0)
        self._credit_heard_s = time.monotonic()


class RobotWatch:
    """Notices when guard and policy are at work: the guard reports a tick with a proposal.

    Args:
        node: the plant's node.
        topics: command topics. Their publishers are waited for, too, but not for long: a guard in
            dry run has none.
    """

    def __init__(self, node: Node, topics: Iterable[str]) -> None:
        self._reported_s = math.inf
        self._node = node
        self._topics = [node.resolve_topic_name(topic) for topic in topics]
        self._subscription = node.create_subscription(
            ros_type(GuardReport), "guard_report", self._on_report, qos.TICK_IN
        )

    def present(self) -> bool:
        """Whether episodes can start."""
        waited_s = time.monotonic() - self._reported_s
        commanded = all(map(self._node.count_publishers, self._topics))
        return waited_s > DRY_RUN_S or (waited_s >= 0.0 and commanded)

    def _on_report(self, message: Any) -> None:
        if any(message.policy_session):
            self._reported_s = min(self._reported_s, time.monotonic())

    def destroy(self) -> None:
        """End the subscription."""
        self._node.destroy_subscription(self._subscription)


def run(stop: Stop, args: list[str] | None) -> int:
    """Play the plant until it is done or told to stop; returns the exit code."""
    if not os.environ.get("HOME"):  # rclpy cannot find a log folder then
        os.environ.setdefault("ROS_LOG_DIR", tempfile.gettempdir())
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    executor = SingleThreadedExecutor()
    node = None
    try:
        node = PlantNode(stop, executor)
        settings = node.settings
        config = settings.pace_config()
        world = make_world(settings.world, settings.task)
        world.reset(settings.seed)
        node.wiring.check(world)
        stop.arm()
        play(node, world, config)
        return 0
    finally:
        if node is not None:
            node.flush()
            executor.remove_node(node)
            node.destroy_node()
        executor.shutdown(timeout_sec=0)
        rclpy.try_shutdown()


def play(node: PlantNode, world: World, config: PaceConfig) -> None:
    """Wait for the robot's side, then play episodes, and write their log and timing.

    Args:
        node: the plant's topics.
        world: has been reset.
        config: how to keep time.
    """
    settings = node.settings
    plant = Plant(world, settings.seed, max_episode_steps=settings.max_episode_steps)
    timing = PlantTiming()
    run_dir = Path(settings.run_dir) if settings.run_dir else None
    log = EpisodeLog(run_dir) if run_dir else None

    def on_episode() -> None:
        if log is not None and plant.last_record is not None:
            log.append(plant.last_record)

    loop = PlantLoop(
        plant,
        node,
        config,
        monotonic_s=time.monotonic,
        ros_now_ns=node.ros_now_ns,
        timing=timing,
        on_episode=on_episode,
    )
    diagnostics = Diagnostics(node, lambda: state_of(node, plant, timing))
    watch = RobotWatch(node, node.command_topics)
    present = loop.roll(watch.present, settings.start_timeout_s)
    if not (present or node.stopping):
        node.get_logger().warning(
            f"no report of a proposal from the guard within {settings.start_timeout_s} s; "
            "the episodes start without a policy"
        )
    watch.destroy()
    try:
        loop.run()
    finally:
        diagnostics.destroy()
        if run_dir is not None:
            timing.write(run_dir)
        if log is not None:
            log.close()


def state_of(node: PlantNode, plant: Plant, timing: PlantTiming) -> Report:
    """Diagnostics: refused or missing commands are worth a warning."""
    refused = plant.refused_commands + node.malformed_commands
    values = {
        "episode": plant.episode,
        "steps": plant.total_steps,
        "commands refused": refused,
        "steps without command": timing.timeouts,
        "periods skipped": timing.skipped,
        "waited for credit [s]": timing.credit_wait_s,
    }
    return refused == 0, f"episode {plant.episode}", values


def _interfaces(settings: PlantParameters) -> tuple[RobotInterface, RobotInterface]:
    """The world's plain robot interface, and the one of this deployment."""
    robot = settings.robot or world_info(settings.world).robot
    if robot is None:
        raise ConfigError(
            f"no shipped robot interface fits world '{settings.world}'; set parameter 'robot'"
        )
    return load_interface(robot), load_interface(robot, settings.overlay or None)
