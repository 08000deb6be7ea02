# SPDX-License-Identifier: Apache-2.0
"""The joiner makes each executed tick one row, whatever order its messages take."""

import dataclasses
import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qam_ros.contract.messages import (
    ActionProposal,
    EpisodeEvent,
    EpisodeKind,
    GuardReport,
    StepReward,
)
from qam_ros.runtime.joiner import Joiner, JoinerConfig

SECOND = 10**9


def feed(joiner, messages, now_ns=0):
    parts = [joiner.add(message, now_ns) for message in messages]
    return np.concatenate([np.empty(0, joiner.dtype), *parts])


def same(rows, expected):
    """Equality bit for bit, in the order of (session, seq)."""
    order = ["session", "seq"]
    return (
        np.sort(rows, order=order).tobytes() == np.sort(expected, order=order).tobytes()
    )


def without(messages, *unwanted):
    return [message for message in messages if message not in unwanted]


def pick(messages, kind, index=0):
    return [message for message in messages if isinstance(message, kind)][index]


def test_episode_in_order_gives_every_row_bit_for_bit(interface, robot):
    robot.episode(20)
    rows = feed(Joiner(interface), robot.messages)
    assert same(rows, robot.rows())
    assert rows["has_next"].tolist() == [0] * 19 + [1]


def test_row_is_complete_whatever_order_its_messages_come_in(interface, make_robot):
    for order in itertools.permutations(range(3)):
        robot = make_robot()
        robot.episode(3)
        first = [robot.messages[1 + index] for index in order]
        rows = feed(Joiner(interface), [robot.messages[0], *first, *robot.messages[4:]])
        assert same(rows, robot.rows())


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_reordered_and_repeated_messages_give_each_row_once(
    interface, make_robot, data
):
    robot = make_robot(data.draw(st.integers(0, 2**16)))
    for _ in range(data.draw(st.integers(1, 4))):
        steps = data.draw(st.integers(1, 12))
        gaps = data.draw(st.sets(st.integers(1, 12), max_size=2))
        robot.episode(steps, missing=gaps, terminated=data.draw(st.booleans()))
        if data.draw(st.booleans()):
            robot.restart_policy()
    messages = robot.messages + data.draw(
        st.lists(st.sampled_from(robot.messages), max_size=20)
    )
    joiner = Joiner(interface, JoinerConfig(successor_timeout_s=1, label_timeout_s=1))
    rows = feed(joiner, data.draw(st.permutations(messages)))
    rows = np.concatenate([rows, joiner.poll(2 * SECOND)])
    assert same(rows, robot.rows())
    assert joiner.pending == 0


def test_row_before_a_gap_stores_its_next_observation(interface, robot):
    """The proposal came, but too late for the guard: the guard's next tick is no row."""
    robot.episode(4)
    reports = [
        message for message in robot.messages if isinstance(message, GuardReport)
    ]
    lost = dataclasses.replace(reports[2], is_row=False)
    last = dataclasses.replace(reports[3], seq=2)
    changed = {id(reports[2]): lost, id(reports[3]): last}
    rows = feed(Joiner(interface), [changed.get(id(m), m) for m in robot.messages])
    following = pick(robot.messages, ActionProposal, 2).observation
    assert rows["has_next"].tolist() == [0, 1, 1]
    assert rows["next_observation"][1].tolist() == following.tolist()
    assert not rows["masked"].any()


def test_row_before_a_gap_without_an_observation_is_masked_after_a_bounded_wait(
    interface, robot
):
    robot.episode(5, missing={2})
    joiner = Joiner(interface, JoinerConfig(successor_timeout_s=2))
    rows = feed(joiner, robot.messages)
    assert rows["seq"].tolist() == [0, 2, 3]
    assert joiner.poll(SECOND).size == 0
    late = joiner.poll(3 * SECOND)
    assert (late["seq"], late["masked"], late["has_next"]) == (1, 1, 0)
    assert joiner.counters.without_next == 1
    assert same(np.concatenate([rows, late]), robot.rows())


def test_guard_that_restarts_closes_its_last_row_with_the_next_observation(
    interface, robot
):
    robot.episode(3)
    cut = without(robot.messages, *robot.messages[-3:])  # neither END nor what follows
    reward = pick(cut, StepReward, 2)
    cut[cut.index(reward)] = dataclasses.replace(reward, truncated=False)
    robot.restart_guard()
    robot.now_ns -= 5 * robot.period_ns
    cut += [proposal := robot.proposal(3), robot.report(proposal, 3)]
    joiner = Joiner(interface)
    assert feed(joiner, cut)["seq"].tolist() == [0, 1]
    row = joiner.poll(3 * SECOND)
    assert (row["seq"], row["has_next"], row["masked"]) == (2, 1, 0)
    assert row["next_observation"][0].tolist() == proposal.observation.tolist()


