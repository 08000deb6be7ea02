# SPDX-License-Identifier: Apache-2.0
"""An operator's episodes: stamps and labels give the rows that the contract promises."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from qam_ros.contract.errors import StreamError
from qam_ros.contract.interface import load_interface
from qam_ros.contract.messages import EpisodeEvent, EpisodeKind, StepReward
from qam_ros.runtime.episodes import EpisodeLabels, LabelConfig
from qam_ros.runtime.joiner import Joiner

SCRIPT = Path(__file__).parents[1] / "stream" / "conftest.py"
BASE = load_interface("mobile_base")


class Bench:
    """A robot that is labelled, and a joiner that hears both."""

    def __init__(self, **config):
        spec = importlib.util.spec_from_file_location("episode_script", SCRIPT)
        script = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(script)
        self.robot = script.Robot(BASE)
        self.labels = EpisodeLabels(LabelConfig(self.robot.period_ns, **config))
        self.joiner = Joiner(BASE)
        self.rows, self.published = [], []

    def publish(self, labels):
        self.published += labels
        for label in labels:
            self.rows.append(self.joiner.add(label, 0))

    def tick(self, step=0, *, idle=False, jitter=0.0):
        robot = self.robot
        robot.episode_id = self.labels.episode
        shift_ns = round(jitter * robot.period_ns)
        robot.now_ns += shift_ns
        proposal = robot.proposal(step, idle=idle)
        report = robot.report(proposal, step, is_row=not idle)
        robot.now_ns += robot.period_ns - shift_ns
        self.rows.append(self.joiner.add(proposal, 0))
        self.labels.on_proposal(proposal)
        self.rows.append(self.joiner.add(report, 0))
        self.publish(self.labels.on_report(report))
        return proposal

    def start(self):
        self.tick(idle=True)
        self.publish(self.labels.start(self.robot.now_ns - self.robot.period_ns // 2))

    def found(self):
        return np.concatenate(self.rows)


def events(bench):
    return [label for label in bench.published if isinstance(label, EpisodeEvent)]


@pytest.mark.parametrize(
    ("verdict", "flags"), [("success", (1, 0, 0.0)), ("failure", (0, 1, -1.0))]
)
@pytest.mark.parametrize("lockstep", [False, True])
def test_rows_of_an_episode_are_complete(verdict, flags, lockstep):
    bench = Bench(lockstep=lockstep)
    bench.start()
    for step in range(10):
        bench.tick(step)
    bench.publish(getattr(bench.labels, verdict)())
    final = bench.tick(10, idle=True)
    rows = bench.found()
    assert rows["step"].tolist() == list(range(10))
    assert not rows["masked"].any()
    assert rows["reward"].tolist() == [-1.0] * 9 + [flags[2]]
    assert rows["terminated"].tolist() == [0] * 9 + [flags[0]]
    assert rows["truncated"].tolist() == [0] * 9 + [flags[1]]
    assert rows["has_next"].tolist() == [0] * 9 + [1]
    np.testing.assert_array_equal(rows["next_observation"][-1], final.observation)
    end = events(bench)[-1]
    assert (end.kind, end.steps, end.success) == (EpisodeKind.END, 10, bool(flags[0]))
    assert end.episode_return == rows["reward"].sum()
    assert rows["observation_stamp_ns"][-1] < end.stamp_ns <= final.stamp_ns


@pytest.mark.parametrize("jitter", [-0.2, 0.2])
def test_jitter_of_the_sensors_neither_loses_the_first_row_nor_its_successor(jitter):
    bench = Bench()
    bench.start()
    bench.tick(0, jitter=jitter)
    bench.tick(1)
    bench.publish(bench.labels.failure())
    bench.tick(2, idle=True, jitter=jitter)
    rows = bench.found()
    assert (rows.size, rows["has_next"].tolist()) == (2, [0, 1])
    start = events(bench)[0]
    elapsed = (rows["observation_stamp_ns"][0] - start.stamp_ns) / BASE.control_period_s
    assert round(elapsed * 1e-9) == 0, "the policy counts it as step 0"


def test_a_row_executed_while_the_operator_decided_lies_behind_the_end():
    bench = Bench()
    bench.start()
    for step in range(5):
        bench.tick(step)
    verdict = bench.labels.success()  # on its way while the guard goes on
    late = bench.robot.proposal(5)
    bench.joiner.add(late, 0)
    bench.joiner.add(bench.robot.report(late, 5), 0)
    bench.publish(verdict)
    rows = bench.found()
    assert (rows.size, rows["terminated"][-1], rows["has_next"][-1]) == (5, 1, 1)
    assert bench.joiner.counters.outside_episode == 1


def test_step_limit_truncates_and_the_next_episode_has_another_id():
    bench = Bench(max_steps=3)
    for _ in range(2):
        bench.start()
        for step in range(3):
            bench.tick(step)
        assert not bench.labels.running
        bench.tick(3, idle=True)
    rows = bench.found()
    assert rows["truncated"].tolist() == [0, 0, 1] * 2
    assert rows["episode"].tolist() == [1, 1, 1, 2, 2, 2]


def test_abort_ends_without_flags_and_labels_the_last_row():
    bench = Bench()
    bench.start()
    bench.tick(0)
    bench.publish(bench.labels.abort())
    bench.tick(1, idle=True)
    rows = bench.found()
    assert (rows["reward"][0], rows["masked"][0], rows["truncated"][0]) == (-1.0, 0, 0)
    with pytest.raises(StreamError, match="no episode runs"):
        bench.labels.abort()


def test_a_restarted_node_aborts_what_its_predecessor_started():
    bench = Bench()
    bench.start()
    bench.tick(0)
    bench.labels = EpisodeLabels(bench.labels.config)
    bench.robot.episode_id = 1
    proposal = bench.robot.proposal(1)
    bench.labels.on_proposal(proposal)
    bench.labels.on_report(bench.robot.report(proposal, 1))
    (event,) = bench.labels.abort()
    assert (event.kind, event.episode) == (EpisodeKind.ABORT, 1)
    assert event.stamp_ns > proposal.stamp_ns
    (start,) = bench.labels.start(proposal.stamp_ns)
    assert start.episode == 2


def test_what_is_not_possible_is_refused_with_the_reason():
    bench = Bench()
    with pytest.raises(StreamError, match="no observation"):
        bench.labels.start(0)
    for verdict in (bench.labels.success, bench.labels.failure):
        with pytest.raises(StreamError, match="no episode runs"):
            verdict()
    bench.tick(idle=True)
    with pytest.raises(StreamError, match="no observation"):
        bench.labels.start(bench.robot.now_ns + 2 * 10**9)
    bench.start()
    with pytest.raises(StreamError, match="episode 1 runs"):
        bench.labels.start(bench.robot.now_ns)
    with pytest.raises(StreamError, match="no row yet"):
        bench.labels.success()


def test_reports_that_are_no_rows_get_no_reward():
    bench = Bench(step_reward=-0.5)
    bench.start()
    bench.tick(0)
    bench.tick(1, idle=True)
    bench.tick(2)
    rewards = [label for label in bench.published if isinstance(label, StepReward)]
    assert [(reward.step, reward.reward) for reward in rewards] == [(0, -0.5)]
