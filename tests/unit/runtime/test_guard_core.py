# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from qam_ros.contract.errors import StreamError
from qam_ros.contract.messages import EpisodeKind
from qam_ros.contract.transition import GuardMode
from qam_ros.runtime.guard_config import guard_config
from qam_ros.runtime.guard_core import GuardCore
from qam_ros.runtime.guard_log import GuardLog, executed_keys, read_guard_log

ACTION = np.zeros(5, dtype=np.float32)
DRIVE = np.array([0, 0, 0, 1, 1], dtype=np.float32)


@pytest.fixture
def core(interface):
    return GuardCore(guard_config(interface))


def test_a_proposal_waits_for_its_measurement_and_its_episode(core, helpers):
    proposal = helpers.proposal(0, 100, ACTION)
    idle = helpers.proposal(0, 100, [])
    core.on_measured(99, helpers.pose())
    assert not core.ready(idle)
    core.on_measured(100, helpers.pose())
    assert core.ready(idle)
    assert not core.ready(proposal)
    core.on_event(helpers.event())
    assert core.ready(proposal)


def test_topics_that_are_not_measured_are_ignored(core, helpers):
    core.on_measured(1, helpers.joints())
    assert core.measured_topics == {"pose"}
    assert not core.ready(helpers.proposal(0, 1, []))


def test_each_guard_has_a_session_of_its_own(interface):
    sessions = {GuardCore(guard_config(interface)).session for _ in range(3)}
    assert len(sessions) == 3
    assert all(len(session) == 16 for session in sessions)


@pytest.fixture
def real_time(interface, helpers):
    """A guard in real time that has answered a proposal at time 0."""
    core = GuardCore(guard_config(interface), lockstep=False)
    assert core.deadline_ns() is None
    core.on_event(helpers.event())
    tick_at(core, helpers, 0)
    return core


def tick_at(core, helpers, time_ns, *, proposed=True):
    """Tick at a time; how the guard took it."""
    core.on_measured(time_ns, helpers.pose())
    number = time_ns // 1_000_000
    proposal = helpers.proposal(number, time_ns, ACTION) if proposed else None
    return core.tick(time_ns, proposal, time_ns)


def test_missing_proposals_are_waited_for_half_a_period(real_time, helpers):
    period_ns, modes, times = helpers.period_ns, [], []
    for _ in range(3):
        times.append(real_time.deadline_ns() / period_ns)
        output = tick_at(real_time, helpers, real_time.deadline_ns(), proposed=False)
        modes.append(output.report.mode)
    assert times == [1.5, 2.5, 3.5]
    assert modes == [GuardMode.HOLD, GuardMode.HOLD, GuardMode.SAFE_STOP]


