# SPDX-License-Identifier: Apache-2.0
"""kill -9 of the process that writes: no row it was told is on disk is lost."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from qam_ros.contract.errors import DatasetError
from qam_ros.runtime.recording import import_bag, recover
from qam_ros.runtime.store import TransitionStore

WRITER = Path(__file__).with_name("writer_process.py")


def run_and_kill(folder, first, life_s):
    """Start the writer, kill it life_s after it has recorded something new; its last answer."""
    process = subprocess.Popen(
        [sys.executable, WRITER, folder, str(first)], stdout=subprocess.PIPE, text=True
    )
    answers = []
    reader = threading.Thread(
        target=lambda: answers.extend(process.stdout), daemon=True
    )
    reader.start()
    try:
        deadline = time.monotonic() + 30
        while not (answers and int(answers[-1].split()[1]) > first):
            assert time.monotonic() < deadline, answers[-3:]
            time.sleep(0.01)
        time.sleep(life_s)
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stdout.close()
    last = [line for line in answers if line.endswith("\n")][-1]
    return [int(number) for number in last.split()]


@pytest.fixture(scope="module")
def killed(tmp_path_factory, interface):
    """Five lives in the same spool; what each said before its death."""
    folder = tmp_path_factory.mktemp("killed")
    generator = np.random.default_rng(0)
    said, first = [], 0
    for _ in range(5):
        position, recorded = run_and_kill(folder, first, generator.uniform(0.0, 0.4))
        with TransitionStore(folder / "spool.sqlite", interface) as store:
            said.append((position, recorded, store.last_position))
            first = (
                store.last_position
            )  # as the history of the topics would bring it back
    return folder, said


def test_no_committed_row_is_lost_and_no_position_is_missing(killed, interface):
    folder, said = killed
    assert all(told <= found for told, _, found in said)
    assert said[-1][2] > 500
    with TransitionStore(folder / "spool.sqlite", interface) as store:
        _, rows = store.read(0, 10**6)
    assert rows["seq"].tolist() == list(range(said[-1][2]))
    assert (rows["observation"][:, 0] == rows["seq"] % 1000).all()


def test_bags_of_killed_recorders_hold_every_recorded_row_after_recovery(
    killed, interface
):
    folder, said = killed
    bags = sorted(folder.glob("bag*"))
    assert len(bags) == 5
    with pytest.raises(DatasetError, match="qam data recover"):
        import_bag(bags[0], interface)
    assert all(recover(bag).repaired for bag in bags)
    rows = np.concatenate([import_bag(bag, interface) for bag in bags])
    assert set(range(said[-1][1])) <= set(rows["seq"].tolist())
    with TransitionStore(folder / "spool.sqlite", interface) as store:
        _, spooled = store.read(0, 10**6)
    assert rows.tobytes() == spooled[rows["seq"]].tobytes()
