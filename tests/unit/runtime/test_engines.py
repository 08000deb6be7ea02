# SPDX-License-Identifier: Apache-2.0
"""Engines: the cache trusts nobody, and the sampler does on a GPU what ONNX Runtime does on the CPU.

Library and GPU are doubles at the boundary of engines/library.py: the 'engine' is the graph, run by
ONNX Runtime in the memory that was bound. The real ones are in test_backends.py.
"""

import ctypes
import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from qam_ros.contract.artifact import write_artifact
from qam_ros.contract.errors import ArtifactError, ConfigError
from qam_ros.runtime.backends import Machine, compile_engine, open_sampler
from qam_ros.runtime.compile import command, run
from qam_ros.runtime.engines.cache import EngineCache, default_folder, engine_key
from qam_ros.runtime.engines.library import EngineError, Gpu
from qam_ros.runtime.sampler import OnnxSampler

GPU = Gpu("Test GPU", "8.7", "550.1, CUDA 12.6")
MAGIC = b"engine:"


class DoubleEngine:
    """Runs the graph in bound memory, where a stream tells it to."""

    def __init__(self, onnx_bytes, device, add):
        self.session = onnxruntime.InferenceSession(onnx_bytes)
        self.binding = self.session.io_binding()
        self.device, self.add, self.outputs = device, add, {}
        ends = (*self.session.get_inputs(), *self.session.get_outputs())
        self.tensors = {end.name: tuple(end.shape) for end in ends}

    def bind(self, name, address):
        assert address % 256 == 0, name
        shape = self.tensors[name]
        outputs = [end.name for end in self.session.get_outputs()]
        kind = "bind_output" if name in outputs else "bind_input"
        place = name, "cpu", 0, np.float32, shape, address
        getattr(self.binding, kind)(*place)
        if name in outputs:
            raw = (ctypes.c_float * int(np.prod(shape))).from_address(address)
            self.outputs[name] = np.ctypeslib.as_array(raw)

    def enqueue(self, stream):
        assert stream == self.device.stream

        def execute():
            self.session.run_with_iobinding(self.binding)
            self.outputs["chunk"] += self.add

        self.device.put(execute)


class DoubleLibrary:
    name = "double"

    def __init__(self, device, version="1.2.3", add=0.0):
        self.device, self.version, self.add, self.builds = device, version, add, 0

    def build(self, onnx_bytes):
        self.builds += 1
        return MAGIC + onnx_bytes

    def load(self, engine):
        assert engine.startswith(MAGIC)
        return DoubleEngine(engine.removeprefix(MAGIC), self.device, self.add)


class DoubleDevice:
    """Host memory that plays device memory; what is captured does not run, as on a GPU."""

    gpu, stream = GPU, 42

    def __init__(self, gpu=GPU):
        self.gpu = gpu
        self.kept, self.recording, self.enqueued = [], None, 0

    def enter(self):
        pass

    def pinned(self, size):
        self.kept.append(np.zeros(size + 256, np.uint8))
        start = -self.kept[-1].ctypes.data % 256
        return self.kept[-1][start : start + size]

    def allocate(self, size):
        return self.pinned(size).ctypes.data

    def put(self, work):
        self.enqueued += 1
        if self.recording is None:
            work()
        else:
            self.recording.append(work)

    def upload(self, address, source):
        self.put(lambda: ctypes.memmove(address, source.ctypes.data, source.nbytes))

    def download(self, target, address):
        self.put(lambda: ctypes.memmove(target.ctypes.data, address, target.nbytes))

    def capture(self, work):
        self.recording = []
        work()
        recorded, self.recording = self.recording, None
        return lambda: [step() for step in recorded]

    def synchronise(self):
        pass


@pytest.fixture
def device():
    return DoubleDevice()


@pytest.fixture
def machine(device, tmp_path):
    library = DoubleLibrary(device)
    return Machine(lambda: library, lambda: device, tmp_path / "engines")


def key_of(artifact, **changes):
    names = {"library": "double", "version": "1.2.3", "gpu": GPU} | changes
    return engine_key(artifact.onnx_bytes, **names)


def test_engine_gives_the_golden_chunks_and_is_built_once(artifact, machine):
    first = compile_engine(artifact, machine)
    assert first.largest_error <= artifact.manifest.tolerance
    assert first.build_s > 0
    assert first.engine_bytes == len(MAGIC) + len(artifact.onnx_bytes)
    again = compile_engine(artifact, machine)
    assert (again.build_s, again.engine) == (0.0, first.engine)
    assert machine.library().builds == 1
    compile_engine(artifact, machine, rebuild=True)
    assert machine.library().builds == 2
    status = os.stat(first.engine)
    assert (status.st_mode & 0o777, os.stat(machine.folder).st_mode & 0o777) == (
        0o600,
        0o700,
    )


