# SPDX-License-Identifier: Apache-2.0
"""Policy node: sensor topics and episode events in, one ActionProposal a tick out.

Lifecycle: configure loads, verifies and warms up; activate starts the control thread; deactivate
stops it and writes the timing; cleanup lets go of everything. Only an active node proposes.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from std_srvs.srv import Trigger

from qam_ros.contract.artifact import read_artifact
from qam_ros.contract.errors import ConfigError, QamError
from qam_ros.contract.interface import load_interface
from qam_ros.contract.messages import (
    ActionProposal,
    EpisodeEvent,
    PolicyStatus,
    PolicyUpdate,
)
from qam_ros.nodes import qos
from qam_ros.nodes.newest import NewestMessages
from qam_ros.nodes.parameters import (
    COMMON,
    REALTIME,
    Parameter,
    RealTimeSettings,
    read_key,
    read_parameters,
)
from qam_ros.nodes.policy_control import PolicyControl
from qam_ros.nodes.process import REFUSED, Stop
from qam_ros.nodes.ros import (
    Diagnostics,
    Level,
    Report,
    Wiring,
    autostart,
    now_ns,
    spin_node,
)
from qam_ros.nodes.sensors import observed_codecs
from qam_ros.runtime.backends import Machine, open_sampler
from qam_ros.runtime.planner import ThreadPlanner
from qam_ros.runtime.policy import Candidate, PolicyCore
from qam_ros.runtime.realtime import enter, enter_others
from qam_ros.runtime.sampler import OnnxSampler, Sampler, verify
from qam_ros.runtime.update_parts import Offer
from qam_ros.runtime.updates import PolicyUpdates

Offers = queue.Queue[Offer | None]
WAITING: Final = 4
"""Whole updates that wait to be judged; each may take megabytes, and the learner offers again."""


@dataclass(frozen=True)
class PolicySettings(RealTimeSettings):
    """Parameters of the policy node; see ``TABLE``."""

    robot: str
    overlay: str
    run_dir: str
    autostart: bool
    artifact: str
    seed: int
    replan_every: int
    align_chunks: bool
    sample_ahead: bool
    phase_offset_s: float
    swap_budget: float
    hmac_key: str
    threads: int
    backend: str
    engine_cache: str
    replay: bool


TABLE: Final = (
    *COMMON,
    *REALTIME,
    Parameter(
        "artifact", "", "Policy artifact: a directory or zip file.", required=True
    ),
    Parameter("seed", 0, "Seed of the noise.", low=0, high=2**31),
    Parameter(
        "replan_every",
        0,
        "Actions used of each chunk (receding horizon); 0: all (open loop).",
        low=0,
        high=1000,
    ),
    Parameter(
        "align_chunks",
        default=True,
        description="In real time, execute each action at the time it was planned for.",
    ),
    Parameter(
        "sample_ahead",
        default=False,
        description="In real time, sample on a thread of its own while the last chunk is executed.",
    ),
    Parameter(
        "phase_offset_s",
        0.004,
        "From an observation's stamp to the tick, in real time; at most a fifth of the period.",
        "s",
        0.0,
        1.0,
    ),
    Parameter(
        "swap_budget",
        0.3,
        "Largest mean action change on the probes that an update may bring.",
        "normalised action",
        0.0,
        2.0,
    ),
    Parameter("hmac_key", "", "File with the key that updates must be signed with."),
    Parameter(
        "threads", 1, "Threads inside an operator of the network.", low=1, high=64
    ),
    Parameter(
        "backend",
        "onnx",
        "What runs the network: onnx, onnx-int8, onnx-cuda, or tensorrt after qam compile.",
    ),
    Parameter("engine_cache", "", "Folder of engines, as of qam compile --cache."),
    Parameter("replay", default=True, description="Replay a captured CUDA graph."),
)


class PolicyNode(LifecycleNode):
    """Runs the policy of one robot."""

    def __init__(self) -> None:
        super().__init__("policy")
        self.exit_code: int | None = None
        self._settings = read_parameters(self, TABLE, PolicySettings)
        self._realtime = self._settings.realtime()
        if self._settings.sample_ahead and not self._settings.align_chunks:
            raise ConfigError(
                "node policy: sample_ahead needs align_chunks, since a chunk made ahead begins in the past"
            )
        self._lockstep = bool(self.get_parameter("use_sim_time").value)
        self._wiring = Wiring(self, warn=not self._lockstep)
        self._offers: Offers = queue.Queue(maxsize=WAITING)
        self._worker: threading.Thread | None = None
        self._control: PolicyControl | None = None
        self._sensors: NewestMessages | None = None
        self._planner: ThreadPlanner | None = None
        self._offering = threading.Lock()
        self._sampler: Sampler | None = None
        self._problem = ""
        if self._settings.autostart and not autostart(self):
            self.exit_code = REFUSED

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load, verify and warm up; then listen. Inactive follows."""
        try:
            core = self._load()
        except QamError as problem:
            self.get_logger().error(str(problem))
            self.close()
            return TransitionCallbackReturn.FAILURE
        self._connect(core)
        self._offers = queue.Queue(maxsize=WAITING)
        self._worker = threading.Thread(
            target=self._judge, args=(self._offers,), name="updates", daemon=True
        )
        self._worker.start()
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Start proposing. Active follows."""
        assert self._control is not None
        if not self._lockstep:
            worker = self._worker and self._worker.native_id
            enter_others(self._realtime, ordinary=(worker,) if worker else ())
        self._control.start()
        self._publish_status(self._updates.status)
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop proposing and write the timing. Inactive follows."""
        self._stop_control()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Let go of artifact, topics and threads. Unconfigured follows."""
        self.close()
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop whatever runs. Finalized follows."""
        self.close()
        return super().on_shutdown(state)

    def close(self) -> None:
        """Stop the threads, write the timing, leave all topics."""
        self._stop_control()
        if self._worker is not None:
            with contextlib.suppress(queue.Empty):  # what waits is not judged any more
                while True:
                    self._offers.get_nowait()
            self._offers.put_nowait(None)
            self._worker.join(timeout=0.5)
            self._worker = None
        if self._planner is not None:
            self._planner.close()
            self._planner = None
        if self._sampler is not None:
            self._sampler.close()
            self._sampler = None
        self._wiring.destroy()
        self._control = self._sensors = None

    def _stop_control(self) -> None:
        if self._control is None or not self._control.stop():
            return
        if self._settings.run_dir:
            self._control.timing.write(Path(self._settings.run_dir))

    def _load(self) -> PolicyCore:
        settings = self._settings
        artifact = read_artifact(settings.artifact)
        interface = artifact.interface
        if settings.robot:
            interface = load_interface(settings.robot, settings.overlay or None)
        sampler = open_sampler(
            artifact,
            settings.backend,
            threads=settings.threads,
            machine=Machine.of(settings.engine_cache),
            replay=settings.replay,
        )
        self._sampler = sampler
        error = verify(sampler, artifact)
        if settings.sample_ahead and not self._lockstep:
            below = self._realtime.below()
            self._planner = ThreadPlanner(sampler, lambda: enter(below))
        core = PolicyCore(
            artifact,
            sampler,
            settings.seed,
            interface=interface,
            lockstep=self._lockstep,
            replan_every=settings.replan_every or None,
            align=settings.align_chunks and not self._lockstep,
            planner=self._planner,
        )
        self._updates = PolicyUpdates(
            artifact,
            OnnxSampler(artifact),
            robot=interface.robot,
            budget=settings.swap_budget,
            key=read_key(settings.hmac_key),
        )
        self.get_logger().info(
            f"policy version {core.version} of run {artifact.manifest.run_id}, golden chunks within "
            f"{error:.1e} on {sampler.backend}, seed {settings.seed}, session {core.session.hex()}"
        )
        return core

    def _connect(self, core: PolicyCore) -> None:
        wiring = self._wiring
        self._send_status = wiring.talk(PolicyStatus, "policy_status", qos.STATUS)
        control = self._control = PolicyControl(
            core,
            publish=wiring.talk(ActionProposal, "action_proposal", qos.HISTORY),
            swapped=lambda swap: self._publish_status(self._updates.swapped(swap)),
            bad_chunk=self._roll_back,
            clock_ns=lambda: now_ns(self),
            lockstep=self._lockstep,
            phase_offset_ns=round(self._settings.phase_offset_s * 1e9),
            realtime=self._realtime,
            warn=self.get_logger().warning,
            failed=self._on_failure,
            sense=self._take_sensors,
        )
        # Events first: of several messages that wait, the executor takes those listed first.
        wiring.listen(EpisodeEvent, "episode_event", control.on_event, qos.EVENT_IN)
        codecs = observed_codecs(core.interface).values()
        if self._lockstep:
            for codec in codecs:
                wiring.read(codec, control.on_observation, qos.LOCKSTEP_IN)
        else:
            self._sensors = NewestMessages(self, codecs, control.on_observation)
            wiring.add(self._sensors)
        wiring.listen(PolicyUpdate, "policy_update", self._on_update, qos.UPDATE)
        wiring.service(Trigger, "~/rollback", self._on_rollback)
        wiring.add(Diagnostics(self, self._diagnose))

    def _take_sensors(self) -> None:
        """Control thread, in real time."""
        if self._sensors is not None:
            self._sensors.take()

    def _on_failure(self, problem: str) -> None:
        """Control thread, at its end: so does the process, for whoever restarts it."""
        self.get_logger().fatal(f"{problem}; the process ends")
        self.exit_code = 1

    def _on_update(self, message: PolicyUpdate) -> None:
        """Executor: never waits for the worker, since events wait here, too."""
        result = self._updates.receive(message)
        if isinstance(result, PolicyStatus):
            self._publish_status(result)
        elif result is not None:
            try:
                self._offers.put_nowait(result)
            except queue.Full:
                self._updates.put_off(result)

    def _judge(self, offers: Offers) -> None:
        """Worker thread: whatever takes longer than a tick allows."""
        while (offer := offers.get()) is not None:
            try:
                self._settle(self._updates.judge(offer))
            except Exception as problem:  # noqa: BLE001 - the next update needs this thread
                version = offer.header.version
                self._problem = f"update {version} is stuck: {problem!r}"
                self.get_logger().error(self._problem)

    def _settle(self, result: Candidate | PolicyStatus) -> None:
        control = self._control
        if isinstance(result, PolicyStatus):
            self.get_logger().warning(f"update refused, {self._updates.last_refusal}")
            self._publish_status(result)
        elif control is not None:
            with self._offering:  # a rollback may have come between verdict and offer
                if self._updates.stands(result):
                    control.offer(result)

    def _on_rollback(
        self, _: Trigger.Request, response: Trigger.Response
    ) -> Trigger.Response:
        response.success, response.message = self._roll_back()
        return response

    def _roll_back(self) -> tuple[bool, str]:
        with self._offering:
            control = self._control
            candidate = self._updates.rollback() if control is not None else None
            if candidate is None or control is None:
                return False, "no earlier version is kept"
            # A version that never ran is refused: no swap will tell. Before the offer, or the
            # status after the swap could be followed by this older one.
            self._publish_status(self._updates.status)
            control.offer(candidate)
        return True, f"version {candidate.version} runs from the next chunk on"

    def _publish_status(self, status: PolicyStatus) -> None:
        self._send_status(replace(status, stamp_ns=now_ns(self)))

    def _diagnose(self) -> Report:
        control, updates = self._control, self._updates
        assert control is not None
        core = control.core
        values: dict[str, object] = {
            "version": core.version,
            "backend": self._sampler.backend if self._sampler else "",
            "swaps": updates.swaps,
            "refused": updates.refused,
            "ignored, of other runs": updates.ignored,
            "put off, busy with others": updates.put_off_count,
            "last refusal": updates.last_refusal,
            "last verdict": updates.last_verdict,
            "chunks not finite": core.bad_chunks,
            "chunks too old": core.old_chunks,
            "actions skipped": core.skipped_actions,
            "longest collection of garbage [ms]": control.longest_pause_ns * 1e-6,
            "control thread": control.scheduling,
            "not granted": "; ".join(control.problems),
            "malformed messages": self._wiring.malformed
            + (0 if self._sensors is None else self._sensors.malformed)
            + sum(core.assembler.rejected.values()),
            **control.timing.summary(),
        }
        if control.failure:
            return Level.ERROR, control.failure, values
        if self._problem:
            return False, self._problem, values
        if core.gives_bad_chunks:
            return False, "the policy gives chunks that are not finite", values
        if control.problems:
            return False, control.problems[0], values
        return True, "proposing" if control.running else "inactive", values


def run(stop: Stop, args: list[str] | None) -> int:
    """Run the node until a signal comes."""
    return spin_node(PolicyNode, stop, args)