def test_late_reward_holds_back_only_its_own_row(interface, robot):
    robot.episode(10)
    late = pick(robot.messages, StepReward, 4)
    joiner = Joiner(interface)
    rows = feed(joiner, without(robot.messages, late))
    assert rows["seq"].tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    rows = np.concatenate([rows, joiner.add(late, SECOND)])
    assert same(rows, robot.rows())


def test_row_whose_reward_never_comes_is_kept_and_masked(interface, robot):
    robot.episode(4)
    joiner = Joiner(interface, JoinerConfig(label_timeout_s=10))
    feed(joiner, without(robot.messages, pick(robot.messages, StepReward, 1)))
    assert joiner.poll(9 * SECOND).size == 0
    row = joiner.poll(11 * SECOND)
    assert (row["seq"], row["masked"], row["reward"]) == (1, 1, 0.0)
    assert joiner.counters.late_labels == 1


def test_nothing_times_out_while_the_world_stands_still(interface, robot):
    """A simulation that waits for the learner: the last row has no reward and no successor yet."""
    robot.episode(3)
    joiner = Joiner(interface)
    last = robot.messages.index(pick(robot.messages, GuardReport, 1))
    assert feed(joiner, robot.messages[: last + 1]).size == 1
    assert joiner.poll(10_000 * SECOND).size == 0
    rows = feed(joiner, robot.messages[last + 1 :], 10_000 * SECOND)
    assert rows["seq"].tolist() == [1, 2]
    assert not rows["masked"].any()


def test_rows_at_or_behind_the_end_are_dropped_and_counted(interface, robot):
    """The guard got the final observation before the END event."""
    robot.episode(5)
    *messages, final, report = robot.messages
    raced = dataclasses.replace(report, is_row=True, seq=5, masked=False)
    joiner = Joiner(interface)
    rows = feed(joiner, [*messages[:-1], final, raced, messages[-1]])
    assert joiner.counters.outside_episode == 1
    assert same(rows, robot.rows())


def test_row_before_a_dropped_one_stores_its_next_observation(interface, robot):
    robot.episode(5, end="ABORT")
    *messages, final, report = robot.messages
    raced = dataclasses.replace(report, is_row=True, seq=5, masked=False)
    rows = feed(Joiner(interface), [*messages, raced, final])
    assert same(rows, robot.rows())


def test_abort_ends_an_episode_without_flags(interface, robot):
    robot.episode(5, end="ABORT")
    rows = feed(Joiner(interface), robot.messages)
    assert same(rows, robot.rows())
    assert rows["has_next"].tolist() == [0, 0, 0, 0, 1]
    assert not rows["truncated"].any()


@pytest.mark.parametrize(("terminated", "masked"), [(True, 0), (False, 1)])
def test_without_final_observation_only_a_terminated_row_is_learned_from(
    interface, robot, terminated, masked
):
    robot.episode(3, terminated=terminated)
    joiner = Joiner(interface)
    assert feed(joiner, robot.messages[:-2]).size == 2
    row = joiner.poll(60 * SECOND)
    assert (row["seq"], row["has_next"], row["masked"]) == (2, 0, masked)


def test_observation_of_the_next_episode_is_no_next_observation(interface, robot):
    robot.episode(3)
    messages = robot.messages[:-2]  # the final observation is lost
    robot.messages, robot.now_ns = [], messages[-1].stamp_ns + robot.period_ns // 4
    robot.episode(2)
    joiner = Joiner(interface)
    rows = feed(joiner, [*messages, *robot.messages])
    rows = np.concatenate([rows, joiner.poll(60 * SECOND)])
    ended = rows[(rows["episode"] == 1) & (rows["seq"] == 2)]
    assert (ended["has_next"], ended["masked"]) == (0, 1)


def test_history_after_a_restart_yields_no_row_twice(interface, robot, keys_of):
    for _ in range(4):
        robot.episode(10, missing={3})
    half = len(robot.messages) // 2
    before = feed(Joiner(interface), robot.messages[:half])
    joiner = Joiner(interface, known=keys_of(before))
    after = feed(joiner, robot.messages)
    rows = np.concatenate([before, after, joiner.poll(60 * SECOND)])
    assert same(rows, robot.rows())
    assert joiner.counters.lost_reports == 0


@pytest.mark.parametrize("slow", [ActionProposal, StepReward])
def test_history_of_one_topic_may_come_long_after_the_others(interface, robot, slow):
    for _ in range(3):
        robot.episode(10)
    last = [message for message in robot.messages if isinstance(message, slow)]
    first = [message for message in robot.messages if not isinstance(message, slow)]
    joiner = Joiner(interface)
    rows = [
        feed(joiner, first),
        *(joiner.poll(second * SECOND) for second in range(29)),
    ]
    assert not sum(part.size for part in rows)
    assert same(feed(joiner, last, 29 * SECOND), robot.rows())


