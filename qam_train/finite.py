# SPDX-License-Identifier: Apache-2.0
"""An update may have a finite loss and gradient and still leave parameters that are not.

The next update would notice, but by then an evaluation would have been played with them, and their
checkpoint would have taken the place of the last good one.
"""

from __future__ import annotations

from qam_train.offline_trainer import NonFiniteError
from qam_train.restore import Agent, agent_tensors

_NAMED = 3  # tensors that the message names


def check_parameters(agent: Agent, stage: str, update: int) -> None:
    """Refuse an agent of which any tensor, the optimiser's included, is not finite.

    Args:
        agent: what is about to be evaluated or saved.
        stage: of its training.
        update: done in that stage.

    Raises:
        NonFiniteError: names tensors, update and stage; `terms` has all of them.
    """
    terms = [
        name
        for name, value in agent_tensors(agent).items()
        if value.is_floating_point() and not bool(value.isfinite().all())
    ]
    if not terms:
        return
    more = f" and {len(terms) - _NAMED} more" if len(terms) > _NAMED else ""
    raise NonFiniteError(
        f"after update {update} ({stage}): expected finite parameters, not finite: "
        f"{', '.join(terms[:_NAMED])}{more}; the last checkpoint before it is kept: lower the learning "
        "rate, or check the data",
        terms=terms,
        update=update,
        stage=stage,
    )
