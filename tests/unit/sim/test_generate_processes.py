# SPDX-License-Identifier: Apache-2.0
"""The generator as a user's process: interrupted and killed."""

import os
import signal
import subprocess
import sys
import time

import pytest

from qam_ros.contract.dataset import read_dataset
from sim.cli import data
from sim.generate import Target, generate
from sim.recipes import make_recipe

OPTIONS = ["--recipe", "navigate", "--world", "pointmaze-medium", "--rows", "0"]
OPTIONS += ["--episodes", "40", "--workers", "2", "--set", "max_steps=400"]
CODE = "import sys; from qam_ros.cli import main; sys.exit(main(sys.argv[1:]))"


def start(output):
    command = [sys.executable, "-c", CODE, "data", "generate", str(output), *OPTIONS]
    return subprocess.Popen(
        command,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def wait_for(condition, timeout_s=60.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def shards(output):
    return list(output.with_name(output.name + ".partial").glob("shard_*.npz"))


def group_members(group):
    """Living processes of a process group."""
    found = []
    for name in os.listdir("/proc"):
        try:
            with open(f"/proc/{name}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
        except (OSError, ValueError):
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(name))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_leaves_no_process_and_goes_on_when_called_again(
    tmp_path, number, capsys
):
    output = tmp_path / "maze"
    process = start(output)
    wait_for(lambda: len(shards(output)) >= 2)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        os.kill(process.pid, number)
    with process.stderr:
        errors = process.stderr.read().decode()
    code = process.wait(30)
    assert code == (130 if number == signal.SIGINT else -signal.SIGKILL)
    assert "Traceback" not in errors
    wait_for(lambda: not group_members(process.pid), 10)
    assert not output.exists()
    assert data(["generate", str(output), *OPTIONS]) == 0
    recipe = make_recipe("navigate", "pointmaze-medium", max_steps=400)
    generate(tmp_path / "whole", recipe, Target(episodes=40))
    again, whole = read_dataset(output), read_dataset(tmp_path / "whole")
    assert again.observations.tobytes() == whole.observations.tobytes()
    assert again.actions.tobytes() == whole.actions.tobytes()
