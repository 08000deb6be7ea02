# SPDX-License-Identifier: Apache-2.0
"""Gate: whether new weights may replace those that run. Pure numpy; learner and robot both ask it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qam_ros.contract.artifact import Golden
from qam_ros.contract.artifact_manifest import FIXED_INPUTS

Float32Array = npt.NDArray[np.float32]
Weights = Mapping[str, Float32Array]
Run = Callable[[Weights, Float32Array, Float32Array], Float32Array]
"""(weights, observations (n, O), noise (n, W)) -> chunks (n, h, A)."""

STATISTICS = FIXED_INPUTS[2:]


@dataclass(frozen=True, slots=True)
class GateVerdict:
    """Answer of the gate.

    Args:
        accepted: the weights may run.
        reason: why (not), in words.
        probe_change: mean absolute action change on the probes; NaN if it did not come to that.
    """

    accepted: bool
    reason: str
    probe_change: float


def check(
    candidate: Weights,
    reference: Weights,
    run: Run,
    golden: Golden,
    tolerance: float,
    budget: float,
) -> GateVerdict:
    """Judge candidate weights.

    Accepted are weights with the tensors of the reference, finite, with its statistics, that give
    the chunks they were offered with and change the policy on the probes by no more than a budget.

    Args:
        candidate: weights offered.
        reference: weights that run now.
        run: the sampler.
        golden: probe observations and noise, and the chunks that the candidate must give.
        tolerance: largest difference between offered and computed chunks.
        budget: largest mean absolute action change on the probes, of normalised actions.
    """
    refusal = _compare_tensors(candidate, reference)
    if refusal:
        return GateVerdict(accepted=False, reason=refusal, probe_change=float("nan"))
    chunks = run(candidate, golden.observations, golden.noise)  # (n, h, A)
    if not np.isfinite(chunks).all() or not np.isfinite(golden.chunks).all():
        reason = "golden chunks are not finite"
        return GateVerdict(accepted=False, reason=reason, probe_change=float("nan"))
    if np.abs(chunks).max() > 1.0:
        reason = "golden chunks leave [-1, 1]"
        return GateVerdict(accepted=False, reason=reason, probe_change=float("nan"))
    error = float(np.abs(chunks - golden.chunks).max())
    if error > tolerance:
        reason = (
            f"golden chunks are {error:.2e} off, at most {tolerance:.2e} are allowed"
        )
        return GateVerdict(accepted=False, reason=reason, probe_change=float("nan"))
    before = run(reference, golden.observations, golden.noise)
    change = float(np.abs(chunks - before).mean())
    if not change <= budget:
        reason = f"mean action change on the probes is {change:.3f}, at most {budget:.3f} is allowed"
        return GateVerdict(accepted=False, reason=reason, probe_change=change)
    return GateVerdict(accepted=True, reason="accepted", probe_change=change)


def _compare_tensors(candidate: Weights, reference: Weights) -> str:
    """First difference that rules the candidate out, in words; empty if there is none."""
    if candidate.keys() != reference.keys():
        odd = sorted(candidate.keys() ^ reference.keys())
        return f"tensors differ: {', '.join(odd[:5])} not in both"
    for name, tensor in candidate.items():
        if tensor.shape != reference[name].shape:
            return (
                f"'{name}' has shape {tensor.shape}, expected {reference[name].shape}"
            )
        if not np.isfinite(tensor).all():
            return f"'{name}' holds NaN or infinity"
    for name in STATISTICS:
        if name in candidate and not np.array_equal(candidate[name], reference[name]):
            return f"'{name}' changed; statistics are frozen after offline training"
    return ""
