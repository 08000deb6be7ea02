# SPDX-License-Identifier: Apache-2.0
"""How methods are written in tables and figures."""

from __future__ import annotations

LABELS = {
    "flow_bc": "BC flow",
    "qam": "QAM",
    "qam_edit": "QAM-E",
    "qam_onestep": "QAM-F",
    "trqam": "TRQAM",
    "sqam": "SQAM",
    "bam": "BAM",
    "fql": "FQL",
    "ifql": "IFQL",
    "rebrac": "ReBRAC",
    "fawac": "FAWAC",
    "fbrac": "FBRAC",
    "cgql": "CGQL",
    "cgql_m": "CGQL-M",
    "cgql_l": "CGQL-L",
    "qsm": "QSM",
    "dac": "DAC",
    "dsrl": "DSRL",
    "fedit": "FEdit",
    "rlpd": "RLPD",
    "rql": "RQL",
}


def label(method: str) -> str:
    """Name of a method as its paper writes it."""
    return LABELS.get(method, method)
