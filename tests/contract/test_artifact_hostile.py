# SPDX-License-Identifier: Apache-2.0
"""Policy artifacts made to harm: each is refused with its reason, in little time and memory."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from qam_ros.contract.artifact import read_artifact
from qam_ros.contract.errors import ArtifactError

MEMBERS = ("manifest.yaml", "policy.onnx", "weights.safetensors", "golden.npz")


@pytest.fixture
def copied(data: Path, tmp_path: Path) -> Path:
    """A copy of the sample directory that may be damaged."""
    return Path(shutil.copytree(data / "artifact_v1", tmp_path / "artifact"))


def edit_manifest(directory: Path, **changes: Any) -> None:
    file = directory / "manifest.yaml"
    mapping = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump(mapping | changes, sort_keys=False))


def replace_member(directory: Path, name: str, content: bytes) -> None:
    """Change a file and make the manifest agree."""
    (directory / name).write_bytes(content)
    hashes = yaml.safe_load((directory / "manifest.yaml").read_text())["sha256"]
    edit_manifest(
        directory, sha256=hashes | {name: hashlib.sha256(content).hexdigest()}
    )


def pack(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def contents(data: Path) -> dict[str, bytes]:
    return {name: (data / "artifact_v1" / name).read_bytes() for name in MEMBERS}


def test_mistakes_that_yaml_itself_stumbles_over_are_refused(copied: Path) -> None:
    text = (copied / "manifest.yaml").read_text()
    for value in (
        *("2001-99-99", "!!int x", "!!float x", "!!bool x", "!!timestamp x"),
        *("[" * 3000, "\0", "9" * 5000, "!!python/object/apply:os.system [id]"),
    ):
        changed = text.replace("run_id: sample", f"run_id: {value}")
        assert changed != text
        (copied / "manifest.yaml").write_text(changed)
        with pytest.raises(ArtifactError, match=r"manifest.yaml: not valid YAML"):
            read_artifact(copied)


def test_long_manifest_is_refused_before_it_is_parsed(copied: Path) -> None:
    with (copied / "manifest.yaml").open("a") as file:
        file.write("#" * 600_000)
    with pytest.raises(
        ArtifactError, match=r"manifest.yaml: \d+ bytes, at most 524288"
    ):
        read_artifact(copied)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tolerance": 1e9}, r"tolerance is 1000000000.0, at most 0.1 is accepted"),
        (
            {"policy_version": 2**70},
            r"policy_version is \d+, at most 9223372036854775807",
        ),
        ({"control_period_s": 10**400}, r"control_period_s is \d+"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(
    copied: Path, changes: dict[str, Any], words: str
) -> None:
    edit_manifest(copied, **changes)
    with pytest.raises(ArtifactError, match=words):
        read_artifact(copied)


def test_a_number_beyond_every_float_in_the_interface_is_refused(copied: Path) -> None:
    interface = yaml.safe_load((copied / "manifest.yaml").read_text())["interface"]
    interface["observation"][0]["max_age_s"] = 10**400
    edit_manifest(copied, interface=interface)
    with pytest.raises(ArtifactError, match=r"max_age_s: expected a finite number"):
        read_artifact(copied)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_packing_that_unpacks_without_a_bound_is_refused(
    data: Path, tmp_path: Path, method: int
) -> None:
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in contents(data).items():
            archive.writestr(name, content)
    with pytest.raises(ArtifactError, match=rf"packed by method {method}; only stored"):
        read_artifact(file)


def lying_zip(path: Path, members: dict[str, bytes], name: str, size: int) -> Path:
    """A deflated zip whose member announces another size than it unpacks to."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
        entry = archive.getinfo(name)
        entry.file_size = size  # goes into the list at the end
    return path


def test_member_that_unpacks_to_more_than_it_announces_takes_no_memory(
    data: Path, tmp_path: Path
) -> None:
    members = {**contents(data), "policy.onnx": bytes(40 * 1024 * 1024)}
    file = lying_zip(tmp_path / "a.zip", members, "policy.onnx", 1000)
    del members
    tracemalloc.start()
    try:
        with pytest.raises(ArtifactError, match=r"not a readable zip file .*CRC"):
            read_artifact(file)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


def test_member_that_is_shorter_than_it_announces_is_refused(
    data: Path, tmp_path: Path
) -> None:
    file = lying_zip(tmp_path / "a.zip", contents(data), "policy.onnx", 10**6)
    with pytest.raises(ArtifactError, match=r"has \d+ bytes, announced are 1000000"):
        read_artifact(file)


