# SPDX-License-Identifier: Apache-2.0
"""Compare methods with recorded inputs and outputs of the official implementation.

Parameters, batches and every random draw come from the file; the reference is always its float64
recording, whatever precision the method here computes in.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qam_train.parity.bindings import binding_of
from qam_train.parity.diffusion_policies import compare_schedule
from qam_train.parity.recording import (
    PRECISIONS,
    Comparison,
    Recording,
    UnsupportedRecordingError,
)
from qam_train.parity.sampler import compare_sampler
from qam_train.parity.trust_region import compare_rule, compare_run
from qam_train.parity.updates import compare_updates

__all__ = ["PRECISIONS", "Comparison", "UnsupportedRecordingError", "compare"]


def compare(path: Path, precision: str) -> Sequence[Comparison]:
    """Compare every quantity of one recording with the method here that stands for it.

    Args:
        path: npz file.
        precision: 'float64' or 'float32', in which the method here computes.

    Raises:
        UnsupportedRecordingError: no method here stands for it; the message says why.
    """
    recording = Recording(path, precision)
    if "data/observations" in recording and "h1/start" in recording:
        return list(compare_sampler(recording))
    binding = binding_of(recording)
    if "f64/dual_configs" in recording:
        return [*compare_run(recording, binding), *compare_rule(recording)]
    rows = list(compare_updates(recording, binding))
    if "f64/alpha_hats" in recording:
        rows += compare_schedule(recording)
    return rows
