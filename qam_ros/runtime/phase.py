# SPDX-License-Identifier: Apache-2.0
"""Absolute deadlines that follow the phase of the observations.

    d_{k+1} = d_k + T + nudge,    |nudge| <= T / 100
where the nudge pulls the deadline towards ``offset`` behind the newest observation stamp. What was
missed is never caught up: ticks keep half a period from each other.
"""

from __future__ import annotations


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
        nudge_ns = 0
        if lag_ns is not None:
            error_ns = self._offset_ns - lag_ns
            half_ns = self._period_ns // 2
            error_ns = (
                error_ns + half_ns
            ) % self._period_ns - half_ns  # the shorter way round
            limit_ns = self._period_ns // 100
            nudge_ns = max(-limit_ns, min(limit_ns, error_ns))
        self.deadline_ns += self._period_ns + nudge_ns
        earliest_ns = now_ns + 1
        if started_ns is not None:
            earliest_ns = max(earliest_ns, started_ns + self._period_ns // 2)
        if earliest_ns > self.deadline_ns:
            missed = -(-(earliest_ns - self.deadline_ns) // self._period_ns)
            self.deadline_ns += missed * self._period_ns
            self.skipped += missed
