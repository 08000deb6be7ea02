# SPDX-License-Identifier: Apache-2.0
"""The demo with another method: shared numbers are the demo's, its own come from `small`."""

import dataclasses

import pytest

from qam_ros.contract.errors import ConfigError
from qam_ros.runtime.bringup import bringup_folder
from qam_train.agents.registry import METHODS
from qam_train.config import from_mapping, load_config, to_mapping
from qam_train.loops.demo_config import DemoConfig

SETTINGS = bringup_folder().parent / "demo.yaml"


@pytest.mark.parametrize("method", METHODS)
def test_the_demo_of_a_method_keeps_sizes_and_takes_what_only_the_method_has(method):
    demo = load_config(DemoConfig, SETTINGS)
    changed = demo.with_method(method)
    agent = changed.offline.agent
    assert type(agent) is METHODS[method].config
    for name in ("chunk", "discount", "batch_size", "actor", "critic", "critics"):
        assert getattr(agent, name) == getattr(demo.offline.agent, name)
    # What was set survives the file that a resumed demo reads.
    assert from_mapping(DemoConfig, to_mapping(changed), "demo") == changed


def test_a_method_without_a_behaviour_flow_gets_a_base_of_its_own():
    demo = load_config(DemoConfig, SETTINGS)
    trainings = demo.with_method("rebrac").trainings()
    assert list(trainings) == ["base", "offline"]
    assert trainings["base"].method == "flow_bc"
    assert trainings["base"].offline == demo.offline.behaviour
    assert trainings["offline"].behaviour.updates == 0
    assert list(demo.with_method("fql").trainings()) == ["offline"]


def test_numbers_that_only_some_methods_have_are_those_of_the_small_protocol():
    demo = load_config(DemoConfig, SETTINGS)
    assert demo.with_method("trqam").offline.agent.dual.budget == 0.5
    assert demo.with_method("ifql").offline.agent.best_of == 32
    assert demo.with_method("fql").offline.agent.clip_norm == float("inf")
    assert dataclasses.replace(demo.with_method("qam")) == demo


def test_an_unknown_method_is_named_with_the_nearest():
    demo = load_config(DemoConfig, SETTINGS)
    with pytest.raises(ConfigError, match="trqam"):
        demo.with_method("trqan")
