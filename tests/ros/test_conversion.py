# SPDX-License-Identifier: Apache-2.0
"""Messages to and from the forms that the runtime uses, through DDS serialisation."""

import dataclasses
import inspect

import numpy as np
import pytest

from qam_ros.contract import messages
from qam_ros.contract.errors import InterfaceError, StreamError
from qam_ros.contract.interface import load_interface

KINDS = [
    kind
    for _, kind in inspect.getmembers(messages, dataclasses.is_dataclass)
    if kind.__module__ == messages.__name__
]


def example(kind):
    """A message with a different value in every field."""
    values = {}
    for number, field in enumerate(dataclasses.fields(kind), start=3):
        sizes = {
            "session": 16,
            "policy_session": 16,
            "spool": 16,
            "sha256": 32,
            "hmac": 32,
        }
        values[field.name] = {
            "int": 1_700_000_000_123_456_789 + number
            if field.name.endswith("_ns")
            else number % 3
            if field.name in ("kind", "mode", "source")
            else number,
            "bool": bool(number % 2),
            "str": f"text {number}",
            "float": number / 8,
            "bytes": bytes([number]) * sizes.get(field.name, 1000),
            "Floats": np.arange(number, dtype=np.float32) / 3,
        }[field.type]
    return kind(**values)


def over_the_wire(message):
    from rclpy.serialization import deserialize_message, serialize_message

    return deserialize_message(serialize_message(message), type(message))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_message_survives_the_wire(kind):
    from qam_ros.nodes.convert import from_ros, to_ros

    message = example(kind)
    back = from_ros(over_the_wire(to_ros(message)), kind)
    for field in dataclasses.fields(kind):
        sent, got = getattr(message, field.name), getattr(back, field.name)
        if isinstance(sent, np.ndarray):
            assert got.dtype == np.float32
            assert got.tobytes() == sent.tobytes()
        else:
            assert got == sent


def test_another_message_is_refused():
    from qam_ros.nodes.convert import from_ros, to_ros

    other = to_ros(example(messages.StepReward))
    with pytest.raises(StreamError, match="expected a GuardReport message"):
        from_ros(other, messages.GuardReport)


@pytest.mark.parametrize(
    ("kind", "field", "value", "words"),
    [
        (messages.EpisodeEvent, "kind", 7, "kind 7.*START 0, END 1, ABORT 2"),
        (messages.GuardReport, "mode", 99, "mode 99.*SAFE_STOP 4"),
        (messages.GuardReport, "source", 9, "source 9.*HUMAN 1"),
    ],
)
def test_values_that_mean_nothing_are_refused(kind, field, value, words):
    from qam_ros.nodes.convert import from_ros, to_ros

    message = to_ros(dataclasses.replace(example(kind), **{field: value}))
    with pytest.raises(StreamError, match=words):
        from_ros(message, kind)


def raw_size(interface, topic, path):
    """Components of a field, by the interface."""
    sizes = {b.source.key: b.raw_size for b in interface.observation}
    sizes |= {b.target.key: b.target_size for b in interface.action}
    return sizes[topic, path]


@pytest.mark.parametrize(
    ("robot", "overlay"),
    [
        ("ur5e_2f85", None),
        ("ur5e_cube_quadruple", None),
        ("ur5e_scene", None),
        ("ur5e_puzzle_4x4", None),
        ("mobile_base", None),
        ("mobile_base", "twist"),
    ],
)
def test_raw_fields_of_every_topic_survive_the_wire(robot, overlay):
    from qam_ros.nodes.sensors import command_codecs, sensor_codecs

    interface = load_interface(robot, overlay)
    generator = np.random.default_rng(0)
    for codecs in (sensor_codecs(interface), command_codecs(interface)):
        for codec in codecs.values():
            fields = {
                path: generator.normal(size=raw_size(interface, codec.topic, path))
                for path in codec.fields
            }
            stamp_ns, back = codec.decode(over_the_wire(codec.encode(12_345, fields)))
            assert stamp_ns == (12_345 if codec.stamped else None)
            for path, values in fields.items():
                np.testing.assert_array_equal(back[path], values)


