# SPDX-License-Identifier: Apache-2.0
"""Settings: round trip, overrides, and what a mistake is told."""

import pytest

from qam_ros.contract.errors import ConfigError
from qam_train.config import (
    AgentConfig,
    StageConfig,
    load_config,
    save_config,
)
from qam_train.offline_config import OfflineConfig


def test_defaults_are_the_published_sizes():
    config = AgentConfig()
    assert config.actor.widths == config.critic.widths == (512, 512, 512, 512)
    assert (config.critics, config.batch_size, config.lr, config.ema) == (
        10,
        256,
        3e-4,
        0.005,
    )
    assert (config.actor.layer_norm, config.critic.layer_norm) == (False, True)
    assert (config.flow_steps, config.clip_norm, config.adjoint_rows) == (10, 1.0, 256)


def test_saved_settings_load_to_the_same(tmp_path):
    overrides = [
        "agent.clip_norm=.inf",
        "agent.actor.widths=[64, 32]",
        "behaviour.updates=7",
        "agent.horizon=9",
    ]
    config = load_config(OfflineConfig, None, overrides)
    save_config(config, tmp_path / "config.yaml")
    assert load_config(OfflineConfig, tmp_path / "config.yaml") == config


def test_overrides_win_over_the_file(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("seed: 3\nagent: {tau: 2, lr: 1e-3}\n")
    config = load_config(OfflineConfig, path, ["agent.tau=0.5"])
    assert (config.seed, config.agent.tau, config.agent.lr) == (3, 0.5, 1e-3)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("agent.tua=3", r"agent: unknown key 'tua'; did you mean 'tau'\?"),
        ("agnt.tau=3", r"unknown key 'agnt'; did you mean 'agent'\?"),
        ("agent.tau=warm", "agent: tau: expected float, got 'warm'"),
        ("agent.critics=2.5", "agent: critics: expected int, got 2.5"),
        ("agent.critics=true", "agent: critics: expected int, got True"),
        ("standardise=1", "standardise: expected bool, got 1"),
        ("agent.actor.widths=64", "widths: expected a list, got 64"),
        ("agent=5", "agent: expected a mapping of settings, got 5"),
        ("agent.horizon=2", "horizon: expected at least chunk = 5, got 2"),
        ("agent.adjoint_batch=300", "adjoint_batch: expected 1 to batch_size, got 300"),
        (
            "matmul_precision=low",
            r"expected one of \['highest', 'high', 'medium'\], got 'low'",
        ),
        ("agent.tau", "expected dotted.key=value"),
        ("agent.tau=[1", "'\\[1' is not a YAML value"),
    ],
)
def test_mistakes_name_the_setting_and_what_is_valid(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(OfflineConfig, None, [override])


def test_override_inside_a_value_is_refused():
    with pytest.raises(ConfigError, match="'seed' is a value"):
        load_config(OfflineConfig, None, ["seed=1", "seed.x=2"])


def test_missing_and_unreadable_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none.yaml: expected a YAML file"):
        load_config(OfflineConfig, tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match="expected a mapping of settings, got list"):
        load_config(OfflineConfig, tmp_path / "list.yaml")
    (tmp_path / "torn.yaml").write_text("agent: {tau: \n")
    with pytest.raises(ConfigError, match="not readable as YAML"):
        load_config(OfflineConfig, tmp_path / "torn.yaml")


def test_learning_rate_falls_from_start_to_end():
    stage = StageConfig(updates=11, lr_start=1e-3, lr_end=0.0)
    assert [stage.learning_rate(k) for k in (0, 5, 10)] == pytest.approx(
        [1e-3, 5e-4, 0.0]
    )
    assert StageConfig(updates=1, lr_start=1e-3, lr_end=0.0).learning_rate(0) == 1e-3