def test_a_proposal_just_after_its_deadline_is_still_executed(real_time, helpers):
    """Else a policy whose phase slipped by a little more than half a period would be locked out."""
    period_ns = helpers.period_ns
    tick_at(real_time, helpers, 3 * period_ns // 2, proposed=False)
    late_ns = 3 * period_ns // 2 + period_ns // 10
    for k in range(5):
        output = tick_at(real_time, helpers, late_ns + k * period_ns)
        assert output.report.mode == GuardMode.ACTIVE
        assert output.report.is_row


def test_an_emergency_stop_is_answered_within_a_period(real_time, helpers):
    real_time.set_estop(pressed=True)
    assert real_time.deadline_ns() == helpers.period_ns
    output = tick_at(real_time, helpers, helpers.period_ns, proposed=False)
    assert output.report.mode == GuardMode.ESTOP
    assert real_time.deadline_ns() == 2 * helpers.period_ns


def test_stop_brings_the_base_to_rest(core, helpers):
    core.on_event(helpers.event())
    for k in range(6):
        core.on_measured(k * helpers.period_ns, helpers.pose())
        core.tick(
            k * helpers.period_ns, helpers.proposal(k, k * helpers.period_ns, DRIVE)
        )
    assert core.moves()
    core.stop()
    for k in range(6, 16):
        core.tick(k * helpers.period_ns, None, k * helpers.period_ns)
    assert core.state.latch == GuardMode.SAFE_STOP
    assert not core.moves()
    core.stop()
    assert core.state.latch == GuardMode.SAFE_STOP


def play(core, helpers, log, steps=4, episode=1, first=0):
    """An episode of so many rows, logged as the node does."""
    period_ns = helpers.period_ns
    for kind, k in ((EpisodeKind.START, first), (EpisodeKind.END, first + steps)):
        event = helpers.event(kind, episode, k * period_ns)
        core.on_event(event)
        log.event(event, core.session)
        for tick in range(first, first + steps if kind == EpisodeKind.START else first):
            stamp_ns = tick * period_ns
            core.on_measured(stamp_ns, helpers.pose())
            proposal = helpers.proposal(tick, stamp_ns, ACTION, episode=episode)
            report = core.tick(stamp_ns, proposal).report
            assert report.is_row
            log.row(report)


def test_log_gives_back_the_keys_of_executed_rows(core, helpers, tmp_path):
    log = GuardLog(tmp_path / "run" / "guard.log")
    play(core, helpers, log, steps=4, episode=1, first=0)
    play(core, helpers, log, steps=3, episode=2, first=10)
    log.close()
    records = read_guard_log(tmp_path / "run" / "guard.log")
    assert executed_keys(records) == {(core.session, seq) for seq in range(7)}
    rows = records[records["kind"] == 0]
    np.testing.assert_array_equal(rows["episode"], [1] * 4 + [2] * 3)
    np.testing.assert_array_equal(rows["mode"], GuardMode.ACTIVE)


def test_rows_outside_their_episode_are_not_executed_keys(core, helpers, tmp_path):
    log = GuardLog(tmp_path / "guard.log")
    play(core, helpers, log)
    log.close()
    records = read_guard_log(tmp_path / "guard.log")
    records["observation_stamp_ns"][-1] = (
        2 * helpers.period_ns
    )  # the END, moved forward
    assert executed_keys(records) == {(core.session, seq) for seq in range(2)}
    assert executed_keys(records[:-1]) == {(core.session, seq) for seq in range(4)}
    assert executed_keys(records[1:]) == set()


def test_log_survives_a_cut_record_and_goes_on_behind_it(core, helpers, tmp_path):
    path = tmp_path / "guard.log"
    log = GuardLog(path)
    play(core, helpers, log)
    log.close()
    path.write_bytes(path.read_bytes()[:-5])
    assert len(read_guard_log(path)) == 5
    again = GuardLog(path)
    again.event(helpers.event(EpisodeKind.ABORT, 1, 9), core.session)
    again.close()
    records = read_guard_log(path)
    assert len(records) == 6
    assert records["kind"][-1] == 3


def test_a_full_queue_drops_and_counts(helpers, tmp_path):
    log = GuardLog(tmp_path / "guard.log", period_s=10.0, capacity=2)
    for k in range(5):
        log.event(helpers.event(stamp_ns=k), bytes(16))
    assert log.dropped == 3
    log.close()
    assert len(read_guard_log(tmp_path / "guard.log")) == 2


def test_a_log_that_cannot_be_written_says_so_and_control_goes_on(
    core, helpers, tmp_path, capsys
):
    log = GuardLog(tmp_path / "guard.log", period_s=0.01)
    assert log.problem == ""
    log._queue.put_nowait(("not", "a", "record"))
    log._thread.join(timeout=5.0)
    assert "the guard log ended" in log.problem
    assert log.problem in capsys.readouterr().err
    play(core, helpers, log)
    assert log.dropped == 6
    log.close()


def test_a_disk_that_fills_up_is_a_problem_of_the_log(helpers, tmp_path):
    log = GuardLog(tmp_path / "guard.log", period_s=0.01)
    log._file.close()
    log._file = open("/dev/full", "ab")  # noqa: SIM115 - the log closes it
    log.event(helpers.event(), bytes(16))
    log._thread.join(timeout=5.0)
    log.close()
    assert "No space left" in log.problem


def test_a_file_that_is_no_guard_log_is_refused(tmp_path):
    path = tmp_path / "guard.log"
    path.write_bytes(b'{"format": "something else"}\nxyz')
    with pytest.raises(StreamError, match="not a guard log of version 1"):
        read_guard_log(path)
