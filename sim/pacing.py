# SPDX-License-Identifier: Apache-2.0
"""When a plant's control steps happen: in lockstep with its controller, or in real time.

Both modes talk to the rest of the graph through a port, so that the same loop runs on ROS 2 and in
tests. Order within one control step k:

    START (first step) -> clock t_k -> sensors t_k -> wait for commands with stamp >= t_k -> step
    -> reward t_k -> END (last step) -> clock and sensors of the final observation -> gap
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from qam_ros.contract.messages import EpisodeEvent, StepReward
from sim.plant import Plant
from sim.timing import PlantTiming
from sim.world import Commands, Sensors

Pace = Literal["lockstep", "realtime"]
HEARTBEAT_TIMEOUT_S = (
    1.5  # a learner that was silent for longer no longer holds the plant back
)
CREDIT_POLL_S = 0.02
PUBLICATION_MARGIN_NS = 1_000_000  # a deadline missed by less is still met


@dataclass(frozen=True)
class Credit:
    """What the learner said last.

    Attributes:
        allowed_steps: environment steps that may have been taken in all of the learner's life.
        rows: rows it has of them.
        age_s: wall time since it said so [s].
    """

    allowed_steps: int
    rows: int
    age_s: float


class PlantPort(Protocol):
    """The plant's side of the topics."""

    def publish_clock(self, stamp_ns: int) -> None:
        """Set simulated time (lockstep)."""

    def publish_sensors(self, stamp_ns: int, sensors: Sensors) -> None:
        """Publish every sensor message with this stamp."""

    def publish_reward(self, reward: StepReward) -> None:
        """Publish the labels of a step."""

    def publish_event(self, event: EpisodeEvent) -> None:
        """Publish the start, end or abort of an episode."""

    def wait_commands(self, stamp_ns: int, until_s: float) -> tuple[Commands, bool]:
        """Wait until every command topic has a message with stamp >= `stamp_ns`.

        Args:
            stamp_ns: stamp of the observation.
            until_s: give up at this monotonic time, or when stopping.

        Returns:
            The commands that came, and whether that is all of them.
        """

    def credit(self) -> Credit | None:
        """The learner's last word; None when it never spoke."""

    def sleep(self, until_s: float) -> None:
        """Handle messages until this monotonic time, or until stopping."""

    @property
    def stopping(self) -> bool:
        """A signal asked the process to end."""


@dataclass(frozen=True)
class PaceConfig:
    """How a plant keeps time.

    Attributes:
        pace: `lockstep` waits for each command, as fast as the machine allows; `realtime` keeps
            absolute deadlines.
        command_timeout_s: lockstep waits this long for a command, then goes on anyway [s].
        episode_gap_s: wall time between the final observation and the next start [s].
        episodes: stop after so many; 0 goes on for ever.
        credit: (lockstep) stop before step n while the learner allows fewer than n steps.
        initial_steps_free: steps that need no credit.
    """

    pace: Pace = "lockstep"
    command_timeout_s: float = 0.5
    episode_gap_s: float = 0.05
    episodes: int = 0
    credit: bool = False
    initial_steps_free: int = 0


