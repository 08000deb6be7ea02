# SPDX-License-Identifier: Apache-2.0
"""Compare methods with recorded inputs and outputs of the official implementation.

Parameters, batches and every random draw come from the file; the reference is always its float64
recording, whatever precision the method here computes in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from qam_ros.contract.errors import QamError
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

# what arrays or settings that do not fit together raise in the methods
MISFITS = (QamError, LookupError, ValueError, TypeError, RuntimeError, AttributeError)


def compare(path: Path, precision: str) -> Sequence[Comparison]:
    """Compare every quantity of one recording with the method here that stands for it.

    Args:
        path: npz file.
        precision: 'float64' or 'float32', in which the method here computes.

    Raises:
        UnsupportedRecordingError: no method here stands for it, or the file is damaged; the message
            says why.
    """
    recording = Recording(path, precision)
    try:
        return list(_rows(recording))
    except UnsupportedRecordingError:
        raise
    except MISFITS as error:
        raise UnsupportedRecordingError(
            f"its arrays or settings do not fit together: {type(error).__name__}: {error}",
            file=path.name,
        ) from error


def _rows(recording: Recording) -> Iterator[Comparison]:
    """The kind of a recording shows in what it holds, not in sizes or names."""
    if "data/observations" in recording:
        yield from compare_sampler(recording)
        return
    binding = binding_of(recording)
    if "batch/observations" in recording:
        yield from compare_run(recording, binding)
        if "f64/dual_configs" in recording:
            yield from compare_rule(recording)
        return
    yield from compare_updates(recording, binding)
    if "f64/alpha_hats" in recording:
        yield from compare_schedule(recording)
