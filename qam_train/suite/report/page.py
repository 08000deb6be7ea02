# SPDX-License-Identifier: Apache-2.0
"""The suite's report page: one HTML file of one protocol, without links to anything outside itself."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape

from qam_train.suite.report.labels import label
from qam_train.suite.report.published import Level
from qam_train.suite.report.scores import ALL, Row, Scores
from qam_train.suite.report.statistics import LEVEL, RESAMPLES, Estimate
from qam_train.suite.report.summary_figures import NAMES, phases

MISSING_SHOWN = 40
_CSS = """
body{font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;color:#1c1c1c;background:#fff;
max-width:1180px;margin:2rem auto;padding:0 1.2rem}
h1{font-size:1.7rem;margin-bottom:.2rem}h2{font-size:1.25rem;margin:2.2rem 0 .4rem;border-bottom:1px solid #ddd}
h3{font-size:1.05rem;margin:1.4rem 0 .3rem}p,ul{margin:.5rem 0}.small,figcaption{color:#444;font-size:.92rem}
figure{margin:1rem 0}figure img{max-width:100%;height:auto}.wide{overflow-x:auto}
table{border-collapse:collapse;margin:.6rem 0;font-variant-numeric:tabular-nums}
td,th{padding:.25rem .9rem .25rem 0;text-align:left;border-bottom:1px solid #e6e6e6;vertical-align:top;white-space:nowrap}
td small{color:#444;display:block}td em{color:#9a4a00;font-style:normal;font-size:.85em;display:block}
"""


def page(scores: Scores, images: Mapping[str, bytes]) -> str:
    """The whole report as HTML.

    Args:
        scores: of one protocol.
        images: PNG files by name, see command.draw.
    """
    name = scores.run.protocol
    sections = [
        _head(scores),
        _ends(scores, images),
        _aggregates(scores, images),
        *(_domain(scores, domain, images) for domain in scores.run.domains),
        _missing(scores),
    ]
    title = f"Task suite: protocol {escape(name)}"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width"><title>{title}</title><style>{_CSS}</style></head>'
        f"<body><h1>{title}</h1>{''.join(sections)}</body></html>\n"
    )


def _head(scores: Scores) -> str:
    run = scores.run
    done = sum(cell.done for cell in run.cells)
    missing = sum(1 for _ in run.incomplete())
    about = f"<p>{escape(run.shipped.about)}.</p>" if run.shipped else ""
    state = (
        f"<p><b>{done} cells are done</b>: {len(run.methods)} methods, {len(run.tasks)} tasks, "
        f"{len(run.seeds)} seeds."
        + (
            f" <b>{missing} are missing</b>, see the end of the page."
            if missing
            else ""
        )
        + "</p>"
    )
    deviations = run.deviations()
    listed = "".join(f"<li>{escape(text)}</li>" for text in deviations)
    changed = (
        f"<p><b>Not the protocol's settings:</b></p><ul>{listed}</ul>" if listed else ""
    )
    beside = (
        f"<p>Published results: {escape(scores.published.source)}. They learnt from OGBench's published data; "
        "generated data come from the same scripted experts, but are not the same files.</p>"
        if scores.published.kind != "none"
        else ""
    )
    return (
        about
        + state
        + changed
        + beside
        + f'<p class="small">Success in percent. [ ]: {100 * LEVEL:.0f} % interval by bootstrap over the seeds, '
        f"stratified by task ({RESAMPLES} draws, seeded); none with a single seed. A few seeds give intervals that "
        "are too narrow. Results of other protocols are on pages of their own.</p>"
    )


def _ends(scores: Scores, images: Mapping[str, bytes]) -> str:
    return (
        "<h2>At the end of training</h2>"
        + _figure(
            images["final"],
            "Success by method and domain, the mean over the tasks and seeds of this run. Grey line: the cloned "
            "flow that methods start from.",
        )
        + _overview(scores)
    )


def _overview(scores: Scores) -> str:
    """Methods by domains, and all tasks."""
    domains = list(scores.run.domains)
    if len(domains) > 1:
        domains.append(ALL)
    columns = {domain: list(scores.domain_rows(domain)) for domain in domains}
    head = "".join(f"<th>{escape(domain)}</th>" for domain in domains)
    body = "".join(
        f"<tr><td>{escape(label(method))}</td>"
        + "".join(f"<td>{_ours(columns[d][place])}</td>" for d in domains)
        + "</tr>"
        for place, method in enumerate(scores.run.methods)
    )
    return (
        f'<div class="wide"><table><tr><th>method</th>{head}</tr>{body}</table></div>'
        f'<p class="small">{_reading(scores)}</p>'
    )


def _reading(scores: Scores) -> str:
    ends = " → ".join(NAMES[phase] for phase in phases(scores)) or "no end reached yet"
    third = "; coloured: published" if scores.published.kind != "none" else ""
    return f"{ends}; below it the interval{third}. –: not all tasks have got there."


def _ours(row: Row) -> str:
    """Ours, intervals, published, in three lines."""
    return _pair(row.offline, row.online) + _published(row)


def _pair(offline: Estimate | None, online: Estimate | None) -> str:
    """Offline -> online; "-> online" where there is no offline training."""
    held = [score for score in (offline, online) if score is not None]
    if not held:
        return "–"
    lead = "→ " if offline is None else ""
    numbers = " → ".join(f"{100 * score.value:.0f}" for score in held)
    return f"{lead}{numbers}<small>{' → '.join(map(_interval, held))}</small>"


def _published(row: Row) -> str:
    levels = [level for level in (row.published_offline, row.published_online) if level]
    if not levels:
        return ""
    lead = "→ " if row.published_offline is None else ""
    return f"<em>{lead}{' → '.join(map(_rate, levels))}</em>"


def _rate(level: Level) -> str:
    return f"{100 * level.success:.0f}"


def _interval(score: Estimate) -> str:
    if score.low is None or score.high is None:
        return "one seed"
    return f"[{100 * score.low:.0f}, {100 * score.high:.0f}]"


def _aggregates(scores: Scores, images: Mapping[str, bytes]) -> str:
    if "aggregates" not in images:
        return "<h2>Over all tasks</h2><p>No phase has been finished by any method on a common task yet.</p>"
    counts = []
    for phase in phases(scores):
        methods, tasks = scores.common(phase)
        counts.append(f"{NAMES[phase]}: {len(tasks)} tasks, {len(methods)} methods")
    parts = [
        "<h2>Over all tasks</h2>",
        f'<p class="small">Over the tasks that every method with any result has finished ({"; ".join(counts)}).</p>',
        _figure(
            images["aggregates"],
            "Filled: interquartile mean, the mean of the middle half of all runs, with its interval. Hollow: mean.",
        ),
    ]
    parts += [
        _figure(
            images[f"profile_{phase}"],
            f"Performance profile, {NAMES[phase]}: share of a method's runs that succeed more often than the threshold; "
            "grey: the other methods.",
        )
        for phase in phases(scores)
        if f"profile_{phase}" in images
    ]
    return "".join(parts)


def _domain(scores: Scores, domain: str, images: Mapping[str, bytes]) -> str:
    tasks = scores.tasks_of(domain)
    parts = [f"<h2>{escape(domain)}</h2>", _task_table(scores, domain)]
    mean = "" if len(tasks) == 1 else f", mean over its {len(tasks)} tasks"
    parts.append(
        _figure(images[f"curves_{domain}"], f"Learning curves, {escape(domain)}{mean}.")
    )
    if f"tasks_{domain}" in images:
        drawn = _figure(images[f"tasks_{domain}"], "Learning curves by task.")
        parts.append(
            f"<details><summary>Curves of each task</summary>{drawn}</details>"
        )
    if f"trust_{domain}" in images:
        parts.append(
            _figure(
                images[f"trust_{domain}"],
                f"Trust region, {escape(domain)}: estimated path KL per control period, its budget, and the temperature "
                "λ it leads to; a line per task and seed.",
            )
        )
    return "".join(parts)


def _task_table(scores: Scores, domain: str) -> str:
    tasks = scores.tasks_of(domain)
    rows = {task: [scores.row(m, domain, [task]) for m in scores.run.methods] for task in tasks}  # fmt: skip
    means = list(scores.domain_rows(domain))
    several = len(tasks) > 1
    head = "".join(f"<th>task {number}</th>" for _, number in tasks)
    head += "<th>mean</th>" if several else ""
    body = ""
    for place, mean in enumerate(means):
        cells = "".join(f"<td>{_ours(rows[task][place])}</td>" for task in tasks)
        cells += f"<td>{_ours(mean)}</td>" if several else ""
        body += (
            f"<tr><td>{escape(label(mean.method))}</td><td>{mean.seeds or '–'}</td>{cells}"
            f"<td>{_gain(mean)}</td></tr>"
        )
    return (
        f'<div class="wide"><table><tr><th>method</th><th>seeds</th>{head}<th>above the clone</th></tr>'
        f"{body}</table></div>"
    )


def _gain(row: Row) -> str:
    """Points above the clone, and whether that is beyond doubt."""
    gain = row.gain
    if gain is None:
        return "–"
    number = f"{100 * gain.value:+.0f}"
    if gain.low is None or gain.high is None:
        return f"{number}<small>one seed</small>"
    word = "yes" if gain.low > 0.0 else ("below" if gain.high < 0.0 else "open")
    return f"{number}, {word}<small>[{100 * gain.low:+.0f}, {100 * gain.high:+.0f}]</small>"


def _missing(scores: Scores) -> str:
    missing = list(scores.run.incomplete())
    if not missing:
        return "<h2>Missing cells</h2><p>None: every method is done on every task with every seed of this run.</p>"
    rows = "".join(
        f"<tr><td>{escape(label(method))}</td><td>{escape(domain)} task {task}</td><td>{seed}</td>"
        f"<td>{escape(status)}</td></tr>"
        for method, (domain, task), seed, status in missing[:MISSING_SHOWN]
    )
    more = len(missing) - MISSING_SHOWN
    rest = f"<p>and {more} more, see missing.csv.</p>" if more > 0 else ""
    return (
        f"<h2>Missing cells</h2><p>{len(missing)} of {len(scores.run.methods)} methods x {len(scores.run.tasks)} "
        f"tasks x {len(scores.run.seeds)} seeds.</p><table><tr><th>method</th><th>task</th><th>seed</th>"
        f"<th>state</th></tr>{rows}</table>{rest}"
    )


def _figure(image: bytes, caption: str) -> str:
    held = base64.b64encode(image).decode("ascii")
    text = escape(caption, quote=True)
    return (
        f'<figure><img src="data:image/png;base64,{held}" alt="{text}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )
