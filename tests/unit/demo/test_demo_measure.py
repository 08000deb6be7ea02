# SPDX-License-Identifier: Apache-2.0
"""What was executed is compared with what is in replay as sets of keys; lost and doubled are found."""

from pathlib import Path

import numpy as np
import pytest
import torch

from qam_ros.contract.interface import load_interface
from qam_ros.contract.messages import EpisodeEvent, GuardReport
from qam_ros.contract.transition import EpisodeKind, GuardMode, Rows, transition_dtype
from qam_ros.nodes.policy_control import PolicyTiming
from qam_ros.runtime.guard_log import GuardLog
from qam_ros.runtime.phase import PhasePacer
from qam_ros.runtime.store import TransitionStore
from qam_ros.runtime.timing import LATE, write_timing
from qam_train.checkpoint import checkpoint_path, write_checkpoint
from qam_train.learner import REPLAY_LOG
from qam_train.learner_config import LearnerConfig
from qam_train.loops import demo_measure as measure
from qam_train.loops.demo_robot import count_rows, read_progress
from qam_train.metrics import MetricsWriter
from qam_train.versions import VersionFolder, VersionRecord

BASE = load_interface("mobile_base")
PERIOD_NS = 10**8
FIRST, SECOND = bytes([1] * 16), bytes([2] * 16)


def make_rows(session: bytes, count: int, *, version: int = 1) -> Rows:
    rows = np.zeros(count, transition_dtype(BASE))
    rows["session"] = np.frombuffer(session, np.uint8)
    rows["seq"] = np.arange(count)
    rows["observation_stamp_ns"] = 10**9 + np.arange(count) * PERIOD_NS
    rows["step"] = np.arange(count)
    rows["policy_version"] = version
    rows["guard_mode"] = GuardMode.ACTIVE
    return rows


def event(kind: EpisodeKind, step: int) -> EpisodeEvent:
    stamp_ns = 10**9 + step * PERIOD_NS
    return EpisodeEvent(
        stamp_ns=stamp_ns, episode=0, kind=kind, terminated=False, truncated=False, success=False,
        steps=step, episode_return=0.0,
    )  # fmt: skip


def report(session: bytes, seq: int) -> GuardReport:
    stamp_ns = 10**9 + seq * PERIOD_NS
    return GuardReport(
        stamp_ns=stamp_ns, session=session, tick=seq, is_row=True, seq=seq, policy_session=bytes(16),
        policy_tick=seq, observation_stamp_ns=stamp_ns, episode=0, step=seq, mode=GuardMode.ACTIVE,
        source=0, limit_bits=0, masked=False, executed=np.zeros(2, np.float32), latency_ns=0,
    )  # fmt: skip


def write_guard_log(run_dir: Path, sessions: dict[bytes, int], end: int) -> None:
    for session, count in sessions.items():
        log = GuardLog(run_dir / measure.GUARD_LOG, period_s=0.01)
        log.event(event(EpisodeKind.START, 0), session)
        for seq in range(count):
            log.row(report(session, seq))
        log.event(event(EpisodeKind.END, end), session)
        log.close()


def write_replay(run_dir: Path, *parts: Rows) -> None:
    for name in (REPLAY_LOG, measure.SPOOL):
        with TransitionStore(run_dir / name, BASE) as store:
            for rows in parts:
                store.append(rows)


def test_equal_sets_mean_nothing_lost_and_nothing_twice(tmp_path: Path) -> None:
    write_guard_log(tmp_path, {FIRST: 6, SECOND: 4}, end=10)
    write_replay(tmp_path, make_rows(FIRST, 6), make_rows(SECOND, 4, version=3))
    found = measure.check_stream(tmp_path, BASE)
    assert (found.executed, found.in_replay, found.lost, found.duplicated) == (
        10,
        10,
        0,
        0,
    )
    assert found.per_version == {1: 6, 3: 4}
    assert found.counters["guard_sessions"] == 2


def test_a_row_that_never_arrived_is_lost(tmp_path: Path) -> None:
    write_guard_log(tmp_path, {FIRST: 6}, end=10)
    write_replay(tmp_path, np.delete(make_rows(FIRST, 6), 2))
    found = measure.check_stream(tmp_path, BASE)
    assert (found.lost, found.duplicated) == (1, 0)


