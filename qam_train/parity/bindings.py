# SPDX-License-Identifier: Apache-2.0
"""Which binding stands for which recording."""

from __future__ import annotations

from collections.abc import Callable

from qam_ros.contract.errors import nearest
from qam_train.parity.actors import bind_dsrl, bind_rebrac, bind_rlpd
from qam_train.parity.baselines import (
    bind_fawac,
    bind_fbrac,
    bind_fedit,
    bind_fql,
    bind_ifql,
)
from qam_train.parity.binding import Binding, Settings
from qam_train.parity.diffusion_policies import bind_dcgql
from qam_train.parity.family import bind_bam, bind_qam, bind_sqam, bind_trqam
from qam_train.parity.guided import bind_cgql
from qam_train.parity.recording import Recording, UnsupportedRecordingError
from qam_train.parity.rql import bind_rql

BINDINGS: dict[str, Callable[[Settings], Binding]] = {
    "bam": bind_bam,
    "cgql": bind_cgql,
    "dcgql": bind_dcgql,
    "dsrl": bind_dsrl,
    "fawac": bind_fawac,
    "fbrac": bind_fbrac,
    "fedit": bind_fedit,
    "fql": bind_fql,
    "ifql": bind_ifql,
    "rebrac": bind_rebrac,
    "rlpd": bind_rlpd,
    "qam": bind_qam,
    "rql": bind_rql,
    "trqam": bind_trqam,
    "sqam": bind_sqam,
}


def binding_of(recording: Recording) -> Binding:
    """Our method for a recording.

    Raises:
        UnsupportedRecordingError: no method here has the official name.
    """
    settings = recording.settings()
    name = settings.get("agent_name", recording.method)
    if name not in BINDINGS:
        raise UnsupportedRecordingError(
            f"method '{name}' is not implemented; {nearest(name, BINDINGS)}"
        )
    return BINDINGS[name](settings)
