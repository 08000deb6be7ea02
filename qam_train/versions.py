# SPDX-License-Identifier: Apache-2.0
"""Versions of the policy that a run made: weights on disk, verdicts beside them, offers to the robot.

A version is on disk before it is offered, so a number never stands for two policies. One version at a
time waits for the robot's verdict and is offered again until it comes. A robot whose policy process
was started anew runs the artifact again: it is offered the accepted versions in their order, because
the step from the artifact to the newest may be larger than its gate allows. Versions that it was rolled
back from, by an operator or by itself, are withdrawn: they stay on disk and are offered no more.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import uuid
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load

from qam_ros.contract.errors import ArtifactError, ConfigError
from qam_ros.contract.messages import PolicyStatus, PolicyUpdate
from qam_ros.contract.weights import Weights, encode_weights
from qam_ros.runtime.update_parts import GOLDEN_NAME, split_update

logger = logging.getLogger(__name__)

RUN_ID_FILE = "run_id"
_NAME = re.compile(r"v(\d{6,})\.safetensors")
_RUN_ID = re.compile(r".*-[0-9a-f]{8}")


def run_identity(run_dir: Path) -> str:
    """Run id of a folder: its name and eight hexadecimal digits, drawn once and kept in a file.

    The name alone would not do: a robot's policy outlives learners, and would take the versions of
    a run begun afresh in a folder of the same name for those that it knows.

    Raises:
        ConfigError: the file holds no run id.
    """
    path = run_dir / RUN_ID_FILE
    if not path.exists():
        run_dir.mkdir(parents=True, exist_ok=True)
        name = f"{run_dir.resolve().name}-{uuid.uuid4().hex[:8]}"
        _write(path, f"{name}\n".encode())
    run_id = path.read_text(encoding="utf-8").strip()
    if not _RUN_ID.fullmatch(run_id):
        raise ConfigError(
            f"{path}: holds {run_id!r}, expected a name and eight hexadecimal digits, such as "
            "robot-1a2b3c4d; put the id of this run back, or remove the file and restart the policy"
        )
    return run_id


@dataclass(frozen=True)
class VersionRecord:
    """What is known of a version.

    Args:
        version: its number.
        updates: updates of the run when it was made.
        rows: rows of the run when it was made.
        accepted: the verdict; None as long as there is none.
        reason: the verdict in words.
        probe_change: mean action change on the probes against what ran; 0 without a verdict.
        swap_ms: time the robot took to swap it in [ms].
        withdrawn: the robot was rolled back from it after it had accepted it.
    """

    version: int
    updates: int
    rows: int
    accepted: bool | None = None
    reason: str = ""
    probe_change: float = 0.0
    swap_ms: float = 0.0
    withdrawn: bool = False  # missing in the records of older runs


class VersionFolder:
    """Versions on disk: vNNNNNN.safetensors and a record vNNNNNN.json.

    Args:
        path: the folder; made if missing.
        parent: version the run started from; all numbers are higher.
    """

    def __init__(self, path: Path, parent: int) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.records = {number: self._read_record(number) for number in self._numbers()}
        self.newest: int = max([parent, *self.records])

    def add(
        self, record: VersionRecord, weights: Weights, chunks: npt.NDArray[np.float32]
    ) -> None:
        """Write a new version: weights, and the chunks (64, H, A) they give on the probes."""
        blob = encode_weights({**weights, GOLDEN_NAME: chunks})
        _write(self._weights_path(record.version), blob)
        self.newest = max(self.newest, record.version)
        self.note(record)

    def note(self, record: VersionRecord) -> None:
        """Write what is known of a version now."""
        self.records[record.version] = record
        path = self._weights_path(record.version).with_suffix(".json")
        _write(path, (json.dumps(asdict(record)) + "\n").encode())

    def drop_after(self, number: int) -> None:
        """Remove the versions with a higher number."""
        for later in [n for n in self.records if n > number]:
            path = self._weights_path(later)
            path.with_suffix(".json").unlink(missing_ok=True)
            path.unlink()
            del self.records[later]
        self.newest = min(self.newest, number)

    def blob(self, number: int) -> bytes:
        """Safetensors blob of a version, as it is offered."""
        return self._weights_path(number).read_bytes()

    def weights(self, number: int) -> tuple[Weights, npt.NDArray[np.float32]]:
        """Weights of a version, and its golden chunks.

        Raises:
            ArtifactError: there is no such version.
        """
        if number not in self.records:
            raise ArtifactError(
                f"{self.path}: no version {number}; there are {sorted(self.records)}"
            )
        tensors = load(self.blob(number))
        return tensors, tensors.pop(GOLDEN_NAME)

    @property
    def accepted(self) -> list[int]:
        """Numbers of the versions the robot accepted and was not rolled back from, in order."""
        records = tuple(self.records.items())  # another thread may add one meanwhile
        return sorted(n for n, r in records if r.accepted and not r.withdrawn)

    @property
    def withdrawn(self) -> list[int]:
        """Numbers of the versions that the robot was rolled back from, in order."""
        records = tuple(self.records.items())
        return sorted(number for number, record in records if record.withdrawn)

    def _weights_path(self, number: int) -> Path:
        return self.path / f"v{number:06d}.safetensors"

    def _numbers(self) -> list[int]:
        found = (_NAME.fullmatch(path.name) for path in self.path.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def _read_record(self, number: int) -> VersionRecord:
        path = self._weights_path(number).with_suffix(".json")
        if not path.is_file():  # killed between the two files
            return VersionRecord(number, 0, 0, accepted=False, reason="never offered")
        return VersionRecord(**json.loads(path.read_text()))


class Offers:
    """Which version to send now, and what the robot said. Its methods may be called from any thread.

    Args:
        folder: the versions.
        run_id: training run.
        key: shared key that updates are signed with; None signs nothing.
        reoffer_s: silence after which an offer is repeated [s].
    """

    def __init__(
        self, folder: VersionFolder, run_id: str, key: bytes | None, reoffer_s: float
    ) -> None:
        self.folder = folder
        self._run_id = run_id
        self._key = key
        self._reoffer_s = reoffer_s
        self._lock = threading.Lock()
        self._waiting: list[int] = []
        self._running: int | None = None
        self._swaps = 0
        self._sent_s: float | None = None
        self._contradicted: set[int] = set()

    @property
    def outstanding(self) -> int | None:
        """Version that waits for its verdict."""
        with self._lock:
            return self._waiting[0] if self._waiting else None

    def add(self, number: int) -> None:
        """Offer a new version, after the one that waits; others that wait are passed over."""
        with self._lock:
            kept = [
                n
                for n in self._waiting
                if n == self._waiting[0] or self.folder.records[n].accepted
            ]
            self._waiting = [*kept, number]

    def heard(self, status: PolicyStatus) -> None:
        """Take in what the robot runs and its last verdict."""
        with self._lock:
            first, rolled_back = self._running is None, self._rolled_back(status)
            swapped = self._running is not None and status.swaps > self._swaps
            self._running, self._swaps = status.running_version, status.swaps
            record = self.folder.records.get(status.offered_version)
            judged = bool(self._waiting) and status.offered_version == self._waiting[0]
            asked = record is not None and (judged or record.accepted is None)
            if record is not None and asked and not self._contradicts(record, status):
                self._note(record, status)
            if judged:
                del self._waiting[0]
                self._sent_s = None
            if rolled_back:
                self._withdraw()
            elif swapped:
                self._reinstate()
            if status.swaps == 0 or first:  # either side may have begun anew
                self._offer_again()

    def due(self, now_s: float) -> list[PolicyUpdate]:
        """Parts to send now; nothing before the robot was heard.

        Args:
            now_s: monotonic time [s].
        """
        with self._lock:
            if self._running is None or not self._waiting:
                return []
            if self._sent_s is not None and now_s - self._sent_s < self._reoffer_s:
                return []
            self._sent_s = now_s
            return split_update(
                self.folder.blob(self._waiting[0]),
                run_id=self._run_id,
                version=self._waiting[0],
                parent_version=self._running,
                key=self._key,
            )

    def _note(self, record: VersionRecord, status: PolicyStatus) -> None:
        self.folder.note(
            replace(
                record,
                accepted=status.accepted,
                reason=status.reason,
                probe_change=status.probe_change,
                swap_ms=status.swap_ms,
            )
        )

    def _contradicts(self, record: VersionRecord, status: PolicyStatus) -> bool:
        """Whether a policy started anew refuses what was accepted before, for the first time.

        It was offered with a parent that this process does not know yet; the versions in between
        come first. A second refusal counts.
        """
        if not record.accepted or status.accepted or status.swaps:
            return False
        if record.version in self._contradicted:
            return False
        self._contradicted.add(record.version)
        return True

    def _rolled_back(self, status: PolicyStatus) -> bool:
        """Whether the robot went back to an older version; a policy started anew did not.

        Its status says so: a version is accepted, and yet an older one runs. Statuses may overtake
        each other, so that the same process swapped to an older version says it too.
        """
        if status.accepted and status.running_version < status.offered_version:
            return True
        if self._running is None or status.swaps <= self._swaps:
            return False
        return status.running_version < self._running

    def _withdraw(self) -> None:
        """Never offer again what the robot was rolled back from."""
        assert self._running is not None
        above = [n for n in self.folder.accepted if n > self._running]
        for number in above:
            self.folder.note(replace(self.folder.records[number], withdrawn=True))
            logger.warning(
                "version %d was rolled back, version %d runs", number, self._running
            )
        if self._waiting and self._waiting[0] in above:
            self._sent_s = None
        self._waiting = [n for n in self._waiting if n not in above]

    def _reinstate(self) -> None:
        """The robot swapped to what runs now; that may have been on its way when it was withdrawn."""
        assert self._running is not None
        record = self.folder.records.get(self._running)
        if record is not None and record.withdrawn:
            self.folder.note(replace(record, withdrawn=False))

    def _offer_again(self) -> None:
        """A policy process that never swapped runs its artifact: bring it up to date in steps."""
        assert self._running is not None
        behind = [n for n in self.folder.accepted if n > self._running]
        missing = [n for n in behind if n not in self._waiting]
        if missing:
            self._waiting = sorted({*missing, *self._waiting})
            self._sent_s = None


def _write(path: Path, data: bytes) -> None:
    """Write a file so that after a kill it is there whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
