# SPDX-License-Identifier: Apache-2.0
"""Both robots through one plant core and one guard core, without ROS."""

import numpy as np
import pytest

from qam_ros.contract.interface import assemble, load_interface
from qam_ros.contract.messages import ActionProposal
from qam_ros.contract.transition import GuardMode
from qam_ros.runtime.guard_config import guard_config
from qam_ros.runtime.guard_core import GuardCore
from sim.plant import Plant
from sim.seeding import SeedStream, episode_seed
from sim.wiring import Wiring
from sim.worlds import make_world

STEPS = 40


def proposal_of(observation, ages, action, stamp_ns, tick, episode):
    return ActionProposal(
        stamp_ns=stamp_ns,
        policy_session=bytes([1] * 16),
        tick=tick,
        episode=episode,
        step=tick,
        observation=observation,
        ages_s=ages,
        action=action,
        policy_version=1,
        chunk_id=tick,
        chunk_index=0,
    )


@pytest.mark.parametrize(
    ("world_name", "robot", "overlay"),
    [
        ("cube-single", "ur5e_2f85", None),
        ("scene", "ur5e_scene", None),
        ("pointmaze-medium", "mobile_base", None),
        ("pointmaze-medium", "mobile_base", "mobile_base.twist"),
        ("antmaze-medium", "ant", None),
        ("humanoidmaze-medium", "humanoid", None),
    ],
)
def test_what_the_guard_executes_is_what_the_environment_would_do(
    world_name, robot, overlay
):
    world, twin = make_world(world_name), make_world(world_name)
    interface = load_interface(robot, overlay)
    wiring = Wiring(load_interface(robot), interface)
    guard = GuardCore(guard_config(interface))
    plant = Plant(world, seed=5, max_episode_steps=STEPS)
    stamp_ns = 10**9
    start = plant.start(stamp_ns)
    twin.reset(episode_seed(5, start.episode, SeedStream.PLANT))
    guard.on_event(start)
    rng = np.random.default_rng(1)
    for tick in range(STEPS):
        sensors = wiring.outgoing(plant.sensors())
        raw = {(t, f): v for t, fields in sensors.items() for f, v in fields.items()}
        observation = assemble(interface, raw)
        np.testing.assert_allclose(observation, twin.observation(), atol=1e-5)
        action = rng.uniform(-1, 1, interface.action_size).astype(np.float32)
        guard.on_measured(stamp_ns, sensors)
        ages = np.zeros(len(interface.observation), np.float32)
        proposal = proposal_of(observation, ages, action, stamp_ns, tick, start.episode)
        output = guard.tick(stamp_ns, proposal)
        assert output.report.mode == GuardMode.ACTIVE
        assert output.report.limit_bits == 0, "no limit binds inside the box"
        np.testing.assert_array_equal(output.report.executed, action)
        commands = {}
        for topic, fields in output.commands.items():
            for name, values in wiring.incoming(topic, fields).items():
                commands.setdefault(name, {}).update(values)
        advance = plant.advance(stamp_ns, stamp_ns + plant.period_ns, commands)
        twin.act(action.astype(np.float64))
        result = twin.step()
        assert (advance.reward.reward, advance.reward.terminated) == (
            result.reward,
            result.terminated,
        )
        stamp_ns += plant.period_ns
    assert advance.end is not None
    assert advance.end.steps == STEPS
