# SPDX-License-Identifier: Apache-2.0
"""The code of docs/adding_a_method.md is a method: found, configured, trained, played and exported."""

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml

from qam_ros.contract.artifact import read_artifact
from qam_ros.contract.dataset import read_dataset
from qam_ros.contract.errors import ConfigError
from qam_ros.contract.interface import find_robot, load_interface
from qam_train import agents, config, export
from qam_train.agents import registry
from qam_train.checkpoint import checkpoints
from qam_train.restore import restore_trained
from qam_train.suite.cell import run_cell
from qam_train.suite.folder import CellFolder
from qam_train.suite.protocol import load_protocol, merge, protocol_folder

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "adding_a_method.md").read_text()
NAME = "greedy_flow"
MODULES = sorted(path.stem for path in (ROOT / "qam_train" / "agents").glob("*.py"))


def block(language):
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return found


@pytest.fixture
def written(tmp_path, monkeypatch):
    """The page's file as a module of qam_train.agents, and the method under its name."""
    (tmp_path / f"{NAME}.py").write_text(block("python"))
    monkeypatch.setattr(agents, "__path__", [*agents.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    (found,) = [agent for agent in registry._agents() if agent.algorithm == NAME]
    method = registry.Method(found, found.settings)
    monkeypatch.setitem(registry.METHODS, NAME, method)
    yield method
    sys.modules.pop(f"qam_train.agents.{NAME}")
    vars(agents).pop(NAME, None)


def test_the_page_s_entry_is_read_with_its_numbers_for_a_domain(written, tmp_path):
    small = yaml.safe_load((protocol_folder() / "small.yaml").read_text())
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(merge(small, yaml.safe_load(block("yaml")))))
    cell = load_protocol(path).cell(NAME, "cube-single", 1, 0)
    assert type(cell.agent) is written.config
    assert cell.agent.kept == 0.2
    del small["methods"]
    path.write_text(
        yaml.safe_dump(small | yaml.safe_load(block("yaml").replace("kept", "kep")))
    )
    with pytest.raises(ConfigError, match="did you mean 'kept'"):
        load_protocol(path)


def test_the_page_s_method_is_trained_played_and_exported(
    written, tiny_cell, tiny_settings, tmp_path
):
    cell = tiny_cell(NAME, {"kept": 0.5})
    run_cell(cell, tiny_settings)
    folder = CellFolder(tiny_settings.out / cell.folder)
    assert len(folder.evaluations()) == 4
    agent = restore_trained(checkpoints(folder.checkpoints)[-1])
    assert type(agent) is written.agent
    interface = load_interface(find_robot("mobile_base"))
    rows = read_dataset(tiny_settings.data / "one", interface)
    provenance = export.Provenance("run", "ab" * 32)
    path = tmp_path / "policy"
    exported = export.export_artifact(agent, interface, rows, path, provenance)
    assert exported.largest_error <= 1e-5
    assert read_artifact(path).manifest.head


def test_the_page_s_loss_clones_the_rows_of_the_highest_value_alone(written):
    sizes = config.NetworkConfig((8,))
    numbers = written.config(
        kept=0.25, chunk=2, flow_steps=2, actor=sizes, critic=sizes
    )
    agent = written.agent.init(numbers, 3, 2, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    rows = {
        "observations": torch.randn((8, 3), generator=generator),
        "actions": torch.rand((8, 2, 2), generator=generator),
        "rewards": torch.zeros(8),
        "masks": torch.ones(8),
        "valid": torch.ones(8),
        "next_observations": torch.randn((8, 3), generator=generator),
    }
    batch = sys.modules[written.agent.__module__].ChunkBatch(**rows)
    noise = agent.draw_noise(8, generator)
    values = agent.values(agent.constant, "critic", *agent.inputs(batch)).mean(0)
    before = agent.loss(batch, noise)[1]["actor/weighted_flow_loss"]
    noise.flow_start[values.argsort()[:6]] += 1.0  # rows that are not kept
    assert agent.loss(batch, noise)[1]["actor/weighted_flow_loss"] == before
    noise.flow_start[values.argsort()[6:]] += 1.0
    assert agent.loss(batch, noise)[1]["actor/weighted_flow_loss"] != before


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(\w+Agent)`", PAGE))))
def test_every_agent_class_that_the_page_names_exists(name):
    places = [importlib.import_module(f"qam_train.agents.{m}") for m in MODULES]
    assert any(hasattr(place, name) for place in places)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(\w+\.py)`", PAGE))))
def test_every_method_file_that_the_page_names_exists(name):
    assert (ROOT / "qam_train" / "agents" / name).is_file()
