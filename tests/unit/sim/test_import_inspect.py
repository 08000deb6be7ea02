# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest

from qam_ros.contract.dataset import read_dataset, read_dataset_manifest
from qam_ros.contract.errors import DatasetError
from qam_ros.contract.transition import GuardMode, transition_dtype
from qam_ros.runtime.recording import BagWriter
from sim.cli import data
from sim.generate import Target, generate
from sim.import_npz import export_npz, import_npz, world_of
from sim.inspect import physical_observation, summarise
from sim.recipes import make_recipe
from sim.render import trace_of


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generated") / "cube"
    recipe = make_recipe(goal_probability=1.0, max_steps=120)
    generate(folder, recipe, Target(episodes=3), seed=1)
    return folder


@pytest.fixture(scope="module")
def npz(generated):
    path = generated.with_name("cube-single-play-v0.npz")
    export_npz(read_dataset(generated), path)
    return path


def test_export_and_import_give_the_same_dataset(generated, npz, tmp_path):
    import_npz([npz], tmp_path / "back")
    first, second = read_dataset(generated), read_dataset(tmp_path / "back")
    for name in (
        *("observations", "actions", "rewards", "masks", "terminals", "valid"),
        "end_observations",
    ):
        np.testing.assert_array_equal(
            getattr(first, name), getattr(second, name), err_msg=name
        )
    for name in ("qpos", "qvel", "episode"):
        np.testing.assert_array_equal(first.extras[name], second.extras[name])


def test_ogbenchs_own_loader_reads_an_exported_file(generated, npz):
    from ogbench.utils import load_dataset

    dataset = read_dataset(generated)
    rows = load_dataset(str(npz), add_info=True)
    np.testing.assert_array_equal(rows["observations"], dataset.observations)
    np.testing.assert_array_equal(rows["actions"], dataset.actions)
    np.testing.assert_array_equal(rows["terminals"], dataset.terminals)
    ends = dataset.terminals.astype(bool)
    np.testing.assert_array_equal(
        rows["next_observations"][ends], dataset.end_observations
    )
    np.testing.assert_array_equal(
        rows["next_observations"][:-1][~ends[:-1]], dataset.observations[1:][~ends[:-1]]
    )