def test_a_row_that_was_never_executed_counts_as_doubled(tmp_path: Path) -> None:
    write_guard_log(tmp_path, {FIRST: 6}, end=10)
    write_replay(tmp_path, make_rows(FIRST, 7))
    assert measure.check_stream(tmp_path, BASE).duplicated == 1


@pytest.mark.parametrize(("taken_in", "duplicated"), [(4, 0), (6, 0), (8, 2)])
def test_rows_that_the_trainer_took_in_twice_count_as_doubled(
    tmp_path: Path, taken_in: int, duplicated: int
) -> None:
    """Fewer than in the log are none lost: the learner ended with some still to take in."""
    write_guard_log(tmp_path, {FIRST: 6}, end=10)
    write_replay(tmp_path, make_rows(FIRST, 6))
    path = checkpoint_path(tmp_path / "checkpoints", 5)
    write_checkpoint(path, {"weight": torch.zeros(1)}, {"rows": taken_in})
    found = measure.check_stream(tmp_path, BASE)
    assert (found.lost, found.duplicated) == (0, duplicated)
    assert found.counters["rows_taken_in"] == taken_in


def test_ticks_at_or_after_the_end_of_their_episode_are_no_rows(tmp_path: Path) -> None:
    write_guard_log(tmp_path, {FIRST: 6}, end=5)
    write_replay(tmp_path, make_rows(FIRST, 5))
    found = measure.check_stream(tmp_path, BASE)
    assert (found.executed, found.lost, found.duplicated) == (5, 0, 0)


def test_swaps_are_placed_where_their_version_first_acted() -> None:
    rows = np.concatenate([make_rows(FIRST, 3), make_rows(FIRST, 2, version=2)])
    records = [
        VersionRecord(3, 20, 5, accepted=False, reason="NaN", probe_change=0.0),
        VersionRecord(2, 10, 3, accepted=True, probe_change=0.1, swap_ms=0.02),
    ]
    accepted, refused = measure.read_swaps(records, rows)
    assert (accepted.version, accepted.env_step, accepted.swap_ms) == (2, 3, 0.02)
    assert (refused.version, refused.env_step, refused.swap_ms, refused.reason) == (
        3,
        None,
        None,
        "NaN",
    )


def test_episodes_that_were_broken_off_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "episodes.csv").write_text(
        "episode,seed,start_stamp_ns,end_stamp_ns,steps,episode_return,success,terminated,truncated\n"
        "0,1,0,1,80,-80.0,1,1,0\n1,1,0,1,200,-200.0,0,0,1\n2,1,0,1,31,-31.0,0,0,0\n"
    )
    found = measure.read_episodes(tmp_path, make_rows(FIRST, 5, version=4))
    assert found.end_step.tolist() == [80, 280]
    assert found.success.tolist() == [1, 0]
    assert found.version.tolist() == [4, 0]


def write_real_time(folder: Path, **changed: np.ndarray) -> None:
    """Timing files of 100 perfect ticks, with other series in their place."""
    nothing = np.zeros(100, np.int64)
    policy = {
        "tick_ns": np.arange(100) * PERIOD_NS,
        "lateness_ns": nothing,
        "publish_lateness_ns": nothing,
        "sensor_wait_ns": nothing,
    } | changed
    write_timing(folder / "policy_timing.npz", policy)
    latency = np.full(len(policy["tick_ns"]), 3_000_000)
    guard = {"tick_ns": policy["tick_ns"], "latency_ns": latency}
    write_timing(folder / "guard_timing.npz", guard)


def test_real_time_figures_leave_the_start_out(tmp_path: Path) -> None:
    write_real_time(tmp_path)
    found = measure.real_time(tmp_path, 0.1, settle_s=2.0)
    assert (found.ticks, found.late_ticks) == (80, 0)
    np.testing.assert_allclose(found.tick_period_ms, 100.0)
    np.testing.assert_allclose(found.latency_ms, 3.0)
    assert len(found.latency_ms) == 80


def test_a_tick_is_late_by_its_publication_as_the_node_counts_it(
    tmp_path: Path,
) -> None:
    """Waking up late does not count, waiting for sensors and sampling do; nor does the start."""
    lateness, published = np.zeros(100, np.int64), np.zeros(100, np.int64)
    lateness[30:40] = PERIOD_NS // LATE - 2
    published[30:40] = PERIOD_NS // LATE
    published[[5, 60, 61]] = PERIOD_NS // LATE + 1
    write_real_time(tmp_path, lateness_ns=lateness, publish_lateness_ns=published)
    node = PolicyTiming(PERIOD_NS)
    for woke_ns, published_ns in zip(lateness[20:], published[20:], strict=True):
        node.deadline(int(woke_ns), 0, int(published_ns))
    found = measure.real_time(tmp_path, 0.1, settle_s=2.0)
    assert found.late_ticks == node.late == 2


