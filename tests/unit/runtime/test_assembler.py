# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from qam_ros.contract.interface import assemble, load_interface
from qam_ros.runtime.assembler import Assembler


@pytest.fixture
def assembler(interface):
    return Assembler(interface)


@pytest.mark.parametrize("robot", ["ur5e_2f85", "mobile_base"])
def test_observation_equals_the_contract_bit_for_bit(robot):
    interface = load_interface(robot)
    assembler = Assembler(interface)
    generator = np.random.default_rng(0)
    for stamp_ns in range(20):
        raw = {
            block.source.key: generator.normal(size=block.raw_size)
            for block in interface.observation
        }
        messages: dict = {}
        for (topic, field), values in raw.items():
            messages.setdefault(topic, {})[field] = values
        assembler.update(stamp_ns, messages)
        expected = assemble(interface, raw)
        assert assembler.observe().values.tobytes() == expected.tobytes()


def test_ages_are_counted_from_the_newest_block(assembler, helpers):
    assembler.update(10**9, helpers.pose())
    assembler.update(10**9 + 30_000_000, helpers.joints())
    observation = assembler.observe()
    assert observation.stamp_ns == 10**9 + 30_000_000
    np.testing.assert_allclose(observation.ages_s, [0.03, 0.03, 0.0], atol=1e-7)
    assert assembler.common_stamp_ns() is None


def test_an_observation_needs_every_topic_once(assembler, helpers):
    assembler.update(1, helpers.pose())
    assert not assembler.complete
    assembler.update(1, helpers.joints())
    assert assembler.complete


@pytest.mark.parametrize(
    "fields", [{}, {"position": np.zeros(3)}, {"velocity": np.zeros(2)}]
)
def test_messages_of_another_shape_are_counted_and_ignored(assembler, helpers, fields):
    assembler.update(1, helpers.pose() | helpers.joints(0.5))
    assembler.update(2, {"joints": fields, "unknown": {}})
    assert assembler.rejected == {"joints": 1}
    assert assembler.observe().values[4] == 0.5


def test_older_messages_are_ignored_unless_the_clock_restarted(assembler, helpers):
    late_ns = 10 * 10**9
    assembler.update(late_ns, helpers.pose() | helpers.joints(0.5))
    assembler.update(late_ns - 1, helpers.joints(0.1))
    assert assembler.observe().values[4] == 0.5
    assembler.update(5, helpers.joints(0.2))
    assert assembler.observe().values[4] == np.float32(0.2)


def test_not_a_number_is_passed_on(assembler, helpers):
    pose = helpers.pose(x=np.nan)
    pose["pose"]["pose.orientation"][:] = np.inf
    assembler.update(1, pose | helpers.joints())
    values = assembler.observe().values
    assert np.isnan(values[0])
    assert np.isnan(values[2:4]).all()
    assert np.isfinite(values[4:]).all()
