# SPDX-License-Identifier: Apache-2.0
"""Figures show the record's own numbers and say so where nothing was measured."""

import base64
import dataclasses

import numpy as np
import pytest

from qam_train.report import curves, figures
from qam_train.report.record import Episodes, Record, Swap
from qam_train.report.style import png, svg


def texts(figure) -> str:
    axes_texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    return " | ".join([*axes_texts, *titles])


def test_success_figure_names_mean_and_interval_of_every_policy(record: Record) -> None:
    shown = texts(figures.success_figure(record.success))
    assert "12 %   [7, 20]" in shown
    assert "80 %   [71, 87]" in shown
    assert "91 %   [84, 95]" in shown


def test_success_figure_leaves_out_a_policy_that_was_not_evaluated(
    record: Record,
) -> None:
    figure = figures.success_figure({"base": record.success["base"]})
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        "behaviour-cloned base"
    ]


def test_running_mean_looks_back_over_finite_values_only() -> None:
    values = np.array([1.0, np.nan, 3.0, 5.0, 7.0])
    np.testing.assert_allclose(curves.smooth(values, 2), [1.0, 1.0, 3.0, 4.0, 6.0])


def test_online_curves_of_the_adjoint_follow_the_offline_ones(record: Record) -> None:
    figure = curves.adjoint_figure(record.offline, record.online)
    last = max(
        float(np.max(line.get_xdata()))
        for line in figure.axes[0].lines
        if len(line.get_xdata()) > 2
    )
    assert last == record.offline["update"][-1] + record.online["update"][-1]


def test_a_metric_that_was_not_recorded_is_named_as_missing() -> None:
    assert (
        texts(curves.training_figure({}, {"update": np.arange(3.0)}, "QAM")).count(
            "not recorded"
        )
        == 3
    )


def test_online_figure_marks_accepted_swaps_only(record: Record) -> None:
    shown = texts(figures.online_figure(record.episodes, record.swaps, record.success))
    assert "v3" in shown
    assert "v4" not in shown


def test_online_figure_without_a_finished_episode_says_so(record: Record) -> None:
    nothing = Episodes(np.zeros(0), np.zeros(0), np.zeros(0))
    assert "no finished episode" in texts(
        figures.online_figure(nothing, (), record.success)
    )


def test_realtime_figure_shows_median_and_tail(record: Record) -> None:
    shown = texts(figures.realtime_figure(record.realtime))
    assert f"p99 {np.percentile(record.realtime.latency_ms, 99):.2f}" in shown
    assert "period 50 ms" in shown


def test_realtime_figure_of_no_ticks_says_so(record: Record) -> None:
    nothing = dataclasses.replace(
        record.realtime, tick_period_ms=np.zeros(0), latency_ms=np.zeros(0)
    )
    assert texts(figures.realtime_figure(nothing)).count("not recorded") == 2


@pytest.mark.parametrize("accepted", [True, False])
def test_swap_figure_draws_a_single_verdict(accepted: bool) -> None:
    swap = Swap(
        2, accepted, "", 0.1, 0.05 if accepted else None, 10 if accepted else None
    )
    assert len(png(figures.swap_figure((swap,)))) > 1000


def test_the_same_figure_gives_the_same_svg(record: Record) -> None:
    first, second = (svg(figures.stages_figure(record.stages)) for _ in range(2))
    assert first == second
    assert b"<svg" in base64.b64decode(first.split(",", 1)[1])
