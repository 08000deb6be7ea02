# SPDX-License-Identifier: Apache-2.0
"""The learner node over DDS: acknowledges, trains, offers, and survives every kind of end."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

pytest.importorskip("torch", reason="needs torch: run make setup")
pytest.importorskip("rclpy", reason="needs rclpy")
pytest.importorskip("qam_msgs.msg", reason="needs qam_msgs, built by `make setup`")

import torch

from qam_ros.contract.artifact import read_artifact
from qam_ros.contract.dataset import Dataset, write_dataset
from qam_ros.contract.interface import find_robot, load_interface
from qam_ros.contract.messages import (
    LearnerStatus,
    PolicyStatus,
    PolicyUpdate,
    TransitionAck,
    TransitionBatch,
)
from qam_ros.contract.transition import transition_dtype
from qam_ros.nodes import qos
from qam_ros.nodes.convert import from_ros, ros_type, to_ros
from qam_ros.runtime.policy import Candidate, Swap
from qam_ros.runtime.sampler import OnnxSampler
from qam_ros.runtime.store import TransitionStore
from qam_ros.runtime.stream import Uplink
from qam_ros.runtime.update_parts import Offer
from qam_ros.runtime.updates import PolicyUpdates
from qam_train.agents.common import Normaliser
from qam_train.agents.qam import QAMAgent
from qam_train.checkpoint import checkpoints, read_checkpoint, write_checkpoint
from qam_train.config import AgentConfig, NetworkConfig
from qam_train.export import Provenance, export_artifact
from qam_train.restore import agent_metadata, agent_tensors

LEARNER = {
    "online_steps": 150,
    "start_rows": 0,
    "window": 20,
    "offer_every": 50,
    "checkpoint_every": 20,
    "log_every": 25,
    "reoffer_s": 0.5,
}


@pytest.fixture(scope="module")
def interface():
    return load_interface(find_robot("mobile_base"))


@pytest.fixture(scope="module")
def files(tmp_path_factory, interface):
    """Artifact, checkpoint, dataset and settings of a small agent, as node parameters."""
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    ends = (np.arange(300) % 30 == 29).astype(np.uint8)
    dataset = Dataset(
        observations=rng.uniform(0, 20, (300, 2)).astype(np.float32),
        actions=rng.uniform(-1, 1, (300, 2)).astype(np.float32),
        rewards=-np.ones(300, np.float32),
        masks=np.ones(300, np.float32),
        terminals=ends,
        valid=np.ones(300, np.uint8),
        end_observations=np.zeros((10, 2), np.float32),
        extras={},
    )
    manifest = write_dataset(folder / "data", dataset, interface, {})
    config = AgentConfig(
        flow_steps=3,
        chunk=3,
        batch_size=16,
        critics=2,
        actor=NetworkConfig((16,)),
        critic=NetworkConfig((16,)),
    )
    normaliser = Normaliser.of(torch.as_tensor(dataset.observations))
    agent = QAMAgent.init(config, 2, 2, torch.Generator().manual_seed(0), normaliser)
    provenance = Provenance("run", manifest.sha256)
    export_artifact(agent, interface, dataset, folder / "artifact", provenance)
    write_checkpoint(
        folder / "agent.safetensors", agent_tensors(agent), agent_metadata(agent)
    )
    (folder / "learner.yaml").write_text(yaml.safe_dump(LEARNER))
    names = {
        "artifact": "artifact",
        "checkpoint": "agent.safetensors",
        "dataset": "data",
    }
    parameters = {key: str(folder / name) for key, name in names.items()}
    return parameters | {"robot": "mobile_base", "config": str(folder / "learner.yaml")}


class RobotEnd:
    """Stream and policy of the robot in the test's own node: sends rows, judges updates."""

    def __init__(self, graph, interface, artifact, spool, rows):
        self.graph = graph
        self.interface = interface
        self.rows = rows
        self.store = TransitionStore(spool, interface)
        self.store.append(rows)
        self.uplink = Uplink(self.store, "mobile_base")
        self.statuses = []
        self.stamps_s = []
        self.updates = PolicyUpdates(
            artifact, OnnxSampler(artifact), robot="mobile_base", budget=10.0
        )
        node = graph.node
        self._batch_out = node.create_publisher(
            ros_type(TransitionBatch), "transition_batch", qos.BATCH
        )
        self._status_out = node.create_publisher(
            ros_type(PolicyStatus), "policy_status", qos.STATUS
        )
        for kind, topic, callback, profile in (
            (TransitionAck, "transition_ack", self._on_ack, qos.ACK),
            (LearnerStatus, "learner_status", self._on_status, qos.STATUS),
            (PolicyUpdate, "policy_update", self._on_update, qos.UPDATE),
        ):
            node.create_subscription(ros_type(kind), topic, callback, profile)
        self._status_out.publish(to_ros(self.updates.status))
        node.create_timer(0.05, self._send)

    def _send(self):
        if self._batch_out.get_subscription_count():
            for batch in self.uplink.poll(time.monotonic_ns()):
                self._batch_out.publish(to_ros(batch))

    def _on_ack(self, message):
        self.uplink.acknowledge(from_ros(message, TransitionAck), time.monotonic_ns())

    def _on_status(self, message):
        self.statuses.append(from_ros(message, LearnerStatus))
        self.stamps_s.append(time.monotonic())

    def _on_update(self, message):
        found = self.updates.receive(from_ros(message, PolicyUpdate))
        if isinstance(found, Offer):
            found = self.updates.judge(found)
        if isinstance(found, Candidate):
            found = self.updates.swapped(Swap(found.version, found.probe_change, 0))
        if found is not None:
            self._status_out.publish(to_ros(found))

    @property
    def last(self):
        return self.statuses[-1] if self.statuses else None


