# SPDX-License-Identifier: Apache-2.0
"""Tasks of one domain at the published size: data, training, evaluation, beside the published curve.

Made for a machine that is there for minutes: everything is generated and trained in --work, small
results go to --out, and when the minutes are over the same command goes on where it stopped (exit
code 3: call again; 0: complete). All tasks train side by side on one GPU; the other cores play the
episodes meanwhile. docs/paper_scale.md says what to expect.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from paper_speed import measure_speed
from paper_table import about, save_policy, table, write_results
from play_pool import PlayPool

from qam_ros.contract.dataset import MANIFEST
from qam_ros.contract.errors import ConfigError, QamError
from qam_train.checkpoint import (
    checkpoint_path,
    checkpoints,
    latest_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from qam_train.finite import check_parameters
from qam_train.offline_trainer import OFFLINE, OfflineTrainer
from qam_train.suite.cell import offline_config
from qam_train.suite.cell_config import CellConfig
from qam_train.suite.data import dataset_files, load
from qam_train.suite.folder import read_json, write_json
from qam_train.suite.hardware import find_device, numerics
from qam_train.suite.protocol import load_protocol
from qam_train.suite.report.published import Published
from sim.generate import Target, generate
from sim.presets import find_preset

FINISH_S = 45.0  # kept for the last checkpoint, the last episodes and the table
SAID_EVERY_S = 15.0
BLOCK = 200  # updates that the GPU is given at once
COMPLETE, FAILED, OUT_OF_TIME = 0, 1, 3


class OutOfTimeError(QamError):
    """The minutes are over; what is done is kept."""


@dataclass(frozen=True)
class Task:
    """One cell in training, on a stream of its own where there is a GPU."""

    cell: CellConfig
    trainer: OfflineTrainer
    checkpoints: Path
    stream: torch.cuda.Stream | None

    def turn(self) -> AbstractContextManager[object]:
        """Put work on the task's own stream."""
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    @property
    def left(self) -> int:
        """Updates until the next evaluation."""
        every, done = self.cell.evaluate_every, self.trainer.updates
        return min(every - done % every, self.cell.offline_updates - done)

    @property
    def due(self) -> bool:
        """Whether the last update asks for an evaluation."""
        return self.is_due(self.trainer.updates)

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint after so many updates is to be evaluated."""
        cell = self.cell
        return step == cell.offline_updates or step % cell.evaluate_every == 0

    def save(self) -> Path:
        """Write a checkpoint; older ones stay where they are evaluated."""
        path = checkpoint_path(self.checkpoints, self.trainer.updates)
        with self.turn():
            check_parameters(self.trainer.agent, OFFLINE, self.trainer.updates)
            write_checkpoint(path, *self.trainer.checkpoint())
        for older in checkpoints(self.checkpoints)[:-1]:
            if not self.is_due(step_of(older)):
                older.unlink()
        return path


class Run:
    """One call: its arguments, its minutes, and the record that all calls share."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._end = time.perf_counter() + 60.0 * arguments.minutes
        self.arguments = arguments
        self.device = find_device(arguments.device)
        self.cores = arguments.workers or len(os.sched_getaffinity(0))
        protocol = load_protocol(arguments.protocol)
        self.published = Published(protocol.published)
        seed = protocol.seeds[0] if arguments.seed is None else arguments.seed
        settings = (
            f"offline_updates={arguments.updates}",
            f"evaluate_every={arguments.every}",
            *("online_steps=0", "matmul_precision=high", *arguments.set),
        )
        self.cells = [
            protocol.cell(arguments.method, arguments.domain, task, seed, settings)
            for task in arguments.tasks
        ]
        if any(cell.behaviour_updates for cell in self.cells):
            raise ConfigError(
                f"protocol {protocol.name} starts {arguments.method} from a clone, which this script does "
                "not make: use qam suite run, or --set behaviour_updates=0"
            )
        self.work: Path = arguments.work
        self.data: Path = arguments.data or self.work / "data"
        self.work.mkdir(parents=True, exist_ok=True)
        self.record: dict[str, Any] = read_json(self.work / "record.json") or {
            "calls": 0,
            "evaluations": [],
            "training": {"seconds": 0.0, "updates": 0},
        }
        self.record["calls"] += 1

    @property
    def left_s(self) -> float:
        """Time of this call that is left [s]."""
        return self._end - time.perf_counter()

    def keep(self) -> None:
        """Put the record on disk."""
        write_json(self.work / "record.json", self.record)

    def folder(self, cell: CellConfig) -> Path:
        """Checkpoints of a cell."""
        return self.work / f"task{cell.task}" / "checkpoints"

    def make_data(self) -> None:
        """Generate the domain's dataset on all cores, unless it is there.

        Raises:
            OutOfTimeError: the minutes are over; finished episodes are kept.
        """
        name = self.cells[0].data.dataset
        if (self.data / name / MANIFEST).is_file():
            return
        preset = find_preset(name)
        rows = self.arguments.rows or preset.rows
        began = said = time.perf_counter()

        def progress(made: int, _: int) -> None:
            nonlocal said
            if time.perf_counter() - said > SAID_EVERY_S:
                said = time.perf_counter()
                say(f"data: {made:,} of {rows:,} rows, {said - began:.0f} s")
            if self.left_s < 0.0:
                raise OutOfTimeError("the minutes are over while data are generated")

        self.data.mkdir(parents=True, exist_ok=True)
        made = generate(
            self.data / name,
            preset.recipe(),
            Target(rows=rows),
            workers=self.cores,
            progress=progress,
        )
        self.record["data"] = {
            "dataset": name,
            "rows": made.rows,
            "rows_per_cpu_s": made.made_rows / made.cpu_s if made.cpu_s else None,
            "seconds_of_last_call": made.wall_s,
            "workers": self.cores,
        }
        self.keep()
        say(f"data: {made.rows:,} rows, {made.wall_s:.0f} s in this call")

    def task(self, cell: CellConfig) -> Task:
        """A cell's trainer, where its last checkpoint left it."""
        path = dataset_files(cell.data, self.data)[0]
        trainer = OfflineTrainer(offline_config(cell), load(cell, path, self.device))
        newest = latest_checkpoint(self.folder(cell))
        if newest is not None:
            trainer.restore(read_checkpoint(newest))
            say(f"task {cell.task}: goes on from update {trainer.updates}")
        stream = None
        if self.device.type == "cuda":
            stream = torch.cuda.Stream(self.device)
            stream.wait_stream(torch.cuda.current_stream(self.device))
        return Task(cell, trainer, self.folder(cell), stream)

    def measure(self, task: Task) -> None:
        """Eager against recorded updates, once."""
        seconds = self.arguments.speed_seconds
        if "speed" in self.record or seconds == 0.0:
            return
        config = offline_config(task.cell)
        self.record["speed"] = measure_speed(config, task.trainer.dataset, seconds)
        self.keep()
        say(f"speed: {self.record['speed']}")

    def train(self, tasks: Sequence[Task], pool: PlayPool) -> None:
        """All tasks side by side until they are done or the minutes are over."""
        began = said = time.perf_counter()
        first = sum(task.trainer.updates for task in tasks)
        while self.left_s > FINISH_S:
            going = [task for task in tasks if not task.trainer.complete]
            if not going:
                break
            advance(going)
            for task in going:
                if task.due:
                    pool.submit(task.cell, task.save(), task.trainer.updates)
            self.collect(pool)
            if time.perf_counter() - said > SAID_EVERY_S:
                said = time.perf_counter()
                done = sum(task.trainer.updates for task in tasks) - first
                rate = done / (said - began)
                say(f"update {going[0].trainer.updates}, {rate:.0f}/s of all tasks")
        for task in tasks:
            if not task.due:
                task.save()
        training = self.record["training"]
        training["seconds"] += time.perf_counter() - began
        training["updates"] += sum(task.trainer.updates for task in tasks) - first
        self.keep()

    def catch_up(self, tasks: Sequence[Task], pool: PlayPool) -> None:
        """Start the evaluations that an earlier call did not end."""
        known = self.evaluated()
        for task in tasks:
            for path in checkpoints(task.checkpoints):
                step = step_of(path)
                if task.is_due(step) and (task.cell.task, step) not in known:
                    pool.submit(task.cell, path, step)

    def collect(self, pool: PlayPool, wait_s: float = 0.0) -> None:
        """Take in the evaluations that are over."""
        for row in pool.finished(wait_s):
            self.record["evaluations"].append(row)
            self.keep()
            say(f"task {row['task']}, update {row['step']}: {row['success']:.2f}")

    def evaluated(self) -> set[tuple[int, int]]:
        """Task and step of every evaluation so far."""
        return {(row["task"], row["step"]) for row in self.record["evaluations"]}

    @property
    def complete(self) -> bool:
        """Whether every task has its last evaluation."""
        known = self.evaluated()
        return all((cell.task, cell.offline_updates) in known for cell in self.cells)

    def work_on(self) -> None:
        """Everything that is left, as far as the minutes reach.

        Raises:
            OutOfTimeError: they do not reach to the end of the data.
            NonFiniteError: training diverged.
        """
        self.make_data()
        tasks = [self.task(cell) for cell in self.cells]
        self.measure(tasks[0])
        pool = PlayPool(max(1, self.cores - 1))
        try:
            self.catch_up(tasks, pool)
            self.train(tasks, pool)
            self.collect(pool, max(0.0, self.left_s - 5.0))
        finally:
            pool.close()

    def results(self) -> None:
        """Table, JSON, CSV and the policies as they are now, into --out."""
        rows = table(self.cells, self.record["evaluations"], self.published)
        out: Path = self.arguments.out
        write_results(out, self.record, rows, about(self.cells[0], self.device))
        for cell in self.cells:
            newest = latest_checkpoint(self.folder(cell))
            if newest is not None:
                save_policy(newest, out / f"policy-task{cell.task}.safetensors")


