# SPDX-License-Identifier: Apache-2.0
"""Latency of one action chunk, of an exchange of weights, and of a whole policy tick.

Baseline: ONNX Runtime as it is usually used: the same graph with the weights as constants and a
dictionary of inputs at every call; for the exchange, a new session. Ours: the robot's sampler, weights
as inputs of the graph bound to one buffer. Beside them the backend onnx-int8 (its exchange lasts until
the new weights run in int8; until then they run in float32), torch eager, torch.compile where there is
a C++ compiler, and what a GPU runs. Memory: what a process of its own grows by. One thread, in turns; before each timed run the same variant runs once,
so that it finds its own weights in the caches, as in a loop. Ratio = median / that of the baseline; of
a tick: / that of the sampler alone. A tick takes in the sensors' messages, assembles the observation,
samples, queues the chunk, takes its first action, fills the proposal (as a ROS message where qam_msgs
is built) and puts it on the in-process bus.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from made_up import random_artifact
from measuring import Timing, interleave, machine, report
from policy_variants import (
    Variant,
    cpu_variants,
    errors_of,
    gpu_variants,
    has_compiler,
)

from qam_ros.contract.artifact import Artifact, read_artifact
from qam_ros.contract.interface import load_interface
from qam_ros.contract.messages import EpisodeEvent, EpisodeKind
from qam_ros.contract.robot_interface import RobotInterface
from qam_ros.runtime.bus import Bus
from qam_ros.runtime.policy import PolicyCore
from qam_ros.runtime.sampler import OnnxSampler

NETS = {"demo 2 x 256": (256, 256), "paper 4 x 512": (512, 512, 512, 512)}
ROBOT = "ur5e_cube_double"  # 37 observations, 5 actions
Row = tuple[Any, ...]


def message_values(interface: RobotInterface) -> dict[str, dict[str, Any]]:
    """Every field of every topic that the policy reads."""
    values: dict[str, dict[str, Any]] = {}
    for block in interface.observation:
        field = np.full(block.raw_size, 0.3)
        values.setdefault(block.source.topic, {})[block.source.field] = field
    return values


def to_message() -> Callable[[Any], Any]:
    """Fills a ROS message where qam_msgs is built; else the proposal goes as it is."""
    spec = importlib.util.find_spec("qam_msgs")
    if spec is None or spec.origin is None:
        return lambda proposal: proposal
    from qam_ros.nodes.convert import to_ros

    return to_ros


def tick_of(artifact: Artifact, sampler: OnnxSampler) -> Callable[[], object]:
    """One whole tick of the policy that samples a chunk."""
    bus = Bus()
    core = PolicyCore(artifact, sampler, 0, replan_every=1)
    values, fill = message_values(artifact.interface), to_message()
    period_ns = round(artifact.manifest.control_period_s * 1e9)
    bus.subscribe("action_proposal", lambda _: None)
    stamp_ns = 0
    core.on_event(
        EpisodeEvent(
            stamp_ns=0,
            episode=1,
            kind=EpisodeKind.START,
            terminated=False,
            truncated=False,
            success=False,
            steps=0,
            episode_return=0.0,
        )
    )

    def tick() -> object:
        nonlocal stamp_ns
        stamp_ns += period_ns
        core.on_observation(stamp_ns, values)
        proposal = core.tick(stamp_ns)
        assert proposal.action.size
        bus.publish("action_proposal", fill(proposal))
        return bus.spin()

    return tick


def chunk_rows(
    net: str, variants: dict[str, Variant], artifact: Artifact, runs: int
) -> list[Row]:
    """A chunk and an exchange by every variant."""
    golden, generator = artifact.golden, np.random.default_rng(1)

    def timed(variant: Variant) -> Callable[[], object]:
        def once() -> object:
            index = int(generator.integers(len(golden.noise)))
            return variant.run(golden.observations[index], golden.noise[index])

        return once

    errors = errors_of(variants, artifact)
    chunk = interleave(
        {name: timed(variant) for name, variant in variants.items()}, runs, 10, ahead=1
    )
    exchange = interleave(
        {name: v.exchange for name, v in variants.items() if v.exchange},
        max(20, runs // 40),
        3,
    )
    baseline = next(iter(variants))
    rows: list[Row] = [
        (
            *(net, "chunk", name, *_times(timing)),
            *(timing.p50 / chunk[baseline].p50, errors[name]),
            *(variants[name].file_mb, variants[name].memory_mb),
        )
        for name, timing in chunk.items()
    ]
    rows += [
        (
            *(net, "new weights", name, *_times(timing)),
            *(timing.p50 / exchange[baseline].p50, None, None, None),
        )
        for name, timing in exchange.items()
    ]
    return rows


def tick_rows(net: str, artifact: Artifact, runs: int) -> list[Row]:
    """A whole tick against the sampler alone: the same one, as a robot has one set of weights."""
    sampler, golden = OnnxSampler(artifact), artifact.golden
    timings = interleave(
        {
            "sampler alone": lambda: sampler.sample(
                golden.observations[0], golden.noise[0]
            ),
            "whole tick": tick_of(artifact, sampler),
        },
        runs,
        10,
        ahead=1,
    )
    return [
        (
            *(net, "tick", name, *_times(timing)),
            *(timing.p50 / timings["sampler alone"].p50, None, None, None),
        )
        for name, timing in timings.items()
    ]


def _times(timing: Timing) -> tuple[float, float, float]:
    return 1e6 * timing.p50, 1e6 * timing.p99, 1e6 * timing.max


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="qam bench policy", description=__doc__)
    parser.add_argument("--runs", type=int, default=2000, help="timed chunks of each")
    parser.add_argument("--net", action="append", choices=NETS, help="default: all")
    parser.add_argument("--artifact", type=Path, help="measure this flow policy")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=has_compiler(),
        help="torch.compile, a minute for each net; default: where a C++ compiler is",
    )
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows: list[Row] = []
    if arguments.artifact is not None:
        given = read_artifact(arguments.artifact)
        if given.manifest.head != "flow":
            parser.error(f"needs a policy of head flow, not {given.manifest.head}")
        policies = {arguments.artifact.stem: given}
    else:
        names = arguments.net or list(NETS)
        robot = load_interface(ROBOT)
        policies = {name: random_artifact(robot, NETS[name]) for name in names}
    with tempfile.TemporaryDirectory() as folder:
        for net, artifact in policies.items():
            variants = cpu_variants(artifact, compiled=arguments.compile)
            more, reason = gpu_variants(artifact, Path(folder, "engines"))
            rows += chunk_rows(net, variants | more, artifact, arguments.runs)
            rows += tick_rows(net, artifact, arguments.runs)
    sizes = {p.interface.observation_size for p in policies.values()}
    about = machine("onnxruntime", "torch", "numpy") | {
        "threads": 1,
        "flow_steps": sorted({p.manifest.flow_steps for p in policies.values()}),
        "observations": sorted(sizes),
        "engine": reason or "see the rows",
    }
    columns = (
        *("net", "what", "variant", "p50 [us]", "p99 [us]", "max [us]", "ratio"),
        *("error to float64", "file [MB]", "memory [MB]"),
    )
    title = "One action chunk, batch 1"
    report(title, about, columns, rows, as_json=arguments.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
