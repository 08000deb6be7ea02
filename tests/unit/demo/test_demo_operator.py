# SPDX-License-Identifier: Apache-2.0
"""The demo resets a guard that stopped, once for each stop that it sees."""

import subprocess
from types import SimpleNamespace

import numpy as np
import pytest

from qam_ros.contract.transition import GuardMode
from qam_ros.runtime.guard_log import _HEADER, LOG_DTYPE, ROW
from qam_train.loops.demo_robot import Operator


@pytest.fixture
def called(monkeypatch):
    """Commands that were run; each succeeds."""
    commands = []

    def run(command, **_):
        commands.append(command[1:])
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def log_row(folder, stamp_ns, mode):
    path = folder / "guard.log"
    row = np.zeros(1, LOG_DTYPE)
    row["kind"], row["mode"], row["observation_stamp_ns"] = ROW, mode, stamp_ns
    with path.open("ab") as file:
        file.write((b"" if file.tell() else _HEADER) + row.tobytes())


def test_each_stop_is_reset_once_and_motion_is_left_alone(tmp_path, called):
    operator = Operator(tmp_path)
    operator.look()  # nothing is there yet
    log_row(tmp_path, 1, GuardMode.ACTIVE)
    operator.look()
    assert called == []
    log_row(tmp_path, 2, GuardMode.SAFE_STOP)
    operator.look()
    operator.look()
    assert called == [["reset"]]
    log_row(tmp_path, 3, GuardMode.ACTIVE)
    operator.look()
    log_row(tmp_path, 4, GuardMode.SAFE_STOP)
    operator.look()
    assert called == [["reset"]] * 2
    assert operator.resets == 2
