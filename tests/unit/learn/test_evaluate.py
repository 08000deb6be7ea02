# SPDX-License-Identifier: Apache-2.0
"""Evaluation: the same episodes whoever plays them, and no torch where they are played."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest

from qam_ros.contract.errors import ConfigError, QamError
from qam_train.evaluate import command, evaluate, wilson_interval
from qam_train.loops.evaluator import EvaluationConfig, Evaluator


@pytest.fixture(scope="module")
def config(artifact_path):
    return EvaluationConfig(
        artifact_path, "pointmaze-medium", seed=3, max_episode_steps=12
    )


def test_an_episode_does_not_depend_on_those_before_it(config):
    first, second = Evaluator(config), Evaluator(config)
    records = [first.play(index) for index in range(3)]
    assert [second.play(index) for index in (2, 0)] == [records[2], records[0]]
    assert len({record.seed for record in records}) == 3


def test_the_number_of_workers_does_not_change_the_result(config):
    alone = [Evaluator(config).play(index) for index in range(4)]
    result = evaluate(config, episodes=4, workers=2)
    assert result.lengths == tuple(record.steps for record in alone) == (12,) * 4
    assert result.returns == tuple(record.episode_return for record in alone)
    assert result.successes == tuple(record.success for record in alone)
    assert result.low <= result.mean <= result.high


def test_another_seed_gives_other_episodes(config):
    other = dataclasses.replace(config, seed=4)
    assert Evaluator(config).play(0).seed != Evaluator(other).play(0).seed


def test_playing_needs_no_torch(config):
    program = (
        "import sys; from pathlib import Path;"
        "from qam_train.evaluate import EvaluationConfig, Evaluator;"
        f"Evaluator(EvaluationConfig(Path({str(config.artifact)!r}), 'pointmaze-medium',"
        "max_episode_steps=3)).play(0);"
        "sys.exit('torch' in sys.modules)"
    )
    assert (
        subprocess.run(
            [sys.executable, "-W", "error", "-c", program], check=False, timeout=60
        ).returncode
        == 0
    )


def test_a_world_of_another_robot_is_refused_with_the_reason(config):
    with pytest.raises(
        QamError, match="has robot 'ur5e_2f85', the policy is of robot 'mobile_base'"
    ):
        evaluate(dataclasses.replace(config, world="cube-single"), 1)


def test_workers_get_one_thread_each_and_the_parent_keeps_its_own(config, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    seen = {}
    monkeypatch.setattr(
        "qam_train.evaluate.ProcessPoolExecutor",
        lambda *_, **__: seen.update(os.environ) or fail(),
    )

    def fail():
        raise ConfigError("stop here")

    with pytest.raises(ConfigError, match="stop here"):
        evaluate(config, episodes=1)
    assert (seen["OMP_NUM_THREADS"], seen["MKL_NUM_THREADS"]) == ("1", "1")
    assert (os.environ["OMP_NUM_THREADS"], "MKL_NUM_THREADS" in os.environ) == (
        "7",
        False,
    )


def test_no_episodes_are_refused(config):
    with pytest.raises(ConfigError, match="at least one episode"):
        evaluate(config, episodes=0)


def test_command_prints_json(config, capsys):
    arguments = [
        str(config.artifact),
        "--world",
        config.world,
        "--episodes",
        "2",
        "--workers",
        "1",
    ]
    assert command([*arguments, "--max-episode-steps", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["lengths"] == [3, 3]


@pytest.mark.parametrize(
    ("successes", "episodes", "low", "high"),
    # exact roots of |p - k/n| = z sqrt(p (1 - p) / n)
    [(0, 100, 0.0, 0.036994), (50, 100, 0.403832, 0.596168), (100, 100, 0.963006, 1.0)],
)
def test_interval_is_wilsons(successes, episodes, low, high):
    assert wilson_interval(successes, episodes) == pytest.approx((low, high), abs=1e-6)
