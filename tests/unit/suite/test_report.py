# SPDX-License-Identifier: Apache-2.0
"""The suite's report on made-up cells whose statistics are known."""

import csv
import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from qam_ros.contract.errors import ConfigError
from qam_train.metrics import MetricsWriter
from qam_train.suite.cell_config import CellConfig, write_cell
from qam_train.suite.folder import CellFolder
from qam_train.suite.protocol import load_protocol
from qam_train.suite.report.command import command, write_report
from qam_train.suite.report.learning import aligned, curve, online_start
from qam_train.suite.report.panels import method_curves
from qam_train.suite.report.published import Published
from qam_train.suite.report.run import OFFLINE, ONLINE, Run, read_runs
from qam_train.suite.report.scores import ALL, Scores
from qam_train.suite.report.trust_region import read_trace, trust_region_figure

SHORT = ("offline_updates=200", "online_steps=100", "evaluate_every=100")
Points = Sequence[tuple[int, str, float]]


protocol_of = functools.cache(load_protocol)


def cell_of(
    method: str, domain: str, task: int, seed: int, protocol: str = "p_qam"
) -> CellConfig:
    return protocol_of(protocol).cell(method, domain, task, seed, SHORT)


def put(out: Path, config: CellConfig, points: Points, *, done: bool = True) -> Path:
    """A cell's folder with evaluations (step, phase, success)."""
    folder = CellFolder(out / config.folder)
    folder.claim(config)
    constant = {"low": 0, "high": 1, "episodes": 50, "return": -9.0, "length": 99.0}
    rows: list[dict[str, Any]] = [
        {"step": step, "phase": phase, "success": success, "seconds": 1.0} | constant
        for step, phase, success in points
    ]
    folder.write_evaluations(rows)
    if done:
        folder.finish({"success": points[-1][2]})
    return folder.path


def whole(offline: float, online: float, half: float = 0.1) -> Points:
    return [(100, OFFLINE, half), (200, OFFLINE, offline), (300, ONLINE, online)]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """QAM on two tasks of scene with two seeds, TRQAM on task 1; RLPD online only."""
    for seed, shift in ((1, 0.0), (2, 0.2)):
        put(tmp_path, cell_of("qam", "scene", 1, seed), whole(0.4 + shift, 0.6 + shift))
        put(tmp_path, cell_of("qam", "scene", 2, seed), whole(0.2 + shift, 0.8))
    put(tmp_path, cell_of("trqam", "scene", 1, 1), whole(0.5, 0.9))
    put(tmp_path, cell_of("trqam", "scene", 1, 2), [(100, OFFLINE, 0.3)], done=False)
    rlpd = protocol_of("p_qam").cell("rlpd", "scene", 1, 1, SHORT[1:])
    put(tmp_path, rlpd, [(100, ONLINE, 0.7)])
    return tmp_path


def only_run(folder: Path) -> Run:
    (run,) = read_runs(folder).values()
    return run


def scores_of(folder: Path) -> Scores:
    return Scores(only_run(folder), Published("qam"))


def test_scores_at_the_ends_are_means_over_seeds_and_tasks(out: Path) -> None:
    scores = scores_of(out)
    row = scores.row("qam", "scene", [("scene", 1)])
    assert row.offline is not None
    assert row.online is not None
    assert row.offline.value == pytest.approx(0.5)
    assert row.online.value == pytest.approx(0.7)
    # two seeds: every resampled mean is 0.4, 0.5 or 0.6, the outer ones a quarter of the time each
    assert (row.offline.low, row.offline.high) == pytest.approx((0.4, 0.6))
    domain = next(iter(scores.domain_rows("scene")))
    assert domain.offline is not None
    assert domain.offline.value == pytest.approx((0.5 + 0.3) / 2)


def test_a_method_that_lacks_a_task_has_no_domain_mean(out: Path) -> None:
    rows = {row.method: row for row in scores_of(out).domain_rows("scene")}
    assert rows["trqam"].offline is None
    assert rows["rlpd"].offline is None


def test_aggregates_are_taken_over_the_tasks_that_all_methods_share(out: Path) -> None:
    scores = scores_of(out)
    assert scores.common(OFFLINE) == (["qam", "trqam"], [("scene", 1)])
    assert scores.common(ONLINE) == (["qam", "trqam", "rlpd"], [("scene", 1)])


def test_an_unfinished_phase_gives_no_final_score(out: Path) -> None:
    scores = scores_of(out)
    assert scores.by_seed("trqam", ("scene", 1), OFFLINE) == {1: 0.5}
    assert scores.by_seed("rlpd", ("scene", 1), OFFLINE) == {}
    assert scores.by_seed("rlpd", ("scene", 1), ONLINE) == {1: 0.7}


