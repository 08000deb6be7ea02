# SPDX-License-Identifier: Apache-2.0
"""Sensor messages read from the wire, against rclpy's own reading of them."""

import numpy as np
import pytest

from qam_ros.contract.blocks import Source
from qam_ros.contract.errors import InterfaceError
from qam_ros.contract.fields import BY_JOINT, MESSAGE_FIELDS, UNSTAMPED
from qam_ros.contract.interface import load_interface

TYPES = sorted(MESSAGE_FIELDS.keys() - UNSTAMPED)
JOINTS = ("elbow", "wrist", "a")


def make_codec(kind, frame="world"):
    """Codec that reads every field of a type."""
    pytest.importorskip("rclpy", reason="needs rclpy: run make setup")
    from qam_ros.nodes.sensors import TopicCodec

    joints = JOINTS if BY_JOINT in MESSAGE_FIELDS[kind].values() else ()
    frame = "joint" if joints else frame
    sources = [Source("t", kind, f, joints) for f in MESSAGE_FIELDS[kind]]
    return TopicCodec([(source, frame) for source in sources])


def make_message(codec, generator, *, frame="", names=JOINTS):
    sizes = {f: len(c) for f, c in codec.fields.items()}
    values = {
        f: generator.normal(size=len(JOINTS) if codec.fields[f] == BY_JOINT else n)
        for f, n in sizes.items()
    }
    message = codec.encode(int(generator.integers(2**60)), values)
    message.header.frame_id = frame
    if hasattr(message, "name"):
        message.name = list(names)
    if hasattr(message, "child_frame_id"):
        message.child_frame_id = frame
        message.pose.covariance = generator.normal(size=36)
    return message


def to_wire(message):
    from rclpy.serialization import serialize_message

    return bytes(serialize_message(message))


def same(one, two):
    assert one[0] == two[0]
    assert one[1].keys() == two[1].keys()
    for path, values in one[1].items():
        assert values.tobytes() == two[1][path].tobytes()


@pytest.mark.parametrize("frame", ["", "world", "w", "wo", "wor", "a longer frame"])
@pytest.mark.parametrize("kind", TYPES)
def test_what_is_read_from_the_wire_is_what_rclpy_reads(kind, frame):
    codec, generator = make_codec(kind, frame or "world"), np.random.default_rng(1)
    for _ in range(5):
        message = make_message(codec, generator, frame=frame)
        same(codec.decode_raw(to_wire(message)), codec.decode(message))


def test_every_observed_type_of_the_robots_has_a_reader():
    pytest.importorskip("rclpy", reason="needs rclpy: run make setup")
    from qam_ros.nodes.raw import READERS

    assert set(READERS) == set(TYPES)
    for robot in ("ur5e_2f85", "mobile_base"):
        types = {block.source.type for block in load_interface(robot).observation}
        assert types <= READERS.keys()


def test_joints_are_found_in_any_order_and_when_the_order_changes():
    codec = make_codec("sensor_msgs/msg/JointState")
    generator = np.random.default_rng(2)
    for names in (JOINTS, ("b", *reversed(JOINTS)), JOINTS, ("a", "elbow", "wrist")):
        message = make_message(codec, generator, names=names)
        for path in ("position", "velocity", "effort"):
            setattr(message, path, generator.normal(size=len(names)).tolist())
        stamp_ns, fields = codec.decode_raw(to_wire(message))
        same((stamp_ns, fields), codec.decode(message))
        where = [names.index(joint) for joint in JOINTS]
        np.testing.assert_array_equal(
            fields["velocity"], np.array(message.velocity)[where]
        )


@pytest.mark.parametrize("kind", TYPES)
def test_a_message_cut_short_anywhere_is_refused_in_words(kind):
    codec = make_codec(kind)
    data = to_wire(make_message(codec, np.random.default_rng(3), frame="world"))
    covariance = 36 * 8 if kind.endswith("Odometry") else 0
    for size in range(4, len(data) - covariance - 8):
        with pytest.raises(InterfaceError, match="cut short"):
            codec.decode_raw(data[:size])


@pytest.mark.parametrize("kind", TYPES)
def test_damaged_messages_are_read_or_refused_and_nothing_else(kind):
    codec = make_codec(kind)
    generator = np.random.default_rng(4)
    data = to_wire(make_message(codec, generator, frame="world"))
    refused = 0
    for _ in range(2000):
        damaged = bytearray(data)
        damaged[generator.integers(2, len(data))] = generator.integers(256)
        try:
            _, fields = codec.decode_raw(bytes(damaged))
        except InterfaceError:
            refused += 1
        else:
            assert all(v.dtype == np.float64 for v in fields.values())
    assert 0 < refused < 2000


def test_wrong_frames_missing_joints_and_odd_lengths_are_refused_as_by_decode():
    generator = np.random.default_rng(5)
    pose = make_codec("geometry_msgs/msg/PoseStamped")
    joints = make_codec("sensor_msgs/msg/JointState")
    short = make_message(joints, generator)
    short.effort = []
    for codec, message, words in (
        (pose, make_message(pose, generator, frame="map"), "expects 'world'"),
        (joints, make_message(joints, generator, names=("a", "b", "c")), "not among"),
        (joints, short, "'effort' has 0 values for 3 joints"),
    ):
        for read in (codec.decode, lambda m, codec=codec: codec.decode_raw(to_wire(m))):
            with pytest.raises(InterfaceError, match=words):
                read(message)


def test_big_endian_is_left_to_rclpy(monkeypatch):
    from qam_ros.nodes import sensors

    codec = make_codec("geometry_msgs/msg/PoseStamped")
    message = make_message(codec, np.random.default_rng(6))
    monkeypatch.setattr(sensors, "deserialize_message", lambda data, kind: message)
    same(codec.decode_raw(b"\x00\x00\x00\x00" + bytes(80)), codec.decode(message))


@pytest.mark.parametrize("data", [b"", bytes(4), bytes(4) + b"\xff" * 20])
def test_what_no_encoding_can_read_is_refused_too(data):
    with pytest.raises(InterfaceError, match="bytes cannot be read"):
        make_codec("sensor_msgs/msg/JointState").decode_raw(data)


def test_drivers_of_two_encodings_do_not_mix_their_joints_up():
    codec = make_codec("sensor_msgs/msg/JointState")
    generator = np.random.default_rng(7)
    message = make_message(codec, generator)
    other = make_message(codec, generator, names=JOINTS[::-1])
    expected = codec.decode(message)
    for _ in range(2):
        same(codec.decode_raw(to_wire(message)), expected)
        codec.decode(other)  # as a message in the other byte order is read


def test_a_topic_of_two_publishers_gives_the_newest_message_that_fits(graph):
    from sensor_msgs.msg import JointState

    from qam_ros.nodes.newest import NewestMessages

    codec = make_codec("sensor_msgs/msg/JointState")
    arm = make_message(codec, np.random.default_rng(8))
    gripper = JointState(name=["finger"], position=[0.1], velocity=[0.0], effort=[0.0])
    taken = []
    newest = NewestMessages(graph.node, [codec], lambda *found: taken.append(found))
    publisher = graph.publisher(JointState, codec.topic, 10, peers=1)
    for number in (1, 2, 3):
        arm.header.stamp.sec = number
        for message in (arm, gripper, gripper):
            publisher.publish(message)
    assert graph.wait(lambda: newest.take() or taken)
    graph.spin(0.2)
    newest.take()
    stamps = [stamp_ns // 10**9 for stamp_ns, _ in taken]
    assert stamps[-1] == 3
    assert newest.malformed > 0
    newest.destroy()
