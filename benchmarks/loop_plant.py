# SPDX-License-Identifier: Apache-2.0
"""A robot that costs next to nothing, on ROS 2: sensors at absolute deadlines, commands counted.

A MuJoCo world needs some milliseconds a step; what shall be measured at 500 Hz is the loop, not the
world. Sensors rest but for a millimetre. Started as a process by `qam bench loop`.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import rclpy
from loop_inprocess import sensor_values, start_event
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from std_srvs.srv import Trigger

from qam_ros.contract.interface import load_interface
from qam_ros.contract.messages import EpisodeEvent
from qam_ros.nodes import qos
from qam_ros.nodes.convert import ros_type, to_ros
from qam_ros.nodes.process import Stop
from qam_ros.nodes.ros import now_ns
from qam_ros.nodes.sensors import command_codecs, sensor_codecs
from qam_ros.runtime.phase import PhasePacer
from qam_ros.runtime.realtime import RealTime, enter_others
from qam_ros.runtime.timing import TimingRing, write_timing

READERS: Final = 2
"""Guard and policy."""
RESET_S: Final = 0.2
"""After a pause of the whole graph the guard has stopped; so much later it is reset [s]."""


class LightPlant:
    """The robot's topics.

    Args:
        robot: path of the robot interface.
        run_dir: where ``loop_plant.npz`` is written.
    """

    def __init__(self, robot: str, run_dir: Path) -> None:
        interface = load_interface(robot)
        self.interface = interface
        self.period_ns = round(interface.control_period_s * 1e9)
        self.node = Node("plant")
        self._run_dir = run_dir
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self._sensors: dict[str, tuple[Any, Any]] = {
            topic: (
                codec,
                self.node.create_publisher(codec.message_type, topic, qos.SENSOR_OUT),
            )
            for topic, codec in sensor_codecs(interface).items()
        }
        self._events = self.node.create_publisher(
            ros_type(EpisodeEvent), "episode_event", qos.HISTORY
        )
        self._reset: Any = self.node.create_client(Trigger, "guard/reset")
        self._reset_ns = 0
        self._received_ns = TimingRing(200_000)
        self._latency = TimingRing(200_000)
        self._lateness = TimingRing(200_000)
        for topic, codec in command_codecs(interface).items():
            self.node.create_subscription(
                codec.message_type, topic, self._received(codec), qos.COMMAND
            )

    def _received(self, codec: Any) -> Any:
        def received(message: Any) -> None:
            stamp_ns, _ = codec.decode(message)
            if stamp_ns is not None:
                self._received_ns.append(time.monotonic_ns())
                self._latency.append(now_ns(self.node) - stamp_ns)

        return received

    def play(self, stop: Stop, priority: int) -> None:
        """Publish sensors until told to stop; the episode begins when guard and policy listen."""
        enter_others(RealTime(priority))
        pacer = PhasePacer(self.period_ns, 0, time.monotonic_ns())
        started, tick = False, 0
        while not stop.requested:
            while (rest_ns := pacer.deadline_ns - time.monotonic_ns()) > 0:
                self._executor.spin_once(timeout_sec=rest_ns * 1e-9)
            self._lateness.append(time.monotonic_ns() - pacer.deadline_ns)
            stamp_ns = now_ns(self.node)
            if not started and self._events.get_subscription_count() >= READERS:
                started = True
                self._events.publish(to_ros(start_event(stamp_ns)))
            values = sensor_values(self.interface, tick)
            for topic, (codec, publisher) in self._sensors.items():
                if topic in values:
                    publisher.publish(codec.encode(stamp_ns, values[topic]))
            tick += 1
            self._reset_after_pause(pacer)
        series = {
            "received_ns": self._received_ns,
            "latency_ns": self._latency,
            "lateness_ns": self._lateness,
        }
        write_timing(
            self._run_dir / "loop_plant.npz",
            {name: np.asarray(ring.values()) for name, ring in series.items()},
        )

    def _reset_after_pause(self, pacer: PhasePacer) -> None:
        """Go on to the next deadline; have the guard reset where many were missed."""
        skipped, here_ns = pacer.skipped, time.monotonic_ns()
        pacer.advance(here_ns, None)
        if (pacer.skipped - skipped) * self.period_ns > 500_000_000:
            self._reset_ns = here_ns + round(RESET_S * 1e9)
        if self._reset_ns and here_ns >= self._reset_ns:
            self._reset_ns = 0
            self._reset.call_async(Trigger.Request())


def run(robot: str, run_dir: str, priority: str) -> None:
    """The process."""
    stop = Stop()
    stop.listen()
    rclpy.init(signal_handler_options=rclpy.signals.SignalHandlerOptions.NO)
    stop.arm()
    LightPlant(robot, Path(run_dir)).play(stop, int(priority))
