# SPDX-License-Identifier: Apache-2.0
"""Learner node: transitions in, acknowledgements, credit and policy updates out.

In: transition_batch, policy_status. Out: transition_ack, learner_status (10 Hz), policy_update.
The executor moves messages and commits rows; training has a thread of its own, so a batch is
acknowledged and the heartbeat goes on while an update runs. It may die and come back at any time:
everything it continues from is in its run directory.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from rclpy.clock import Clock, ClockType  # type: ignore[attr-defined]
from rclpy.node import Node

from qam_ros.contract.artifact import Artifact, read_artifact
from qam_ros.contract.dataset import read_dataset
from qam_ros.contract.errors import QamError
from qam_ros.contract.interface import check_same_semantics, load_interface
from qam_ros.contract.messages import (
    LearnerStatus,
    PolicyStatus,
    PolicyUpdate,
    TransitionAck,
    TransitionBatch,
)
from qam_ros.nodes import qos
from qam_ros.nodes.parameters import COMMON, Parameter, read_key, read_parameters
from qam_ros.nodes.process import Stop
from qam_ros.nodes.ros import Diagnostics, Report, Wiring, now_ns, spin_node
from qam_train.config import load_config
from qam_train.data.dataset import FlatDataset
from qam_train.export import find_checkpoint
from qam_train.learner import LearnerCore
from qam_train.learner_config import LearnerConfig
from qam_train.restore import restore_trained
from qam_train.versions import run_identity

HEARTBEAT_S: Final = 0.1
IDLE_S: Final = 0.005  # rows come in batches every 50 ms, so this costs no speed
STOP_TIMEOUT_S: Final = 2.0

PARAMETERS: Final = (
    *(row for row in COMMON if row.name in ("robot", "overlay")),
    Parameter(
        "run_dir", "", "Folder of the run; continued if it has one.", required=True
    ),
    Parameter("artifact", "", "Policy the robot starts with.", required=True),
    Parameter(
        "checkpoint", "", "Checkpoint or run of offline training.", required=True
    ),
    Parameter("dataset", "", "Dataset of offline training.", required=True),
    Parameter("config", "", "YAML with the learner's settings; empty: defaults."),
    Parameter("hmac_key", "", "File with the key that updates are signed with."),
)


@dataclass(frozen=True, slots=True)
class LearnerSettings:
    """Values of ``PARAMETERS``."""

    robot: str
    overlay: str
    run_dir: str
    artifact: str
    checkpoint: str
    dataset: str
    config: str
    hmac_key: str


class LearnerNode(Node):
    """Shell around ``LearnerCore``: topics, heartbeat, training thread, diagnostics.

    Raises:
        QamError: a parameter is wrong, or the files do not fit together.
    """

    def __init__(self) -> None:
        super().__init__("learner")
        self.exit_code: int | None = None
        self._core = make_core(read_parameters(self, PARAMETERS, LearnerSettings))
        self._refused = 0
        self._problem = ""
        self._wiring = Wiring(self)
        listen, talk = self._wiring.listen, self._wiring.talk
        self._send_ack = talk(TransitionAck, "transition_ack", qos.ACK)
        self._send_status = talk(LearnerStatus, "learner_status", qos.STATUS)
        self._send_update = talk(PolicyUpdate, "policy_update", qos.UPDATE)
        listen(TransitionBatch, "transition_batch", self._receive, qos.BATCH)
        listen(PolicyStatus, "policy_status", self._core.heard, qos.STATUS)
        # The heartbeat is the credit of a simulation, so it cannot run on simulated time.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(HEARTBEAT_S, self._beat, clock=steady)
        self._wiring.add(Diagnostics(self, self._report))
        self._stopping = threading.Event()
        self._thread = threading.Thread(
            target=self._train, name="training", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Finish the update that runs, checkpoint, close the files."""
        self._stopping.set()
        self._thread.join(STOP_TIMEOUT_S)
        self._wiring.destroy()
        if (
            self._thread.is_alive()
        ):  # one update takes longer; the last checkpoint stands
            self.get_logger().warning("stopped inside an update, without a checkpoint")
            return
        self._core.close(save=self.exit_code is None)

    def _receive(self, batch: TransitionBatch) -> None:
        try:
            ack = self._core.receive(batch)
        except QamError as problem:
            self._refused += 1
            self._problem = str(problem)
            self.get_logger().error(self._problem, throttle_duration_sec=5.0)
            return
        self._send_ack(ack)

    def _beat(self) -> None:
        for part in self._core.outgoing():
            self._send_update(part)
        self._send_status(self._core.status(now_ns(self)))

    def _train(self) -> None:
        """Body of the training thread."""
        try:
            while not self._stopping.is_set():
                if not self._core.work():
                    self._stopping.wait(IDLE_S)
        except Exception as problem:
            # Whatever it is, a learner that does not train must not look alive.
            self._problem = f"training ended: {problem}"
            self.get_logger().fatal(self._problem)
            self.exit_code = 1
            if not isinstance(problem, QamError):
                raise

    def _report(self) -> Report:
        core = self._core
        status, counters = core.status(0), core.trainer.stream.counters
        values = {
            "updates": status.updates,
            "updates_per_s": status.updates_per_s,
            "rows": status.rows,
            "allowed_steps": status.allowed_steps,
            "version": status.version,
            "accepted": len(core.offers.folder.accepted),
            "withdrawn": len(core.offers.folder.withdrawn),
            "outstanding": core.offers.outstanding or 0,
            "finished": status.finished,
            "duplicates": core.downlink.duplicates,
            "batches_with_gap": core.downlink.gaps,
            "batches_refused": self._refused,
            "rows_unusable": core.downlink.unusable,
            "statuses_of_other_robots": core.foreign_statuses,
            "masked": counters.masked,
            "row_gaps": counters.gaps,
        }
        good = not self._problem
        summary = "finished" if status.finished else "training"
        return good, summary if good else self._problem, values


def make_core(settings: LearnerSettings) -> LearnerCore:
    """Learner from the files that the parameters name.

    Raises:
        QamError: a file is missing or does not fit the others.
    """
    config = load_config(
        LearnerConfig, Path(settings.config) if settings.config else None
    )
    torch.set_num_threads(config.threads)
    torch.set_float32_matmul_precision(config.matmul_precision)
    artifact = read_artifact(settings.artifact)
    _check_robot(settings, artifact)
    agent = restore_trained(find_checkpoint(Path(settings.checkpoint)))
    dataset = FlatDataset.from_contract(
        read_dataset(settings.dataset, artifact.interface)
    )
    run_dir = Path(settings.run_dir)
    robot = artifact.interface.robot
    return LearnerCore(
        config,
        agent,
        artifact,
        dataset,
        run_dir,
        robot=robot,
        run_id=run_identity(run_dir),
        key=read_key(settings.hmac_key),
    )


def _check_robot(settings: LearnerSettings, artifact: Artifact) -> None:
    if settings.robot:
        deployed = load_interface(settings.robot, settings.overlay)
        check_same_semantics(
            artifact.interface, deployed, f"artifact {settings.artifact}"
        )


def run(stop: Stop, args: list[str] | None) -> int:
    """Run the node until a signal comes; returns the exit code."""
    logging.basicConfig(
        level=logging.INFO, format="%(levelname)s %(name)s: %(message)s"
    )
    return spin_node(LearnerNode, stop, args)