def test_long_list_of_members_is_refused_before_it_is_read(tmp_path: Path) -> None:
    file = pack(tmp_path / "a.zip", {f"{k:05}": b"" for k in range(2000)})
    with pytest.raises(
        ArtifactError, match=r"list of members takes \d+ bytes, at most"
    ):
        read_artifact(file)


def test_list_of_members_that_hides_behind_wide_numbers_is_refused(
    data: Path, tmp_path: Path
) -> None:
    content = (data / "artifact_v1.zip").read_bytes()
    wide = b"PK\x06\x07" + bytes(16)
    (tmp_path / "a.zip").write_bytes(content[:-22] + wide + content[-22:])
    with pytest.raises(ArtifactError, match=r"list of members takes too many bytes"):
        read_artifact(tmp_path / "a.zip")


@pytest.mark.parametrize(
    "mode", [stat.S_IFIFO, stat.S_IFDIR, stat.S_IFCHR], ids=["pipe", "folder", "device"]
)
def test_member_that_is_no_plain_file_is_refused(
    data: Path, tmp_path: Path, mode: int
) -> None:
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in contents(data).items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (mode | 0o777) << 16
            archive.writestr(info, content)
    with pytest.raises(ArtifactError, match=r"'manifest.yaml' is a link, a folder or"):
        read_artifact(file)


def test_name_that_ends_early_or_is_no_text_is_refused(
    data: Path, tmp_path: Path
) -> None:
    content = (data / "artifact_v1.zip").read_bytes()
    hidden = content.replace(b"golden.npz", b"golde\0.npz")
    (tmp_path / "a.zip").write_bytes(hidden)
    with pytest.raises(ArtifactError, match=r"hides its name"):
        read_artifact(tmp_path / "a.zip")
    at = content.index(b"PK\x01\x02")
    flags = bytearray(content)
    flags[at + 9] |= 8  # the name is UTF-8
    flags[at + 46] = 0xFF
    (tmp_path / "a.zip").write_bytes(bytes(flags))
    with pytest.raises(ArtifactError, match=r"not a readable zip file"):
        read_artifact(tmp_path / "a.zip")


def test_pipe_in_place_of_a_file_does_not_block(copied: Path) -> None:
    (copied / "policy.onnx").unlink()
    os.mkfifo(copied / "policy.onnx")
    with pytest.raises(ArtifactError, match=r"policy.onnx: no such file"):
        read_artifact(copied)


def npy(header: bytes, content: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    length = len(header).to_bytes(2 if version == b"\x01\x00" else 4, "little")
    return b"\x93NUMPY" + version + length + header + content


@pytest.mark.parametrize(
    "member",
    [
        npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }\n", bytes(4)),
        npy(
            b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -1), }\n", bytes(4)
        ),
        npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (10L,), }\n", bytes(4)),
        npy(b"{'descr': '|V0', 'fortran_order': False, 'shape': (9**9,), }\n"),
        npy(b"(" * 9000),
        npy(b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n", bytes(8)),
        npy(b"'", version=b"\x02\x00"),
        npy(b"{}", version=b"\x03\x00"),
        b"no array",
        b"",
    ],
)
def test_probes_with_a_header_that_is_wrong_are_refused(
    copied: Path, member: bytes
) -> None:
    packed = pack(copied.parent / "lie.npz", {"observations.npy": member})
    replace_member(copied, "golden.npz", packed.read_bytes())
    with pytest.raises(ArtifactError, match=r"golden.npz: not a readable npz file"):
        read_artifact(copied)


def test_bomb_inside_the_probes_is_refused(copied: Path) -> None:
    file = copied.parent / "bomb.npz"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("observations.npy", bytes(10**6))
    replace_member(copied, "golden.npz", file.read_bytes())
    with pytest.raises(ArtifactError, match=r"golden.npz: member .* packed by method"):
        read_artifact(copied)


def test_list_of_tensors_longer_than_any_policy_needs_is_refused(copied: Path) -> None:
    content = (2**21).to_bytes(8, "little") + b" " * 2**21
    replace_member(copied, "weights.safetensors", content)
    with pytest.raises(ArtifactError, match=r"list of tensors takes 2097152 bytes"):
        read_artifact(copied)
