# SPDX-License-Identifier: Apache-2.0
"""The learner: each row once, updates as UTD says, versions only after the gate, kills survived."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from qam_ros.contract.errors import ConfigError, StreamError
from qam_ros.contract.messages import PolicyStatus
from qam_ros.runtime.store import TransitionStore
from qam_ros.runtime.stream import Uplink
from qam_train.learner_config import LearnerConfig
from qam_train.metrics import read_metrics
from qam_train.offline_trainer import NonFiniteError


def status(running, offered, *, accepted=True, swaps=1, reason="accepted"):
    return PolicyStatus(
        0, "robot", running, offered, accepted, reason, 0.01, 0.1, swaps, 0
    )


def keys(rows):
    return [(bytes(row["session"]), int(row["seq"])) for row in rows]


def work_off(core):
    updates = 0
    while core.work():
        updates += 1
    return updates


def test_updates_and_credit_follow_the_rows():
    config = LearnerConfig(online_steps=100, start_rows=10, window=7, utd=0.1)
    assert [config.updates_due(rows) for rows in (0, 10, 19, 20, 100, 500)] == [
        0,
        0,
        0,
        1,
        9,
        9,
    ]
    assert [config.allowed_steps(updates) for updates in (0, 1, 9)] == [26, 36, 116]
    assert config.allowed_steps(1, unplayed=3) == 39
    many = LearnerConfig(online_steps=100, start_rows=0, window=1, utd=3)
    assert (many.updates_due(7), many.allowed_steps(7)) == (21, 3)


def test_credit_never_starves_the_updates():
    for utd in (0.1, 0.3, 1.0, 2.5, 7.0):
        config = LearnerConfig(online_steps=500, start_rows=20, window=1, utd=utd)
        updates = steps = 0
        while updates < config.total_updates:
            steps = config.allowed_steps(updates)  # the plant takes all it may
            assert config.updates_due(steps) > updates
            updates = config.updates_due(steps)


@pytest.mark.parametrize("settings", [{"utd": 0}, {"start_rows": 60}, {"window": 0}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        LearnerConfig(**({"online_steps": 60, "start_rows": 0} | settings))


def test_one_update_for_each_row_and_none_more(make_core, rows_of):
    core = make_core()
    rows = rows_of([25, 25, 25])
    for count, row in enumerate(range(rows.size), start=1):
        core.take(rows[row : row + 1])
        work_off(core)
        assert core.trainer.updates == min(count, 60)
    assert core.status(0).rows == 75
    assert read_metrics(core.run_dir / "metrics.jsonl")[-1]["step"] == 60
    core.close()


def test_a_batch_that_comes_twice_counts_once(make_core, rows_of, interface, tmp_path):
    core = make_core()
    spool = TransitionStore(tmp_path / "spool.sqlite", interface)
    spool.append(rows_of([30]))
    uplink = Uplink(spool, "robot")
    (batch,) = uplink.poll(0)
    assert core.receive(batch).committed == core.receive(batch).committed == 30
    with pytest.raises(StreamError, match="robot"):
        core.receive(
            type(batch)(
                **{name: getattr(batch, name) for name in batch.__slots__}
                | {"robot": "x"}
            )
        )
    work_off(core)
    assert (core.trainer.rows, core.trainer.updates, core.status(0).rows) == (
        30,
        30,
        30,
    )
    core.close()


def test_versions_are_offered_until_the_robot_answers(make_core, rows_of):
    now = [0.0]
    core = make_core(reoffer_s=3.0)
    core._clock_s = lambda: now[0]
    core.take(rows_of([60]))
    work_off(core)
    assert core.outgoing() == []  # nobody there yet
    core.heard(status(1, 1, accepted=False, swaps=0, reason="started"))
    sent = []
    for now[0] in (0.0, 1.0, 2.9, 3.1, 5.0, 6.2):
        sent.append([(part.version, part.parent_version) for part in core.outgoing()])
    assert sent == [[(2, 1)], [], [], [(2, 1)], [], [(2, 1)]]
    core.heard(status(2, 2))
    assert [(part.version, part.parent_version) for part in core.outgoing()] == [(4, 2)]
    assert not core.finished
    core.heard(status(2, 4, accepted=False, reason="too far"))
    assert core.finished
    record = core.offers.folder.records[4]
    assert (record.accepted, record.reason, record.updates) == (False, "too far", 60)
    core.close()


def test_the_verdict_of_another_robot_is_counted_and_changes_nothing(
    make_core, rows_of
):
    core = make_core()
    core.take(rows_of([60]))
    work_off(core)
    core.heard(replace(status(1, 1, accepted=False, swaps=0), robot="somebody"))
    assert (core.outgoing(), core.foreign_statuses) == ([], 1)
    core.close()


def test_while_the_last_version_waits_the_robot_may_move_on(make_core, rows_of):
    now = [0.0]
    core = make_core(stall_s=3.0)
    core._clock_s = lambda: now[0]
    core.take(rows_of([60]))
    work_off(core)
    core.heard(status(1, 1, accepted=False, swaps=0))
    allowed = []
    for now[0] in (0.0, 2.9, 3.1, 6.0, 6.3):
        allowed.append(core.status(0).allowed_steps)
    assert allowed == [70, 70, 80, 80, 90]
    for version in (2, 4):
        core.outgoing()
        core.heard(status(version, version))
    now[0] = 100.0
    assert (core.status(0).finished, core.status(0).allowed_steps) == (True, 90)
    core.close()


def test_steps_without_a_row_do_not_hold_the_plant_for_ever(make_core, rows_of):
    now = [0.0]
    core = make_core(stall_s=3.0)
    core._clock_s = lambda: now[0]
    now[0] = 50.0
    assert (
        core.status(0).allowed_steps == 10
    )  # nothing has started yet: that is no stall
    rows = rows_of([60])
    rows["step"][20:] += 9  # the policy was away for nine steps of the window
    core.take(rows[:20])
    work_off(core)
    now[0] = 52.0
    assert core.status(0).allowed_steps == 30
    now[0] = 53.1
    assert core.status(0).allowed_steps == 40
    core.take(rows[20:30])
    work_off(core)
    assert core.status(0).allowed_steps == 50  # nine are seen now, ten were granted
    core.close()


def test_a_restarted_robot_is_brought_up_to_date_in_steps(make_core, rows_of):
    core = make_core(reoffer_s=1e-9)
    core.heard(status(1, 1, accepted=False, swaps=0))
    rows = rows_of([60])
    for version, start in ((2, 0), (3, 20)):
        core.take(rows[start : start + 20])
        work_off(core)
        core.heard(status(version, version, swaps=version - 1))
    core.heard(status(1, 1, accepted=False, swaps=0, reason="started"))
    assert {part.version for part in core.outgoing()} == {2}
    core.heard(status(2, 2, swaps=1))
    assert {(part.version, part.parent_version) for part in core.outgoing()} == {(3, 2)}
    core.heard(status(3, 3, swaps=2))
    assert core.outgoing() == []
    core.heard(
        status(2, 3, swaps=3, reason="rolled back")
    )  # an operator's decision stands
    assert core.outgoing() == []
    core.close()


def test_weights_that_are_not_finite_are_never_offered(make_core, rows_of, agent):
    core = make_core(agent)
    with torch.no_grad():
        agent.trained["fast/1/weight"][0, 0] = float("nan")
    record = core.make_version()
    assert record.accepted is False
    assert "NaN" in record.reason
    assert core.offers.outstanding is None
    core.close(save=False)


def test_a_learner_that_overflowed_keeps_its_last_checkpoint(
    make_core, agent, tmp_path
):
    core = make_core(agent)
    core.checkpoint()
    before = sorted(tmp_path.rglob("*.safetensors"))
    with torch.no_grad():
        agent.trained["critic/0/weight"].view(-1)[0] = float("inf")
    with pytest.raises(NonFiniteError, match="critic/0/weight"):
        core.close()
    assert sorted(tmp_path.rglob("*.safetensors")) == before
    make_core().close()  # its files were closed all the same


def test_a_policy_that_moved_too_far_is_not_offered(make_core, agent):
    core = make_core(agent, max_probe_change=0.01)
    with torch.no_grad():
        agent.trained["fast/2/bias"] += 0.5
    record = core.make_version()
    assert record.accepted is False
    assert "mean action change on the probes" in record.reason
    core.close()


def test_golden_chunks_of_other_weights_are_refused(make_core, agent, monkeypatch):
    core = make_core(agent)
    monkeypatch.setattr(
        "qam_train.learner.policy_chunks", lambda *_: np.zeros((64, 3, 2), np.float32)
    )
    record = core.make_version()
    assert record.accepted is False
    assert "golden chunks" in record.reason
    core.close()


def test_a_restarted_learner_goes_on_as_if_nothing_had_happened(
    make_core, rows_of, tmp_path
):
    rows = rows_of([25, 35])
    core = make_core()
    for row in range(60):
        if row == 33:
            core.close()
            core = make_core()
            assert (core.trainer.updates, core.trainer.rows) == (33, 33)
        core.take(rows[row : row + 1])
        work_off(core)
    stopped = core.trainer.checkpoint()
    core.close()
    os.rename(tmp_path / "run", tmp_path / "first")
    core = make_core()
    for row in range(60):
        core.take(rows[row : row + 1])
        work_off(core)
    straight = core.trainer.checkpoint()
    core.close()
    assert straight[1] == stopped[1]
    for name, value in straight[0].items():
        assert torch.equal(value, stopped[0][name]), name
    lines = [
        [
            {k: v for k, v in row.items() if "per_s" not in k}
            for row in read_metrics(run / "metrics.jsonl")
        ]
        for run in (tmp_path / "first", tmp_path / "run")
    ]
    assert lines[0] == lines[1]


def test_other_settings_do_not_continue_a_run(make_core, rows_of):
    core = make_core()
    core.take(rows_of([20]))
    work_off(core)
    core.close()
    with pytest.raises(ConfigError, match=r"utd = 1.0, now it is 2.0"):
        make_core(utd=2.0)


def test_a_version_whose_verdict_was_missed_is_offered_after_a_restart(
    make_core, rows_of
):
    core = make_core(reoffer_s=1e-9)
    core.take(rows_of([60]))
    work_off(core)
    core.close()
    core = make_core(reoffer_s=1e-9)
    assert not core.finished
    core.heard(status(1, 1, accepted=False, swaps=0))
    assert {part.version for part in core.outgoing()} == {4}
    core.close()


@pytest.mark.slow
def test_a_learner_killed_at_any_time_has_each_row_once(
    rows_of, interface, artifact_path, tmp_path
):
    rows = rows_of([40] * 5)
    with TransitionStore(tmp_path / "spool.sqlite", interface) as spool:
        spool.append(rows)
    script = Path(__file__).with_name("learner_process.py")
    command = [
        sys.executable,
        script,
        tmp_path / "run",
        tmp_path / "spool.sqlite",
        artifact_path,
    ]
    seen = []
    for stop_after in (33, 139, None):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        for line in process.stdout:
            seen.append(int(line))
            if stop_after is not None and seen[-1] >= stop_after:
                process.send_signal(signal.SIGKILL)
                break
        process.stdout.close()
        assert process.wait(timeout=60) == (
            0 if stop_after is None else -signal.SIGKILL
        )
    assert max(seen) == 200
    with TransitionStore(tmp_path / "run" / "replay.sqlite", interface) as log:
        _, found = log.read(0, 1000)
    assert sorted(keys(found)) == sorted(keys(rows))
    steps = [row["step"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert steps == list(range(10, 201, 10))
