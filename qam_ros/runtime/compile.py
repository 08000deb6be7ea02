# SPDX-License-Identifier: Apache-2.0
"""'qam compile': an engine of a policy, built on the machine that will run it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import tyro

from qam_ros.contract.artifact import read_artifact
from qam_ros.runtime.backends import (
    Compiled,
    Machine,
    compile_engine,
    try_build,
)
from qam_ros.runtime.engines.library import EngineError

ENGINE_ENDINGS: Final = (".engine", ".plan", ".trt")


@dataclass(frozen=True)
class CompileArguments:
    """Build a policy's engine on this machine, keep it in the user's cache, verify the golden chunks."""

    artifact: tyro.conf.Positional[Path]
    """Policy artifact: a directory or a .zip file."""
    backend: Literal["tensorrt"] = "tensorrt"
    """TensorRT, or TensorRT-RTX where only that is installed."""
    cache: Path | None = None
    """Folder of engines, yours alone (mode 0700). Default: ~/.cache/qam/engines."""
    rebuild: bool = False
    """Build again, also where the cache has an engine."""
    check: bool = False
    """Parse and build only, without a GPU, and keep nothing (TensorRT-RTX)."""
    replay: bool = True
    """Capture a CUDA graph and replay it; --no-replay where a driver cannot."""
    json: bool = False
    """Print JSON."""


def command(argv: Sequence[str]) -> int:
    """Build a policy's engine on this machine and verify its golden chunks.

    Returns:
        0.

    Raises:
        QamError: the artifact is refused, library or GPU are missing, or the chunks come out wrong.
    """
    return run(argv, Machine())


def run(argv: Sequence[str], machine: Machine) -> int:
    """The command on a given machine."""
    arguments = tyro.cli(CompileArguments, prog="qam compile", args=list(argv))
    if arguments.artifact.suffix in ENGINE_ENDINGS:
        raise EngineError(
            f"{arguments.artifact}: an engine is code and is taken from nowhere; give the policy "
            "artifact, its engine is built here"
        )
    artifact = read_artifact(arguments.artifact)
    if arguments.check:
        compiled = try_build(artifact, machine.library())
    else:
        if arguments.cache is not None:
            machine = dataclasses.replace(machine, folder=arguments.cache)
        compiled = compile_engine(
            artifact, machine, rebuild=arguments.rebuild, replay=arguments.replay
        )
    print(  # noqa: T201
        json.dumps(dataclasses.asdict(compiled))
        if arguments.json
        else "\n".join(_lines(compiled))
    )
    return 0


def _lines(compiled: Compiled) -> list[str]:
    built = f"built in {compiled.build_s:.1f} s" if compiled.build_s else "was there"
    lines = [
        f"{compiled.library}: engine of {compiled.engine_bytes / 1e6:.2f} MB, {built}"
    ]
    if compiled.largest_error is None:
        return [*lines, "not run: only the build was asked for, nothing was kept"]
    return [
        *lines,
        f"{compiled.gpu}: largest error on the golden chunks {compiled.largest_error:.1e} (allowed "
        f"{compiled.tolerance:.0e})",
        compiled.engine,
    ]
