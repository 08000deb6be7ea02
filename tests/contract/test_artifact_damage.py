# SPDX-License-Identifier: Apache-2.0
"""Damaged, foreign and malicious policy artifacts are refused with a message that helps."""

from __future__ import annotations

import hashlib
import shutil
import stat
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from qam_ros.contract import artifact as module
from qam_ros.contract.artifact import read_artifact
from qam_ros.contract.errors import ArtifactError, QamError

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


@pytest.mark.parametrize("name", MEMBERS[1:])
def test_changed_file_is_noticed_before_it_is_parsed(copied: Path, name: str) -> None:
    content = bytearray((copied / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / name).write_bytes(bytes(content))
    with pytest.raises(
        ArtifactError, match=rf"{name}: sha256 is \w+, the manifest says"
    ) as caught:
        read_artifact(copied)
    assert caught.value.details["file"] == name


@pytest.mark.parametrize("name", MEMBERS)
def test_truncated_file_is_refused(copied: Path, name: str) -> None:
    content = (copied / name).read_bytes()
    (copied / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(QamError, match=rf"{name}.*(truncated|missing)"):
        read_artifact(copied)


@pytest.mark.parametrize("share", [0.2, 0.9, 0.999])
def test_truncated_zip_is_refused(data: Path, tmp_path: Path, share: float) -> None:
    content = (data / "artifact_v1.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(content[: int(share * len(content))])
    with pytest.raises(
        ArtifactError, match=r"a.zip: not a readable zip file .*truncated or damaged"
    ):
        read_artifact(tmp_path / "a.zip")


@pytest.mark.parametrize("name", MEMBERS)
def test_missing_member_is_named(copied: Path, name: str) -> None:
    (copied / name).unlink()
    with pytest.raises(ArtifactError, match=rf"artifact: file '{name}' is missing"):
        read_artifact(copied)


def test_missing_artifact_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ArtifactError, match=r"nothing: no such artifact; check the path"
    ):
        read_artifact(tmp_path / "nothing")


def test_newer_version_is_refused(copied: Path) -> None:
    edit_manifest(copied, format_version=2)
    with pytest.raises(
        ArtifactError, match=r"artifact format 2 is newer than .* up to 1; update"
    ):
        read_artifact(copied)


def test_unknown_key_is_refused(copied: Path) -> None:
    edit_manifest(copied, flow_step=10)
    with pytest.raises(
        ArtifactError, match=r"unknown key 'flow_step'; did you mean 'flow_steps'"
    ):
        read_artifact(copied)


@pytest.mark.parametrize("key", ["semantic_hash", "deployment_hash"])
def test_interface_that_does_not_match_its_hash_is_refused(
    copied: Path, key: str
) -> None:
    edit_manifest(copied, **{key: "0" * 64})
    with pytest.raises(ArtifactError, match=rf"{key} is 0+, its interface has"):
        read_artifact(copied)


def test_mistake_inside_the_interface_is_named(copied: Path) -> None:
    mapping = yaml.safe_load((copied / "manifest.yaml").read_text())
    mapping["interface"]["observation"][0]["scale"] = [1.0]
    edit_manifest(copied, interface=mapping["interface"])
    with pytest.raises(
        ArtifactError, match=r"manifest.yaml, observation\[0\] .*scale: expected 2"
    ):
        read_artifact(copied)


@pytest.mark.parametrize(
    "name", ["../policy.onnx", "/etc/policy.onnx", "a/b", "a\\b", ".."]
)
def test_zip_slip_is_refused(data: Path, tmp_path: Path, name: str) -> None:
    file = pack(tmp_path / "a.zip", {**contents(data), name: b"x"})
    with pytest.raises(
        ArtifactError, match=r"leads out of the artifact.*do not use this file"
    ):
        read_artifact(file)
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_link_inside_a_zip_is_refused(data: Path, tmp_path: Path) -> None:
    members = contents(data)
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            if name == "policy.onnx":
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, content)
    with pytest.raises(ArtifactError, match=r"member 'policy.onnx' is a link"):
        read_artifact(file)


def test_link_inside_a_directory_is_refused(copied: Path) -> None:
    (copied / "policy.onnx").rename(copied.parent / "elsewhere.onnx")
    (copied / "policy.onnx").symlink_to(copied.parent / "elsewhere.onnx")
    with pytest.raises(
        ArtifactError, match=r"policy.onnx: no such file \(links do not count\)"
    ):
        read_artifact(copied)


@pytest.mark.parametrize("kind", ["directory", "zip"])
def test_file_that_does_not_belong_is_refused(
    data: Path, copied: Path, kind: str
) -> None:
    (copied / "engine.plan").write_bytes(b"x")
    packed = pack(copied.parent / "a.zip", {**contents(data), "engine.plan": b"x"})
    with pytest.raises(ArtifactError, match=r"unknown file 'engine.plan'"):
        read_artifact(copied if kind == "directory" else packed)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_member_given_twice_is_refused(data: Path, tmp_path: Path) -> None:
    file = pack(tmp_path / "a.zip", contents(data))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("policy.onnx", b"other")
    with pytest.raises(ArtifactError, match=r"a member is there twice"):
        read_artifact(file)


@pytest.mark.parametrize("kind", ["directory", "zip", "bomb"])
def test_oversize_member_is_refused(
    data: Path, copied: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(module, "MAX_MEMBER_BYTES", 10_000)
    (copied / "policy.onnx").write_bytes(bytes(10_001))
    members = {**contents(data), "policy.onnx": bytes(10_001)}
    packed = pack(copied.parent / "a.zip", members)
    with zipfile.ZipFile(
        copied.parent / "bomb.zip", "w", zipfile.ZIP_DEFLATED
    ) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    path = {"directory": copied, "zip": packed, "bomb": copied.parent / "bomb.zip"}[
        kind
    ]
    with pytest.raises(ArtifactError, match=r"policy.onnx: 10001 bytes, at most 10000"):
        read_artifact(path)


def test_weights_may_be_larger_than_the_other_files(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {name: len(content) for name, content in contents(data).items()}
    largest = max(size for name, size in sizes.items() if "weights" not in name)
    monkeypatch.setattr(module, "MAX_MEMBER_BYTES", largest)
    monkeypatch.setattr(module, "MAX_WEIGHT_BYTES", sizes["weights.safetensors"] - 1)
    with pytest.raises(ArtifactError, match=r"weights.safetensors: \d+ bytes, at most"):
        read_artifact(data / "artifact_v1")


def test_oversize_golden_arrays_are_refused(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez_compressed(copied / "bomb.npz", observations=np.zeros(100_000))
    content = (copied / "bomb.npz").read_bytes()
    (copied / "bomb.npz").unlink()
    replace_member(copied, "golden.npz", content)
    monkeypatch.setattr(module, "MAX_MEMBER_BYTES", 10_000)
    with pytest.raises(
        ArtifactError, match=r"golden.npz: unpacks to 800\d+ bytes, at most 10000"
    ):
        read_artifact(copied)


def test_probe_header_that_lies_about_its_size_is_refused(copied: Path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999999,), }\n"
    member = (
        b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64)
    )
    packed = pack(copied.parent / "lie.npz", {"observations.npy": member})
    replace_member(copied, "golden.npz", packed.read_bytes())
    with pytest.raises(ArtifactError, match=r"golden.npz: not a readable npz file"):
        read_artifact(copied)


def test_damaged_compressed_member_is_refused(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents(data).items():
            archive.writestr(name, content)
        offset = archive.getinfo("golden.npz").header_offset
    content = bytearray(file.read_bytes())
    content[offset + 100 : offset + 200] = bytes(100)
    file.write_bytes(bytes(content))
    with pytest.raises(ArtifactError, match=r"a.zip: not a readable zip file"):
        read_artifact(file)


def test_damaged_safetensors_with_a_matching_hash_is_refused(copied: Path) -> None:
    replace_member(copied, "weights.safetensors", b"\xff" * 100)
    with pytest.raises(
        ArtifactError, match=r"weights.safetensors: not a readable safetensors blob"
    ):
        read_artifact(copied)


def test_objects_in_the_probes_are_never_unpickled(
    copied: Path, tmp_path: Path
) -> None:
    np.savez(tmp_path / "objects.npz", observations=np.array([{"a": 1}], dtype=object))
    replace_member(copied, "golden.npz", (tmp_path / "objects.npz").read_bytes())
    with pytest.raises(
        ArtifactError, match=r"not a readable npz file \(Object arrays cannot be loaded"
    ):
        read_artifact(copied)