def make_rows(interface, count):
    rows = np.zeros(count, transition_dtype(interface))
    rows["session"] = 7
    rows["seq"] = np.arange(count)
    rows["episode"] = 1 + np.arange(count) // 50
    rows["step"] = np.arange(count) % 50
    rows["observation"] = np.random.default_rng(1).uniform(0, 20, (count, 2))
    rows["reward"] = -1
    rows["truncated"] = rows["has_next"] = rows["step"] == 49
    return rows


@pytest.fixture
def robot(graph, interface, files, tmp_path):
    artifact = read_artifact(files["artifact"])
    return RobotEnd(
        graph, interface, artifact, tmp_path / "spool.sqlite", make_rows(interface, 160)
    )


def stored_keys(path, interface):
    with TransitionStore(path, interface) as store:
        _, rows = store.read(0, 10_000)
    return [(bytes(row["session"]), int(row["seq"])) for row in rows]


def test_rows_become_updates_and_versions_and_sigterm_leaves_a_checkpoint(
    graph, spawn, robot, files, interface, tmp_path
):
    run_dir = tmp_path / "run"
    process = spawn("learner_node", files | {"run_dir": str(run_dir)})
    assert graph.wait(lambda: robot.last and robot.last.finished, 60), process.text()
    graph.wait(lambda: robot.uplink.acked == 160, 10)
    status = robot.last
    assert (status.updates, status.rows, status.version) == (150, 160, 4)
    assert (robot.updates.running_version, robot.updates.swaps) == (4, 3)
    assert status.allowed_steps == 170
    assert stored_keys(run_dir / "replay.sqlite", interface) == [
        (bytes([7] * 16), seq) for seq in range(160)
    ]
    started = time.monotonic()
    assert process.stop(signal.SIGTERM, 3.0) == 0
    assert time.monotonic() - started < 3.0
    assert (
        read_checkpoint(checkpoints(run_dir / "checkpoints")[-1]).metadata["update"]
        == 150
    )


