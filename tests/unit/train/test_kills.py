# SPDX-License-Identifier: Apache-2.0
"""A hundred kills at random instants cost no more than the last interval each."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qam_ros.contract.dataset import write_dataset
from qam_ros.contract.interface import load_interface
from qam_train.config import save_config

KILLS = 100


@pytest.mark.slow
def test_hundred_kills_at_random_instants_cost_no_more_than_an_interval_each(
    small_config, contract_data, tmp_path
):
    config = small_config(
        "sqam",
        behaviour={"updates": 40},
        offline={"updates": 1_000_000},
        checkpoint_every=2,
        agent={"actor": {"widths": [64, 64]}, "critic": {"widths": [64, 64]}},
    )
    save_config(config, tmp_path / "config.yaml")
    interface = load_interface("mobile_base")
    write_dataset(tmp_path / "data", contract_data(), interface, {})
    script = Path(__file__).with_name("kill_process.py")
    words = [tmp_path / "config.yaml", tmp_path / "data", tmp_path / "run", KILLS, 0]
    done = subprocess.run(
        [sys.executable, script, *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found["same"]  # as if it had never been killed
    assert found["steps_in_order"]
    assert found["stage"] == "offline"
    assert found["moved"] > KILLS / 4
    assert found["in_save"] > KILLS / 10
