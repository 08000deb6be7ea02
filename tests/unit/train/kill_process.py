# SPDX-License-Identifier: Apache-2.0
"""Trains a small run in forked children and kills each at a random instant; prints what was found.

    kill_process.py CONFIG DATASET RUN_DIR KILLS SEED

A warm process is forked, so a life lasts milliseconds, not the seconds of the imports.
"""

import json
import mmap
import os
import random
import signal
import struct
import sys
import time
from pathlib import Path

import torch

from qam_ros.contract.dataset import read_dataset
from qam_train import cli
from qam_train.checkpoint import latest_checkpoint, read_checkpoint
from qam_train.config import load_config
from qam_train.data.dataset import FlatDataset
from qam_train.loops import offline
from qam_train.metrics import read_metrics
from qam_train.offline_config import OfflineConfig
from qam_train.offline_trainer import OfflineTrainer

LONGEST_S = 0.02
UPDATES = 4  # a life ends after 0 to so many updates, and a moment


class Progress:
    """What a child did, in memory that outlives it: updates done, and whether it is saving."""

    def __init__(self):
        self._memory = mmap.mmap(-1, 16)

    @property
    def values(self):
        return struct.unpack("qq", self._memory[:16])

    def note(self, updates=None, saving=None):
        now = self.values
        updates = now[0] if updates is None else updates
        self._memory[:16] = struct.pack(
            "qq", updates, now[1] if saving is None else saving
        )


def watch(progress):
    """Let the training of this process note its progress."""
    update, write = OfflineTrainer.update, offline.write_checkpoint

    def noted_update(trainer, *count):
        metrics = update(trainer, *count)
        progress.note(updates=trainer.updates)
        return metrics

    def noted_write(*arguments):
        progress.note(saving=1)
        write(*arguments)
        progress.note(saving=0)

    OfflineTrainer.update, offline.write_checkpoint = noted_update, noted_write


def live(progress, words):
    """One life of the training; never returns."""
    try:
        watch(progress)
        cli.train(words)
    finally:
        os._exit(1)  # it ended by itself, which it should not


def wait(progress, newest, instants):
    """Wait for the instant of the kill, on a machine of any speed."""
    limit, enough = time.monotonic() + 30, newest + instants.randint(0, UPDATES)
    while progress.values[0] < enough and time.monotonic() < limit:
        time.sleep(0.0005)
    time.sleep(instants.uniform(0.0, LONGEST_S))


def main(config_path, dataset, run_dir, kills, seed):
    torch.set_num_threads(1)
    config, run_dir = load_config(OfflineConfig, Path(config_path)), Path(run_dir)
    instants, progress = random.Random(int(seed)), Progress()
    words = [dataset, "--run-dir", str(run_dir), "--quiet", "--resume"]
    newest, in_save, found_at = 0, 0, []
    for _ in range(int(kills)):
        progress.note(updates=newest, saving=0)
        started = (run_dir / "config.yaml").exists()
        child = os.fork()
        if child == 0:
            live(progress, words if started else [*words, "--config", config_path])
        wait(progress, newest, instants)
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status), f"a life ended by itself: {status}"
        done, saving = progress.values
        in_save += saving
        path = latest_checkpoint(run_dir / "checkpoints")
        update = 0 if path is None else read_checkpoint(path).metadata["update"]
        assert update >= newest, f"went back from {newest} to {update}"
        assert update >= done - config.checkpoint_every, f"{update} of {done}"
        newest = update
        found_at.append(update)
    data = FlatDataset.from_contract(read_dataset(dataset))
    whole = OfflineTrainer(config, data)
    while whole.updates < newest:
        whole.update()
    tensors, metadata = whole.checkpoint()
    held = read_checkpoint(latest_checkpoint(run_dir / "checkpoints"))
    same = all(torch.equal(value, held.tensors[n]) for n, value in tensors.items())
    steps = [row["step"] for row in read_metrics(run_dir / "metrics.jsonl")]
    found = {
        "in_save": in_save,
        "moved": len(set(found_at)),
        "update": newest,
        "stage": metadata["stage"],
        "same": same and tensors.keys() == held.tensors.keys(),
        "steps_in_order": steps == sorted(set(steps)),
    }
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
