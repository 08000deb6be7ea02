# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning in simulation in one process: plant, guard, policy, joiner and learner on one bus.

The same cores as in the ROS graph, delivered in order on one thread, so a run is reproducible: UTD
is exact, and a run resumed from its last checkpoint (written between episodes) equals one that was
never stopped, bit for bit on the CPU. Episodes, policy noise and guard sessions are functions of
(run id, seed, episode).
"""

from __future__ import annotations

import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qam_ros.contract.artifact import read_artifact
from qam_ros.contract.messages import (
    ActionProposal,
    EpisodeEvent,
    GuardReport,
    PolicyStatus,
    PolicyUpdate,
    StepReward,
)
from qam_ros.runtime.bus import Bus
from qam_ros.runtime.guard_config import guard_config
from qam_ros.runtime.guard_core import GuardCore
from qam_ros.runtime.joiner import Joiner
from qam_ros.runtime.policy import Candidate, PolicyCore
from qam_ros.runtime.sampler import OnnxSampler, verify
from qam_ros.runtime.update_parts import Offer
from qam_ros.runtime.updates import PolicyUpdates
from qam_train.config import save_config, to_mapping
from qam_train.data.dataset import FlatDataset
from qam_train.learner import LearnerCore
from qam_train.learner_config import LearnerConfig
from qam_train.loops.episode import Message, SimulatedRobot
from qam_train.loops.evaluator import check_world, deployment_interface
from qam_train.loops.progress import StageProgress
from qam_train.loops.resume_point import (
    ResumePoint,
    artifact_of_version,
    return_to_checkpoint,
)
from qam_train.metrics import MetricsWriter
from qam_train.restore import Agent
from sim.plant import EpisodeRecord, Plant
from sim.worlds import make_world

TOPICS = {
    ActionProposal: "action_proposal",
    GuardReport: "guard_report",
    StepReward: "step_reward",
    EpisodeEvent: "episode_event",
}
_GAP_PERIODS = 2  # between the final observation and the next episode


@dataclass(frozen=True)
class FinetuneConfig:
    """Fine-tuning in simulation.

    Args:
        world: name of the world, e.g. cube-single.
        task: 1 to 5.
        overlay: overlay of a deployment, a file or a name in config/robot; None: none.
        max_episode_steps: truncate after so many steps; 0 takes the world's own limit.
        swap_budget: largest mean action change on the probes the robot accepts.
        learner: online training; its seed is also that of episodes and policy noise.
    """

    world: str = "cube-single"
    task: int = 1
    overlay: str | None = None
    max_episode_steps: int = 0
    swap_budget: float = 0.3
    learner: LearnerConfig = field(default_factory=LearnerConfig)


class FinetuneLoop:
    """A run; see the module's text.

    Args:
        config: settings.
        agent: the agent after offline training.
        artifact_path: its policy artifact.
        offline: the dataset of the offline training.
        run_dir: directory of this run.
        run_id: name of the run; "" takes the directory's.
        resume: continue the run in run_dir.

    Raises:
        QamError: the parts do not fit together, or run_dir holds another run.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        agent: Agent,
        artifact_path: Path,
        offline: FlatDataset,
        run_dir: Path,
        *,
        run_id: str = "",
        resume: bool = False,
    ) -> None:
        self.config = config
        self.run_dir = run_dir
        self.run_id = run_id or run_dir.name
        artifact = read_artifact(artifact_path)
        self._interface = deployment_interface(artifact.interface, config.overlay)
        check_world(config.world, self._interface)
        self._world = make_world(config.world, config.task)
        self._guard_config = guard_config(self._interface)
        point = return_to_checkpoint(
            run_dir, artifact, self._world_settings(), resume=resume
        )
        self.episode = point.episode
        self.core = LearnerCore(
            config.learner,
            agent,
            artifact,
            offline,
            run_dir,
            robot=self._interface.robot,
            run_id=self.run_id,
            autosave=False,
        )
        save_config(config, run_dir / "config.yaml")
        self._saved_at = self.core.trainer.updates
        self._episodes = MetricsWriter(run_dir / "episodes", point.episode)
        self._version = point.running_version
        self._artifact = artifact_of_version(
            artifact, self.core.offers.folder, self._version
        )
        self._sampler = OnnxSampler(self._artifact)
        verify(self._sampler, self._artifact)
        self._updates = PolicyUpdates(
            self._artifact,
            OnnxSampler(self._artifact),
            robot=self._interface.robot,
            budget=config.swap_budget,
        )
        self._candidate: Candidate | None = None
        self._policy: PolicyCore | None = None
        self._now_ns = 0
        self._bus = Bus()
        self._connect()

    def run(self, *, progress: bool = True) -> None:
        """Play episodes and train until the run is complete; call once."""
        try:
            self._run(progress=progress)
        finally:
            self._episodes.close()
            self.core.close(save=False)

    def _run(self, *, progress: bool) -> None:
        trainer, learner = self.core.trainer, self.config.learner
        self._bus.publish("policy_status", self._updates.status)
        with StageProgress(
            "online", learner.total_updates, trainer.updates, enabled=progress
        ) as display:
            self._drive(display)
            while not self.core.finished:
                self._play_episode(display)
                if trainer.updates - self._saved_at >= learner.checkpoint_every:
                    self._checkpoint()
        self._checkpoint()

    def _connect(self) -> None:
        """Who listens to what; the joiner and the learner stand where the stream is in the graph."""
        joiner = Joiner(self._interface)

        def join(message: Message) -> None:
            rows = joiner.add(message, self._now_ns)
            if rows.size:
                self._bus.publish("transition", rows)

        for topic in TOPICS.values():
            self._bus.subscribe(topic, join)
        self._bus.subscribe("transition", self.core.take)
        self._bus.subscribe("policy_update", self._on_update)
        self._bus.subscribe("policy_status", self.core.heard)

    def _play_episode(self, display: StageProgress) -> None:
        """Play the next episode; ends inside it when the run is complete."""
        robot = self._make_robot(self.episode)
        limit = self.config.max_episode_steps or self._world.max_episode_steps
        length_ns = (limit + _GAP_PERIODS) * robot.plant.period_ns
        for reward in robot.play(length_ns * (self.episode + 1), self._publish):
            self._now_ns = reward.stamp_ns
            self._drive(display)
            if self.core.finished:
                return
        self._drive(display)
        record = robot.plant.last_record
        assert record is not None
        self._log_episode(record)
        self.episode += 1

    def _make_robot(self, episode: int) -> SimulatedRobot:
        """Plant, policy and guard of one episode; only weights outlive an episode."""
        seed = self.config.learner.seed
        plant = Plant(
            self._world,
            seed,
            max_episode_steps=self.config.max_episode_steps,
            first_episode=episode,
        )
        noise = np.random.SeedSequence([seed, episode, 1])
        policy = PolicyCore(
            self._artifact,
            self._sampler,
            int(noise.generate_state(1)[0]),
            interface=self._interface,
            session=self._session("policy", episode),
        )
        policy.version = self._version
        if self._candidate is not None:
            policy.offer(self._candidate)
        self._policy = policy
        guard = GuardCore(self._guard_config, session=self._session("guard", episode))
        return SimulatedRobot(plant, policy, guard)

    def _session(self, part: str, episode: int) -> bytes:
        name = f"{self.run_id}/{self.config.learner.seed}/{part}/{episode}"
        return uuid.uuid5(uuid.NAMESPACE_OID, name).bytes

    def _publish(self, message: Message) -> None:
        self._bus.publish(TOPICS[type(message)], message)

    def _drive(self, display: StageProgress) -> None:
        """Deliver messages, do the updates that are due, pass verdicts and swaps on."""
        self._bus.spin()
        while self.core.work():
            display.advance(self.core.last_metrics["loss"])
        for part in self.core.outgoing():
            self._bus.publish("policy_update", part)
        swap = None if self._policy is None else self._policy.take_swap()
        if swap is not None:
            self._version, self._candidate = swap.version, None
            self._bus.publish("policy_status", self._updates.swapped(swap))
        self._bus.spin()

    def _on_update(self, part: PolicyUpdate) -> None:
        """The robot's side of an offer."""
        found = self._updates.receive(part)
        verdict = self._updates.judge(found) if isinstance(found, Offer) else found
        if isinstance(verdict, Candidate):
            self._candidate = verdict
            if self._policy is not None:
                self._policy.offer(verdict)
        elif isinstance(verdict, PolicyStatus):
            self._bus.publish("policy_status", verdict)

    def _log_episode(self, record: EpisodeRecord) -> None:
        values = {
            "return": record.episode_return,
            "length": float(record.steps),
            "success": float(record.success),
            "version": float(self._version),
            "updates": float(self.core.trainer.updates),
        }
        self._episodes.write(record.episode + 1, values)

    def _world_settings(self) -> dict[str, Any]:
        """Settings beside the learner's."""
        settings = to_mapping(self.config)
        return {name: settings[name] for name in settings if name != "learner"}

    def _checkpoint(self) -> None:
        point = ResumePoint(
            episode=self.episode,
            running_version=self._version,
            newest_version=self.core.offers.folder.newest,
            outstanding=self.core.offers.outstanding or 0,
        )
        self.core.checkpoint(
            {"resume_point": asdict(point), "world": self._world_settings()}
        )
        self._saved_at = self.core.trainer.updates
