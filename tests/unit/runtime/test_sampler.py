# SPDX-License-Identifier: Apache-2.0
import time
from dataclasses import replace

import numpy as np
import pytest

from qam_ros.contract.errors import ArtifactError
from qam_ros.runtime.sampler import OnnxSampler, WeightLayout, verify


def numpy_sampler(weights, observation, noise, steps=4):
    """The same flow in float64, layer by layer."""

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    w = {name: value.astype(np.float64) for name, value in weights.items()}
    s = (observation - w["observation_mean"]) / w["observation_std"]
    a = noise.astype(np.float64)
    for k in range(steps):
        x = s @ w["0/weight_observation"] + a @ w["0/weight_action"] + w["0/bias"]
        x = gelu(x + k / steps * w["0/weight_time"][0])
        a = a + (x @ w["1/weight"] + w["1/bias"]) / steps
    return np.clip(a, -1, 1)


def test_sampler_integrates_the_flow(artifact):
    sampler = OnnxSampler(artifact)
    golden = artifact.golden
    for observation, noise in zip(golden.observations, golden.noise, strict=True):
        expected = numpy_sampler(artifact.weights, observation, noise).reshape(3, 5)
        # float32 rounding through four steps
        np.testing.assert_allclose(
            sampler.sample(observation, noise), expected, atol=2e-6
        )


def test_sampling_returns_a_new_array_each_time(artifact):
    sampler, golden = OnnxSampler(artifact), artifact.golden
    first = sampler.sample(golden.observations[0], golden.noise[0])
    kept = first.copy()
    sampler.sample(golden.observations[1], golden.noise[1])
    np.testing.assert_array_equal(first, kept)


def test_loading_a_flat_buffer_equals_setting_the_tensors(artifact):
    golden = artifact.golden
    other = {name: value * np.float32(1.5) for name, value in artifact.weights.items()}
    one, two = OnnxSampler(artifact), OnnxSampler(artifact)
    one.set_weights(other)
    two.load(two.layout.pack(other))
    pair = golden.observations[0], golden.noise[0]
    assert one.sample(*pair).tobytes() == two.sample(*pair).tobytes()
    assert one.sample(*pair).tobytes() != OnnxSampler(artifact).sample(*pair).tobytes()


def test_layout_gives_every_tensor_back_on_a_cache_line():
    layout = WeightLayout({"a": (3, 5), "b": (7,), "c": (2, 2)})
    weights = {n: np.random.default_rng(0).random(s) for n, s in layout.shapes.items()}
    weights = {name: value.astype(np.float32) for name, value in weights.items()}
    flat = layout.pack(weights)
    for name, view in layout.views(flat).items():
        np.testing.assert_array_equal(view, weights[name])
        assert (view.ctypes.data - flat.ctypes.data) % 64 == 0


def test_verification_accepts_the_artifact_and_names_the_error_otherwise(artifact):
    assert verify(OnnxSampler(artifact), artifact) <= artifact.manifest.tolerance
    chunks = artifact.golden.chunks + np.float32(1e-3)
    wrong = replace(artifact, golden=replace(artifact.golden, chunks=chunks))
    with pytest.raises(ArtifactError, match=r"golden chunks come out 1\.00e-03 off"):
        verify(OnnxSampler(artifact), wrong)
    nan = np.full_like(chunks, np.nan)
    wrong = replace(artifact, golden=replace(artifact.golden, chunks=nan))
    with pytest.raises(ArtifactError):
        verify(OnnxSampler(artifact), wrong)


def test_a_graph_that_fails_when_it_runs_is_named(artifact):
    class Failing(OnnxSampler):
        def sample(self, observation, noise):
            raise RuntimeError("no such element")

    with pytest.raises(
        ArtifactError, match=r"fails on .* when it runs: no such element"
    ):
        verify(Failing(artifact), artifact)


def test_swapping_weights_of_the_papers_size_takes_less_than_a_session(helpers):
    from qam_ros.contract.interface import load_interface

    artifact = helpers.artifact(load_interface("ur5e_2f85"), chunk=5, width=512)
    started = time.perf_counter()
    sampler = OnnxSampler(artifact)
    session_s = time.perf_counter() - started
    flat = sampler.layout.pack(artifact.weights)
    started = time.perf_counter()
    for _ in range(20):
        sampler.load(flat)
    assert (time.perf_counter() - started) / 20 < session_s


def test_a_graph_that_onnx_runtime_refuses_is_named(artifact, monkeypatch):
    import onnxruntime

    def fail(*_args, **_settings):
        raise RuntimeError("no kernel")

    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    with pytest.raises(
        ArtifactError, match="ONNX Runtime refuses the graph: no kernel"
    ):
        OnnxSampler(artifact)
