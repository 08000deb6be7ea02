# SPDX-License-Identifier: Apache-2.0
import json
import re

import numpy as np
import pytest
import yaml

from qam_ros.contract.dataset import read_dataset, read_dataset_manifest
from qam_ros.contract.errors import ConfigError, DatasetError
from qam_ros.runtime.bringup import bringup_folder
from sim.cli import data
from sim.generate import Target, generate
from sim.many_files import file_path, generate_files, import_files
from sim.presets import bytes_per_row, find_preset, presets
from sim.recipes import make_recipe
from sim.worlds import WORLDS

MAZE = make_recipe("navigate", "pointmaze-medium", max_steps=30)
TWO = Target(episodes=2)


@pytest.mark.parametrize(
    ("name", "rows", "files", "settings"),
    [
        ("cube-single-demo", 30_000, 1, {"goal_probability": 0.2, "max_steps": 194}),
        ("cube-single-play", 10**6, 1, {"max_steps": 1000, "noise": 0.1}),
        ("cube-double-play", 10**6, 1, {"stack_low": 0.0, "stack_high": 0.25}),
        ("cube-triple-noisy", 3 * 10**6, 1, {"stack_low": 0.05, "stack_high": 0.35}),
        ("cube-quadruple-play", 5 * 10**6, 1, {"stack_low": 0.1, "stack_high": 0.5}),
        ("scene-noisy", 10**6, 1, {"random_action_probability": 0.1, "min_norm": 0.4}),
        ("puzzle-4x4-noisy", 10**6, 1, {"random_action_probability": 0.2}),
        ("pointmaze-large-navigate", 10**6, 1, {"max_steps": 1000, "noise": 0.5}),
        ("pointmaze-giant-navigate", 10**6, 1, {"max_steps": 2000, "noise": 0.5}),
        ("puzzle-4x4-play-100m", 10**6, 100, {"noise_smoothing": 0.5}),
        ("cube-triple-play-10m", 10**6, 10, {"stack_high": 0.35}),
    ],
)
def test_presets_have_the_published_sizes_and_settings(name, rows, files, settings):
    preset = find_preset(name)
    assert (preset.rows, preset.files) == (rows, files)
    recipe = preset.recipe().settings()
    assert {key: recipe[key] for key in settings} == settings


def test_every_preset_makes_a_recipe_for_a_known_world_and_robot():
    for name, preset in presets().items():
        kind = "demo" if preset.settings else preset.kind
        assert name.startswith(f"{preset.world}-{kind}")
        assert preset.recipe().world in WORLDS
        assert preset.disk_bytes > 0


def test_an_unknown_preset_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'cube-double-play'"):
        find_preset("cube-duoble-play")


def test_a_preset_is_labelled_for_the_task_and_takes_overrides():
    recipe = find_preset("scene-play").recipe(3, noise="0.2")
    assert (recipe.task, recipe.noise, recipe.max_steps) == (3, 0.2, 1000)
    with pytest.raises(ConfigError, match="did you mean 'noise'"):
        find_preset("scene-play").recipe(nois=0.2)


@pytest.mark.parametrize("world", ["pointmaze-medium", "puzzle-3x3"])
def test_rows_take_the_estimated_space_on_disk(world, tmp_path):
    kind = "navigate" if "maze" in world else "play"
    recipe = make_recipe(kind, world, max_steps=150)
    made = generate(tmp_path / "data", recipe, Target(episodes=4))
    size = (tmp_path / "data" / "rows.npz").stat().st_size
    headers = 6000  # names and headers of the columns, of any number of rows
    assert abs(size - made.rows * bytes_per_row(world)) < headers


def test_files_of_a_set_have_their_own_seeds_and_do_not_depend_on_their_number(
    tmp_path,
):
    generate_files(tmp_path / "three", MAZE, TWO, 3, seed=5)
    generate_files(tmp_path / "two", MAZE, TWO, 2, seed=5)
    three = [read_dataset(file_path(tmp_path / "three", k)) for k in range(3)]
    for k in range(2):
        two = read_dataset(file_path(tmp_path / "two", k))
        np.testing.assert_array_equal(two.observations, three[k].observations)
    assert not np.array_equal(three[0].observations, three[1].observations)
    assert not np.array_equal(three[1].observations, three[2].observations)
    meta = read_dataset_manifest(tmp_path / "three" / "002").meta
    assert meta["file"] == {"index": 2, "run_seed": 5}


