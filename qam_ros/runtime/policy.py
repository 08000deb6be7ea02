# SPDX-License-Identifier: Apache-2.0
"""The policy between messages: observations and episode events in, one proposal a tick out.

Every tick gives a proposal. It carries an action inside an episode, on a complete and finite
observation; between episodes it only shows the observation. Weights change at a chunk boundary,
never inside a chunk. Not thread-safe; whoever drives it from two threads holds a lock.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from qam_ros.contract.artifact import Artifact
from qam_ros.contract.messages import ActionProposal, EpisodeEvent, EpisodeKind
from qam_ros.contract.robot_interface import RobotInterface, check_same_semantics
from qam_ros.runtime.assembler import Assembler, Fields, Observation
from qam_ros.runtime.chunks import ChunkQueue
from qam_ros.runtime.sampler import Sampler

Float32Array = npt.NDArray[np.float32]

NOTHING: Final[Float32Array] = np.zeros(0, dtype=np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """Accepted weights on their way into the control thread.

    Args:
        version: policy version.
        flat: one buffer, packed by the artifact's ``WeightLayout``.
        probe_change: mean absolute action change on the probes.
    """

    version: int
    flat: Float32Array
    probe_change: float


@dataclass(frozen=True, slots=True)
class Swap:
    """A change of weights that took place.

    Args:
        version: version that runs from now on.
        probe_change: mean absolute action change on the probes.
        swap_ns: time the copy took [ns].
    """

    version: int
    probe_change: float
    swap_ns: int


class PolicyCore:
    """Policy with its chunk queue, noise and weights.

    Args:
        artifact: the policy.
        sampler: runs it, with the artifact's weights.
        seed: of the noise.
        interface: the robot with this deployment's topics and ages; None for the artifact's own.
        lockstep: time is that of a simulation; see ``ready``.
        replan_every: actions used of each chunk; None for all of them.
        session: uuid of this policy process (16 bytes); None for a new one.

    Raises:
        InterfaceError: the robot's numbers mean something else than the artifact's.
    """

    def __init__(
        self,
        artifact: Artifact,
        sampler: Sampler,
        seed: int,
        *,
        interface: RobotInterface | None = None,
        lockstep: bool = True,
        replan_every: int | None = None,
        session: bytes | None = None,
    ) -> None:
        manifest = artifact.manifest
        self.interface = manifest.interface if interface is None else interface
        check_same_semantics(manifest.interface, self.interface, "policy artifact")
        self.session = uuid.uuid4().bytes if session is None else session
        self.version = manifest.policy_version
        self.assembler = Assembler(self.interface)
        self.bad_chunks = 0
        self.sample_ns = 0
        self._sampler = sampler
        self._generator = np.random.default_rng(seed)
        self._noise_size = manifest.graph.noise_width
        self._queue = ChunkQueue(manifest.chunk_length, replan_every)
        self._period_ns = round(self.interface.control_period_s * 1e9)
        self._lockstep = lockstep
        self._tick = 0
        self._last_stamp_ns: int | None = None
        self._event: EpisodeEvent | None = None
        self._start_ns: int | None = None
        self._pending: Candidate | None = None
        self._swap: Swap | None = None

    def on_observation(self, stamp_ns: int, values: Mapping[str, Fields]) -> None:
        """Take in sensor messages.

        Args:
            stamp_ns: stamp of the messages [ns].
            values: topic -> field path -> components, as the messages carry them.
        """
        self.assembler.update(stamp_ns, values)

    def on_event(self, event: EpisodeEvent) -> None:
        """Take in an episode event; what is left of the chunk is dropped."""
        self._queue.clear()
        self._event = event
        if event.kind == EpisodeKind.START:
            self._start_ns = event.stamp_ns
            if self._last_stamp_ns == event.stamp_ns:
                self._last_stamp_ns = None

    def offer(self, candidate: Candidate) -> None:
        """Change to these weights at the next chunk boundary; a candidate still waiting is dropped."""
        self._pending = candidate

    def take_swap(self) -> Swap | None:
        """The swap made since the last call, if any."""
        swap, self._swap = self._swap, None
        return swap

    def ready(self) -> bool:
        """In lockstep: whether a tick is due.

        That is when all topics carry the same, new stamp and it is known what episode it belongs to:
        sensors may overtake the START that was sent before them. The first START cannot be waited
        for; if it comes second, its observation gets another tick.
        """
        stamp_ns = self.assembler.common_stamp_ns()
        if stamp_ns is None or stamp_ns == self._last_stamp_ns:
            return False
        if self._event is None or self._event.kind == EpisodeKind.START:
            return True
        return stamp_ns <= self._event.stamp_ns

    def tick(self, now_ns: int) -> ActionProposal:
        """Propose the next action.

        Args:
            now_ns: clock in the domain of the stamps [ns]; stamps a proposal without observation.
        """
        observation = self.assembler.observe() if self.assembler.complete else None
        stamp_ns = now_ns if observation is None else observation.stamp_ns
        if (
            self._last_stamp_ns is not None
            and 2 * (stamp_ns - self._last_stamp_ns) > 3 * self._period_ns
        ):
            self._queue.clear()
        self._last_stamp_ns = stamp_ns
        self.sample_ns = 0
        action, version, chunk_id, index = NOTHING, self.version, 0, 0
        if observation is not None and self._may_act(observation):
            if self._queue.at_boundary:
                self._new_chunk(observation.values)
            if not self._queue.at_boundary:
                due = self._queue.pop()
                action, version, chunk_id, index = (
                    due.action,
                    due.version,
                    due.chunk_id,
                    due.index,
                )
        else:
            self._queue.clear()
            self._exchange()
        self._tick += 1
        return ActionProposal(
            stamp_ns=stamp_ns,
            policy_session=self.session,
            tick=self._tick - 1,
            episode=0 if self._event is None else self._event.episode,
            step=self._step(stamp_ns),
            observation=NOTHING if observation is None else observation.values,
            ages_s=NOTHING if observation is None else observation.ages_s,
            action=action,
            policy_version=version,
            chunk_id=chunk_id,
            chunk_index=index,
        )

    def _step(self, stamp_ns: int) -> int:
        """Control periods since the episode's first observation, also over gaps."""
        if self._start_ns is None:
            return 0
        return max(0, round((stamp_ns - self._start_ns) / self._period_ns))

    def _may_act(self, observation: Observation) -> bool:
        return (
            self._event is not None
            and self._event.kind == EpisodeKind.START
            and observation.stamp_ns >= self._event.stamp_ns
            and bool(np.isfinite(observation.values).all())
        )

    def _new_chunk(self, values: Float32Array) -> None:
        """Swap if weights wait, then sample. A chunk that is not finite is dropped and counted."""
        self._exchange()
        noise = self._generator.standard_normal(self._noise_size, dtype=np.float32)
        started_ns = time.perf_counter_ns()
        chunk = self._sampler.sample(values, noise)
        self.sample_ns = time.perf_counter_ns() - started_ns
        if np.isfinite(chunk).all():
            self._queue.push(chunk, self.version)
        else:
            self._queue.clear()
            self.bad_chunks += 1

    def _exchange(self) -> None:
        candidate, self._pending = self._pending, None
        if candidate is None:
            return
        started_ns = time.perf_counter_ns()
        self._sampler.load(candidate.flat)
        swap_ns = time.perf_counter_ns() - started_ns
        self.version = candidate.version
        self._swap = Swap(candidate.version, candidate.probe_change, swap_ns)
