# SPDX-License-Identifier: Apache-2.0
"""Backends with their real libraries: what is said without them, and what they do where they are."""

import importlib
import sys
import types

import numpy as np
import onnxruntime
import pytest

from qam_ros.runtime.backends import Machine, compile_engine, open_sampler, try_build
from qam_ros.runtime.engines import tensorrt
from qam_ros.runtime.engines.cuda import CudaDevice
from qam_ros.runtime.engines.library import EngineError
from qam_ros.runtime.engines.tensorrt import TensorRT
from qam_ros.runtime.onnx_cuda import OnnxCudaSampler
from qam_ros.runtime.sampler import OnnxSampler, verify


def test_missing_library_and_gpu_are_said_with_what_to_do(monkeypatch):
    monkeypatch.setattr(tensorrt, "MODULES", ("no_such_engine",))
    with pytest.raises(EngineError, match=r"no TensorRT.*pip install tensorrt"):
        tensorrt.find_library()
    monkeypatch.setattr("qam_ros.runtime.engines.cuda.LIBRARY", "libnone.so.1")
    with pytest.raises(EngineError, match=r"no GPU: libnone.*backend onnx"):
        CudaDevice()


@pytest.mark.parametrize(
    ("name", "version", "good"),
    [
        ("tensorrt", "10.2.0", False),
        ("tensorrt", "10.3.0.26", True),
        ("tensorrt", "11.4.0.106", True),
        ("tensorrt", "12.0.0", False),
        ("tensorrt_rtx", "1.7.1.116", True),
    ],
)
def test_versions_of_tensorrt_outside_the_range_are_refused(name, version, good):
    class Logger:
        ERROR = 1

        def __init__(self, level):
            self.level = level

    module = types.SimpleNamespace(__name__=name, __version__=version, Logger=Logger)
    if good:
        assert TensorRT(module).version == version
    else:
        with pytest.raises(
            EngineError, match=rf"tensorrt {version} is installed.*10\.3"
        ):
            TensorRT(module)


def test_cuda_provider_binds_and_swaps_like_the_cpu(artifact):
    """The same class on the provider that is here, in memory of the CPU."""
    sampler = OnnxCudaSampler(artifact, "CPUExecutionProvider", "cpu")
    assert verify(sampler, artifact) <= artifact.manifest.tolerance
    other = {name: value * np.float32(0.7) for name, value in artifact.weights.items()}
    plain, golden = OnnxSampler(artifact), artifact.golden
    for each in (sampler, plain):
        each.load(plain.layout.pack(other))
    np.testing.assert_allclose(
        sampler.sample_all(golden.observations, golden.noise),
        plain.sample_all(golden.observations, golden.noise),
        atol=1e-6,
    )


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(),
    reason="this ONNX Runtime has CUDA",
)
def test_missing_cuda_provider_is_said_with_what_to_do(artifact):
    with pytest.raises(EngineError, match="install onnxruntime-gpu"):
        open_sampler(artifact, "onnx-cuda")


@pytest.mark.trt
def test_tensorrt_builds_the_same_engine_twice_without_a_gpu(artifact):
    """True of TensorRT-RTX, which builds ahead of time."""
    library = tensorrt.find_library()
    if library.name == "tensorrt":
        pytest.skip("TensorRT builds on a GPU alone")
    first, second = (library.build(artifact.onnx_bytes) for _ in range(2))
    assert first == second
    compiled = try_build(artifact, library)
    assert compiled.engine_bytes == len(first)
    assert compiled.largest_error is None


@pytest.mark.trt
def test_tensorrt_says_why_it_does_not_read_a_graph():
    with pytest.raises(EngineError, match="does not read the graph"):
        tensorrt.find_library().build(b"no graph")


@pytest.mark.gpu(torch=False)
@pytest.mark.trt
@pytest.mark.parametrize("replay", [True, False])
def test_gpu_gives_the_golden_chunks_and_swaps(artifact, tmp_path, replay):
    machine = Machine(folder=tmp_path / "engines")
    compiled = compile_engine(artifact, machine, replay=replay)
    assert compiled.largest_error <= artifact.manifest.tolerance
    sampler = open_sampler(artifact, "tensorrt", machine=machine, replay=replay)
    plain, golden = OnnxSampler(artifact), artifact.golden
    other = {name: value * np.float32(0.7) for name, value in artifact.weights.items()}
    for each in (sampler, plain):
        each.set_weights(other)
    np.testing.assert_allclose(
        sampler.sample_all(golden.observations, golden.noise),
        plain.sample_all(golden.observations, golden.noise),
        atol=artifact.manifest.tolerance,
    )


@pytest.mark.gpu(torch=False)
def test_gpu_copies_captures_and_replays():
    device = CudaDevice()
    device.enter()
    source, target = (device.pinned(1024) for _ in range(2))
    address = device.allocate(1024)

    def there_and_back():
        device.upload(address, source)
        device.download(target, address)

    replay = device.capture(there_and_back)
    for value in (7, 9):
        source[:] = value
        replay()
        device.synchronise()
        np.testing.assert_array_equal(target, value)


def write_module(folder, name, text):
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(text)


GOOD = """
__version__ = "1.7.1"
class Logger:
    ERROR = 1
    def __init__(self, level): pass
"""


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Writes modules of the family into a folder that alone is searched for them."""
    names = ("stray_trt", "stray_rtx", "stray_rtx_bindings")
    monkeypatch.setattr(tensorrt, "MODULES", names)
    monkeypatch.syspath_prepend(tmp_path)

    def write(*texts):
        for name, text in zip(names, texts, strict=False):
            sys.modules.pop(name, None)
            if text == "folder":
                (tmp_path / name).mkdir()
            elif text is not None:
                write_module(tmp_path, name, text)
        importlib.invalidate_caches()

    return write


@pytest.mark.parametrize(
    "broken", ["raise ImportError('libnvinfer.so.10: no such file')", "folder", "x = 1"]
)
def test_next_member_of_the_family_is_taken_where_the_first_is_broken(modules, broken):
    modules(broken, None, GOOD)
    assert tensorrt.find_library().name == "stray_rtx_bindings"


def test_every_broken_member_is_named_with_its_reason(modules):
    modules("raise OSError('no libnvinfer')", "folder", "x = 1")
    with pytest.raises(EngineError) as caught:
        tensorrt.find_library()
    text = str(caught.value)
    assert "stray_trt does not load: no libnvinfer" in text
    assert "stray_rtx is a folder" in text
    assert "stray_rtx_bindings is another module" in text
    assert "pip install tensorrt" in text


def test_version_out_of_range_is_said_where_nothing_else_is_there(monkeypatch, modules):
    modules(GOOD.replace("1.7.1", "9.0"), GOOD)
    real = tensorrt.TensorRT

    def old(module):
        if module.__name__ == "stray_trt":
            raise EngineError("tensorrt 9.0 is installed")
        return real(module)

    monkeypatch.setattr(tensorrt, "TensorRT", old)
    assert tensorrt.find_library().name == "stray_rtx"
