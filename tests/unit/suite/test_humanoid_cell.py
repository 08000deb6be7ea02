# SPDX-License-Identifier: Apache-2.0
"""A cell of the published protocol in a humanoid maze, in miniature."""

import numpy as np
import pytest

from qam_ros.contract.errors import ConfigError
from qam_train.suite.cell import RunSettings, run_cell
from qam_train.suite.folder import CellFolder
from qam_train.suite.matrix import Lengths, Selection, check, plan
from qam_train.suite.protocol import load_protocol
from sim.import_npz import import_npz
from sim.worlds import make_world

WORLD = "humanoidmaze-medium"
ROWS, SEGMENT = 300, 50
TINY = (
    *("agent.actor.widths=[16]", "agent.critic.widths=[16]", "agent.critics=2"),
    *("agent.batch_size=8", "agent.flow_steps=2", "start_steps=2", "episodes=2"),
    *("behaviour_updates=4", "max_episode_steps=5", "evaluate_every=5"),
)


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """Folder of datasets with one that was imported from a file in OGBench's form."""
    root = tmp_path_factory.mktemp("humanoid")
    rng = np.random.default_rng(0)
    world = make_world(WORLD, 1)
    world.reset(0)
    names = ("observations", "qpos", "qvel")
    columns = {name: [] for name in names}
    actions = rng.uniform(-1, 1, (ROWS, 21)).astype("f4")
    for action in actions:
        row = (world.observation(), *world.snapshot().values())
        for name, values in zip(names, row, strict=True):
            columns[name].append(values)
        world.act(action)
        world.step()
    file = root / f"{WORLD}-navigate-v0.npz"
    np.savez(
        file,
        actions=actions,
        terminals=np.arange(ROWS) % SEGMENT == SEGMENT - 1,
        **{name: np.array(values, "f4") for name, values in columns.items()},
    )
    import_npz([file], root / "data" / f"{WORLD}-navigate")
    return root / "data"


def cells_of(protocol, task, out):
    selection = Selection(("qam",), (WORLD,), (task,), (10001,))
    return plan(load_protocol(protocol), selection, TINY, Lengths(5, 5), out)


@pytest.mark.parametrize(("protocol", "task"), [("p_qam", 1), ("p_tr", 3)])
def test_a_cell_of_a_humanoid_maze_runs_on_an_imported_file(
    protocol, task, imported, tmp_path
):
    cells = cells_of(protocol, task, tmp_path)
    (cell,) = check(cells, imported)
    run_cell(cell.config, RunSettings(tmp_path, imported, "cpu", 2))
    rows = CellFolder(tmp_path / cell.config.folder).evaluations()
    assert [(row["step"], row["phase"]) for row in rows] == [
        (0, "behaviour"),
        (5, "offline"),
        (10, "online"),
    ]
    assert all(row["episodes"] == 2 and row["length"] == 5 for row in rows)


def test_missing_files_of_a_humanoid_maze_are_to_be_imported(imported, tmp_path):
    with pytest.raises(ConfigError, match=r"qam data import FILES --output .*navigate"):
        check(cells_of("p_qam", 1, tmp_path), tmp_path / "none")