def test_missing_cells_are_named_with_their_state(out: Path) -> None:
    missing = list(only_run(out).incomplete())
    assert ("trqam", ("scene", 1), 2, "unfinished after offline, step 100") in missing
    assert ("rlpd", ("scene", 1), 2, "not started") in missing
    assert ("trqam", ("scene", 2), 1, "not started") in missing
    assert not any(method == "qam" for method, *_ in missing)


def test_a_failed_cell_says_what_stopped_it(tmp_path: Path) -> None:
    path = put(tmp_path, cell_of("qam", "scene", 1, 1), [], done=False)
    CellFolder(path).fail({"message": "adjoint/loss is inf at update 7"})
    ((_, _, _, status),) = only_run(tmp_path).incomplete()
    assert status == ("failed before any evaluation: adjoint/loss is inf at update 7")


def test_settings_other_than_the_protocols_are_listed(out: Path) -> None:
    texts = only_run(out).deviations()
    assert "offline_updates = 200 instead of 1000000 (6 of 7 cells)" in texts
    assert "evaluate_every = 100 instead of 50000 (7 of 7 cells)" in texts


def test_the_gain_compares_a_seed_with_its_own_clone(tmp_path: Path) -> None:
    for seed, clone in ((1, 0.1), (2, 0.3)):
        cell = cell_of("trqam", "scene", 1, seed, "p_tr")
        put(tmp_path, cell, [(0, "behaviour", clone), *whole(0.5, clone + 0.4)])
        plain = cell_of("rebrac", "scene", 1, seed, "p_tr")  # starts from no clone
        put(tmp_path, plain, whole(0.5, clone - 0.1))
    scores = Scores(only_run(tmp_path), Published("trqam"))
    above, below = (scores.row(m, "scene", [("scene", 1)]).gain for m in ("trqam", "rebrac"))  # fmt: skip
    assert above is not None
    assert below is not None
    assert (above.low, above.value, above.high) == pytest.approx((0.4, 0.4, 0.4))
    assert (below.low, below.value, below.high) == pytest.approx((-0.1, -0.1, -0.1))


def test_online_steps_of_all_methods_begin_at_the_same_place(out: Path) -> None:
    run, tasks = only_run(out), [("scene", 1)]
    start = online_start(run, tasks)
    assert start == 200
    places = [point.place for point in curve(run, "qam", tasks, start)]
    assert places == [100, 200, 300]
    assert [p.place for p in curve(run, "rlpd", tasks, start)] == [300]


def test_a_curve_over_tasks_has_only_the_places_all_tasks_have_reached(
    tmp_path: Path,
) -> None:
    put(tmp_path, cell_of("qam", "scene", 1, 1), whole(0.4, 0.6, half=0.2))
    put(tmp_path, cell_of("qam", "scene", 2, 1), [(100, OFFLINE, 0.4)], done=False)
    tasks = [("scene", 1), ("scene", 2)]
    points = curve(only_run(tmp_path), "qam", tasks, 200)
    assert [(p.place, p.score.value) for p in points] == [(100, pytest.approx(0.3))]


def test_published_domain_and_overall_levels_are_those_of_the_release() -> None:
    published = Published("qam")
    protocol = protocol_of("p_qam")
    tasks = [(domain, task) for domain in protocol.domains for task in range(1, 6)]
    for method, offline, online in (("qam_edit", 46, 85), ("qam", 44, 70)):
        for phase, expected in ((OFFLINE, offline), (ONLINE, online)):
            level = published.level(method, tasks, phase)
            assert level is not None
            assert round(100 * level.success) == expected
    cube = [("cube-double", task) for task in range(1, 6)]
    level = published.level("qam", cube, OFFLINE)
    assert level is not None
    assert round(100 * level.success) == 64
    assert published.level("trqam", cube, OFFLINE) is None


def test_means_of_published_tasks_are_the_published_domain_curves() -> None:
    published = Published("qam")
    path = Path(__file__).parents[3] / "config/suite/reference/qam_domains.csv"
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["domain"] == "scene"]
    for method in ("fql", "rlpd", "dac"):
        held = [row for row in rows if row["method"] == method]
        found = published.curve(method, [("scene", task) for task in range(1, 6)])
        assert found is not None
        assert [int(row["step"]) for row in held] == found.steps.tolist()
        expected = [float(row["success"]) for row in held]
        # both are rounded to four digits
        np.testing.assert_allclose(found.success, expected, atol=1.1e-4)


def test_p_tr_levels_stand_only_beside_whole_domains() -> None:
    published = Published("trqam")
    scene = [("scene", task) for task in range(1, 6)]
    level = published.level("sqam", scene, OFFLINE)
    assert level is not None
    assert level.success == 0.79
    assert published.level("sqam", scene[:4], OFFLINE) is None
    assert published.level("sqam", scene, ONLINE) is None
    assert published.curve("sqam", scene) is None


def test_a_published_curve_is_cut_at_our_offline_training_and_moved_behind_it() -> None:
    found = Published("qam").curve("qam", [("scene", 1)])
    assert found is not None
    places, kept = aligned(found, 200_000)
    assert places.tolist()[:5] == [50_000, 100_000, 150_000, 200_000, 250_000]
    assert kept.steps.tolist()[3:5] == [200_000, 1_050_000]
    assert places[-1] == 700_000


def test_protocols_are_never_mixed(out: Path) -> None:
    cell = cell_of("qam", "scene", 1, 1, "p_tr")
    put(out, cell, whole(0.1, 0.2))
    runs = read_runs(out)
    assert set(runs) == {"p_qam", "p_tr"}
    assert {c.config.protocol for c in runs["p_qam"].cells} == {"p_qam"}
    stray = out / "p_qam" / "qam" / "scene-task1" / "seed9"
    stray.mkdir(parents=True)
    write_cell(cell, stray / "config.yaml")
    with pytest.raises(ConfigError, match="never mixed in one table"):
        read_runs(out)


def test_a_folder_without_cells_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found none"):
        read_runs(tmp_path)
    with pytest.raises(ConfigError, match="no folder"):
        read_runs(tmp_path / "nowhere")


def log_trust_region(path: Path, budget: float) -> None:
    with MetricsWriter(path) as writer:
        writer.write(10, {"stage": "behaviour", "flow/loss": 1.0})
        for step in (100, 200):
            names = ("kl_estimate", "kl_average", "budget", "lambda", "multiplier")
            values = (0.4 * step, 0.3 * step, budget, 2.0 * step, 0.7 * step)
            pairs = zip(names, values, strict=True)
            row = {f"dual/{name}": value for name, value in pairs}
            writer.write(step, {"stage": OFFLINE, **row})
        writer.write(250, {"stage": ONLINE, "dual/kl_estimate": 0.0})


def test_the_trust_region_is_read_from_the_metrics(out: Path) -> None:
    (cell,) = [c for c in only_run(out).of("trqam", ("scene", 1)) if c.done]
    assert read_trace(cell, 200) is None
    log_trust_region(cell.path, budget=0.5)
    trace = read_trace(cell, 300)
    assert trace is not None
    assert trace.place.tolist() == [100.0, 200.0, 350.0]  # online moves with its begin
    assert trace.values["dual/kl_average"].tolist()[:2] == [30.0, 60.0]
    assert np.isnan(trace.values["dual/kl_estimate"][2])  # 0 has no place on a log axis
    assert trace.values["dual/budget"].tolist()[:2] == [0.5, 0.5]


def test_the_legend_over_few_methods_fits_into_the_figure(out: Path) -> None:
    (cell,) = [c for c in only_run(out).of("trqam", ("scene", 1)) if c.done]
    log_trust_region(cell.path, budget=0.5)
    tasks = [("scene", 1)]
    for _ in range(2):  # one method with a trust region, then two
        figure = trust_region_figure(scores_of(out), tasks)
        assert figure is not None
        FigureCanvasAgg(figure).draw()
        box = figure.legends[0].get_window_extent()
        assert box.x0 >= 0.0
        assert box.x1 <= figure.bbox.x1
        (qam,) = [
            c for c in only_run(out).of("qam", ("scene", 1)) if c.config.seed == 1
        ]
        log_trust_region(qam.path, budget=0.5)


def test_the_multiplier_is_drawn_dashed_beside_lambda_and_both_are_named(
    out: Path,
) -> None:
    (cell,) = [c for c in only_run(out).of("trqam", ("scene", 1)) if c.done]
    log_trust_region(cell.path, budget=0.5)
    figure = trust_region_figure(scores_of(out), [("scene", 1)])
    assert figure is not None
    below = figure.axes[1]
    legend = below.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["λ", "multiplier m"]
    drawn = {str(line.get_label()): line for line in below.lines}
    first_two = [list(np.asarray(line.get_ydata())[:2]) for line in below.lines[:2]]
    assert first_two == [[200.0, 400.0], [pytest.approx(70.0), pytest.approx(140.0)]]
    assert drawn["λ"].get_linestyle() == "-"
    assert drawn["multiplier m"].get_linestyle() == "--"
    assert drawn["λ"].get_color() != drawn["multiplier m"].get_color()
    assert below.get_ylabel() == "λ, multiplier m"