class PlantLoop:
    """Plays episodes until told to stop.

    Args:
        plant: the simulated robot.
        port: its topics.
        config: how to keep time.
        monotonic_s: wall time for waits and deadlines [s].
        ros_now_ns: wall time for stamps [ns].
        timing: where every step's times are kept.
        on_episode: called after each episode, e.g. to write a line about it.
    """

    def __init__(
        self,
        plant: Plant,
        port: PlantPort,
        config: PaceConfig,
        *,
        monotonic_s: Callable[[], float],
        ros_now_ns: Callable[[], int],
        timing: PlantTiming,
        on_episode: Callable[[], None],
    ) -> None:
        self._plant = plant
        self._port = port
        self._config = config
        self._monotonic_s = monotonic_s
        self._ros_now_ns = ros_now_ns
        self._timing = timing
        self._on_episode = on_episode
        self._lockstep = config.pace == "lockstep"
        self._anchor_s = 0.0
        self._anchor_ns = 0
        self._last_step_s = -math.inf
        self._last_stamp_ns = 0
        self._steps_before: int | None = None

    def roll(self, ready: Callable[[], bool], timeout_s: float) -> bool:
        """Publish the world at rest, once a control period, until somebody answers.

        Before the first episode, so that none is played while the robot's side still starts.

        Args:
            ready: the robot's side is at work.
            timeout_s: give up after this long; 0 does not wait [s].

        Returns:
            Whether it is (or was not waited for).
        """
        if timeout_s == 0.0:
            return True
        started_s = due_s = self._monotonic_s()
        while not self._port.stopping and due_s - started_s < timeout_s:
            stamp_ns = max(
                self._ros_now_ns(), self._last_stamp_ns + self._plant.period_ns
            )
            self._last_stamp_ns = stamp_ns
            if self._lockstep:
                self._port.publish_clock(stamp_ns)
            self._port.publish_sensors(stamp_ns, self._plant.sensors())
            due_s = max(due_s + self._plant.period_ns * 1e-9, self._monotonic_s())
            self._port.sleep(due_s)
            if ready():
                return True
        return False

    def run(self) -> None:
        """Play episodes; returns when all are played or the port is stopping."""
        played = 0
        while not self._port.stopping:
            if self._config.episodes and played >= self._config.episodes:
                return
            self._play_episode()
            played += 1
            self._on_episode()

    def _play_episode(self) -> None:
        self._wait_for_credit()
        if self._port.stopping:
            return
        stamp_ns = self._first_stamp()
        self._port.publish_event(self._plant.start(stamp_ns))
        ended = False
        while not ended:
            following = self._control_step(stamp_ns)
            if following is None:
                event = self._plant.abort(stamp_ns)
                if event is not None:
                    self._port.publish_event(event)
                return
            stamp_ns, ended = following
            if not ended:
                self._wait_for_credit()
        self._publish_observation(stamp_ns)
        self._port.sleep(self._monotonic_s() + self._config.episode_gap_s)

    def _control_step(self, stamp_ns: int) -> tuple[int, bool] | None:
        """One control step.

        Returns:
            Stamp of the next observation and whether that is the last one; None when the process
            shall end: then no step is taken, and the present observation is the last one.
        """
        lateness_s = self._publish_observation(stamp_ns)
        published_s = self._monotonic_s()
        if self._lockstep:
            until_s = published_s + self._config.command_timeout_s
        else:
            until_s = self._deadline_s(stamp_ns) + self._plant.period_ns * 0.5e-9
        commands, complete = self._port.wait_commands(stamp_ns, until_s)
        if self._port.stopping:
            return None
        answered_s = self._monotonic_s()
        next_ns = self._next_stamp(stamp_ns)
        advance = self._plant.advance(stamp_ns, next_ns, commands or None)
        self._port.publish_reward(advance.reward)
        if advance.end is not None:
            self._port.publish_event(advance.end)
        self._timing.append(
            stamp_ns=stamp_ns,
            lateness_s=lateness_s,
            command_latency_s=answered_s - published_s if complete else math.nan,
            step_s=self._monotonic_s() - answered_s,
        )
        return next_ns, advance.end is not None

    def _publish_observation(self, stamp_ns: int) -> float:
        """Publish clock and sensors when it is time; returns how late that was [s]."""
        lateness_s = 0.0
        if self._lockstep:
            self._port.publish_clock(stamp_ns)
        else:
            deadline_s = self._deadline_s(stamp_ns)
            self._port.sleep(deadline_s)
            lateness_s = self._monotonic_s() - deadline_s
        self._last_stamp_ns = stamp_ns
        self._last_step_s = self._monotonic_s()
        self._port.publish_sensors(stamp_ns, self._plant.sensors())
        return lateness_s

    def _first_stamp(self) -> int:
        """Stamp of an episode's first observation, later than any before.

        Simulated time starts at wall time, so that it also increases from one run to the next. In
        real time every episode is anchored anew (the wall clock may have been adjusted), one period
        ahead, in which the world is reset.
        """
        period_ns = self._plant.period_ns
        if self._lockstep:
            if self._last_stamp_ns == 0:
                return self._ros_now_ns()
            gap_ns = round(self._config.episode_gap_s * 1e9)
            return self._last_stamp_ns + max(1, -(-gap_ns // period_ns)) * period_ns
        self._anchor_s = self._monotonic_s() + period_ns * 1e-9
        self._anchor_ns = max(self._ros_now_ns(), self._last_stamp_ns) + period_ns
        return self._anchor_ns

    def _next_stamp(self, stamp_ns: int) -> int:
        """The next multiple of the period; in real time one that has not passed yet."""
        period_ns = self._plant.period_ns
        if self._lockstep:
            return stamp_ns + period_ns
        late_ns = round((self._monotonic_s() - self._deadline_s(stamp_ns)) * 1e9)
        periods = max(1, -(-(late_ns - PUBLICATION_MARGIN_NS) // period_ns))
        if periods > 1:
            self._timing.skipped += periods - 1
        return stamp_ns + periods * period_ns

    def _deadline_s(self, stamp_ns: int) -> float:
        return self._anchor_s + (stamp_ns - self._anchor_ns) * 1e-9

    def _wait_for_credit(self) -> None:
        """Stop before step n while fewer than n steps are allowed by a learner that is alive.

        A silent learner does not stop the robot: steps then follow each other in real time. Credit
        counts from the learner's first step; a plant that joins a run that goes on counts the rows
        that others brought before it.
        """
        config = self._config
        if not (config.credit and self._lockstep):
            return
        step = self._plant.total_steps + 1
        started_s = self._monotonic_s()
        while step > config.initial_steps_free and not self._port.stopping:
            credit = self._port.credit()
            now_s = self._monotonic_s()
            if credit is not None and self._steps_before is None:
                # Rows of this plant's own steps may be among them already.
                self._steps_before = max(0, credit.rows - self._plant.total_steps)
            if credit is None or credit.age_s > HEARTBEAT_TIMEOUT_S:
                due_s = self._last_step_s + self._plant.period_ns * 1e-9
                if now_s >= due_s:
                    break
                self._port.sleep(min(due_s, now_s + CREDIT_POLL_S))
            elif step + (self._steps_before or 0) <= credit.allowed_steps:
                break
            else:
                self._port.sleep(now_s + CREDIT_POLL_S)
        self._timing.credit_wait_s += self._monotonic_s() - started_s