def test_joints_are_found_by_name_in_any_order():
    from qam_ros.nodes.sensors import sensor_codecs

    codec = sensor_codecs(load_interface("ur5e_2f85"))["joint_states"]
    message = codec.encode(1, {"position": np.arange(6.0), "velocity": np.arange(6.0)})
    message.name = ["other", *message.name[::-1]]
    message.position = [9.0, *message.position[::-1]]
    message.velocity = [9.0, *message.velocity[::-1]]
    _, fields = codec.decode(message)
    np.testing.assert_array_equal(fields["position"], np.arange(6.0))
    message.velocity = message.velocity[1:]
    with pytest.raises(InterfaceError, match="6 values for 7 joints"):
        codec.decode(message)
    message.name = ["other"]
    with pytest.raises(InterfaceError, match="shoulder_pan_joint"):
        codec.decode(message)


def test_messages_in_another_frame_are_refused():
    from qam_ros.nodes.sensors import command_codecs, sensor_codecs

    interface = load_interface("ur5e_2f85")
    codec = sensor_codecs(interface)["effector_pose"]
    pose = {
        "pose.position": [0.4, 0.0, 0.2],
        "pose.orientation": [1.0, 0.0, 0.0, 0.0],
    }
    message = codec.encode(1, pose)
    assert message.header.frame_id == "world"
    codec.decode(message)
    message.header.frame_id = ""  # many drivers leave it empty
    codec.decode(message)
    message.header.frame_id = "camera"
    with pytest.raises(InterfaceError, match=r"'effector_pose'.*'camera'.*'world'"):
        codec.decode(message)
    # Joint values have no frame in space: their drivers may write there what they like.
    joints = sensor_codecs(interface)["joint_states"]
    message = joints.encode(1, {"position": np.zeros(6), "velocity": np.zeros(6)})
    assert message.header.frame_id == ""
    message.header.frame_id = "base"
    joints.decode(message)
    assert command_codecs(interface)["target_pose"].encode(1, pose).header.frame_id == (
        "world"
    )


def test_blocks_of_one_topic_share_a_frame():
    from qam_ros.nodes.sensors import sensor_codecs

    interface = load_interface("ur5e_2f85")
    blocks = tuple(
        dataclasses.replace(block, frame="base")
        if block.name == "effector_yaw"
        else block
        for block in interface.observation
    )
    with pytest.raises(InterfaceError, match=r"'effector_pose'.*'base', 'world'"):
        sensor_codecs(dataclasses.replace(interface, observation=blocks))


def test_the_velocity_of_an_odometry_is_in_its_child_frame():
    from qam_ros.contract.interface import Source
    from qam_ros.nodes.sensors import TopicCodec

    kind = "nav_msgs/msg/Odometry"
    codec = TopicCodec(
        [
            (Source("odom", kind, "pose.pose.position"), "odom"),
            (Source("odom", kind, "twist.twist.linear"), "base_link"),
        ]
    )
    zeros = np.zeros(3)
    message = codec.encode(1, dict.fromkeys(codec.fields, zeros))
    assert (message.header.frame_id, message.child_frame_id) == ("odom", "base_link")
    codec.decode(message)
    message.child_frame_id = "odom"
    with pytest.raises(InterfaceError, match=r"child_frame_id 'odom'.*'base_link'"):
        codec.decode(message)


def test_sources_that_contradict_each_other_are_refused():
    from qam_ros.contract.interface import Source
    from qam_ros.nodes.sensors import TopicCodec

    joint = "sensor_msgs/msg/JointState"
    with pytest.raises(InterfaceError, match="different joints"):
        TopicCodec(
            [
                (Source("a", joint, "position", ("x",)), "joint"),
                (Source("a", joint, "effort", ("y",)), "joint"),
            ]
        )
    pose = Source("a", "geometry_msgs/msg/PoseStamped", "pose.position")
    with pytest.raises(InterfaceError, match="two message types"):
        TopicCodec([(Source("a", joint, "position", ("x",)), "joint"), (pose, "world")])
