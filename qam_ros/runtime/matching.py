# SPDX-License-Identifier: Apache-2.0
"""What a joiner remembers: recent messages, proposals by time, and where episodes begin and end."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from qam_ros.contract.messages import ActionProposal, EpisodeEvent, EpisodeKind

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """A dictionary that forgets its oldest entries.

    Args:
        capacity: number of entries that are kept.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._items: OrderedDict[K, V] = OrderedDict()

    def put(self, key: K, value: V) -> V | None:
        """Remember a value; returns the oldest one if it had to go."""
        self._items[key] = value
        return (
            self._items.popitem(last=False)[1]
            if len(self._items) > self.capacity
            else None
        )

    def get(self, key: K) -> V | None:
        """The value, or None if it never came or was forgotten."""
        return self._items.get(key)

    def __contains__(self, key: K) -> bool:
        return key in self._items

    def __len__(self) -> int:
        return len(self._items)


@dataclass(frozen=True, slots=True)
class Tick:
    """A guard report as far as its neighbours care; ``proposal`` is (policy session, tick)."""

    is_row: bool
    stamp_ns: int
    episode: int
    proposal: tuple[bytes, int]


@dataclass(slots=True)
class Sequence:
    """Row numbers of a guard session that should have come, and how many did."""

    first: int
    last: int
    came: int = 0

    def add(self, seq: int) -> int:
        """Count a row number; returns the change of the number of missing ones."""
        if seq < self.first:
            return 0  # from before this joiner, or its history
        skipped = max(seq - self.last - 1, 0)
        late = seq <= self.last
        self.last = max(self.last, seq)
        self.came += 1
        return -1 if late else skipped


class Proposals:
    """Recent proposals, found by key (policy session, tick) or by observation stamp."""

    def __init__(self, capacity: int) -> None:
        self._by_key: Recent[tuple[bytes, int], ActionProposal] = Recent(capacity)
        self._by_stamp: list[tuple[int, tuple[bytes, int]]] = []

    def add(self, proposal: ActionProposal) -> bool:
        """Remember a proposal; False if it was there already."""
        key = (proposal.policy_session, proposal.tick)
        if key in self._by_key:
            return False
        insort(self._by_stamp, (proposal.stamp_ns, key))
        gone = self._by_key.put(key, proposal)
        if gone is not None:
            self._by_stamp.remove((gone.stamp_ns, (gone.policy_session, gone.tick)))
        return True

    def get(self, key: tuple[bytes, int]) -> ActionProposal | None:
        """The proposal with this key."""
        return self._by_key.get(key)

    def observed(self, key: tuple[bytes, int]) -> bool:
        """Whether the proposal is there, with an observation that may be learned from."""
        proposal = self._by_key.get(key)
        return proposal is not None and _observes(proposal)

    def one_period_after(
        self, stamp_ns: int, period_ns: int, before_ns: int | None
    ) -> ActionProposal | None:
        """The proposal whose observation follows the one with this stamp.

        Args:
            stamp_ns: observation stamp [ns].
            period_ns: control period [ns]; half a period either way is allowed.
            before_ns: start of the next episode [ns], whose observations do not count.
        """
        last_ns = stamp_ns + period_ns * 3 // 2
        if before_ns is not None:
            last_ns = min(last_ns, before_ns)
        index = bisect_right(
            self._by_stamp, (stamp_ns + period_ns // 2, (b"\xff" * 17, 0))
        )
        for found_ns, key in self._by_stamp[index : index + 16]:
            if found_ns >= last_ns:
                return None
            proposal = self._by_key.get(key)
            if proposal is not None and _observes(proposal):
                return proposal
        return None


def _observes(proposal: ActionProposal) -> bool:
    return bool(proposal.observation.size) and bool(
        np.isfinite(proposal.observation).all()
    )


@dataclass(slots=True)
class _Span:
    start_ns: int | None = None
    end_ns: int | None = None


class Episodes:
    """Where episodes begin and end, as far as their events have come."""

    def __init__(self, capacity: int) -> None:
        self._spans: Recent[int, _Span] = Recent(capacity)
        self._starts: list[int] = []
        self._capacity = capacity

    def add(self, event: EpisodeEvent) -> None:
        """Take an event, in any order.

        An episode id that starts anew later (a plant that was restarted) forgets its old span.
        """
        span = self._spans.get(event.episode)
        if span is None:
            span = _Span()
            self._spans.put(event.episode, span)
        if event.kind == EpisodeKind.START:
            if span.start_ns is None or event.stamp_ns > span.start_ns:
                span.start_ns = event.stamp_ns
                if span.end_ns is not None and span.end_ns <= event.stamp_ns:
                    span.end_ns = None
                insort(self._starts, event.stamp_ns)
                del self._starts[: -self._capacity]
        elif (
            span.start_ns is None or event.stamp_ns > span.start_ns
        ) and span.end_ns is None:
            span.end_ns = event.stamp_ns

    def holds(self, episode: int, stamp_ns: int) -> bool:
        """Whether start <= stamp < end, as far as both are known."""
        span = self._spans.get(episode)
        if span is None:
            return True
        begun = span.start_ns is None or span.start_ns <= stamp_ns
        return begun and (span.end_ns is None or stamp_ns < span.end_ns)

    def ends_after(self, episode: int, stamp_ns: int, period_ns: int) -> bool:
        """Whether the episode ends within about one period after this stamp."""
        span = self._spans.get(episode)
        if span is None or span.end_ns is None:
            return False
        return 0 < span.end_ns - stamp_ns < period_ns * 3 // 2

    def next_start(self, stamp_ns: int) -> int | None:
        """Stamp of the first episode start behind this stamp [ns], if it is known."""
        index = bisect_right(self._starts, stamp_ns)
        return self._starts[index] if index < len(self._starts) else None