def test_sigterm_in_the_middle_of_training_ends_it_in_time_with_what_it_learned(
    graph, spawn, robot, files, tmp_path
):
    run_dir = tmp_path / "run"
    process = spawn("learner_node", files | {"run_dir": str(run_dir)})
    assert graph.wait(lambda: robot.last and robot.last.updates >= 20, 60), (
        process.text()
    )
    seen = robot.last
    assert not seen.finished
    started = time.monotonic()
    assert process.stop(signal.SIGTERM, 3.0) == 0
    assert time.monotonic() - started < 3.0
    newest = read_checkpoint(checkpoints(run_dir / "checkpoints")[-1])
    assert newest.metadata["update"] >= seen.updates


def test_a_killed_learner_comes_back_with_each_row_once(
    graph, spawn, robot, files, interface, tmp_path
):
    run_dir = tmp_path / "run"
    process = spawn("learner_node", files | {"run_dir": str(run_dir)})
    assert graph.wait(lambda: robot.last and robot.last.updates >= 30, 60), (
        process.text()
    )
    run_id = robot.last.run_id
    assert run_id.startswith(
        "run-"
    )  # the folder's name alone would not tell runs apart
    process.kill()
    robot.statuses.clear()
    process = spawn("learner_node", files | {"run_dir": str(run_dir)})
    assert graph.wait(lambda: robot.last and robot.last.finished, 60), process.text()
    assert graph.wait(lambda: robot.uplink.acked == 160, 10)
    assert stored_keys(run_dir / "replay.sqlite", interface) == [
        (bytes([7] * 16), seq) for seq in range(160)
    ]
    assert (robot.last.updates, robot.last.run_id) == (150, run_id)
    assert process.stop() == 0


def test_a_learner_begun_afresh_in_a_folder_of_the_same_name_is_another_run(
    graph, spawn, robot, files, tmp_path
):
    first = files | {"run_dir": str(tmp_path / "first" / "robot")}
    process = spawn("learner_node", first)
    assert graph.wait(lambda: robot.updates.swaps > 0, 60), process.text()
    process.kill()
    robot.statuses.clear()
    running, status = robot.updates.running_version, robot.updates.status
    more = make_rows(robot.interface, 160)
    more["session"] = 8
    robot.store.append(more)
    afresh = files | {"run_dir": str(tmp_path / "second" / "robot")}
    process = spawn("learner_node", afresh)
    assert graph.wait(lambda: robot.updates.ignored > 0, 60), process.text()
    assert not robot.last.finished  # it does not take another's verdict for its own
    assert (robot.updates.running_version, robot.updates.status) == (running, status)
    assert process.stop() == 0


def test_the_heartbeat_is_steady_and_a_batch_of_another_robot_is_refused(
    graph, spawn, robot, files, tmp_path
):
    process = spawn("learner_node", files | {"run_dir": str(tmp_path / "run")})
    assert graph.wait(lambda: robot.last, 60), process.text()
    (batch,) = Uplink(robot.store, "somebody else").poll(0)
    robot._batch_out.publish(to_ros(batch))
    robot.stamps_s.clear()
    graph.spin(2.0)
    assert len(robot.stamps_s) >= 10  # 20 on an idle machine; a plant needs 5 a second
    assert np.diff(robot.stamps_s).max() < 1.0
    assert robot.last.rows <= 160
    assert process.stop() == 0


def test_settings_that_do_not_fit_end_the_process_with_the_reason(
    spawn, files, tmp_path
):
    process = spawn(
        "learner_node", files | {"run_dir": str(tmp_path), "robot": "ur5e_2f85"}
    )
    assert process.wait(30.0) == os.EX_CONFIG
    assert "made for another robot interface" in process.text()


def catches(pid, number):
    """Whether a process has a handler for a signal (Linux)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    mask = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt"))
    return bool(mask >> (number - 1) & 1)


def test_a_signal_while_it_still_loads_ends_it_at_once(spawn, files, tmp_path):
    for later_s in (0.0, 0.5, 1.5):
        process = spawn("learner_node", files | {"run_dir": str(tmp_path / "run")})
        while not catches(process.pid, signal.SIGTERM):  # the interpreter itself starts
            time.sleep(0.001)
        time.sleep(later_s)
        assert process.stop(signal.SIGTERM, 3.0) == 0
