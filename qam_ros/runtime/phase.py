# SPDX-License-Identifier: Apache-2.0
"""Absolute deadlines that follow the phase of the observations.

    d_{k+1} = d_k + T + nudge,    |nudge| <= T / 100
where the nudge pulls the deadline towards ``offset`` behind the newest observation stamp. What was
missed is never caught up: ticks keep half a period from each other. Sensors that are much faster than
the control period have no phase to follow: their newest stamp is always young. A real error is at most
T / 2, so that after PULLS pulls of full size the same way there is nothing to lock on to, and the
period is left as it is.
"""

from __future__ import annotations

from typing import Final

PULLS: Final = 60


class PhasePacer:
    """Deadlines of a control thread in real time.

    Args:
        period_ns: control period T [ns].
        offset_ns: wanted time from an observation's stamp to the deadline [ns].
        start_ns: first deadline, in time that never steps [ns].
    """

    def __init__(self, period_ns: int, offset_ns: int, start_ns: int) -> None:
        self.deadline_ns = start_ns
        self.skipped = 0
        self._period_ns = period_ns
        self._offset_ns = offset_ns
        self._pulls = 0  # of full size in a row, with their sign

    def advance(
        self, now_ns: int, lag_ns: int | None, started_ns: int | None = None
    ) -> None:
        """Go on to the next deadline that has not passed; those left out are counted.

        One less than half a period after the start of this tick is left out, too: a guard refuses a
        second proposal so soon after a late one.

        Args:
            now_ns: time now, when the tick is over [ns], in the domain of the deadlines.
            lag_ns: deadline less stamp of the observation used [ns]; None if there was none.
            started_ns: when the tick began [ns]; None if in time.
        """
        nudge_ns = 0 if lag_ns is None else self._nudge(lag_ns)
        self.deadline_ns += self._period_ns + nudge_ns
        earliest_ns = now_ns + 1
        if started_ns is not None:
            earliest_ns = max(earliest_ns, started_ns + self._period_ns // 2)
        if earliest_ns > self.deadline_ns:
            missed = -(-(earliest_ns - self.deadline_ns) // self._period_ns)
            self.deadline_ns += missed * self._period_ns
            self.skipped += missed

    def _nudge(self, lag_ns: int) -> int:
        """Change of this period [ns], towards the wanted phase."""
        half_ns, limit_ns = self._period_ns // 2, self._period_ns // 100
        error_ns = self._offset_ns - lag_ns
        error_ns = (error_ns + half_ns) % self._period_ns - half_ns  # shorter way round
        if abs(error_ns) < limit_ns:
            self._pulls = 0
            return error_ns
        sign = 1 if error_ns > 0 else -1
        self._pulls = self._pulls + sign if self._pulls * sign > 0 else sign
        return sign * limit_ns if abs(self._pulls) <= PULLS else 0
