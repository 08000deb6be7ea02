# SPDX-License-Identifier: Apache-2.0
"""The report page: one HTML file without links to anything outside itself."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape

import numpy as np

from qam_train.report import curves, figures
from qam_train.report.loop_picture import loop_picture
from qam_train.report.record import Film, Percentiles, Record
from qam_train.report.style import STAGE_NAMES, svg

_CSS = """
body{font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;color:#1c1c1c;background:#fff;
max-width:1010px;margin:2rem auto;padding:0 1.2rem}
h1{font-size:1.75rem;margin-bottom:.2rem}h2{font-size:1.25rem;margin:2.4rem 0 .4rem;border-bottom:1px solid #ddd}
p{margin:.5rem 0}.lead{font-size:1.06rem}.small,figcaption{color:#444;font-size:.93rem}
figure{margin:1rem 0}figure img,figure video,.loop{width:100%;height:auto}
table{border-collapse:collapse;margin:.6rem 0}td,th{padding:.25rem .9rem .25rem 0;text-align:left;
border-bottom:1px solid #eee;vertical-align:top}td.n{text-align:right;font-variant-numeric:tabular-nums}
.cards{display:flex;gap:.8rem;flex-wrap:wrap;margin:1.1rem 0}.card:first-child{flex-grow:2}.card{flex:1 1 150px;border:1px solid #ddd;
border-radius:8px;padding:.6rem .9rem}.card b{font-size:1.55rem;display:block;font-variant-numeric:tabular-nums}
.loop text{font-family:inherit;text-anchor:middle;fill:#1c1c1c}.loop .title{font-size:15px;font-weight:600}
.loop .small{font-size:12.5px}.loop .flow{font-size:12.5px;fill:#333}
pre{background:#f6f6f6;padding:.8rem;overflow:auto;font-size:.82rem}
"""


def page(record: Record) -> str:
    """The whole report as HTML.

    Args:
        record: everything the run measured.
    """
    sections = [
        _head(record),
        _loop(record),
        _success(record),
        _film(record.film),
        _offline(record),
        _online(record),
        _stream(record),
        _realtime(record),
        _stages(record),
        _glossary(),
    ]
    title = "QAM on ROS 2: the loop, end to end"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width"><title>{title}</title><style>{_CSS}</style></head>'
        f"<body><h1>{title}</h1>{''.join(sections)}</body></html>\n"
    )


def _figure(image: str, caption: str, alternative: str) -> str:
    return f'<figure><img src="{image}" alt="{escape(alternative)}"><figcaption>{caption}</figcaption></figure>'


def _cards(items: Iterable[tuple[str, str]]) -> str:
    cards = "".join(
        f'<div class="card"><b>{escape(value)}</b>{escape(text)}</div>'
        for value, text in items
    )
    return f'<div class="cards">{cards}</div>'


def _table(rows: Iterable[tuple[str, str]]) -> str:
    cells = "".join(
        f'<tr><td>{escape(name)}</td><td class="n">{escape(value)}</td></tr>'
        for name, value in rows
    )
    return f"<table>{cells}</table>"


def _head(record: Record) -> str:
    rates = record.success
    steps = " → ".join(
        f"{100 * rates[name].mean:.0f}" for name in STAGE_NAMES if name in rates
    )
    kept = (
        "nothing lost, nothing twice"
        if record.stream.lost == record.stream.duplicated == 0
        else (f"{record.stream.lost} lost, {record.stream.duplicated} duplicated")
    )
    notes = "".join(f"<p><b>Note.</b> {escape(text)}</p>" for text in record.notes)
    return (
        '<p class="lead">A robot arm shall carry a cube to a goal. A policy is learned from scripted recordings '
        "in which only one attempt in five aims at that goal, it is sent to a (simulated) robot that runs as "
        "separate ROS 2 processes, and it keeps learning from what the robot does while the robot works. "
        "Every number on this page was measured in this one run.</p>"
        + _cards(
            [
                (f"{steps} %", "success: base → offline → online"),
                (f"{record.stream.executed}", f"transitions executed; {kept}"),
                (f"{record.accepted}", "weight swaps in the running robot"),
                (f"{record.lockstep_steps_per_s:.0f} /s", "control steps in lockstep"),
            ]
        )
        + notes
    )


def _loop(record: Record) -> str:
    counts = {
        "data": f"{record.dataset['rows']:.0f} rows",
        "ticks": "proposals",
        "executed": f"{record.stream.executed} executed",
        "replay": f"{record.stream.in_replay} transitions, acknowledged",
        "swaps": f"new weights: {record.accepted} accepted, {len(record.swaps) - record.accepted} refused",
    }
    return (
        "<h2>The loop</h2>"
        + loop_picture(counts)
        + '<p class="small">Every box in the lower two rows is a process of its own; they speak over ROS 2 topics '
        "only. The plant publishes joint states and poses as a real robot would; the policy node builds its "
        "observation from them, samples a chunk of five actions, and the guard checks every single one before it "
        "becomes a command. The stream node joins what was seen, proposed, executed and rewarded into "
        "transitions; the learner stores them, trains and offers new weights, which the robot tests before it "
        "uses them.</p>"
    )


def _success(record: Record) -> str:
    rates = record.success
    counts = sorted({rate.episodes for rate in rates.values()})
    episodes = " or ".join(str(count) for count in counts)
    return "<h2>Does it work?</h2>" + _figure(
        svg(figures.success_figure(rates)),
        f"Success over {episodes} episodes of each policy, from starts that no training saw, with "
        "95 % Wilson intervals. The "
        f"<b>base</b> imitates the recordings, wrong aims included. <b>Offline</b> is {record.method} trained on the same "
        "recordings with the reward: it chooses among the moves that the base would make. <b>Online</b> is the "
        "same policy after fine-tuning on what the robot streamed back.",
        "Bars of the success rates",
    )


def _film(film: Film | None) -> str:
    if film is None:
        return ""
    data = base64.b64encode(film.data).decode("ascii")
    body = f'<video controls loop muted autoplay playsinline src="data:video/mp4;base64,{data}"></video>'
    return f"<h2>Before and after</h2><figure>{body}<figcaption>{escape(film.caption)}</figcaption></figure>"


def _offline(record: Record) -> str:
    parity = record.parity
    return (
        "<h2>Offline training</h2>"
        + _figure(
            svg(
                curves.training_figure(record.behaviour, record.offline, record.method)
            ),
            "Left: error of the critic, which learns how good a chunk of actions is. Middle: the mean value it "
            "assigns to the recorded chunks; each step costs 1 until the cube is at the goal, so nearer to 0 is "
            "better. Right: error of the behaviour flow, first while it is cloned alone, then while it goes on "
            "imitating beside the rest. Pale: single records; strong: running mean.",
            "Learning curves of offline training",
        )
        + _adjoint(record)
        + _trust_region(record)
        + f"<p>The exported policy answers like the trained one: the largest difference between torch and ONNX "
        f"Runtime on the {parity['probes']:.0f} golden probes is {parity['largest_difference']:.1e} (allowed "
        f"{parity['tolerance']:.0e}).</p>"
    )


def _adjoint(record: Record) -> str:
    if "adjoint/norm_mean" not in record.offline:
        return ""
    return _figure(
        svg(curves.adjoint_figure(record.offline, record.online)),
        "The lean adjoint carries the critic's wish backwards through the ten flow steps; its size says how "
        "hard the policy is pulled away from imitation. The matching loss is what the tuned flow minimises. "
        "Right of the dotted line the robot is running.",
        "Norm of the lean adjoint",
    )


def _trust_region(record: Record) -> str:
    if "dual/lambda" not in record.offline:
        return ""
    return _figure(
        svg(curves.trust_region_figure(record.offline, record.online)),
        "Left: how far the tuned flow has moved from the behaviour flow (path KL for each action), held at its "
        "budget, the dashed line. Right: the temperature λ that holds it there: a large λ keeps to imitation, "
        "a small one follows the critic; dashed the multiplier that the controller moves. Right of the dotted line the robot is running.",
        "Trust region",
    )


def _online(record: Record) -> str:
    return (
        "<h2>Learning on the running robot</h2>"
        + _figure(
            svg(figures.online_figure(record.episodes, record.swaps, record.success)),
            "Every tick mark is one episode on the robot (top: reached the goal). The line is their running mean, "
            "the bands are the separate evaluations before and after. Dotted lines: new weights took over; the "
            "robot did not stop for it.",
            "Success of the episodes during online fine-tuning",
        )
        + _figure(
            svg(figures.swap_figure(record.swaps)),
            "Left: how long the exchange of weights took, inside the gap between two chunks. Right: how much each "
            "version changes the action on fixed probes; the robot refuses a version that changes it more than "
            "its budget, is not finite, or does not reproduce its golden chunks.",
            "Weight swaps",
        )
        + _refusals(record)
        + _speed(record)
    )


def _speed(record: Record) -> str:
    speed = record.lockstep
    return (
        "<p>Simulation, policy, guard, stream and learner together made "
        f"{speed['steps_per_s']:.1f} control steps per second; one simulated step took "
        f"{speed['step_ms']:.2f} ms and sampling one chunk {speed['chunk_ms']:.2f} ms (medians). The plant "
        f"waited {speed['credit_wait_s']:.0f} s for the learner: it may run only a little ahead of the updates, "
        "so that what is learned does not depend on the speed of the machine.</p>"
    )


def _refusals(record: Record) -> str:
    refused = [swap for swap in record.swaps if not swap.accepted]
    if not refused:
        return ""
    return "<p>Refused:</p>" + _table(
        (f"version {swap.version}", swap.reason) for swap in refused
    )


def _stream(record: Record) -> str:
    stream = record.stream
    rows = [
        ("executed by the guard inside an episode (its own log)", f"{stream.executed}"),
        ("in the learner's replay", f"{stream.in_replay}"),
        ("executed but not in replay", f"{stream.lost}"),
        ("in replay twice, or never executed", f"{stream.duplicated}"),
        (
            "of these held or stopped by the guard (kept, never trained on)",
            f"{stream.masked}",
        ),
        *(
            (name.replace("_", " "), f"{value:g}")
            for name, value in stream.counters.items()
        ),
    ]
    versions = ", ".join(
        f"v{version}: {count}" for version, count in sorted(stream.per_version.items())
    )
    return (
        "<h2>Was anything lost?</h2><p>The guard writes its own log of what it executed. After the run its keys "
        "are compared with the keys in replay, as sets.</p>"
        + _table(rows)
        + f'<p class="small">Rows by policy version: {escape(versions)}.</p>'
    )


def _realtime(record: Record) -> str:
    timing = record.realtime
    period, latency = (
        Percentiles.of(timing.tick_period_ms),
        Percentiles.of(timing.latency_ms),
    )
    rows = [
        ("ticks", f"{timing.ticks}"),
        ("late ticks, skipped ones included", f"{timing.late_ticks}"),
        ("tick period p50 / p99 / max [ms]", _triple(period)),
        ("observation to command p50 / p99 / max [ms]", _triple(latency)),
    ]
    return (
        "<h2>Real time</h2><p>The same processes, now at the robot's own pace of "
        f"{1000 / timing.period_ms:.0f} ticks per second instead of lockstep; the learner has finished and "
        "only stores what comes.</p>"
        + _figure(
            svg(figures.realtime_figure(timing)),
            "Left: time between two control ticks, ideally always the dashed line. Right: from the stamp of an "
            "observation to the command that answers it.",
            "Histograms of tick period and latency",
        )
        + _table(rows)
    )


def _triple(value: Percentiles) -> str:
    parts = (value.p50, value.p99, value.max)
    return " / ".join("-" if part is None else f"{part:.2f}" for part in parts)


def _stages(record: Record) -> str:
    machine = [(name, value) for name, value in record.machine.items()]
    data = [
        (name.replace("_", " "), f"{value:g}") for name, value in record.dataset.items()
    ]
    stop = [
        (name.replace("_", " "), f"{value:g}")
        for name, value in record.clean_stop.items()
    ]
    total = float(np.sum(list(record.stages.values())))
    return (
        "<h2>The run</h2>"
        + _figure(
            svg(figures.stages_figure(record.stages)),
            f"Wall time by stage, {total / 60:.1f} minutes together; largest memory of the whole process tree "
            f"{record.peak_rss_mib:.0f} MiB.",
            "Wall time by stage",
        )
        + _table([("seed", str(record.seed)), *machine])
        + "<p>Data:</p>"
        + _table(data)
        + "<p>Clean stop:</p>"
        + _table(stop)
        + f"<details><summary>All settings of this run</summary><pre>{escape(record.settings)}</pre></details>"
    )


def _glossary() -> str:
    words = (
        ("chunk", "five actions planned at once and executed one after the other"),
        ("tick", "one control step, 50 ms"),
        (
            "lockstep",
            "the simulation waits for each command, so it runs as fast as the machine allows",
        ),
        ("transition", "what was seen, proposed, executed and rewarded in one tick"),
        (
            "QAM",
            "Q-learning with adjoint matching: tunes a flow policy along the gradient of a critic",
        ),
    )
    rows = "".join(
        f"<tr><td><b>{escape(word)}</b></td><td>{escape(text)}</td></tr>"
        for word, text in words
    )
    return f"<h2>Words</h2><table>{rows}</table>"
