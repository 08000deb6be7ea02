# SPDX-License-Identifier: Apache-2.0
"""`qam suite report`: read what `qam suite run` wrote, write the page, its figures and tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from matplotlib.figure import Figure

from qam_train.report.style import png
from qam_train.suite.report.page import page
from qam_train.suite.report.panels import method_curves, task_curves
from qam_train.suite.report.published import Published
from qam_train.suite.report.run import Run, read_runs
from qam_train.suite.report.scores import Scores
from qam_train.suite.report.summary_figures import (
    aggregate_figure,
    final_figure,
    phases,
    profile_figure,
)
from qam_train.suite.report.tables import tables
from qam_train.suite.report.trust_region import trust_region_figure

REPORT = "report"
PAGE = "report.html"
DOTS_PER_INCH = 130


@dataclass(frozen=True)
class ReportArguments:
    """Tables, learning curves and aggregates of a run matrix, beside the published ones."""

    run_dir: tyro.conf.Positional[Path]
    """Folder that `qam suite run` wrote to; one page per protocol found in it."""
    out: Path | None = None
    """Where the pages go: OUT/<protocol>/report.html; default: RUN_DIR/report."""


def command(argv: Sequence[str]) -> int:
    """Tables, learning curves and aggregates of a run matrix, beside the published ones."""
    arguments = tyro.cli(ReportArguments, prog="qam suite report", args=list(argv))
    out = arguments.out or arguments.run_dir / REPORT
    for run in read_runs(arguments.run_dir).values():
        path = write_report(run, out / run.protocol)
        done = sum(cell.done for cell in run.cells)
        missing = sum(1 for _ in run.incomplete())
        lack = f", {missing} missing" if missing else ""
        print(f"{run.protocol}: {done} cells done{lack}: {path}")  # noqa: T201
    return 0


def write_report(run: Run, out: Path) -> Path:
    """Write page, figures and tables of one protocol.

    Args:
        run: its cells.
        out: folder, created where missing; report.html, figures/*.png and *.csv go there.

    Returns:
        path of the page.
    """
    published = Published(run.shipped.published if run.shipped else "none")
    scores = Scores(run, published)
    (out / "figures").mkdir(parents=True, exist_ok=True)
    images = {name: png(figure, DOTS_PER_INCH) for name, figure in draw(scores)}
    for name, image in images.items():
        (out / "figures" / f"{name}.png").write_bytes(image)
    for name, text in tables(scores).items():
        (out / name).write_text(text)
    path = out / PAGE
    path.write_text(page(scores, images))
    return path


def draw(scores: Scores) -> Iterator[tuple[str, Figure]]:
    """All figures with their file names.

    Names: final; aggregates and profile_<phase> where any phase has been finished on a common task;
    curves_<domain>; tasks_<domain> where a domain has several tasks; trust_<domain> where a path KL is
    logged.
    """
    yield "final", final_figure(scores)
    reached = [phase for phase in phases(scores) if scores.common(phase)[1]]
    if reached:
        yield "aggregates", aggregate_figure(scores, reached)
    for phase in reached:
        yield f"profile_{phase}", profile_figure(scores, phase)
    for domain in scores.run.domains:
        tasks = scores.tasks_of(domain)
        yield f"curves_{domain}", method_curves(scores, tasks)
        if len(tasks) > 1:
            yield f"tasks_{domain}", task_curves(scores, domain)
        traced = trust_region_figure(scores, tasks)
        if traced is not None:
            yield f"trust_{domain}", traced
