# SPDX-License-Identifier: Apache-2.0
"""The int8 backend: near float32, bounded, and never in the way of a tick."""

import dataclasses
import logging
import os
import threading
import time

import numpy as np
import onnx
import pytest

from qam_ros.contract.errors import ArtifactError
from qam_ros.runtime import onnx_int8
from qam_ros.runtime.backends import open_sampler
from qam_ros.runtime.engines.library import EngineError
from qam_ros.runtime.onnx_int8 import (
    TOLERANCE,
    Int8Sampler,
    int8_graph,
    rounded_blocks,
)
from qam_ros.runtime.sampler import OnnxSampler, verify


@pytest.fixture(scope="module")
def wide(helpers, interface):
    """A policy with a layer of 256 x 130."""
    return helpers.artifact(interface, chunk=26, width=256)


def chunks_of(sampler, artifact):
    return sampler.sample_all(artifact.golden.observations, artifact.golden.noise)


def scaled(artifact, factor):
    """Other weights, with the artifact's statistics."""
    return {
        name: value * np.float32(factor if "/" in name else 1.0)
        for name, value in artifact.weights.items()
    }


def test_weights_are_rounded_to_half_a_step_of_their_block():
    weight = np.random.default_rng(0).normal(size=(300, 7)).astype(np.float32)
    weight[:256, 3] = 0.0
    whole, scales = rounded_blocks(weight, 256)
    assert whole.shape == (7, 2, 256)
    assert whole.dtype == np.uint8
    back = (whole.astype(np.float32) - 128.0) * scales[..., None]
    back = back.reshape(7, 512)[:, :300].T
    step = np.repeat(scales, 256, axis=1)[:, :300].T
    assert (np.abs(back - weight) <= step / 2 + 1e-6).all()
    assert not back[:256, 3].any()


def test_only_large_layers_are_rounded(wide):
    data, layers = int8_graph(wide.onnx_bytes, wide.weights)
    model = onnx.load_model_from_string(data)
    constants = {value.name for value in model.graph.initializer}
    assert layers == 1
    assert {"1/weight_int8", "1/weight_scale", "0/weight_observation"} <= constants
    assert "1/weight" not in constants
    assert [v.name for v in model.graph.input] == ["observation", "noise"]


def test_int8_reproduces_the_golden_chunks_within_its_own_bound(wide):
    sampler = open_sampler(wide, "onnx-int8")
    error = verify(sampler, wide)
    assert wide.manifest.tolerance < error <= TOLERANCE
    assert "int8" in sampler.backend


def test_int8_beyond_its_bound_is_refused_with_what_to_do(wide, monkeypatch):
    monkeypatch.setattr(onnx_int8, "TOLERANCE", 1e-4)
    with pytest.raises(ArtifactError, match=r"off on .*int8.*use the backend onnx"):
        verify(Int8Sampler(wide), wide)


def test_policy_without_a_large_layer_is_refused(artifact):
    with pytest.raises(EngineError, match="no layer of this policy has 128 rows"):
        open_sampler(artifact, "onnx-int8")


def test_cpu_on_which_int8_is_slow_is_refused(wide, monkeypatch):
    monkeypatch.setattr(onnx_int8, "SLOWEST", 0.0)
    with pytest.raises(EngineError, match=r"int8 takes .* float32 .* use the backend"):
        Int8Sampler(wide)


def test_new_weights_run_at_once_in_float32_and_then_in_int8(wide, monkeypatch):
    sampler, plain = Int8Sampler(wide), OnnxSampler(wide)
    may_round = threading.Event()
    real = sampler._quantised
    monkeypatch.setattr(
        sampler, "_quantised", lambda weights: may_round.wait(10) and real(weights)
    )
    other = plain.layout.pack(scaled(wide, 0.7))
    sampler.load(other)
    plain.load(other)
    exact = chunks_of(plain, wide)
    assert chunks_of(sampler, wide).tobytes() == exact.tobytes()
    assert "float32: until rounded" in sampler.backend
    may_round.set()
    assert sampler.settle(10)
    assert "float32" not in sampler.backend
    found = chunks_of(sampler, wide)
    assert 0 < np.abs(found - exact).max() <= TOLERANCE


def test_only_the_newest_of_many_weights_stays(wide):
    sampler, plain = Int8Sampler(wide), OnnxSampler(wide)
    for factor in (0.9, 0.8, 0.5):
        flat = plain.layout.pack(scaled(wide, factor))
        sampler.load(flat)
    plain.load(flat)
    assert sampler.settle(10)
    assert np.abs(chunks_of(sampler, wide) - chunks_of(plain, wide)).max() <= TOLERANCE


def test_weights_that_int8_changes_too_much_stay_float32_and_are_counted(
    wide, monkeypatch, caplog
):
    sampler, plain = Int8Sampler(wide), OnnxSampler(wide)
    sampler.tolerance = 1e-9
    flat = plain.layout.pack(scaled(wide, 0.8))
    plain.load(flat)
    with caplog.at_level(logging.WARNING):
        sampler.load(flat)
        assert sampler.settle(10)
    assert sampler.refused == 1
    assert "they run in float32" in caplog.text
    assert "float32: int8 was refused" in sampler.backend  # as diagnostics show it
    assert chunks_of(sampler, wide).tobytes() == chunks_of(plain, wide).tobytes()
    sampler.tolerance = TOLERANCE  # the thread is there for the next ones
    sampler.load(flat)
    assert sampler.settle(10)
    assert "float32" not in sampler.backend


def test_weights_that_cannot_be_rounded_stay_float32(wide, monkeypatch):
    def fail(_):
        raise MemoryError("no room")

    sampler = Int8Sampler(wide)
    real = sampler._quantised
    monkeypatch.setattr(sampler, "_quantised", fail)
    flat = sampler.layout.pack(wide.weights)
    sampler.load(flat)
    assert sampler.settle(10)
    assert sampler.refused == 1
    monkeypatch.setattr(sampler, "_quantised", real)
    sampler.load(flat)  # the thread is there for the next ones
    assert sampler.settle(10)
    assert "float32" not in sampler.backend


def test_a_swap_waits_for_nothing(wide):
    sampler = Int8Sampler(wide)
    flat = sampler.layout.pack(scaled(wide, 0.7))
    started = time.perf_counter()
    real = Int8Sampler(wide)
    session_s = time.perf_counter() - started
    longest_s = 0.0
    for _ in range(20):
        started = time.perf_counter()
        real.load(flat)
        longest_s = max(longest_s, time.perf_counter() - started)
    assert longest_s < session_s
    assert real.settle(10)


def test_rounding_does_not_keep_the_control_threads_cores_and_priority(wide):
    """What makes a process real-time treats all of its threads alike."""
    sampler, cores = Int8Sampler(wide), os.sched_getaffinity(0)
    worker = sampler._worker.native_id
    os.sched_setaffinity(worker, {min(cores)})
    sampler.load(sampler.layout.pack(wide.weights))
    assert sampler.settle(10)
    assert os.sched_getaffinity(worker) == cores
    assert os.sched_getscheduler(worker) == os.SCHED_OTHER


def test_an_artifact_of_another_manifest_tolerance_keeps_the_wider_one(wide):
    manifest = dataclasses.replace(wide.manifest, tolerance=0.08)
    assert Int8Sampler(dataclasses.replace(wide, manifest=manifest)).tolerance == 0.08


def test_a_closed_sampler_leaves_no_thread(wide):
    before = threading.active_count()
    sampler = Int8Sampler(wide)
    assert threading.active_count() == before + 1
    sampler.close()
    deadline = time.monotonic() + 5.0
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before
