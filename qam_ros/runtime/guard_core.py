# SPDX-License-Identifier: Apache-2.0
"""The guard between messages: collects inputs, waits for what belongs together, ticks the pure step.

Not thread-safe; whoever drives it from two threads holds a lock.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import replace

from qam_ros.contract.messages import (
    ActionProposal,
    EpisodeEvent,
    EpisodeKind,
    HumanAction,
)
from qam_ros.contract.transition import GuardMode
from qam_ros.runtime.guard import step
from qam_ros.runtime.guard_config import initial_state
from qam_ros.runtime.guard_types import (
    Fields,
    GuardConfig,
    GuardInputs,
    GuardOutput,
)


class GuardCore:
    """Guard with configuration and state.

    Args:
        config: from ``guard_config``.
        lockstep: time is that of a simulation; a tick belongs to the stamp of its observation.
        session: uuid of this guard (16 bytes); None for a new one.
    """

    def __init__(
        self,
        config: GuardConfig,
        *,
        lockstep: bool = True,
        session: bytes | None = None,
    ) -> None:
        self.config = config
        self.lockstep = lockstep
        self.session = uuid.uuid4().bytes if session is None else session
        self.state = initial_state(config)
        self._measured: dict[str, tuple[int, Fields]] = {}
        self._topics = {item.topic for item in config.inputs}
        self._events: list[EpisodeEvent] = []
        self._episode = self.state.episode
        self._human: tuple[int, HumanAction] | None = None
        self._estop_pressed = False
        self._estop_seen = False
        self._reset = False

    @property
    def measured_topics(self) -> frozenset[str]:
        """Topics that the guard itself must read."""
        return frozenset(self._topics)

    def on_measured(self, stamp_ns: int, values: Mapping[str, Fields]) -> None:
        """Take in sensor messages.

        Args:
            stamp_ns: stamp of the messages [ns].
            values: topic -> field path -> components; topics that are not needed are ignored.
        """
        for topic in self._topics & values.keys():
            self._measured[topic] = (stamp_ns, values[topic])

    def on_event(self, event: EpisodeEvent) -> None:
        """Take in an episode event; it is applied at the next tick."""
        self._events.append(event)
        self._episode = event.episode

    def on_human(self, now_ns: int, message: HumanAction) -> None:
        """Take in a person's action, at the clock's time of arrival [ns]."""
        self._human = (now_ns, message)

    def set_estop(self, *, pressed: bool) -> None:
        """Emergency stop pressed or released; a press latches, however short."""
        self._estop_pressed = pressed
        self._estop_seen |= pressed

    def reset(self) -> tuple[bool, str]:
        """Ask to leave a latched stop.

        Returns:
            Whether the next tick leaves it, and why (not).
        """
        if self._estop_pressed:
            return False, "the emergency stop is still pressed; release it first"
        if self.state.latch is None and not self._estop_seen:
            return True, "no stop is latched"
        self._estop_seen = False
        self._reset = True
        return True, "the next motion starts at the measured pose"

    def stop(self) -> None:
        """Latch a safe stop, as three bad ticks would; a reset leaves it."""
        if self.state.latch is None:
            self.state = replace(self.state, latch=GuardMode.SAFE_STOP)

    def moves(self) -> bool:
        """A velocity other than zero was commanded last."""
        return bool(self.state.command[self.config.velocity].any())

    def ready(self, proposal: ActionProposal) -> bool:
        """Whether everything that belongs to a proposal has arrived.

        That is the measured values of its observation, and the start of its episode.
        """
        if proposal.action.size and proposal.episode != self._episode:
            return False
        return all(
            topic in self._measured and self._measured[topic][0] >= proposal.stamp_ns
            for topic in self._topics
        )

    def tick(
        self, now_ns: int, proposal: ActionProposal | None, tick_ns: int | None = None
    ) -> GuardOutput:
        """One tick.

        Args:
            now_ns: clock in the domain of the stamps [ns].
            proposal: the proposal, or None when it did not come in time.
            tick_ns: time that never steps [ns] in real time, or the observation stamp that got no
                proposal in lockstep; None in lockstep takes the proposal's stamp.
        """
        if proposal is None and not self.lockstep and tick_ns is not None:
            # The proposal was waited for half a period: the tick that goes without was due before,
            # and a proposal that comes right now still finds its place.
            tick_ns -= self.config.period_ns // 2
        if tick_ns is None:
            tick_ns = now_ns if proposal is None else min(now_ns, proposal.stamp_ns)
        inputs = GuardInputs(
            now_ns=now_ns,
            tick_ns=tick_ns,
            proposal=proposal,
            measured=self._measured,
            human=self._human,
            estop=self._estop_pressed or self._estop_seen,
            reset=self._reset,
            events=tuple(self._events),
        )
        try:
            self.state, output = step(self.config, self.state, inputs, self.session)
        except Exception:
            self._apply_stops(inputs)
            raise
        finally:
            self._events.clear()
            self._estop_seen = False
            self._reset = False
        return output

    def _apply_stops(self, inputs: GuardInputs) -> None:
        """After a tick that failed: what ends motion must not be lost with it."""
        ends = (e.kind != EpisodeKind.START for e in inputs.events)
        if any(ends):
            self.state = replace(self.state, in_episode=False)
        if inputs.estop:
            self.state = replace(self.state, latch=GuardMode.ESTOP)

    def deadline_ns(self) -> int | None:
        """Time at which a tick without proposal is due [ns]; None before the first tick.

        A proposal is waited for half a period; a fresh emergency stop does not wait.
        """
        if self.state.last_tick_ns is None:
            return None
        stop = (
            GuardMode.ESTOP
        )  # a press in a refused tick is latched and yet to be commanded
        pressed = self._estop_pressed or self._estop_seen or self.state.latch == stop
        urgent = pressed and self.state.mode != stop
        period_ns = self.config.period_ns
        return self.state.last_tick_ns + (period_ns if urgent else 3 * period_ns // 2)
