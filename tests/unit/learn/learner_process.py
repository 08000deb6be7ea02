# SPDX-License-Identifier: Apache-2.0
"""A learner process for kill tests: streams a spool into a learner until it has finished.

Arguments: run folder, spool file, artifact. Prints a line after every update.
"""

import sys
from pathlib import Path

import torch
from conftest import make_agent, make_dataset

from qam_ros.contract.artifact import read_artifact
from qam_ros.runtime.policy import Swap
from qam_ros.runtime.sampler import OnnxSampler
from qam_ros.runtime.store import TransitionStore
from qam_ros.runtime.stream import Uplink, UplinkConfig
from qam_ros.runtime.updates import PolicyUpdates
from qam_train.data.dataset import FlatDataset
from qam_train.learner import LearnerCore
from qam_train.learner_config import LearnerConfig

CONFIG = LearnerConfig(
    online_steps=200,
    start_rows=0,
    window=10,
    offer_every=40,
    checkpoint_every=25,
    log_every=10,
)


def main(run_dir, spool, artifact_path):
    torch.set_num_threads(1)
    artifact, dataset = read_artifact(artifact_path), make_dataset()
    offline = FlatDataset.from_contract(dataset)
    core = LearnerCore(
        CONFIG,
        make_agent(dataset),
        artifact,
        offline,
        Path(run_dir),
        robot="robot",
        run_id="run",
    )
    robot = PolicyUpdates(artifact, OnnxSampler(artifact), robot="robot", budget=10.0)
    core.heard(robot.status)
    store = TransitionStore(spool, artifact.interface)
    uplink = Uplink(store, "robot", UplinkConfig(batch_rows=7, window_rows=14))
    clock_ns = 0
    while not core.finished:
        clock_ns += 10**8
        for batch in uplink.poll(clock_ns):
            uplink.acknowledge(core.receive(batch), clock_ns)
        if core.work():
            print(core.trainer.updates, flush=True)  # noqa: T201
        for part in core.outgoing():
            judge(robot, core, part)
    core.close()


def judge(robot, core, part):
    offer = robot.receive(part)
    if hasattr(offer, "header"):
        candidate = robot.judge(offer)
        if hasattr(candidate, "flat"):
            robot.swapped(Swap(candidate.version, candidate.probe_change, 0))
        core.heard(robot.status)


if __name__ == "__main__":
    main(*sys.argv[1:])
