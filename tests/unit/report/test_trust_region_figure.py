# SPDX-License-Identifier: Apache-2.0
"""The demo's trust-region figure: path KL with its budget, lambda with its multiplier."""

import dataclasses

import numpy as np

from qam_train.report import curves
from qam_train.report.record import Record


def with_trust_region(record: Record) -> Record:
    count = len(record.offline["update"])
    m = np.linspace(1.0, 0.1, count)
    dual = {
        "dual/kl_estimate": np.linspace(0.01, 0.5, count),
        "dual/budget": np.full(count, 0.5),
        "dual/lambda": 3.0 * m,
        "dual/multiplier": m,
    }
    online = {
        name: value[: len(record.online["update"])] for name, value in dual.items()
    }
    return dataclasses.replace(
        record, offline=record.offline | dual, online=record.online | online
    )


def test_the_multiplier_is_dashed_beside_lambda_and_every_line_is_named(
    record: Record,
) -> None:
    traced = with_trust_region(record)
    left, right = curves.trust_region_figure(traced.offline, traced.online).axes
    for panel, names in (
        (left, ["estimate", "budget"]),
        (right, ["λ", "multiplier m"]),
    ):
        legend = panel.get_legend()
        assert legend is not None
        assert [text.get_text() for text in legend.get_texts()] == names
    dashed = [line for line in right.lines if line.get_linestyle() == "--"]
    assert len(dashed) == 2  # offline and online
    np.testing.assert_allclose(
        np.asarray(dashed[0].get_ydata()), traced.offline["dual/multiplier"]
    )
