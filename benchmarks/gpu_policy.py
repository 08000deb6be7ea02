# SPDX-License-Identifier: Apache-2.0
"""Every head on a GPU: TensorRT(-RTX) with and without graph replay, ONNX Runtime, torch eager.

Published sizes (nets 4 x 512, ten steps; 37 observations, chunk 5 x 5), fresh nets moved away from their
start, in float32, float16 and bfloat16. Error: largest difference on 64 probes to the trainer's chunks
(torch, float32, CPU). Bound: 1e-5 in float32; below four times the error of rounded products on the CPU,
at most that of `qam export`. Times in turns per policy; ratio = median / that of torch eager in float32 on
the same GPU. With --artifact a trained policy is measured in place of the fresh ones, without torch.

Without a GPU it says what is missing, runs the same code on the CPU in miniature, and ends with 0.
Otherwise it ends with 1 where an error is beyond its bound.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from heads import artifact_of, largest, make_agent
from measuring import interleave, machine, report

from qam_ros.contract.artifact import Artifact, read_artifact
from qam_ros.contract.errors import QamError
from qam_ros.contract.interface import load_interface
from qam_ros.runtime.backends import Machine, compile_engine, open_sampler
from qam_ros.runtime.engines.library import EngineError
from qam_ros.runtime.onnx_int8 import TOLERANCE as INT8_TOLERANCE
from qam_train.agents.common import Normaliser
from qam_train.config import NetworkConfig
from qam_train.deployed import AnyAgent, action_noise, tensor
from qam_train.export import BOUNDS, ROUNDING_FACTOR, TOLERANCE
from qam_train.graphs.builder import Precision
from qam_train.rounded import largest_rounded_error

INTERFACE = load_interface("ur5e_cube_double")  # 37 observations, 5 actions
HEADS: dict[str, tuple[str, int | None, int | None]] = {
    "flow": ("qam", None, None),
    "one_step": ("fql", None, None),
    "edited_flow": ("qam_edit", None, None),
    "noise_policy_flow": ("dsrl", None, None),
    "gaussian": ("rlpd", None, None),
    "deterministic": ("rebrac", None, None),
    "diffusion": ("dac", None, None),
    "best_of_flow": ("qam", 8, 2),
    "guided_flow": ("cgql", 1, 2),  # last: the largest graph
}
PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "bfloat16")
SMALL = {
    "flow_steps": 2,
    "diffusion_steps": 2,
    "actor": NetworkConfig((128, 128)),
    "critic": NetworkConfig((16, 16)),
}
COLUMNS = (
    *("head", "precision", "path", "error", "bound", "verdict"),
    *(
        "p50 [us]",
        "p99 [us]",
        "max [us]",
        "ratio",
        "build [s]",
        "engine [MB]",
        "reason",
    ),
)
Act = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Way:
    """One way to run a policy: what makes a chunk, build time [s] and engine size [MB]."""

    act: Act
    build_s: float | None = None
    engine_mb: float | None = None


@dataclass(frozen=True)
class Case:
    """A policy in one precision, its bound, and the agent that it was made from."""

    name: str
    precision: str
    artifact: Artifact
    bound: float
    agent: AnyAgent | None = None


def on_device(agent: AnyAgent, device: str) -> AnyAgent:
    """The agent with its numbers on a device.

    Raises:
        EngineError: torch cannot use it.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise EngineError(f"torch {torch.__version__} has no CUDA here")
    values = {n: v.detach().to(device) for n, v in agent.parameters.items()}
    mean, std = (v.to(device) for v in (agent.normaliser.mean, agent.normaliser.std))
    return type(agent)(agent.config, values, Normaliser(mean, std))


def eager(agent: AnyAgent) -> Act:
    """The trainer's own sampler, batch 1, with the copies to and from its device."""

    @torch.no_grad()
    def act(observation: Any, noise: Any) -> Any:
        chunk = agent.act(
            tensor(agent, observation[None]), action_noise(agent, noise[None])
        )
        return chunk[0].cpu().numpy()

    return act


def bounded(artifact: Artifact, precision: str) -> tuple[Artifact, float]:
    """The artifact with the tolerance of its precision, as qam export would set it."""
    if precision == "float32":
        return artifact, TOLERANCE
    bound = min(ROUNDING_FACTOR * largest_rounded_error(artifact), BOUNDS[precision])
    bound = max(bound, TOLERANCE)
    return replace(
        artifact, manifest=replace(artifact.manifest, tolerance=bound)
    ), bound


def fresh_cases(heads: Sequence[str], settings: dict[str, Any]) -> Iterator[Case]:
    """Heads in every precision."""
    for name in heads:
        agent = make_agent(*HEADS[name], interface=INTERFACE, **settings)
        for precision in PRECISIONS:
            made = artifact_of(agent, INTERFACE, precision)
            yield Case(name, precision, *bounded(made, precision), agent)


def given_case(path: Path) -> Case:
    """A trained artifact with its own tolerance."""
    artifact = read_artifact(path)
    precision = str(artifact.manifest.evaluation.get("precision", "float32"))
    return Case(path.stem, precision, artifact, artifact.manifest.tolerance)


