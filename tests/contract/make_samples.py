# SPDX-License-Identifier: Apache-2.0
"""Writes the committed sample of every format into tests/contract/data.

Run it once for a new format version, and keep the samples of all older versions:
    python tests/contract/make_samples.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from qam_ros.contract.artifact import (
    ArtifactManifest,
    Golden,
    GraphSignature,
    TensorSpec,
    write_artifact,
)
from qam_ros.contract.dataset import from_transitions, write_dataset
from qam_ros.contract.interface import RobotInterface, load_interface
from qam_ros.contract.transition import Rows, encode, transition_dtype

DATA = Path(__file__).parent / "data"
CHUNK = 2


def sample_rows(interface: RobotInterface) -> Rows:
    """Six transitions: an episode of four that terminates, two rows of an open one, the last masked."""
    rows = np.zeros(6, transition_dtype(interface))
    index = np.arange(6)
    rows["session"] = np.arange(16)
    rows["seq"] = index
    rows["observation_stamp_ns"] = 10**18 + index * 10**8
    rows["action_stamp_ns"] = rows["observation_stamp_ns"] + 2 * 10**6
    rows["episode"] = [7, 7, 7, 7, 8, 8]
    rows["step"] = [0, 1, 2, 3, 0, 1]
    rows["observation"] = index[:, None] + np.arange(4) / 4
    rows["proposed"] = np.array([0.5, -0.5, 0.25])
    rows["executed"] = np.array([0.5, -0.5, 0.125])
    rows["policy_version"] = 3
    rows["chunk_id"] = index // CHUNK
    rows["chunk_index"] = index % CHUNK
    rows["guard_mode"] = 2
    rows["limit_bits"] = 8
    rows["reward"] = -1
    rows["terminated"][3] = 1
    rows["has_next"][3] = 1
    rows["next_observation"][3] = 4.5
    rows["ages_s"] = 0.01
    rows["masked"][5] = 1
    rows["guard_mode"][5] = 3
    return rows


def sample_graph() -> bytes:
    """ONNX: chunk = clip(noise + normalised observation . gain, -1, 1), reshaped to (1, 2, 3)."""
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (
            ("observation", (1, 4)),
            ("noise", (1, 6)),
            ("observation_mean", (4,)),
            ("observation_std", (4,)),
            ("gain", (4, 6)),
        )
    ]
    constants = [
        helper.make_tensor("low", TensorProto.FLOAT, (), [-1.0]),
        helper.make_tensor("high", TensorProto.FLOAT, (), [1.0]),
        helper.make_tensor("shape", TensorProto.INT64, (3,), [1, 2, 3]),
    ]
    nodes = [
        helper.make_node("Sub", ["observation", "observation_mean"], ["centred"]),
        helper.make_node("Div", ["centred", "observation_std"], ["normalised"]),
        helper.make_node("MatMul", ["normalised", "gain"], ["shift"]),
        helper.make_node("Add", ["noise", "shift"], ["raw"]),
        helper.make_node("Clip", ["raw", "low", "high"], ["clipped"]),
        helper.make_node("Reshape", ["clipped", "shape"], ["chunk"]),
    ]
    chunk = helper.make_tensor_value_info("chunk", TensorProto.FLOAT, (1, 2, 3))
    graph = helper.make_graph(nodes, "sample", inputs, [chunk], constants)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9
    )
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def sample_weights() -> dict[str, np.ndarray]:
    """Statistics and the one weight of the sample graph."""
    return {
        "observation_mean": np.full(4, 0.5, np.float32),
        "observation_std": np.full(4, 2.0, np.float32),
        "gain": (np.arange(24, dtype=np.float32).reshape(4, 6) - 12) / 64,
    }


def sample_golden() -> Golden:
    """Probes and the chunks of the sample graph, computed here in numpy."""
    generator = np.random.default_rng(0)
    observations = generator.normal(size=(64, 4)).astype(np.float32)
    noise = generator.normal(size=(64, 6)).astype(np.float32)
    weights = sample_weights()
    normalised = (observations - weights["observation_mean"]) / weights[
        "observation_std"
    ]
    chunks = np.clip(noise + normalised @ weights["gain"], -1, 1).reshape(64, 2, 3)
    return Golden(observations, noise, chunks)


def sample_manifest(interface: RobotInterface) -> ArtifactManifest:
    """Manifest of the sample policy."""
    weights = sample_weights()
    inputs = {
        "observation": (1, 4),
        "noise": (1, 6),
        **{k: v.shape for k, v in weights.items()},
    }
    return ArtifactManifest(
        interface=interface,
        algorithm="qam",
        head="flow",
        flow_steps=1,
        chunk_length=CHUNK,
        policy_version=3,
        parent_version=2,
        run_id="sample",
        commit="0" * 40,
        dataset_hash="0" * 64,
        graph=GraphSignature(
            inputs=tuple(TensorSpec(name, shape) for name, shape in inputs.items()),
            outputs=(TensorSpec("chunk", (1, 2, 3)),),
        ),
        tolerance=1e-5,
        evaluation={"success": {"mean": 0.5, "low": 0.4, "high": 0.6, "episodes": 100}},
    )


def main() -> None:
    """Write all samples."""
    interface = load_interface(DATA / "interface_v1.yaml")
    rows = sample_rows(interface)
    (DATA / "transitions_v1.bin").write_bytes(encode(rows))
    write_dataset(
        DATA / "dataset_v1",
        from_transitions(rows, interface),
        interface,
        {"made_by": "make_samples"},
        replace=True,
    )
    for name in ("artifact_v1", "artifact_v1.zip"):
        write_artifact(
            DATA / name,
            sample_manifest(interface),
            sample_graph(),
            sample_weights(),
            sample_golden(),
            replace=True,
        )


if __name__ == "__main__":
    main()
