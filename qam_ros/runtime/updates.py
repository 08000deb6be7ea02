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
MAX_VERSION_STEP: Final = 1_000_000
"""A version further above the newest one is a mistake, and would lock out all that come after it."""


class PolicyUpdates:
    """Verdicts on offered weights, and the last versions accepted.

    The first update accepted decides which training run is followed: a learner that restarts keeps
    its run id, and versions of different runs say nothing about each other.

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
        self._decided: dict[tuple[str, int], PolicyStatus] = {}
        self._run_id: str | None = None
        self._ignored: set[tuple[str, int]] = set()
        self.running_version = version
        self.swaps = 0
        self.refused = 0
        self.last_refusal = ""
        self.last_verdict = "no update yet"
        self.status = self._make_status(version, "started", accepted=False)

    def receive(self, part: PolicyUpdate) -> Offer | PolicyStatus | None:
        """Take in a part of an update.

        Returns:
            An offer to ``judge`` when the update is whole; the status to publish when the part is
            refused or its version was decided before; else None. Parts of a run that is not
            followed are ignored and counted: statuses name a version only.
        """
        with self._lock:
            if foreign := self._foreign(part):
                self._ignore(part, foreign)
                return None
            decided = self._decided.get((part.run_id, part.version))
            if decided is not None:
                return decided
            if part.version in self._judging or part.version in self._known:
                return None  # offered again while it is judged, or before its swap
            offer, refusal = self._collector.add(part)
            if refusal:
                return self._refuse(part, refusal, final=False)
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
        except Exception as problem:  # noqa: BLE001
            # Whatever it is: the thread that judges must be there for the next update.
            reason = f"could not be judged: {type(problem).__name__}: {problem}"
            with self._lock:
                return self._refuse(offer.header, reason)

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
                return self._refuse(offer.header, str(problem), final=not damaged)
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
                return self._refuse(offer.header, verdict.reason, verdict.probe_change)
            self.last_verdict = (
                f"version {version}: accepted, mean action change on the probes "
                f"{verdict.probe_change:.3g} of at most {self._budget:.3g}"
            )
            flat = self._sampler.layout.pack(weights)
            candidate = Candidate(version, flat, verdict.probe_change)
            self._kept.append(candidate)
            self._known.add(version)
            self._judging.discard(version)
            self._newest = version
            self._run_id = offer.header.run_id
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
            if self._run_id is not None:
                self._decide(self._run_id, self.status)
            return self.status

    def stands(self, candidate: Candidate) -> bool:
        """Whether a candidate is still the newest version kept, not rolled back meanwhile."""
        with self._lock:
            return self._kept[-1] is candidate

    @property
    def ignored(self) -> int:
        """Updates of other training runs so far; at most ``REMEMBERED`` are told apart."""
        return len(self._ignored)

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
        if foreign := self._foreign(header):
            raise DamagedError(foreign)
        if header.version > self._newest + MAX_VERSION_STEP:
            raise ArtifactError(
                f"update {header.version}: too far ahead of version {self._newest}, accepted before; "
                f"at most {MAX_VERSION_STEP} are allowed"
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

    def _foreign(self, part: PolicyUpdate) -> str:
        """Why the update's training run is not followed; empty if it is."""
        if self._run_id in (None, part.run_id):
            return ""
        return (
            f"update {part.version} is of run '{part.run_id}', this policy follows run "
            f"'{self._run_id}' since it accepted an update of it; restart the policy to change"
        )

    def _ignore(self, part: PolicyUpdate, reason: str) -> None:
        self.last_refusal = f"ignored: {reason}"
        if len(self._ignored) < REMEMBERED:
            self._ignored.add((part.run_id, part.version))

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
        header: PolicyUpdate,
        reason: str,
        change: float = float("nan"),
        *,
        final: bool = True,
    ) -> PolicyStatus:
        """Count and note a refusal; if it is not final the version may be offered again."""
        version = header.version
        self.refused += 1
        self.last_refusal = f"version {version}: {reason}"
        self.last_verdict = f"version {version}: refused, {reason}"
        self.status = self._make_status(version, reason, accepted=False, change=change)
        self._judging.discard(version)
        if final:
            self._decide(header.run_id, self.status)
        return self.status

    def _decide(self, run_id: str, status: PolicyStatus) -> None:
        self._decided[run_id, status.offered_version] = status
        if len(self._decided) > REMEMBERED:
            del self._decided[next(iter(self._decided))]  # the oldest verdict

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