def paths_of(
    case: Case, folder: Path, *, gpu: bool
) -> Iterator[tuple[str, Callable[[], Way]]]:
    """Ways to run a case, the baseline first; each is made when it is called."""
    agent, artifact = case.agent, case.artifact
    if agent is not None:
        device = "cuda" if gpu else "cpu"
        yield f"torch eager, {device}", lambda: Way(eager(on_device(agent, device)))
    if not gpu:
        small = ("onnx-int8",) if case.precision == "float32" else ()
        for backend in ("onnx", *small):
            yield backend, partial(sampled, artifact, backend)
        return
    yield "onnx-cuda", partial(sampled, artifact, "onnx-cuda")
    for replay in (True, False):
        name = "tensorrt, replay" if replay else "tensorrt, no replay"
        yield name, partial(engine, artifact, folder, replay=replay)


def sampled(artifact: Artifact, backend: str) -> Way:
    """A backend that needs no build."""
    return Way(open_sampler(artifact, backend).sample)


def engine(artifact: Artifact, folder: Path, *, replay: bool) -> Way:
    """A compiled engine; the second call finds it in the cache."""
    here = Machine(folder=folder)
    made = compile_engine(artifact, here, replay=replay)
    sampler = open_sampler(artifact, "tensorrt", machine=here, replay=replay)
    return Way(sampler.sample, made.build_s, made.engine_bytes / 1e6)


def rows_of(case: Case, folder: Path, runs: int, *, gpu: bool) -> list[tuple[Any, ...]]:
    """One row for each path of a case; one that does not run says why."""
    golden = case.artifact.golden
    head = case.name, case.precision
    made: dict[str, Way] = {}
    rows: dict[str, tuple[Any, ...]] = {}
    for name, make in paths_of(case, folder, gpu=gpu):
        bound = INT8_TOLERANCE if name == "onnx-int8" else case.bound
        try:
            path = make()
            chunks = np.stack(
                [
                    path.act(s, z)
                    for s, z in zip(golden.observations, golden.noise, strict=True)
                ]
            )
        except QamError as problem:
            off = problem.details.get("found")  # of golden chunks that come out wrong
            verdict = "beyond" if isinstance(off, float) else "not run"
            off = off if isinstance(off, float) else None
            rows[name] = (*head, name, off, bound, verdict, *[None] * 6, str(problem))
            continue
        error = largest(chunks, golden.chunks)
        verdict = "within" if error <= bound else "beyond"
        rows[name] = (*head, name, error, bound, verdict)
        made[name] = path
    pair = golden.observations[0], golden.noise[0]
    times = interleave(
        {name: partial(path.act, *pair) for name, path in made.items()}, runs, 10, 1
    )
    first = next((t for name, t in times.items() if name.startswith("torch")), None)
    for name, path in made.items():
        t = times[name]
        rows[name] += (
            *(1e6 * t.p50, 1e6 * t.p99, 1e6 * t.max),
            *(t.p50 / first.p50 if first else None, path.build_s, path.engine_mb, ""),
        )
    return list(rows.values())


def missing() -> list[str]:
    """What this machine lacks for the whole of it."""
    found = []
    if not torch.cuda.is_available():
        found.append("a CUDA build of torch with a GPU")
    for name, make in (("GPU", Machine().device), ("TensorRT", Machine().library)):
        try:
            make()
        except QamError as problem:
            found.append(f"{name} ({problem})")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="qam bench gpu_policy", description=__doc__)
    parser.add_argument("--runs", type=int, default=500, help="timed chunks of each")
    parser.add_argument("--heads", nargs="*", default=list(HEADS), choices=HEADS)
    parser.add_argument("--artifact", type=Path, action="append", help="a trained one")
    parser.add_argument(
        "--budget-s", type=float, default=540.0, help="begin no policy later"
    )
    parser.add_argument(
        "--out", type=Path, help="write the JSON here, too, as it grows"
    )
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    started, lacking = time.monotonic(), missing()
    gpu = not any(text.startswith("GPU") for text in lacking)
    runs = arguments.runs if gpu else min(arguments.runs, 10)
    cases: Iterator[Case] = (
        map(given_case, arguments.artifact)
        if arguments.artifact
        else fresh_cases(arguments.heads, {} if gpu else SMALL)
    )
    rows: list[tuple[Any, ...]] = []
    left_out: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            if time.monotonic() - started > arguments.budget_s:
                left_out.append(f"{case.name} {case.precision}")
                continue
            rows += rows_of(case, Path(folder, "engines"), runs, gpu=gpu)
            if arguments.out is not None:
                found = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
                arguments.out.write_text(json.dumps(found, default=float))
    about = machine("onnxruntime", "torch", "numpy") | {
        "gpu": torch.cuda.get_device_name() if gpu else "none: CPU in miniature",
        "missing": "; ".join(lacking) or "nothing",
        "left out for time": ", ".join(left_out) or "nothing",
        "seconds": round(time.monotonic() - started),
    }
    report(
        "One action chunk, batch 1, by head",
        about,
        COLUMNS,
        rows,
        as_json=arguments.json,
    )
    return int(gpu and any(str(row[5]).startswith("beyond") for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
