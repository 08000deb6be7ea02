# SPDX-License-Identifier: Apache-2.0
"""Policy updates on the robot: parts put together, verified, judged, kept for a rollback.

``receive`` takes parts and says when an update is whole; ``judge`` does the heavy work and belongs
on a worker thread. What it accepts is handed to ``PolicyCore.offer``, and ``swapped`` closes the case.
The methods may be called from different threads.
"""

from __future__ import annotations

import hashlib
import hmac
import threading
from collections import deque
from dataclasses import replace
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
ROLLED_BACK: Final = "rolled back"
"""Reason in the verdict on a version that was left; see the status after a rollback."""


class PolicyUpdates:
    """Verdicts on offered weights, and the last versions accepted.

    The first update accepted decides which training run is followed: a learner that restarts keeps
    its run id, and versions of different runs say nothing about each other. In a run a version
    number stands for one blob, the one that got its verdict.

    After a rollback the status names the version that was left as offered: accepted, while something
    older runs. One that was rolled back before it ran is refused.

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
        self._known: dict[int, bytes] = {version: b""}  # accepted: sha256 of each
        self._judging: set[int] = set()
        self._pending: set[int] = set()  # accepted, not seen to run yet
        self._left: PolicyStatus | None = None  # on the version rolled back last
        self._withdrawn: set[int] = set()  # all that were rolled back
        self._lock = threading.Lock()
        self._newest = version
        self._decided: dict[tuple[str, int], tuple[bytes, PolicyStatus]] = {}
        self._run_id: str | None = None
        self._ignored: set[tuple[str, int]] = set()
        self.running_version = version
        self.swaps = 0
        self.refused = 0
        self.put_off_count = 0
        self.last_refusal = ""
        self.last_verdict = "no update yet"
        self.status = self._make_status(version, "started", accepted=False)

    def receive(self, part: PolicyUpdate) -> Offer | PolicyStatus | None:
        """Take in a part of an update.

        Returns:
            An offer to ``judge`` when the update is whole; the status to publish when the part is
            refused or this update was decided before; else None. Parts of a run that is not
            followed are ignored and counted: statuses name a version only.
        """
        with self._lock:
            if foreign := self._foreign(part):
                self._ignore(part, foreign)
                return None
            decided = self._decided.get((part.run_id, part.version))
            if decided is not None and decided[0] == part.sha256:
                return self._present(decided[1])
            if part.version in self._judging or part.version in self._pending:
                return None  # its verdict is not given yet, so none on other content either
            offer, refusal = self._collector.add(part)
            if refusal:
                return self._refuse(part.version, refusal)
            if offer is not None:
                self._judging.add(part.version)
            return offer

    def put_off(self, offer: Offer) -> None:
        """Forget a whole update unjudged: others are judged. Without a verdict it is offered again."""
        with self._lock:
            self._judging.discard(offer.header.version)
            self.put_off_count += 1

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
                return self._refuse_finally(offer.header, reason)

    def _judge(self, offer: Offer) -> Candidate | PolicyStatus:
        version = offer.header.version
        with self._lock:
            reference = self._kept[-1]
        try:
            self._check_header(offer)
            weights, golden = self._decode(offer)
        except DamagedError as problem:
            with self._lock:
                return self._refuse(version, str(problem))
        except ArtifactError as problem:
            with self._lock:
                return self._refuse_finally(offer.header, str(problem))
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
                return self._refuse_finally(
                    offer.header, verdict.reason, verdict.probe_change
                )
            if self._kept[-1] is not reference:
                return self._refuse_finally(
                    offer.header, "the version it was compared with was rolled back"
                )
            self.last_verdict = (
                f"version {version}: accepted, mean action change on the probes "
                f"{verdict.probe_change:.3g} of at most {self._budget:.3g}"
            )
            flat = self._sampler.layout.pack(weights)
            candidate = Candidate(version, flat, verdict.probe_change)
            self._kept.append(candidate)
            self._known[version] = offer.header.sha256
            self._pending.add(version)
            self._judging.discard(version)
            self._newest = version
            self._run_id = offer.header.run_id
            return candidate

    def swapped(self, swap: Swap) -> PolicyStatus:
        """Note that weights run now, and give the status to publish."""
        with self._lock:
            version, left = swap.version, self._left
            self.swaps += version != self.running_version
            self.running_version = version
            swap_ms = swap.swap_ns * 1e-6
            verdict = self._make_status(
                version, "accepted", accepted=True, change=swap.probe_change
            )
            self.status = verdict = replace(verdict, swap_ms=swap_ms)
            # Versions only grow, so one below that rolled back last is what was returned to.
            if left is not None and version < left.offered_version:
                self.status = replace(self._present(left), swap_ms=swap_ms)
            elif left is not None and version == left.offered_version:
                # It ran before the rollback, the news of it comes after: not refused after all.
                self._left = self.status = verdict = replace(
                    verdict, reason=ROLLED_BACK
                )
                self._settle(verdict)
            if version in self._pending:
                self._settle(verdict)
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
        """The version accepted before the newest kept, which is forgotten; None if there is none.

        A newest that never ran is refused: ``status`` says so at once. One that did is reported by
        ``swapped``, when the version before it runs.
        """
        with self._lock:
            if len(self._kept) < 2:
                return None
            left = self._kept.pop()
            if left.version in self._pending:
                reason = f"{ROLLED_BACK} before it ran"
                self._left = self._refuse(left.version, reason, left.probe_change)
            else:
                self._left = self._make_status(
                    left.version, ROLLED_BACK, accepted=True, change=left.probe_change
                )
            self._withdrawn.add(left.version)
            self._settle(self._left)
            return self._kept[-1]

    def _check_header(self, offer: Offer) -> None:
        """Refuse data that was damaged, forged, old, or made from something that never ran here."""
        header = offer.header
        digest = hashlib.sha256(offer.data).digest()
        if len(offer.data) != header.total_size or digest != header.sha256:
            raise DamagedError(
                f"update {header.version}: {len(offer.data)} bytes with another sha256 than "
                "announced; it was damaged on the way"
            )
        if self._key is not None and not hmac.compare_digest(
            sign(header, self._key), header.hmac
        ):
            raise DamagedError(
                f"update {header.version}: the HMAC does not fit; learner and robot need the same "
                "key file and the same version of this software"
            )
        if foreign := self._foreign(header):
            raise DamagedError(foreign)
        decided = self._decided.get((header.run_id, header.version))
        if decided is not None and decided[0] != digest:
            raise DamagedError(
                f"update {header.version}: version {header.version} of run '{header.run_id}' was "
                f"decided before with other content (sha256 {decided[0].hex()[:8]}, now "
                f"{digest.hex()[:8]}); restart the policy, or continue the old run"
            )
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
            # The learner has yet to hear that this policy began anew: its next offer is another.
            raise DamagedError(
                f"update {header.version}: made from version {header.parent_version}, which never "
                f"ran here; running is {self.running_version}"
            )
        if header.parent_version in self._withdrawn:
            raise ArtifactError(
                f"update {header.version}: made when version {header.parent_version} ran, which was "
                "rolled back since"
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
        self, version: int, reason: str, change: float = float("nan")
    ) -> PolicyStatus:
        """Count and note a refusal; the version may be offered again."""
        self.refused += 1
        self.last_refusal = f"version {version}: {reason}"
        self.last_verdict = f"version {version}: refused, {reason}"
        self.status = self._make_status(version, reason, accepted=False, change=change)
        self._judging.discard(version)
        return self.status

    def _refuse_finally(
        self, header: PolicyUpdate, reason: str, change: float = float("nan")
    ) -> PolicyStatus:
        """Count and note a refusal that stands for this update."""
        status = self._refuse(header.version, reason, change)
        self._decide(header.run_id, header.sha256, status)
        return status

    def _settle(self, status: PolicyStatus) -> None:
        """Note the verdict on a version that was accepted."""
        version = status.offered_version
        self._pending.discard(version)
        assert self._run_id is not None  # the first update accepted has set it
        self._decide(self._run_id, self._known[version], status)

    def _decide(self, run_id: str, sha256: bytes, status: PolicyStatus) -> None:
        self._decided[run_id, status.offered_version] = sha256, status
        if len(self._decided) > REMEMBERED:
            del self._decided[next(iter(self._decided))]  # the oldest verdict

    def _present(self, status: PolicyStatus) -> PolicyStatus:
        """A verdict given before, with what runs now."""
        return replace(
            status,
            running_version=self.running_version,
            swaps=self.swaps,
            refused=self.refused,
        )

    def _make_status(
        self,
        offered: int,
        reason: str,
        *,
        accepted: bool,
        change: float = 0.0,
    ) -> PolicyStatus:
        return PolicyStatus(
            stamp_ns=0,
            robot=self._robot,
            running_version=self.running_version,
            offered_version=offered,
            accepted=accepted,
            reason=reason,
            probe_change=change,
            swap_ms=0.0,
            swaps=self.swaps,
            refused=self.refused,
        )
