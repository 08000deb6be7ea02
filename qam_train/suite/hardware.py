# SPDX-License-Identifier: Apache-2.0
"""Device, threads and precision of a cell."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterator

import torch

from qam_ros.contract.errors import ConfigError


def find_device(wanted: str) -> torch.device:
    """Device by name; "auto": the GPU where there is one.

    Raises:
        ConfigError: not a device of this machine.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise ConfigError(
            f"device: expected auto, cpu or cuda[:index], got '{wanted}'"
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"device: '{wanted}' was asked for, torch finds no GPU; use --device cpu, or install a "
            "CUDA build of torch"
        )
    return device


def device_name(device: torch.device) -> str:
    """What the manufacturer calls it; of a CPU the architecture."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.machine()


@contextlib.contextmanager
def numerics(threads: int, matmul_precision: str) -> Iterator[None]:
    """Threads and matmul precision inside the block, set back afterwards."""
    before, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(matmul_precision)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.set_float32_matmul_precision(precision)