def test_a_folder_is_imported_in_order_of_name_without_validation_files(npz, tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    with np.load(npz) as file:
        columns = dict(file)
    cut = int(np.flatnonzero(columns["terminals"])[0]) + 1
    for name, part in (
        ("cube-single-play-v0-001", slice(cut, None)),
        ("cube-single-play-v0-000", slice(0, cut)),
        ("cube-single-play-v0-val", slice(0, cut)),
    ):
        np.savez(folder / f"{name}.npz", **{key: v[part] for key, v in columns.items()})
    import_npz([folder], tmp_path / "dataset")
    np.testing.assert_array_equal(
        read_dataset(tmp_path / "dataset").observations,
        columns["observations"][~columns["terminals"]],
    )
    meta = read_dataset_manifest(tmp_path / "dataset").meta
    assert meta["imported"] == [
        "cube-single-play-v0-000.npz",
        "cube-single-play-v0-001.npz",
    ]


def test_the_task_decides_the_labels(npz, tmp_path):
    import_npz([npz], tmp_path / "one", task=1)
    import_npz([npz], tmp_path / "two", task=2)
    assert (read_dataset(tmp_path / "one").masks == 0).any()
    assert (read_dataset(tmp_path / "two").masks == 1).all()


def broken(columns, name, value):
    return {**columns, name: value}


def test_files_of_another_layout_are_refused_in_words(npz, tmp_path):
    with np.load(npz) as file:
        columns = dict(file)
    cases = {
        "'actions' is missing": {k: v for k, v in columns.items() if k != "actions"},
        "'observations' has shape": broken(
            columns, "observations", columns["observations"][:, :5]
        ),
        "'qpos' is missing": {k: v for k, v in columns.items() if k != "qpos"},
        "'terminals' must be 1 on the last row": broken(
            columns, "terminals", np.zeros_like(columns["terminals"])
        ),
    }
    for message, arrays in cases.items():
        path = tmp_path / "cube-single-x-v0.npz"
        np.savez(path, **arrays)
        with pytest.raises(DatasetError, match=message):
            import_npz([path], tmp_path / "dataset")
    path.write_bytes(npz.read_bytes()[:-100])
    with pytest.raises(DatasetError, match=r"cube-single-x-v0\.npz"):
        import_npz([path], tmp_path / "dataset")
    with pytest.raises(DatasetError, match="no such file"):
        import_npz([tmp_path / "absent.npz"], tmp_path / "dataset", world="cube-single")
    with pytest.raises(DatasetError, match="give --world"):
        world_of(tmp_path / "unknown.npz")
    assert not (tmp_path / "dataset").exists()


def test_the_world_is_read_from_the_longest_matching_name(tmp_path):
    assert world_of(tmp_path / "cube-single-play-v0.npz") == "cube-single"
    name = "pointmaze-medium-navigate-v0.npz"
    assert world_of(tmp_path / name) == "pointmaze-medium"


def test_summary_counts_what_is_there(generated, ur5e):
    dataset = read_dataset(generated)
    summary = summarise(dataset, ur5e)
    assert (summary.rows, summary.segments) == (len(dataset), 3)
    assert summary.successes == sum(
        bool((part == 0).any())
        for part in np.split(dataset.masks, np.flatnonzero(dataset.terminals) + 1)[:-1]
    )
    assert summary.length["max"] * 3 >= len(dataset)
    assert list(summary.actions) == [
        "effector_translation.x",
        "effector_translation.y",
        "effector_translation.z",
        "effector_rotation",
        "gripper",
    ]
    for counts in summary.action_histogram.values():
        assert sum(counts) == len(dataset)


def test_positions_are_shown_in_metres(generated, ur5e):
    dataset = read_dataset(generated)
    block = next(b for b in ur5e.observation if b.name == "object_position")
    positions = physical_observation(block, dataset.observations, ur5e)
    np.testing.assert_allclose(positions, dataset.extras["qpos"][:, 14:17], atol=1e-6)


def test_an_episode_to_render_is_cut_from_the_dataset(generated):
    dataset, manifest = read_dataset(generated), read_dataset_manifest(generated)
    ends = np.flatnonzero(dataset.terminals) + 1
    trace = trace_of(dataset, manifest, 1)
    np.testing.assert_array_equal(trace.qpos, dataset.extras["qpos"][ends[0] : ends[1]])
    assert (trace.world, trace.task) == ("cube-single", 1)
    with pytest.raises(DatasetError, match="there are 3"):
        trace_of(dataset, manifest, 3)


def recorded_rows(interface):
    """Two episodes of five rows, the second one terminated."""
    rows = np.zeros(10, transition_dtype(interface))
    rng = np.random.default_rng(0)
    rows["session"] = np.arange(16, dtype=np.uint8)
    rows["seq"] = np.arange(10)
    rows["episode"] = np.repeat([3, 4], 5)
    rows["step"] = np.tile(np.arange(5), 2)
    rows["observation_stamp_ns"] = 10**9 + np.arange(10) * 10**8
    rows["action_stamp_ns"] = rows["observation_stamp_ns"] + 10**6
    rows["guard_mode"] = GuardMode.ACTIVE
    rows["reward"] = -1.0
    rows["observation"] = rng.normal(size=(10, 2))
    rows["proposed"] = rows["executed"] = rng.uniform(-1, 1, (10, 2))
    rows["has_next"][[4, 9]] = 1
    rows["next_observation"][[4, 9]] = rng.normal(size=(2, 2))
    rows["truncated"][4] = rows["terminated"][9] = 1
    return rows


@pytest.mark.parametrize("named", [True, False])
def test_command_line_imports_and_recovers_a_bag(base, tmp_path, capsys, named):
    rows = recorded_rows(base)
    writer = BagWriter(tmp_path / "bag", base, "base")
    for part in (rows[:5], rows[5:]):
        writer.write(part)
    writer.close()
    metadata = tmp_path / "bag" / "metadata.yaml"
    metadata.unlink()
    with pytest.raises(DatasetError, match="qam data recover"):
        data(["import", str(tmp_path / "bag")])
    assert data(["recover", str(tmp_path / "bag")]) == 0
    assert "10 messages" in capsys.readouterr().out
    options = ["--robot", "mobile_base"] if named else []
    assert data(["import", str(tmp_path / "bag"), *options]) == 0
    dataset = read_dataset(tmp_path / "bag.dataset", base)
    np.testing.assert_array_equal(dataset.observations, rows["observation"])
    np.testing.assert_array_equal(dataset.actions, rows["executed"])
    np.testing.assert_array_equal(dataset.masks, [1.0] * 9 + [0.0])
    assert dataset.segments == 2


def test_a_bag_of_another_robot_is_refused(base, tmp_path):
    writer = BagWriter(tmp_path / "bag", base, "base")
    writer.write(recorded_rows(base))
    writer.close()
    with pytest.raises(DatasetError, match="another robot interface"):
        data(["import", str(tmp_path / "bag"), "--robot", "ur5e_2f85"])


def test_command_line_generates_inspects_exports_and_imports(tmp_path, capsys):
    folder = tmp_path / "maze"
    options = (
        "--recipe navigate --world pointmaze-medium --rows 0 --episodes 2 --workers 1"
    )
    settings = ["--set", "max_steps=40", "--set", "noise=0.1", "--json"]
    assert data(["generate", str(folder), *options.split(), *settings]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["rows"], made["episodes"]) == (80, 2)
    assert data(["inspect", str(folder), "--json"]) == 0
    seen = json.loads(capsys.readouterr().out)
    assert seen["rows"] == 80
    with open(seen["plot"], "rb") as file:
        assert file.read(8) == b"\x89PNG\r\n\x1a\n"
    assert data(["inspect", str(folder)]) == 0
    assert "80 rows in 2 segments" in capsys.readouterr().out
    assert data(["export", str(folder)]) == 0
    back = tmp_path / "back"
    arguments = ["--world", "pointmaze-medium", "--output", str(back)]
    assert data(["import", str(folder) + ".npz", *arguments]) == 0
    np.testing.assert_array_equal(
        read_dataset(folder).rewards, read_dataset(back).rewards
    )