def test_an_interrupted_set_goes_on_and_keeps_finished_files(tmp_path):
    class StopError(Exception):
        pass

    def stop(rows, episodes):
        if rows > 120:
            raise StopError

    with pytest.raises(StopError):
        generate_files(tmp_path / "set", MAZE, TWO, 3, seed=1, progress=stop)
    first = tmp_path / "set" / "000" / "rows.npz"
    before = first.stat().st_mtime_ns
    assert not (tmp_path / "set" / "001").exists()
    made = generate_files(tmp_path / "set", MAZE, TWO, 3, seed=1)
    assert first.stat().st_mtime_ns == before
    assert (made.rows, made.made_rows) == (180, 120), "a shard of the last file"
    whole = generate_files(tmp_path / "whole", MAZE, TWO, 3, seed=1)
    assert whole.rows == made.rows
    np.testing.assert_array_equal(
        read_dataset(tmp_path / "whole" / "001").observations,
        read_dataset(tmp_path / "set" / "001").observations,
    )


def test_a_finished_file_with_other_settings_is_not_taken_for_the_wanted_one(tmp_path):
    generate_files(tmp_path / "set", MAZE, TWO, 1, seed=1)
    with pytest.raises(DatasetError, match=r"000 was made with other .*seed differ"):
        generate_files(tmp_path / "set", MAZE, TWO, 2, seed=2)
    with pytest.raises(DatasetError, match="60 rows in 2 episodes, not what was asked"):
        generate_files(tmp_path / "set", MAZE, Target(rows=90), 2, seed=1)


def test_every_file_of_a_folder_can_become_a_dataset_of_its_own(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "npz"
    folder.mkdir()
    for name in ("000", "001", "000-val"):
        position = rng.uniform(0, 20, (9, 2)).astype("f4")
        np.savez_compressed(
            folder / f"pointmaze-medium-navigate-v0-{name}.npz",
            observations=position,
            actions=rng.uniform(-1, 1, (9, 2)).astype("f4"),
            terminals=np.arange(9) == 8,
            qpos=position,
            qvel=np.zeros((9, 2), "f4"),
        )
    made = import_files([folder], tmp_path / "set", task=4)
    assert [manifest.rows for manifest in made] == [8, 8]
    again = import_files([folder], tmp_path / "set", task=4)
    assert [m.sha256 for m in made] == [m.sha256 for m in again]
    with pytest.raises(DatasetError, match="task differ"):
        import_files([folder], tmp_path / "set", task=1)


def test_command_line_makes_a_preset_in_miniature(tmp_path, capsys):
    folder = tmp_path / "maze"
    name = "pointmaze-giant-navigate"
    small = ["--rows", "60", "--set", "max_steps=30", "--workers", "1", "--json"]
    assert data(["generate", str(folder), "--preset", name, *small]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["rows"], made["episodes"]) == (60, 2)
    meta = read_dataset_manifest(folder).meta
    assert (meta["preset"], meta["world"]) == (name, "pointmaze-giant")
    many = [str(tmp_path / "many"), "--preset", name, *small, "--files", "2"]
    assert data(["generate", *many]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 120
    assert (tmp_path / "many" / "001" / "rows.npz").exists()
    with pytest.raises(ConfigError, match="leave --world out"):
        data(["generate", str(folder), "--preset", name, "--world", "scene"])
    with pytest.raises(ConfigError, match="use --recipe"):
        data(["generate", str(folder), "--set", "kind=play"])


def test_command_line_lists_the_presets(capsys):
    assert data(["presets", "--json"]) == 0
    rows = {row["preset"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["cube-quadruple-play"]["rows"] == 5_000_000
    assert rows["cube-quadruple-play-100m"]["files"] == 100
    assert data(["presets"]) == 0
    assert re.search(r"puzzle-3x3-noisy +1,000,000 +1 +1,000", capsys.readouterr().out)


def test_the_demo_s_preset_is_made_as_the_demo_s_data_are():
    preset = find_preset("cube-single-demo")
    demo = yaml.safe_load((bringup_folder().parent / "demo.yaml").read_text())["data"]
    demo.pop("rows")  # the suite's cells train less; its protocol says on how much
    suite = yaml.safe_load((bringup_folder().parent / "suite/small.yaml").read_text())
    assert f"{preset.rows:,} rows" in suite["about"]
    settings = preset.recipe().settings()
    assert {name: settings[name] for name in demo} == demo