def advance(tasks: Sequence[Task]) -> None:
    """Some updates of each task, launched in turns so that their kernels run side by side."""
    blocks = [min(BLOCK, task.left) for task in tasks]
    stride = tasks[0].trainer.stride
    for first in range(0, BLOCK, stride):
        for task, block in zip(tasks, blocks, strict=True):
            if first < block:
                with task.turn():
                    task.trainer.launch(min(stride, block - first))
    for task in tasks:
        with task.turn():
            task.trainer.settle()


def step_of(checkpoint: Path) -> int:
    """Updates before a checkpoint, from its name."""
    return int(checkpoint.stem.rpartition("-")[2])


def say(text: str) -> None:
    """One line at once, also into a pipe."""
    print(text, flush=True)


def read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/paper_scale.py", description=__doc__
    )
    add = parser.add_argument
    add("--protocol", default="p_qam")
    add("--domain", default="scene")
    add("--tasks", type=int, nargs="+", default=[1, 2])
    add("--method", default="qam")
    add("--seed", type=int, help="default: the protocol's first")
    add("--updates", type=int, default=100_000)
    add("--every", type=int, default=50_000, help="updates between evaluations")
    add("--minutes", type=float, default=9.0, help="of this call")
    add("--out", type=Path, required=True, help="small results")
    default = Path(tempfile.gettempdir()) / "qam-paper-scale"
    add("--work", type=Path, default=default, help="data and checkpoints")
    add("--data", type=Path, help="folder of datasets (default: WORK/data)")
    add("--rows", type=int, default=0, help="of the dataset; 0: as published")
    add("--workers", type=int, default=0, help="processes; 0: one per core")
    add("--device", default="auto")
    add("--speed-seconds", type=float, default=20.0, help="0: speed is not measured")
    add("--set", nargs="*", default=[], help="settings of the cell, dotted.key=value")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run, or go on."""
    try:
        run = Run(read_arguments(argv))
        with numerics(1, run.cells[0].matmul_precision):
            try:
                run.work_on()
            except OutOfTimeError as error:
                say(f"{error}")
            finally:
                run.results()
    except QamError as error:
        print(error, file=sys.stderr)
        return FAILED
    if run.complete:
        return COMPLETE
    say("not complete: call again with the same arguments")
    return OUT_OF_TIME


if __name__ == "__main__":
    raise SystemExit(main())
