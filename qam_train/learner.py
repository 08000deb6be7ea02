# SPDX-License-Identifier: Apache-2.0
"""The learner without ROS: durable intake of the stream, online training, versions for the robot.

Two threads may share it. The intake side (receive, heard, outgoing, status) only moves data and never
waits for training. The training side (work, checkpoint) owns agent and replay. A batch is
acknowledged once its rows are in the replay log; after a kill the replay is rebuilt from that log and
training goes on from the last checkpoint, so no row is lost and none counts twice.

The robot is never worse off: every version passes the gate here before it is offered, and the
robot's own gate has the last word.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from qam_ros.contract.artifact import Artifact, Golden
from qam_ros.contract.errors import ArtifactError, ConfigError
from qam_ros.contract.messages import (
    LearnerStatus,
    PolicyStatus,
    PolicyUpdate,
    TransitionAck,
    TransitionBatch,
)
from qam_ros.runtime import gate
from qam_ros.runtime.sampler import OnnxSampler
from qam_ros.runtime.store import TransitionStore
from qam_ros.runtime.stream import Downlink
from qam_train.checkpoint import (
    checkpoint_path,
    latest_checkpoint,
    read_checkpoint,
    remove_old,
    write_checkpoint,
)
from qam_train.config import save_config
from qam_train.data.dataset import FlatDataset
from qam_train.data.stream_replay import Rows
from qam_train.deployed import like_artifact, policy_chunks, policy_weights
from qam_train.finite import check_parameters
from qam_train.learner_config import LearnerConfig
from qam_train.metrics import MetricsWriter
from qam_train.online_trainer import OnlineTrainer
from qam_train.restore import Agent
from qam_train.versions import Offers, VersionFolder, VersionRecord

logger = logging.getLogger(__name__)

REPLAY_LOG = "replay.sqlite"
_LOAD_ROWS = 4096
_RATE_UPDATES = 50


class LearnerCore:
    """Learner of one robot.

    Args:
        config: settings.
        agent: the agent after offline training; a checkpoint in run_dir goes before it.
        artifact: the policy that the robot started with; gives probes, interface and graph.
        offline: the dataset of the offline training.
        run_dir: folder of replay log, checkpoints, versions and metrics; continued if it has any.
        robot: robot name in batches and acknowledgements.
        run_id: training run; unique, also among runs in folders of the same name.
        key: shared key that updates are signed with; None signs nothing.
        autosave: write checkpoints as the settings say; False: only when checkpoint is called.
        clock_s: monotonic time [s].

    Raises:
        QamError: the run in run_dir does not fit these settings, or its files are damaged.
    """

    def __init__(
        self,
        config: LearnerConfig,
        agent: Agent,
        artifact: Artifact,
        offline: FlatDataset,
        run_dir: Path,
        *,
        robot: str,
        run_id: str,
        key: bytes | None = None,
        autosave: bool = True,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.run_dir = run_dir
        self.run_id = run_id
        self.robot = robot
        self.foreign_statuses = 0
        check_deployed(agent, artifact)
        self.trainer = OnlineTrainer(config, agent, offline)
        self._artifact = artifact
        self._sampler = OnnxSampler(artifact)
        self._autosave = autosave
        self._clock_s = clock_s
        newest = latest_checkpoint(run_dir / "checkpoints")
        if newest is not None:
            self.trainer.restore(read_checkpoint(newest))
            logger.info("continuing from %s", newest)
        self.store = TransitionStore(run_dir / REPLAY_LOG, artifact.interface)
        self.downlink = Downlink(self.store, robot)
        self._arrived: deque[Rows] = deque()
        self._load_replay()
        self.rows = self.store.last_position
        folder = VersionFolder(run_dir / "versions", artifact.manifest.policy_version)
        self.offers = Offers(folder, run_id, key, config.reoffer_s)
        self._versioned_at = self._resume_offers()
        self._presumed = 0
        self._quiet_since_s = clock_s()
        self.last_metrics: dict[str, Tensor] = {}
        self._finished_s: deque[float] = deque(maxlen=_RATE_UPDATES)
        save_config(config, run_dir / "learner.yaml")
        self._metrics = MetricsWriter(
            run_dir, None if newest is None else self.trainer.updates
        )

    # Intake: one thread; moves data only.

    def receive(self, batch: TransitionBatch) -> TransitionAck:
        """Commit a batch durably; the acknowledgement may be sent at once.

        Raises:
            StreamError, TransitionError: the batch is refused; nothing of it was taken.
        """
        receipt = self.downlink.receive(batch)
        self._arrive(receipt.rows)
        return receipt.ack

    def take(self, rows: Rows) -> None:
        """Commit rows that come without the stream's protocol, from the same process."""
        self._arrive(self.store.append(rows))

    def heard(self, status: PolicyStatus) -> None:
        """Take in what the robot runs and its last verdict; another robot's is only counted."""
        if status.robot != self.robot:
            self.foreign_statuses += 1
            return
        self.offers.heard(status)

    def outgoing(self) -> list[PolicyUpdate]:
        """Parts of a policy update to send now."""
        return self.offers.due(self._clock_s())

    def status(self, stamp_ns: int) -> LearnerStatus:
        """Heartbeat: progress, and the credit of a simulated plant.

        Args:
            stamp_ns: present time [ns].
        """
        self._watch_for_stall()
        updates, config = self.trainer.updates, self.config
        return LearnerStatus(
            stamp_ns=stamp_ns,
            run_id=self.run_id,
            updates=updates,
            rows=self.rows,
            allowed_steps=config.allowed_steps(updates, self._unplayed()),
            version=self.offers.folder.newest,
            finished=self.finished,
            updates_per_s=self._updates_per_s(),
        )

    @property
    def finished(self) -> bool:
        """All updates are done and the last version has its verdict."""
        return (
            self.trainer.complete
            and self._versioned_at >= self.trainer.updates
            and self.offers.outstanding is None
        )

    # Training: one thread, the owner of agent and replay.

    def work(self) -> bool:
        """Take in rows that arrived and do one update if one is due.

        Returns:
            Whether an update was done; if not, there is nothing to do until rows arrive.

        Raises:
            NonFiniteError: training broke; the last checkpoint is good.
        """
        while self._arrived:
            self.trainer.extend(self._arrived.popleft())
        updated = self.trainer.due > 0
        if updated:
            self.last_metrics = metrics = self.trainer.update()
            self._finished_s.append(self._clock_s())
            self._after_update(metrics)
        elif self.trainer.complete and self._versioned_at < self.trainer.updates:
            self.make_version()
            if self._autosave:
                self.checkpoint()
        return updated

    def make_version(self) -> VersionRecord:
        """Write the present policy as a version; offer it if it passes the gate here."""
        folder = self.offers.folder
        probes = self._artifact.golden
        agent = like_artifact(self.trainer.agent, self._artifact.manifest.graph)
        weights = policy_weights(agent)
        chunks = policy_chunks(agent, probes.observations, probes.noise)
        record = VersionRecord(
            folder.newest + 1, self.trainer.updates, self.trainer.rows
        )
        self._versioned_at = record.updates
        verdict = gate.check(
            weights,
            self._reference(),
            self._run,
            Golden(probes.observations, probes.noise, chunks),
            self._artifact.manifest.tolerance,
            self.config.max_probe_change,
        )
        if not verdict.accepted:
            record = replace(
                record, accepted=False, reason=f"by the learner: {verdict.reason}"
            )
            logger.warning(
                "version %d is not offered: %s", record.version, verdict.reason
            )
        folder.add(record, weights, chunks)
        if verdict.accepted:
            self.offers.add(record.version)
        return record

    def checkpoint(self, extra: Mapping[str, Any] | None = None) -> None:
        """Write a checkpoint that a killed learner continues from.

        Args:
            extra: more metadata, JSON values.

        Raises:
            NonFiniteError: a parameter is not finite; the last checkpoint stays.
        """
        check_parameters(self.trainer.agent, "online", self.trainer.updates)
        tensors, metadata = self.trainer.checkpoint()
        directory = self.run_dir / "checkpoints"
        path = checkpoint_path(directory, self.trainer.updates)
        write_checkpoint(
            path, tensors, {**metadata, **(extra or {}), "run_id": self.run_id}
        )
        remove_old(directory, self.config.keep_checkpoints)

    def close(self, *, save: bool = True) -> None:
        """Close the files; save writes a checkpoint first (not after training broke)."""
        try:
            if save:
                self.checkpoint()
        finally:
            self._metrics.close()
            self.store.close()

    def _after_update(self, metrics: Mapping[str, Tensor]) -> None:
        config, updates = self.config, self.trainer.updates
        if updates % config.log_every == 0 or self.trainer.complete:
            self._log(metrics)
        if updates % config.offer_every == 0:
            self.make_version()
        if self._autosave and updates % config.checkpoint_every == 0:
            self.checkpoint()

    def _log(self, metrics: Mapping[str, Tensor]) -> None:
        trainer, counters = self.trainer, self.trainer.stream.counters
        row: dict[str, float | str] = {
            "stage": "online",
            "lr": self.config.learning_rate(trainer.updates - 1),
            "online/rows": float(trainer.rows),
            "online/masked": float(counters.masked),
            "online/gaps": float(counters.gaps),
            "online/updates_per_s": self._updates_per_s(),
            **{name: float(value) for name, value in metrics.items()},
        }
        self._metrics.write(trainer.updates, row)

    def _load_replay(self) -> None:
        """Take the rows of the log in again, in the order in which they came."""
        position = 0
        while True:
            first, rows = self.store.read(position, _LOAD_ROWS)
            if not rows.size:
                return
            self.trainer.extend(rows)
            position = first + rows.size - 1

    def _unplayed(self) -> int:
        """Steps that left no row: seen as jumps in an episode, or presumed after a stall."""
        return max(self.trainer.stream.counters.unplayed, self._presumed)

    def _watch_for_stall(self) -> None:
        """Grant another window when rows stay away although nothing here holds them up.

        Steps without a row (the policy process is down, the guard has stopped) use the window up,
        and a plant without credit shows the policy no observation to come back with. The same
        holds for the last verdict: a robot that stands still cannot swap.
        """
        now_s = self._clock_s()
        if self.rows == 0 or self.trainer.due > 0 or self.finished:
            self._quiet_since_s = now_s
        elif now_s - self._quiet_since_s > self.config.stall_s:
            self._presumed = self._unplayed() + self.config.window
            self._quiet_since_s = now_s
            logger.info("no row for %.1f s: another window", self.config.stall_s)

    def _arrive(self, rows: Rows) -> None:
        if rows.size:
            self.rows += rows.size
            self._quiet_since_s = self._clock_s()
            self._arrived.append(rows)

    def _resume_offers(self) -> int:
        """Offer the newest version again if its verdict never came; updates it was made after."""
        folder = self.offers.folder
        made = [r for r in folder.records.values() if r.updates <= self.trainer.updates]
        if not made:
            return 0
        newest = max(made, key=lambda record: record.version)
        if newest.accepted is None:
            self.offers.add(newest.version)
        return newest.updates

    def _reference(self) -> gate.Weights:
        """Weights the robot runs as far as is known here."""
        accepted = self.offers.folder.accepted
        if not accepted:
            return self._artifact.weights
        return self.offers.folder.weights(accepted[-1])[0]

    def _run(
        self,
        weights: gate.Weights,
        observations: npt.NDArray[np.float32],
        noise: npt.NDArray[np.float32],
    ) -> npt.NDArray[np.float32]:
        self._sampler.set_weights(weights)
        return self._sampler.sample_all(observations, noise)

    def _updates_per_s(self) -> float:
        times = tuple(self._finished_s)
        if len(times) < 2 or self._clock_s() - times[-1] > 1.0:
            return 0.0
        return (len(times) - 1) / max(times[-1] - times[0], 1e-9)


def check_deployed(agent: Agent, artifact: Artifact) -> None:
    """Refuse an artifact that was exported from another method or does not take the agent's weights.

    Raises:
        ConfigError: it was exported from another method, or from nets of other sizes.
    """
    manifest = artifact.manifest
    try:
        weights = policy_weights(like_artifact(agent, manifest.graph))
    except ArtifactError:
        fits = False
    else:
        ours = {name: value.shape for name, value in weights.items()}
        fits = ours == manifest.graph.weight_shapes
    fits = fits and manifest.algorithm == agent.algorithm
    if not fits:
        raise ConfigError(
            f"the artifact is of method '{manifest.algorithm}', its graph is not that of this "
            f"'{agent.algorithm}' agent; export an artifact from the same checkpoint"
        )