def test_a_skipped_tick_is_a_late_one(tmp_path: Path) -> None:
    """The pacer leaves deadlines out after a tick that took too long; the tick itself is late too."""
    pacer = PhasePacer(PERIOD_NS, 0, start_ns=10**12)
    ticks, lateness, waits, published = [], [], [], []
    skipped_before = 0
    for tick in range(100):
        late_ns = (
            7 * PERIOD_NS // 10 if tick == 50 else 0
        )  # wakes up late: one is skipped
        wait_ns = (
            PERIOD_NS // 4 if tick in (40, 50) else 0
        )  # its start, not its deadline
        work_ns = 3 * PERIOD_NS if tick in (3, 70) else 0
        started_ns = pacer.deadline_ns + late_ns + wait_ns
        ticks.append(started_ns)
        lateness.append(late_ns)
        waits.append(wait_ns)
        published.append(late_ns + wait_ns + work_ns)
        pacer.advance(started_ns + work_ns, None, started_ns)
        if tick == 20:
            skipped_before = pacer.skipped
    write_real_time(
        tmp_path,
        tick_ns=np.array(ticks),
        lateness_ns=np.array(lateness),
        sensor_wait_ns=np.array(waits),
        publish_lateness_ns=np.array(published),
    )
    found = measure.real_time(tmp_path, 0.1, settle_s=2.5)
    assert pacer.skipped - skipped_before > 2
    assert found.late_ticks == pacer.skipped - skipped_before + 3


def test_lockstep_speed_is_ticks_over_wall_time(tmp_path: Path) -> None:
    ticks = np.arange(11) * 20_000_000
    write_timing(
        tmp_path / "policy_timing.npz",
        {"tick_ns": ticks, "sample_ns": np.array([200_000, 400_000])},
    )
    write_timing(
        tmp_path / "plant_timing.npz",
        {"step_ns": np.full(10, 1_500_000), "credit_wait_s": np.array([0.5])},
    )
    found = measure.lockstep_speed(tmp_path)
    assert found.steps_per_s == pytest.approx(50.0)
    assert (found.step_ms, found.chunk_ms, found.credit_wait_s) == (
        1.5,
        pytest.approx(0.3),
        0.5,
    )


def test_files_of_a_run_are_kept_apart_from_those_of_the_next(tmp_path: Path) -> None:
    write_timing(tmp_path / "policy_timing.npz", {"tick_ns": np.arange(3)})
    folder = measure.keep_files(tmp_path, "lockstep")
    assert (folder / "policy_timing.npz").is_file()
    assert not (tmp_path / "policy_timing.npz").exists()


def test_progress_of_a_run_that_has_not_begun_is_nothing(tmp_path: Path) -> None:
    progress = read_progress(tmp_path, LearnerConfig(online_steps=10, start_rows=0))
    assert (progress.rows, progress.updates, progress.accepted, progress.finished) == (
        0,
        0,
        0,
        False,
    )


def test_a_run_is_finished_when_its_last_version_has_a_verdict(tmp_path: Path) -> None:
    config = LearnerConfig(online_steps=10, start_rows=0)
    write_replay(tmp_path, make_rows(FIRST, 12))
    with MetricsWriter(tmp_path) as metrics:
        metrics.write(10, {"loss": 1.0})
    folder = VersionFolder(tmp_path / "versions", 2)
    folder.add(VersionRecord(2, 10, 10), {}, np.zeros((64, 5, 2), np.float32))
    assert not read_progress(tmp_path, config).finished
    folder.note(VersionRecord(2, 10, 10, accepted=True))
    progress = read_progress(tmp_path, config)
    assert progress.finished
    assert (progress.rows, progress.accepted) == (12, 1)


def test_rows_of_a_file_that_is_no_replay_log_yet_count_as_none(tmp_path: Path) -> None:
    (tmp_path / "replay.sqlite").write_bytes(b"")
    assert count_rows(tmp_path / "replay.sqlite") == 0