def test_rows_that_wait_for_rewards_do_not_slow_down_the_others(interface, robot):
    robot.episode(3000)
    silent = [
        message for message in robot.messages if not isinstance(message, StepReward)
    ]
    spent_s = []
    for messages in (robot.messages, silent):
        begin = time.process_time()
        feed(Joiner(interface), messages)
        spent_s.append(time.process_time() - begin)
    assert spent_s[1] < 3 * spent_s[0]


def test_masked_rows_and_empty_actions_are_kept_and_masked(interface, robot):
    robot.episode(4, masked={1})
    report = pick(robot.messages, GuardReport, 2)
    silent = dataclasses.replace(report, executed=np.zeros(0, np.float32))
    robot.messages[robot.messages.index(report)] = silent
    rows = feed(Joiner(interface), robot.messages)
    assert rows["masked"].tolist() == [0, 1, 1, 0]
    assert rows["executed"][2].tolist() == [0.0, 0.0]


def test_row_before_an_unusable_observation_has_no_next(interface, robot):
    robot.episode(4, masked={2})
    proposal = pick(robot.messages, ActionProposal, 2)
    proposal.observation[0] = np.nan
    joiner = Joiner(interface)
    rows = np.concatenate([feed(joiner, robot.messages), joiner.poll(60 * SECOND)])
    rows = np.sort(rows, order="seq")
    assert rows["masked"].tolist() == [0, 1, 1, 0]


def test_what_is_lost_is_counted(interface, robot):
    robot.episode(8)
    proposal, report = (
        pick(robot.messages, ActionProposal, 2),
        pick(robot.messages, GuardReport, 5),
    )
    joiner = Joiner(interface)
    rows = feed(joiner, without(robot.messages, proposal, report))
    rows = np.concatenate([rows, joiner.poll(60 * SECOND)])
    assert joiner.counters.without_proposal == 1
    assert joiner.counters.lost_reports == 1
    assert sorted(rows["seq"]) == [0, 1, 3, 4, 6, 7]
    assert (
        rows["masked"][rows["seq"] == 1] == 1
    )  # its next observation was in the lost proposal
    assert rows["has_next"][rows["seq"] == 4] == 1  # here only the report was lost
    joiner.add(report, 0)
    assert joiner.counters.lost_reports == 0


def test_malformed_messages_are_refused_and_counted(interface, robot):
    robot.episode(2)
    event, proposal, report, reward = robot.messages[:4]
    joiner = Joiner(interface)
    bad = [
        dataclasses.replace(proposal, observation=np.zeros(5, np.float32)),
        dataclasses.replace(proposal, action=np.zeros(1, np.float32)),
        dataclasses.replace(report, executed=np.zeros(3, np.float32)),
        dataclasses.replace(reward, reward=float("nan")),
    ]
    assert feed(joiner, [event, *bad]).size == 0
    assert joiner.counters.malformed == 4
    assert "expected" in joiner.last_problem
    assert same(feed(joiner, robot.messages), robot.rows())


def test_row_that_may_not_be_stored_is_refused_with_the_reason(interface, robot):
    robot.episode(2)
    report = pick(robot.messages, GuardReport)
    report.executed[0] = 7.0
    joiner = Joiner(interface)
    assert feed(joiner, robot.messages)["seq"].tolist() == [1]
    assert "executed" in joiner.last_problem


def test_episode_id_that_begins_anew_forgets_its_old_end(interface, robot):
    robot.episode(3)
    robot.episode_id = 0  # the plant was restarted and counts from the beginning
    robot.episode(3)
    rows = feed(Joiner(interface), robot.messages)
    assert same(rows, robot.rows())


def test_flush_gives_up_what_was_executed_but_not_finished(interface, robot):
    robot.episode(3)
    joiner = Joiner(interface)
    last = robot.messages.index(pick(robot.messages, GuardReport, 2))
    feed(joiner, robot.messages[: last + 1])
    row = joiner.flush()
    assert (row["seq"], row["masked"]) == (2, 1)
    assert joiner.pending == 0


def test_memory_is_bounded_when_nothing_completes(interface, robot):
    robot.episode(500)
    joiner = Joiner(interface, JoinerConfig(capacity=100))
    rewards = [message for message in robot.messages if isinstance(message, StepReward)]
    rows = feed(joiner, without(robot.messages, *rewards))
    assert joiner.pending <= 100
    assert rows["masked"].all()


def test_a_tick_costs_far_less_than_a_millisecond(interface, robot):
    for _ in range(10):
        robot.episode(200)
    joiner = Joiner(interface)
    begin = time.process_time()
    rows = feed(joiner, robot.messages)
    per_tick_s = (time.process_time() - begin) / rows.size
    assert rows.size == 2000
    assert per_tick_s < 5e-4  # half of the budget of 1 ms, the rest is ROS and SQLite


def test_events_are_no_rows(interface):
    start = EpisodeEvent(0, 1, EpisodeKind.START, False, False, False, 0, 0.0)
    assert Joiner(interface).add(start, 0).size == 0
