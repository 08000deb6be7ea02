# SPDX-License-Identifier: Apache-2.0
"""Policy updates on the robot: parts put together, verified, judged, kept for a rollback.

``receive`` takes parts and says when an update is whole; ``judge`` does the heavy work and belongs
on a worker thread. What it accepts is handed to ``PolicyCore.offer``, and ``swapped`` closes the case.
The methods may be called from different threads.
"""

from __future__ import annotations

import hmac
import threading
from collections import deque
from typing import Final

from qam_ros.contract.artifact import Artifact, Golden
from qam_ros.contract.errors import ArtifactError
from qam_ros.contract.messages import PolicyStatus, PolicyUpdate
from qam_ros.contract.weights import Weights, decode_weights
from qam_ros.runtime.gate import Float32Array, check
from qam_ros.runtime.gate import Weights as AnyWeights
from qam_ros.runtime.policy import Candidate, Swap
from qam_ros.runtime.sampler import OnnxSampler
from qam_ros.runtime.update_parts import (
    GOLDEN_NAME,
    DamagedError,
    Offer,
    PartCollector,
    sign,
)

REMEMBERED: Final = 256
"""Verdicts kept to answer updates that are offered again."""


class PolicyUpdates:
    """Verdicts on offered weights, and the last versions accepted.

    Args:
        artifact: the policy; its weights are the oldest version to roll back to.
        sampler: a sampler of its own, not the one that the control thread runs.
        robot: robot name, for the status.
        budget: largest mean absolute action change on the probes for one update.
        key: shared key; None accepts unsigned updates.
        keep: accepted versions kept for a rollback.
    """

    def __init__(
        self,
        artifact: Artifact,
        sampler: OnnxSampler,
        *,
        robot: str,
        budget: float = 0.3,
        key: bytes | None = None,
        keep: int = 3,
    ) -> None:
        self._artifact = artifact
        self._sampler = sampler
        self._robot = robot
        self._budget = budget
        self._key = key
        self._collector = PartCollector()
        version = artifact.manifest.policy_version
        self._kept: deque[Candidate] = deque(maxlen=keep)
        self._kept.append(
            Candidate(version, sampler.layout.pack(artifact.weights), 0.0)
        )
        self._known = {version}
        self._judging: set[int] = set()
        self._lock = threading.Lock()
        self._newest = version
        self._decided: dict[int, PolicyStatus] = {}
        self.running_version = version
        self.swaps = 0
        self.refused = 0
        self.last_refusal = ""
        self.status = self._make_status(version, "started", accepted=False)

    def receive(self, part: PolicyUpdate) -> Offer | PolicyStatus | None:
        """Take in a part of an update.

        Returns:
            An offer to ``judge`` when the update is whole; the status to publish when the part is
            refused or its version was decided before; else None.
        """
        with self._lock:
            if part.version in self._decided:
                return self._decided[part.version]
            if part.version in self._judging or part.version in self._known:
                return None  # offered again while it is judged, or before its swap
            offer, refusal = self._collector.add(part)
            if refusal:
                return self._refuse(part.version, refusal, final=False)
            if offer is not None:
                self._judging.add(part.version)
            return offer

    def judge(self, offer: Offer) -> Candidate | PolicyStatus:
        """Verify an update and ask the gate; tens of milliseconds.

        Returns:
            A candidate for ``PolicyCore.offer``, or the status of a refusal to publish.
        """
        try:
            return self._judge(offer)
        except Exception as problem:
            # Whatever it is: the thread that judges must be there for the next update.
            reason = f"could not be judged: {type(problem).__name__}: {problem}"
            with self._lock:
                return self._refuse(offer.header.version, reason)

    def _judge(self, offer: Offer) -> Candidate | PolicyStatus:
        version = offer.header.version
        with self._lock:
            reference = self._kept[-1]
        try:
            self._check_header(offer)
            weights, golden = self._decode(offer)
        except ArtifactError as problem:
            damaged = isinstance(problem, DamagedError)
            with self._lock:
                return self._refuse(version, str(problem), final=not damaged)
        verdict = check(
            weights,
            self._sampler.layout.views(reference.flat),
            self._run,
            golden,
            self._artifact.manifest.tolerance,
            self._budget,
        )
        with self._lock:
            if not verdict.accepted:
                return self._refuse(version, verdict.reason, verdict.probe_change)
            flat = self._sampler.layout.pack(weights)
            candidate = Candidate(version, flat, verdict.probe_change)
            self._kept.append(candidate)
            self._known.add(version)
            self._judging.discard(version)
            self._newest = version
            return candidate

    def swapped(self, swap: Swap) -> PolicyStatus:
        """Note that weights run now, and give the status to publish."""
        with self._lock:
            self.running_version = swap.version
            self.swaps += 1
            reason = "accepted" if swap.version == self._newest else "rolled back"
            self.status = self._make_status(
                swap.version,
                reason,
                accepted=True,
                change=swap.probe_change,
                swap_ns=swap.swap_ns,
            )
            self._decide(self.status)
            return self.status

    def rollback(self) -> Candidate | None:
        """The version accepted before the newest kept, which is forgotten; None if there is none."""
        with self._lock:
            if len(self._kept) < 2:
                return None
            self._kept.pop()
            return self._kept[-1]

    def _check_header(self, offer: Offer) -> None:
        """Refuse data that was damaged, forged, old, or made from something that never ran here."""
        header = offer.header
        digest, signature = sign(offer.data, self._key)
        if len(offer.data) != header.total_size or digest != header.sha256:
            raise DamagedError(
                f"update {header.version}: {len(offer.data)} bytes with another sha256 than "
                "announced; it was damaged on the way"
            )
        if self._key is not None and not hmac.compare_digest(signature, header.hmac):
            raise DamagedError(
                f"update {header.version}: the HMAC does not fit; learner and robot need the same "
                "key file"
            )
        if header.version <= self._newest:
            raise ArtifactError(
                f"update {header.version}: not newer than version {self._newest}, accepted before"
            )
        if header.parent_version not in self._known:
            raise ArtifactError(
                f"update {header.version}: made from version {header.parent_version}, which never "
                f"ran here; running is {self.running_version}"
            )

    def _decode(self, offer: Offer) -> tuple[Weights, Golden]:
        """Weights, and the artifact's probes with the chunks that they must give."""
        probes = self._artifact.golden
        shapes = {
            **self._artifact.manifest.graph.weight_shapes,
            GOLDEN_NAME: probes.chunks.shape,
        }
        tensors = decode_weights(offer.data, shapes, f"update {offer.header.version}")
        return tensors, Golden(
            probes.observations, probes.noise, tensors.pop(GOLDEN_NAME)
        )

    def _run(
        self, weights: AnyWeights, observations: Float32Array, noise: Float32Array
    ) -> Float32Array:
        self._sampler.set_weights(weights)
        return self._sampler.sample_all(observations, noise)

    def _refuse(
        self,
        version: int,
        reason: str,
        change: float = float("nan"),
        *,
        final: bool = True,
    ) -> PolicyStatus:
        """Count and note a refusal; if it is not final the version may be offered again."""
        self.refused += 1
        self.last_refusal = f"version {version}: {reason}"
        self.status = self._make_status(version, reason, accepted=False, change=change)
        self._judging.discard(version)
        if final:
            self._decide(self.status)
        return self.status

    def _decide(self, status: PolicyStatus) -> None:
        self._decided[status.offered_version] = status
        if len(self._decided) > REMEMBERED:
            del self._decided[min(self._decided)]

    def _make_status(
        self,
        offered: int,
        reason: str,
        *,
        accepted: bool,
        change: float = 0.0,
        swap_ns: int = 0,
    ) -> PolicyStatus:
        return PolicyStatus(
            stamp_ns=0,
            robot=self._robot,
            running_version=self.running_version,
            offered_version=offered,
            accepted=accepted,
            reason=reason,
            probe_change=change,
            swap_ms=swap_ns * 1e-6,
            swaps=self.swaps,
            refused=self.refused,
        )