@pytest.mark.parametrize("replay", [True, False])
def test_engine_samples_and_swaps_like_onnx_runtime(artifact, machine, replay):
    compile_engine(artifact, machine)
    sampler = open_sampler(artifact, "tensorrt", machine=machine, replay=replay)
    assert sampler.backend == "double 1.2.3 on Test GPU"
    other = {name: value * np.float32(0.7) for name, value in artifact.weights.items()}
    golden, plain = artifact.golden, OnnxSampler(artifact)
    for weights in (other, artifact.weights):
        flat = sampler.layout.pack(weights)
        sampler.load(flat)
        plain.load(flat)
        np.testing.assert_allclose(
            sampler.sample_all(golden.observations[:5], golden.noise[:5]),
            plain.sample_all(golden.observations[:5], golden.noise[:5]),
            atol=1e-6,
        )


def test_replay_enqueues_nothing_anew(artifact, machine, device):
    compile_engine(artifact, machine)
    golden = artifact.golden
    for replay, expected in ((True, 0), (False, 3)):
        sampler = open_sampler(artifact, "tensorrt", machine=machine, replay=replay)
        before = device.enqueued
        sampler.sample(golden.observations[0], golden.noise[0])
        assert device.enqueued - before == expected


def test_chunks_are_new_arrays(artifact, machine):
    compile_engine(artifact, machine)
    sampler, golden = (
        open_sampler(artifact, "tensorrt", machine=machine),
        artifact.golden,
    )
    first = sampler.sample(golden.observations[0], golden.noise[0])
    kept = first.copy()
    sampler.sample(golden.observations[1], golden.noise[1])
    np.testing.assert_array_equal(first, kept)


def test_engine_that_computes_something_else_is_discarded(artifact, machine, device):
    wrong = dataclasses.replace(
        machine, library=lambda: DoubleLibrary(device, add=1e-3)
    )
    with pytest.raises(ArtifactError, match=r"1\.00e-03 off on double 1\.2\.3 on Test"):
        compile_engine(artifact, wrong)
    assert machine.cache.find(key_of(artifact)) is None


def test_engine_of_another_graph_is_refused(artifact, helpers, interface, machine):
    other = helpers.artifact(interface, width=8)
    cache = machine.cache
    cache.store(key_of(artifact), MAGIC + other.onnx_bytes, 0.0)
    with pytest.raises(EngineError, match="has other tensors than the graph"):
        open_sampler(artifact, "tensorrt", machine=machine)


@pytest.mark.parametrize(
    "change",
    [
        {"version": "1.2.4"},
        {"library": "other"},
        {"gpu": dataclasses.replace(GPU, name="Another GPU")},
        {"gpu": dataclasses.replace(GPU, capability="9.0")},
        {"gpu": dataclasses.replace(GPU, driver="551.0, CUDA 12.6")},
    ],
)
def test_another_library_gpu_or_driver_needs_another_engine(artifact, machine, change):
    compile_engine(artifact, machine)
    assert machine.cache.find(key_of(artifact)) is not None
    assert machine.cache.find(key_of(artifact, **change)) is None


def test_other_weights_need_no_other_engine_and_another_graph_does(
    artifact, helpers, interface
):
    assert key_of(helpers.artifact(interface, seed=1)).name == key_of(artifact).name
    assert key_of(helpers.artifact(interface, width=8)).name != key_of(artifact).name


def test_engine_that_was_changed_is_not_loaded_until_it_is_built_again(
    artifact, machine
):
    path = Path(compile_engine(artifact, machine).engine)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    for again in (compile_engine, lambda a, m: open_sampler(a, "tensorrt", machine=m)):
        with pytest.raises(EngineError, match=r"changed since.*qam compile --rebuild"):
            again(artifact, machine)
    compile_engine(artifact, machine, rebuild=True)
    open_sampler(artifact, "tensorrt", machine=machine)


def test_engine_without_its_record_is_not_found(artifact, machine):
    path = compile_engine(artifact, machine).engine
    os.unlink(path.replace(".engine", ".json"))
    assert machine.cache.find(key_of(artifact)) is None


def test_record_of_another_key_or_no_record_is_refused(artifact, machine):
    path = Path(compile_engine(artifact, machine).engine).with_suffix(".json")
    record = json.loads(path.read_text())
    record["key"]["gpu"]["name"] = "Another GPU"
    for text, words in ((json.dumps(record), "of another engine"), ("[]", "not the r")):
        path.write_text(text)
        with pytest.raises(EngineError, match=words):
            machine.cache.find(key_of(artifact))


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o702, 0o740])
def test_folder_that_others_may_enter_is_refused(artifact, machine, mode):
    machine.folder.mkdir(mode=0o700)
    machine.folder.chmod(mode)
    with pytest.raises(EngineError, match=rf"mode 0{mode:o}.*chmod go="):
        compile_engine(artifact, machine)
    assert machine.library().builds == 0


