# SPDX-License-Identifier: Apache-2.0
"""Guard node: owns the command topics; whatever is proposed, what goes out is inside the limits.

Lifecycle: configure reads the robot and listens; activate starts the control thread; deactivate
brings a moving base to rest and falls silent; cleanup lets go of everything. Only an active guard
commands, and only with ``dry_run`` false.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from std_msgs.msg import Bool
from std_srvs.srv import Trigger

from qam_ros.contract.errors import QamError
from qam_ros.contract.interface import load_interface
from qam_ros.contract.messages import (
    ActionProposal,
    EpisodeEvent,
    GuardReport,
    HumanAction,
)
from qam_ros.contract.transition import GuardMode
from qam_ros.nodes import qos
from qam_ros.nodes.guard_control import GuardControl
from qam_ros.nodes.parameters import (
    COMMON,
    REALTIME,
    Parameter,
    RealTimeSettings,
    read_parameters,
)
from qam_ros.nodes.process import REFUSED, Stop
from qam_ros.nodes.ros import Diagnostics, Report, Wiring, autostart, now_ns, spin_node
from qam_ros.nodes.sensors import command_codecs, measured_codecs
from qam_ros.runtime.guard_config import guard_config
from qam_ros.runtime.guard_core import GuardCore
from qam_ros.runtime.guard_log import GuardLog
from qam_ros.runtime.guard_types import GuardOutput
from qam_ros.runtime.realtime import enter_others

LOG_FILE: Final = "guard.log"


@dataclass(frozen=True)
class GuardSettings(RealTimeSettings):
    """Parameters of the guard node; see ``TABLE``."""

    robot: str
    overlay: str
    run_dir: str
    autostart: bool
    dry_run: bool
    ramp_s: float
    hold_ticks: int
    human_timeout_s: float


TABLE: Final = (
    *COMMON,
    *REALTIME,
    Parameter(
        "dry_run", default=True, description="Compute and report, command nothing."
    ),
    Parameter(
        "ramp_s", 0.5, "Time in which the limits open after a start.", "s", 0.0, 10.0
    ),
    Parameter(
        "hold_ticks", 2, "Bad ticks bridged by holding; the next stops.", low=0, high=10
    ),
    Parameter("human_timeout_s", 0.5, "Oldest human action executed.", "s", 0.01, 5.0),
)


class GuardNode(LifecycleNode):
    """Stands between everything that proposes and one robot."""

    def __init__(self) -> None:
        super().__init__("guard")
        self.exit_code: int | None = None
        self._settings = read_parameters(self, TABLE, GuardSettings)
        self._realtime = self._settings.realtime()
        self._lockstep = bool(self.get_parameter("use_sim_time").value)
        self._wiring = Wiring(self, warn=not self._lockstep, keep_alive=True)
        self._control: GuardControl | None = None
        self._log: GuardLog | None = None
        if self._settings.autostart and not autostart(self):
            self.exit_code = REFUSED

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Read the robot's interface and listen. Inactive follows."""
        try:
            core = self._load()
        except QamError as problem:
            self.get_logger().error(str(problem))
            return TransitionCallbackReturn.FAILURE
        self._connect(core)
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Start commanding. Active follows."""
        assert self._control is not None
        if not self._lockstep:
            enter_others(self._realtime)
        self._control.start()
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Bring velocities to zero, then silence; write the timing. Inactive follows."""
        self._stop_control()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Let go of topics and log. Unconfigured follows."""
        self.close()
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop whatever runs. Finalized follows."""
        self.close()
        return super().on_shutdown(state)

    def close(self) -> None:
        """Stop the control thread, close the log, leave all topics."""
        self._stop_control()
        if self._log is not None:
            self._log.close()
            self._log = None
        self._wiring.destroy()
        self._control = None

    def _stop_control(self) -> None:
        if self._control is None or not self._control.stop():
            return
        if self._settings.run_dir:
            self._control.timing.write(Path(self._settings.run_dir))

    def _load(self) -> GuardCore:
        settings = self._settings
        interface = load_interface(settings.robot, settings.overlay or None)
        config = guard_config(
            interface,
            hold_ticks=settings.hold_ticks,
            ramp_s=settings.ramp_s,
            human_timeout_s=settings.human_timeout_s,
            dry_run=settings.dry_run,
            watch_odometry=not self._lockstep,
        )
        core = GuardCore(config, lockstep=self._lockstep)
        if settings.run_dir:
            self._log = GuardLog(Path(settings.run_dir) / LOG_FILE)
        self.get_logger().info(
            f"robot {interface.robot}, {'dry run' if settings.dry_run else 'commanding'}, "
            f"session {core.session.hex()}"
        )
        return core

    def _connect(self, core: GuardCore) -> None:
        wiring, interface = self._wiring, core.config.interface
        self._codecs = command_codecs(interface)
        self._commands = {
            topic: wiring.publisher(codec.message_type, topic, qos.COMMAND)
            for topic, codec in self._codecs.items()
            if not core.config.dry_run
        }
        control = self._control = GuardControl(
            core,
            send=self._send,
            report=wiring.talk(GuardReport, "guard_report", qos.HISTORY),
            clock_ns=lambda: now_ns(self),
            log=self._log,
            realtime=self._realtime,
            warn=self.get_logger().warning,
            gave_up=self._give_up,
        )
        sensors = qos.LOCKSTEP_IN if self._lockstep else qos.SENSOR_IN
        # What stops the robot first: of several messages that wait, these are taken first.
        # A reader of kept messages hears no publisher that keeps none, hence a second one.
        for topic, profile in (
            ("estop", qos.STOP_IN),
            ("estop_state", qos.STOP_IN),
            ("estop_state", qos.STATE_IN),
        ):
            wiring.subscription(Bool, topic, _presses(control, topic), profile)
        wiring.listen(EpisodeEvent, "episode_event", control.on_event, qos.EVENT_IN)
        for topic, codec in measured_codecs(interface).items():
            if topic in core.measured_topics:
                wiring.read(codec, control.on_measured, sensors)
        wiring.listen(HumanAction, "human_action", control.on_human, qos.STOP_IN)
        wiring.listen(
            ActionProposal, "action_proposal", control.on_proposal, qos.TICK_IN
        )
        if self._lockstep:
            wiring.on_clock(control.on_clock)
        wiring.service(Trigger, "~/reset", self._on_reset)
        wiring.add(Diagnostics(self, self._diagnose))

    def _give_up(self) -> None:
        """Nothing is commanded any more; a guard that cannot work must not look alive."""
        self.get_logger().fatal("the control thread gave up; the guard ends")
        self.exit_code = 1

    def _send(self, output: GuardOutput) -> None:
        """Publish the commands of a tick."""
        for topic, fields in output.commands.items():
            message = self._codecs[topic].encode(output.stamp_ns, fields)
            self._commands[topic].publish(message)

    def _on_reset(
        self, _: Trigger.Request, response: Trigger.Response
    ) -> Trigger.Response:
        assert self._control is not None
        response.success, response.message = self._control.reset()
        self.get_logger().info(f"reset: {response.message}")
        return response

    def _diagnose(self) -> Report:
        assert self._control is not None
        control = self._control
        state = control.core.state
        values: dict[str, object] = {
            "mode": GuardMode(state.mode).name,
            "episode": state.episode,
            "rows": state.seq,
            "driven by": control.driver or "policy",
            "malformed messages": self._wiring.malformed,
            "errors in callbacks": self._wiring.errors,
            "ticks that failed": control.failures,
            "proposals of a policy that was replaced": control.retired,
            "log records dropped": 0 if self._log is None else self._log.dropped,
            "control thread": control.scheduling,
            "not granted": "; ".join(control.problems),
            **control.timing.summary(),
        }
        log_problem = "" if self._log is None else self._log.problem
        if problem := control.problem or self._wiring.problem or log_problem:
            return False, problem, values
        stopped = state.latch is not None or state.mode == GuardMode.HOLD
        if control.problems and not stopped:
            return False, control.problems[0], values
        return not stopped, control.reason if control.running else "inactive", values


def _presses(control: GuardControl, button: str) -> Callable[[Bool], None]:
    """Callback of a topic that presses and releases the emergency stop."""
    return lambda message: control.on_estop(button, pressed=message.data)


def run(stop: Stop, args: list[str] | None) -> int:
    """Run the node until a signal comes."""
    return spin_node(GuardNode, stop, args)
