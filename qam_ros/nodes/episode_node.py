# SPDX-License-Identifier: Apache-2.0
"""Episode node: an operator starts and ends episodes on a real robot, and every row gets a reward.

In: action_proposal, guard_report. Out: episode_event, step_reward. Services (std_srvs/Trigger):
~/start, ~/success, ~/failure, ~/abort; `qam episode start` and so on call them. It owns no topic that
moves anything, but without a running episode the guard does not move.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from rclpy.node import Node
from std_srvs.srv import Trigger

from qam_ros.contract.errors import StreamError
from qam_ros.contract.interface import load_interface
from qam_ros.contract.messages import (
    ActionProposal,
    EpisodeEvent,
    EpisodeKind,
    GuardReport,
    StepReward,
)
from qam_ros.nodes import qos
from qam_ros.nodes.parameters import COMMON, Parameter, read_parameters
from qam_ros.nodes.process import Stop
from qam_ros.nodes.ros import Diagnostics, Report, Wiring, now_ns, spin_node
from qam_ros.runtime.episodes import EpisodeLabels, Label, LabelConfig

PARAMETERS: Final = (
    *(row for row in COMMON if row.name == "overlay"),
    Parameter(
        "robot", "", "Robot interface: a name in config/robot or a path.", required=True
    ),
    Parameter("step_reward", -1.0, "Reward of a row.", "", -1e6, 1e6),
    Parameter(
        "success_reward", 0.0, "Reward of the last row of a success.", "", -1e6, 1e6
    ),
    Parameter("max_episode_steps", 0, "Truncate after; 0: never.", "", 0, 10**9),
)


@dataclass(frozen=True, slots=True)
class EpisodeSettings:
    """Values of ``PARAMETERS``."""

    robot: str
    overlay: str
    step_reward: float
    success_reward: float
    max_episode_steps: int


class EpisodeNode(Node):
    """Shell around ``EpisodeLabels``: topics, services, diagnostics.

    Raises:
        QamError: a parameter is wrong.
    """

    def __init__(self) -> None:
        super().__init__("episode")
        settings = read_parameters(self, PARAMETERS, EpisodeSettings)
        interface = load_interface(settings.robot, settings.overlay or None)
        self.labels = EpisodeLabels(
            LabelConfig(
                period_ns=round(interface.control_period_s * 1e9),
                step_reward=settings.step_reward,
                success_reward=settings.success_reward,
                max_steps=settings.max_episode_steps,
                lockstep=bool(self.get_parameter("use_sim_time").value),
            )
        )
        wiring = self._wiring = Wiring(self)
        self._send_reward = wiring.talk(StepReward, "step_reward", qos.HISTORY)
        self._send_event = wiring.talk(EpisodeEvent, "episode_event", qos.HISTORY)
        wiring.listen(
            ActionProposal, "action_proposal", self.labels.on_proposal, qos.LABEL_IN
        )
        wiring.listen(
            GuardReport,
            "guard_report",
            lambda report: self._publish(self.labels.on_report(report)),
            qos.LABEL_IN,
        )
        self._serve("start", lambda: self.labels.start(now_ns(self)))
        self._serve("success", self.labels.success)
        self._serve("failure", self.labels.failure)
        self._serve("abort", self.labels.abort)
        wiring.add(Diagnostics(self, self._report))

    def close(self) -> None:
        """Abort the episode that runs: nobody would label its rows."""
        if self.labels.running:
            self._publish(self.labels.abort())
        self._wiring.destroy()

    def _serve(self, name: str, act: Callable[[], list[Label]]) -> None:
        def called(_: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
            try:
                self._publish(act())
            except StreamError as problem:
                response.success, response.message = False, str(problem)
                return response
            response.success, response.message = True, self._text()
            return response

        self._wiring.service(Trigger, f"~/{name}", called)

    def _publish(self, labels: list[Label]) -> None:
        for label in labels:
            if isinstance(label, StepReward):
                self._send_reward(label)
                continue
            self._send_event(label)
            kind = EpisodeKind(label.kind).name
            self.get_logger().info(f"{kind}: {self._text()}")

    def _text(self) -> str:
        labels = self.labels
        state = "runs" if labels.running else "is over"
        return f"episode {labels.episode} {state}, {labels.steps} rows labelled"

    def _report(self) -> Report:
        labels = self.labels
        values = {"episode": labels.episode, "rows labelled": labels.steps}
        return True, "running" if labels.running else "between episodes", values


def run(stop: Stop, args: list[str] | None) -> int:
    """Run the node until a signal comes; returns the exit code."""
    return spin_node(EpisodeNode, stop, args)