def test_folder_or_file_of_another_user_is_refused(artifact, machine, monkeypatch):
    compile_engine(artifact, machine)
    own = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: own + 1)
    with pytest.raises(EngineError, match=f"belongs to user {own}, expected {own + 1}"):
        machine.cache.find(key_of(artifact))


def test_links_and_files_open_to_others_are_refused(artifact, machine, tmp_path):
    path = compile_engine(artifact, machine).engine
    os.chmod(path, 0o620)
    with pytest.raises(EngineError, match="the file has mode 0620"):
        machine.cache.find(key_of(artifact))
    os.chmod(path, 0o600)
    os.rename(path, tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", path)
    with pytest.raises(EngineError, match="not a file of this cache"):
        machine.cache.find(key_of(artifact))
    os.symlink(machine.folder, tmp_path / "link")
    with pytest.raises(EngineError, match="expected a folder of your own"):
        EngineCache(tmp_path / "link").find(key_of(artifact))


def test_cache_is_in_the_users_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder({}) == tmp_path / ".cache/qam/engines"
    assert default_folder({"XDG_CACHE_HOME": "relative"}) == default_folder({})
    found = default_folder({"XDG_CACHE_HOME": "/var/robot"})
    assert str(found) == "/var/robot/qam/engines"


def test_engine_of_a_folder_of_ones_own_is_found_there_only(artifact, device, tmp_path):
    """What qam compile --cache made is what the node's parameter engine_cache opens."""
    library = DoubleLibrary(device)
    given = Machine.of(str(tmp_path / "mine"))
    mine = dataclasses.replace(given, library=lambda: library, device=lambda: device)
    compile_engine(artifact, mine)
    assert open_sampler(artifact, "tensorrt", machine=mine).backend.startswith("double")
    elsewhere = dataclasses.replace(mine, folder=tmp_path / "other")
    with pytest.raises(EngineError, match="no engine of this policy"):
        open_sampler(artifact, "tensorrt", machine=elsewhere)
    assert Machine.of("").folder is None


def test_policy_without_an_engine_says_what_to_run(artifact, machine):
    with pytest.raises(EngineError, match=r"Test GPU \(driver 550.*run qam compile"):
        open_sampler(artifact, "tensorrt", machine=machine)


def test_backends_are_named(artifact):
    assert "on the CPU" in open_sampler(artifact).backend
    with pytest.raises(ConfigError, match="did you mean 'tensorrt'"):
        open_sampler(artifact, "tensort")


@pytest.mark.parametrize("ending", ["engine", "plan", "trt"])
def test_engine_from_elsewhere_is_refused(tmp_path, ending):
    file = tmp_path / f"policy.{ending}"
    file.write_bytes(b"anything")
    with pytest.raises(
        EngineError, match="an engine is code and is taken from nowhere"
    ):
        command([str(file)])


def test_command_prints_time_size_and_error(artifact, machine, tmp_path, capsys):
    path = tmp_path / "policy"
    write_artifact(
        path, artifact.manifest, artifact.onnx_bytes, artifact.weights, artifact.golden
    )
    cache = tmp_path / "mine"
    assert run([str(path), "--cache", str(cache), "--json"], machine) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["largest_error"] <= found["tolerance"] == 1e-5
    assert os.path.dirname(found["engine"]) == str(cache)
    assert run([str(path), "--cache", str(cache)], machine) == 0
    assert "was there" in capsys.readouterr().out
    assert run([str(path), "--check"], machine) == 0
    assert "nothing was kept" in capsys.readouterr().out
    assert not machine.folder.exists()


def test_cache_below_a_file_is_refused_in_words(artifact, tmp_path):
    (tmp_path / "file").write_text("")
    cache = EngineCache(tmp_path / "file" / "engines")
    with pytest.raises(EngineError, match=r"cannot be made .*exists"):
        cache.find(key_of(artifact))


def test_what_a_killed_process_left_does_not_stand_in_the_way(artifact, machine):
    cache, key = machine.cache, key_of(artifact)
    cache.store(key, b"one", 0.0)
    left = machine.folder / f".{key.name}.engine.{os.getpid()}"
    left.write_bytes(b"half")
    cache.store(key, b"two", 0.0)
    assert cache.find(key) == b"two"


def test_disk_that_is_full_is_said_in_words(artifact, machine, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EngineError, match="engine cannot be kept: No space left"):
        machine.cache.store(key_of(artifact), b"one", 0.0)
    assert not list(machine.folder.iterdir())


def test_file_that_vanishes_while_it_is_written_is_said_in_words(
    artifact, machine, monkeypatch
):
    def gone(*_, **__):
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(os, "rename", gone)
    monkeypatch.setattr(os, "unlink", gone)
    with pytest.raises(EngineError, match="engine cannot be kept: No such file"):
        machine.cache.store(key_of(artifact), b"one", 0.0)