def test_bam_is_drawn_without_the_last_step_and_at_its_own_temperature(
    out: Path,
) -> None:
    path = put(out, cell_of("bam", "scene", 1, 1), whole(0.5, 0.9))
    with MetricsWriter(path) as writer:
        for step in (100, 200):
            writer.write(step, {"stage": OFFLINE, "dual/kl_inner": 0.01 * step})
    (cell,) = only_run(out).of("bam", ("scene", 1))
    trace = read_trace(cell, 200)
    assert trace is not None
    assert trace.values[trace.kl].tolist() == [1.0, 2.0]
    assert trace.values["dual/lambda"].tolist() == [1.0, 1.0]  # n / tau, both 10
    figure = trust_region_figure(scores_of(out), [("scene", 1)])
    assert figure is not None
    titles = [panel.get_title(loc="right") for panel in figure.axes]
    assert titles == ["without the last step", "fixed: n/τ"]


def test_a_fixed_temperature_is_drawn_as_one_over_tau(out: Path) -> None:
    cell = only_run(out).of("qam", ("scene", 1))[0]
    with MetricsWriter(cell.path) as writer:
        writer.write(100, {"stage": OFFLINE, "dual/kl_estimate": 0.4})
    trace = read_trace(cell, 200)
    assert trace is not None
    assert trace.values["dual/lambda"].tolist() == [1.0]


def test_a_panel_holds_ours_the_published_curve_and_the_begin_of_online(
    out: Path,
) -> None:
    figure = method_curves(scores_of(out), [("scene", 1)])
    qam = figure.axes[0]
    assert qam.get_title(loc="left") == "QAM"
    drawn = [line.get_xdata() for line in qam.lines]
    assert any(list(x) == [100, 200, 300] for x in drawn)  # ours
    assert any(list(x) == [200, 200] for x in drawn)  # online begins
    published = [line for line in qam.lines if line.get_linestyle() == "--"]
    assert len(published) == 1
    (x,) = [line.get_xdata() for line in published]
    assert x[0] == 200 + 50_000  # the published offline part ends before ours does


def test_all_panels_of_a_figure_show_the_longest_training(tmp_path: Path) -> None:
    put(tmp_path, cell_of("qam", "scene", 1, 1), whole(0.4, 0.6)[:2])
    sets = (*SHORT[1:], "offline_updates=900")
    longer = protocol_of("p_qam").cell("fql", "scene", 1, 1, sets)
    put(tmp_path, longer, [(900, OFFLINE, 0.5)])
    axes = method_curves(scores_of(tmp_path), [("scene", 1)]).axes
    for panel in axes:
        left, right = panel.get_xlim()
        assert left == 0.0
        assert right >= 900


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_report_is_one_page_per_protocol_with_tables_and_figures(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (cell,) = [c for c in only_run(out).of("trqam", ("scene", 1)) if c.done]
    log_trust_region(cell.path, budget=0.5)
    assert command([str(out), "--out", str(out / "pages")]) == 0
    assert "6 cells done, 6 missing" in capsys.readouterr().out
    folder = out / "pages" / "p_qam"
    text = (folder / "report.html").read_text()
    assert not re.search(r"(src|href)=\"(?!data:)", text)  # nothing outside the file
    for expected in ("protocol p_qam", "50 → 70", "[40, 60] → [60, 80]", "not started"):
        assert expected in text
    assert "100 → 100" in text  # published, scene task 1
    names = {path.stem for path in (folder / "figures").glob("*.png")}
    assert names == {
        *("final", "aggregates", "profile_offline", "profile_online"),
        *("curves_scene", "tasks_scene", "trust_scene"),
    }
    tasks = {(r["method"], r["task"]): r for r in rows_of(folder / "tasks.csv")}
    assert float(tasks["qam", "1"]["offline"]) == 0.5
    assert tasks["trqam", "2"]["offline"] == ""
    domains = {(r["method"], r["domain"]): r for r in rows_of(folder / "domains.csv")}
    assert float(domains["qam", ALL]["online"]) == pytest.approx(0.75)
    (iqm,) = [
        row
        for row in rows_of(folder / "aggregates.csv")
        if (row["method"], row["phase"], row["statistic"]) == ("qam", ONLINE, "iqm")
    ]
    assert float(iqm["value"]) == pytest.approx(0.7)
    assert len(rows_of(folder / "missing.csv")) == 6
    assert len(rows_of(folder / "cells.csv")) == 7


def test_a_report_of_cells_that_have_only_begun_says_so(tmp_path: Path) -> None:
    put(tmp_path, cell_of("qam", "scene", 1, 1), [(100, OFFLINE, 0.1)], done=False)
    path = write_report(only_run(tmp_path), tmp_path / "page")
    text = path.read_text()
    assert "No phase has been finished" in text
    assert "unfinished after offline, step 100" in text
