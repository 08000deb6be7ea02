# SPDX-License-Identifier: Apache-2.0
"""The policy between messages: observations and episode events in, one proposal a tick out.

Every tick gives a proposal. It carries an action inside an episode, on a complete and finite
observation; between episodes it only shows the observation. Weights change at a chunk boundary,
never inside a chunk; in real time never before a tick's proposal is out, either. Not thread-safe;
whoever drives it from two threads holds a lock.

Aligned in time, the action of a chunk with index i belongs to the tick nearest to stamp + i T, with
the stamp of the observation that the chunk was made from: old sensors or a slow sampler cost the
first actions of a chunk, which are skipped and counted, and never shift the rest.
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from qam_ros.contract.artifact import Artifact
from qam_ros.contract.messages import ActionProposal, EpisodeEvent, EpisodeKind
from qam_ros.contract.robot_interface import RobotInterface, check_same_semantics
from qam_ros.runtime.assembler import Assembler, Fields, Observation
from qam_ros.runtime.chunks import ChunkQueue, ChunkStep
from qam_ros.runtime.planner import Planner
from qam_ros.runtime.sampler import Sampler

Float32Array = npt.NDArray[np.float32]

NOTHING: Final[Float32Array] = np.zeros(0, dtype=np.float32)
LEAD_SAMPLES: Final = 16
"""Sampling ahead begins as early as the slowest of so many chunks before needed."""


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


@dataclass(frozen=True, slots=True)
class _Plan:
    """A chunk that is being made: from which observation [ns], by which weights, since when."""

    stamp_ns: int
    version: int
    epoch: int


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
        align: execute each action at the time it was planned for; see above. For real time, where
            ``tick`` is told the time in the domain of the stamps.
        planner: makes the chunks ahead, while ticks go on. None samples in the tick. Needs ``align``.
        steady_ns: measures how long something took [ns].

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
        align: bool = False,
        planner: Planner | None = None,
        steady_ns: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        assert align or planner is None
        manifest = artifact.manifest
        self.interface = manifest.interface if interface is None else interface
        check_same_semantics(manifest.interface, self.interface, "policy artifact")
        self.session = uuid.uuid4().bytes if session is None else session
        self.version = manifest.policy_version
        self.assembler = Assembler(self.interface)
        self.bad_chunks = 0
        self.old_chunks = 0
        self.sample_ns = 0
        self._sampler = sampler
        self._generator = np.random.default_rng(seed)
        self._noise_size = manifest.graph.noise_width
        self._queue = ChunkQueue(manifest.chunk_length, replan_every)
        self._period_ns = round(self.interface.control_period_s * 1e9)
        self._length = manifest.chunk_length
        self._lockstep = lockstep
        self._align = align
        self._planner = planner
        self._steady_ns = steady_ns
        self._plan: _Plan | None = None
        self._epoch = 0
        self._base_ns = 0
        self._bad_before = 0
        self._seen: Observation | None = None
        self._slowness_ns: deque[int] = deque(maxlen=LEAD_SAMPLES)
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
        self._drop()
        self._seen = None  # no chunk ahead from an observation of before
        self._event = event
        if event.kind == EpisodeKind.START:
            self._start_ns = event.stamp_ns
            if self._last_stamp_ns == event.stamp_ns:
                self._last_stamp_ns = None

    def offer(self, candidate: Candidate) -> None:
        """Change to these weights at the next chunk boundary; a candidate still waiting is dropped.

        In real time that is the next one at the end of a tick, see ``look_ahead``.
        """
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

    @property
    def gives_bad_chunks(self) -> bool:
        """The weights that run now gave a chunk that was not finite."""
        return self.bad_chunks > self._bad_before

    @property
    def skipped_actions(self) -> int:
        """Actions left out because their time had passed when it was their turn."""
        return self._queue.skipped

    def tick(self, now_ns: int) -> ActionProposal:
        """Propose the next action.

        Args:
            now_ns: clock in the domain of the stamps [ns]; stamps a proposal without observation.
                Aligned, it is the time that the tick was due, which jitter does not move.
        """
        observation = self.assembler.observe() if self.assembler.complete else None
        stamp_ns = now_ns if observation is None else observation.stamp_ns
        gap = (
            self._last_stamp_ns is not None
            and 2 * (stamp_ns - self._last_stamp_ns) > 3 * self._period_ns
        )
        if gap and not self._align:  # aligned, time itself moves the chunk on
            self._queue.clear()
        self._last_stamp_ns = stamp_ns
        self.sample_ns = 0
        action, version, chunk_id, index = NOTHING, self.version, 0, 0
        due, self._seen = None, None
        if observation is not None and self._may_act(observation):
            self._seen = observation
            due = self._next_action(observation, now_ns)
        else:
            self._drop()
            if self._planner is not None:
                self._take_plan(self._planner, now_ns)
            elif self._lockstep:
                self._exchange()
        if due is not None:
            action, version = due.action, due.version
            chunk_id, index = due.chunk_id, due.index
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

    def look_ahead(self) -> None:
        """In real time: what the next tick shall find done; call after the proposal is out.

        Weights are exchanged when the next tick begins a chunk: a copy takes longer than a proposal may
        wait for at high rates. With a planner the next chunk is begun when it is time, a tick earlier
        than the slowest of the last chunks would have needed, with weights exchanged before.
        """
        planner = self._planner
        if planner is None:
            if self._queue.at_boundary:
                self._exchange()
            return
        if planner.busy:
            return
        if self._seen is None:
            self._exchange()
            return
        slowest_ns = max(self._slowness_ns, default=0)
        if self._queue.left > -(-slowest_ns // self._period_ns):
            return
        self._exchange()
        noise = self._generator.standard_normal(self._noise_size, dtype=np.float32)
        self._plan = _Plan(self._seen.stamp_ns, self.version, self._epoch)
        planner.start(self._seen.values, noise)

    def _next_action(self, observation: Observation, now_ns: int) -> ChunkStep | None:
        if self._align:
            self._queue.seek(self._periods(now_ns - self._base_ns))
        if self._planner is not None:
            self._take_plan(self._planner, now_ns)
            return None if self._queue.empty else self._queue.pop()
        if self._queue.at_boundary:
            self._new_chunk(observation, now_ns)
        return None if self._queue.at_boundary else self._queue.pop()

    def _new_chunk(self, observation: Observation, now_ns: int) -> None:
        """Sample; in lockstep, where time stands still meanwhile, with the newest weights."""
        if self._lockstep:
            self._exchange()
        noise = self._generator.standard_normal(self._noise_size, dtype=np.float32)
        started_ns = self._steady_ns()
        chunk = self._sampler.sample(observation.values, noise)
        self.sample_ns = self._steady_ns() - started_ns
        age_ns = now_ns - observation.stamp_ns + self.sample_ns
        late_ticks = self._periods(self.sample_ns)
        self._push(chunk, self.version, age_ns, now_ns + late_ticks * self._period_ns)

    def _take_plan(self, planner: Planner, now_ns: int) -> None:
        """Go over to the chunk that was made meanwhile, at the action whose time it is."""
        result = planner.take()
        if result is None:
            return
        plan, self._plan = self._plan, None
        assert plan is not None
        chunk, self.sample_ns = result
        self._slowness_ns.append(self.sample_ns)
        if plan.epoch == self._epoch:
            self._push(chunk, plan.version, now_ns - plan.stamp_ns, now_ns)

    def _push(
        self, chunk: Float32Array, version: int, age_ns: int, now_ns: int
    ) -> None:
        """Start on a chunk; one that is not finite, or wholly of the past, is counted instead.

        Args:
            chunk: (h, A).
            version: of the weights.
            age_ns: time since the observation that it was made from [ns].
            now_ns: time that the tick was due, or would have been after slow sampling [ns].
        """
        skip = self._periods(age_ns) if self._align else 0
        if not np.isfinite(chunk).all():
            self.bad_chunks += 1
        elif skip >= self._length:
            self.old_chunks += 1
        else:
            self._queue.push(chunk, version, skip)
            self._base_ns = now_ns - skip * self._period_ns

    def _periods(self, time_ns: int) -> int:
        """Whole control periods nearest to a time [ns], at least 0."""
        return max(0, (2 * time_ns + self._period_ns) // (2 * self._period_ns))

    def _drop(self) -> None:
        """What is left of the chunk, and one that is being made, is not wanted any more."""
        self._queue.clear()
        self._epoch += 1

    def _exchange(self) -> None:
        candidate, self._pending = self._pending, None
        if candidate is None:
            return
        started_ns = self._steady_ns()
        self._sampler.load(candidate.flat)
        swap_ns = self._steady_ns() - started_ns
        self.version = candidate.version
        self._bad_before = self.bad_chunks
        self._swap = Swap(candidate.version, candidate.probe_change, swap_ns)
