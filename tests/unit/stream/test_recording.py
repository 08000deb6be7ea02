# SPDX-License-Identifier: Apache-2.0
"""Bags: rosbag2's layout, bit for bit, readable after a kill at any byte."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from rosbags.highlevel import AnyReader
from rosbags.typesys import get_types_from_msg

from qam_ros.contract.errors import DatasetError
from qam_ros.contract.interface import load_interface
from qam_ros.runtime.cdr import TRANSITION_DEFINITION, TRANSITION_TYPE, TransitionCodec
from qam_ros.runtime.recording import BagWriter, free_folder, import_bag, recover

MESSAGES = Path(__file__).resolve().parents[3] / "qam_msgs" / "msg"


@pytest.fixture
def rows(robot):
    for _ in range(3):
        robot.episode(20, masked={4})
    return robot.rows()


@pytest.fixture
def bag(tmp_path, interface, rows):
    """A finished bag, written in hands of seven rows."""
    writer = BagWriter(tmp_path / "bag", interface, "base")
    for part in np.array_split(rows, 9):
        writer.write(part)
    writer.close()
    return writer.folder


def test_rows_come_back_bit_for_bit(bag, interface, rows):
    assert import_bag(bag, interface).tobytes() == rows.tobytes()
    assert import_bag(bag).tobytes() == rows.tobytes()


@pytest.mark.parametrize("name", ["mobile_base", "ur5e_2f85"])
def test_every_field_and_extreme_value_survives(tmp_path, name):
    interface = load_interface(name)
    codec = TransitionCodec(interface, name)
    rows = np.zeros(50, codec.dtype)
    generator = np.random.default_rng(0)
    for field in codec.dtype.names:
        kind, shape = rows[field].dtype, rows[field].shape
        if kind.kind == "f":
            rows[field] = generator.uniform(-1, 1, shape)
        elif field in ("terminated", "truncated", "masked", "has_next"):
            rows[field] = generator.integers(0, 2, shape)
        elif not field.endswith("stamp_ns"):
            rows[field] = generator.integers(0, np.iinfo(kind).max, shape, dtype=kind)
    rows["observation_stamp_ns"] = generator.integers(0, 2**60, 50)
    rows["action_stamp_ns"] = generator.integers(0, 2**60, 50)
    rows["observation"][0, 0] = np.nan
    rows["next_observation"][rows["has_next"] == 0] = 0
    found = np.zeros(50, codec.dtype)
    for index, row in enumerate(rows):
        codec.read(codec.write(row), found, index)
    assert found.tobytes() == rows.tobytes()


def test_layout_is_rosbag2s_own(bag, rows):
    information = yaml.safe_load((bag / "metadata.yaml").read_text())[
        "rosbag2_bagfile_information"
    ]
    assert information["storage_identifier"] == "mcap"
    assert information["relative_file_paths"] == ["bag_0.mcap"]
    assert information["message_count"] == rows.size
    stamps = rows["observation_stamp_ns"]
    assert information["duration"]["nanoseconds"] == stamps.max() - stamps.min()
    with AnyReader([bag]) as reader:
        assert [(c.topic, c.msgtype) for c in reader.connections] == [
            ("transition", TRANSITION_TYPE)
        ]
        messages = [
            reader.deserialize(data, connection.msgtype)
            for connection, _, data in reader.messages()
        ]
    assert [message.seq for message in messages] == rows["seq"].tolist()
    assert messages[0].robot == "base"


def test_definition_is_that_of_the_message_package():
    text = (MESSAGES / "Transition.msg").read_text()
    assert get_types_from_msg(text, TRANSITION_TYPE) == get_types_from_msg(
        TRANSITION_DEFINITION, TRANSITION_TYPE
    )


def test_long_recording_is_split_into_files(tmp_path, interface, rows):
    writer = BagWriter(tmp_path / "bag", interface, "base", file_bytes=4000)
    for part in np.array_split(rows, 20):
        writer.write(part)
    writer.close()
    assert len(list(writer.folder.glob("*.mcap"))) > 2
    assert import_bag(writer.folder, interface).tobytes() == rows.tobytes()
    with AnyReader([writer.folder]) as reader:
        assert reader.message_count == rows.size


def test_recording_cut_at_any_byte_gives_a_prefix_of_whole_calls(
    tmp_path, interface, rows
):
    writer = BagWriter(tmp_path / "bag", interface, "base")
    path = writer.folder / "bag_0.mcap"
    sizes = [(path.stat().st_size, 0)]
    for part in np.array_split(rows, 9):
        writer.write(part)
        sizes.append((path.stat().st_size, sizes[-1][1] + part.size))
    data = path.read_bytes()
    for cut in [*range(0, len(data), 397), len(data) - 1, len(data)]:
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / f"{cut}_0.mcap").write_bytes(data[:cut])
        found = recover(folder).messages
        assert found >= max((count for size, count in sizes if size <= cut), default=0)
        assert found in [count for _, count in sizes]
        if found:
            assert import_bag(folder, interface).tobytes() == rows[:found].tobytes()
            with AnyReader([folder]) as reader:
                assert reader.message_count == found
    writer.close()


def test_unfinished_bag_says_how_to_recover_it(tmp_path, interface, rows):
    writer = BagWriter(tmp_path / "bag", interface, "base")
    writer.write(rows)
    with pytest.raises(DatasetError, match="qam data recover"):
        import_bag(writer.folder, interface)
    recovered = recover(writer.folder)
    assert recovered.messages == rows.size
    assert [path.name for path in recovered.repaired] == ["bag_0.mcap"]
    assert (writer.folder / "bag_0.mcap.damaged").is_file()
    assert import_bag(writer.folder, interface).tobytes() == rows.tobytes()
    writer.close()


def test_sound_bag_is_left_as_it_is(bag):
    before = {path: path.read_bytes() for path in bag.iterdir()}
    assert recover(bag).repaired == ()
    assert {path: path.read_bytes() for path in bag.iterdir()} == before


def test_bag_that_lost_only_its_metadata_gets_it_again(bag, interface, rows):
    (bag / "metadata.yaml").unlink()
    assert recover(bag).repaired == ()
    assert import_bag(bag, interface).tobytes() == rows.tobytes()


def test_flipped_byte_is_found_by_its_checksum(bag, interface):
    path = bag / "bag_0.mcap"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DatasetError, match="damaged or cut short"):
        import_bag(bag, interface)


def test_rows_recorded_twice_come_once_and_sorted(tmp_path, interface, rows):
    writer = BagWriter(tmp_path / "bag", interface, "base")
    writer.write(rows[30:])
    writer.write(rows[:40])
    writer.close()
    assert import_bag(writer.folder, interface).tobytes() == rows.tobytes()


def test_bag_of_another_robot_is_explained(bag):
    with pytest.raises(DatasetError, match="recorded with another robot interface"):
        import_bag(bag, load_interface("ur5e_2f85"))


def test_folder_without_a_bag_is_named(tmp_path, interface):
    with pytest.raises(DatasetError, match="no transitions in this folder"):
        import_bag(tmp_path, interface)
    with pytest.raises(DatasetError, match=r"no \.mcap file"):
        recover(tmp_path)


def test_existing_bag_is_never_overwritten(bag, interface):
    with pytest.raises(FileExistsError):
        BagWriter(bag, interface, "base")
    assert free_folder(bag).name == "bag_1"
    free_folder(bag).mkdir()
    assert free_folder(bag).name == "bag_2"


def test_message_of_another_robot_is_refused(interface, rows):
    data = TransitionCodec(interface, "base").write(rows[0])
    other = TransitionCodec(interface, "arm")
    with pytest.raises(DatasetError, match="of robot 'base', expected 'arm'"):
        other.read(data, np.zeros(1, other.dtype), 0)


def test_message_of_other_sizes_is_refused(rows, interface):
    data = TransitionCodec(interface, "base").write(rows[0])
    arm = TransitionCodec(load_interface("ur5e_2f85"), "base")
    with pytest.raises(
        DatasetError, match="observation has 2 values, robot 'ur5e_2f85' has 28"
    ):
        arm.read(data, np.zeros(1, arm.dtype), 0)
