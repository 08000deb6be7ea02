# SPDX-License-Identifier: Apache-2.0
"""A seeded maker of damaged, foreign and forged artifacts, for test_mutations.py."""

import hashlib
import io
import shutil
import stat
import zipfile
from dataclasses import replace

import numpy as np
import onnx
import yaml

from qam_ros.contract.golden import read_golden, write_golden
from qam_ros.contract.interface import read_interface
from qam_ros.contract.weights import encode_weights
from qam_ros.runtime.onnx_check import OPERATORS

MANIFEST, GRAPH, WEIGHTS, GOLDEN = FILES = (
    *("manifest.yaml", "policy.onnx", "weights.safetensors", "golden.npz"),
)
VALUES = (
    *(None, True, 0, -1, 1, 3, 10**30, 1e300, -1.5, float("nan"), float("inf")),
    *(
        "",
        "x",
        "1e-5",
        "../../etc/passwd",
        "a" * 10_000,
        [],
        [1, 2],
        [[]],
        {},
        {"a": 1},
    ),
)
SIZES = (0, 1, 2, 5, 1000, 2**20, 2**31 - 1, 2**31, 2**33, 2**62, -1)


def parsed(text):
    """As yaml.safe_load, ten times faster."""
    return yaml.CSafeLoader(text).get_single_data()


class Maker:
    """Writes mutated artifacts; files lie in ``folder``.

    Args:
        sources: good artifacts by name; the first is the policy that runs.
        folder: temporary.
        seed: of everything drawn.
    """

    def __init__(self, sources, folder, seed):
        self.sources = sources
        self.folder = folder
        self.draw = np.random.default_rng(seed)
        self.files = next(iter(sources.values()))

    def pick(self, items):
        return list(items)[int(self.draw.integers(len(items)))]

    def flipped(self, data, most=4):
        """Some bits turned round."""
        data = bytearray(data)
        for _ in range(int(self.draw.integers(1, most + 1))):
            at = int(self.draw.integers(8 * len(data)))
            data[at // 8] ^= 1 << at % 8
        return bytes(data)

    def shortened(self, data):
        return data[: int(self.draw.integers(len(data)))]

    def rehashed(self, files, **changes):
        """The manifest says what the files now are, and what else is to be said."""
        mapping = parsed(files[MANIFEST]) | changes
        mapping["sha256"] = {
            name: hashlib.sha256(files[name]).hexdigest() for name in FILES[1:]
        }
        text = yaml.dump(mapping, Dumper=yaml.CSafeDumper, sort_keys=False)
        return {**files, MANIFEST: text.encode()}

    def directory(self, files):
        path = self.folder / "mutated"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        for name, data in files.items():
            (path / name).write_bytes(data)
        return path

    def zipped(self, entries, method=zipfile.ZIP_STORED):
        """Bytes of a zip of (name or ZipInfo, data)."""
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", method) as archive:
            for name, data in entries:
                archive.writestr(name, data)
        return stream.getvalue()

    def file(self, data):
        path = self.folder / "mutated.zip"
        path.write_bytes(data)
        return path

    # One method per kind of mutation; each gives a path.

    def bits(self):
        name = self.pick(FILES)
        return self.directory({**self.files, name: self.flipped(self.files[name])})

    def truncation(self):
        name = self.pick(FILES)
        return self.directory({**self.files, name: self.shortened(self.files[name])})

    def swap(self):
        """Files of two artifacts together, as they are or with hashes that fit.

        Never weights and probes both: with hashes that fit that is the other artifact, whole.
        """
        other = self.sources[self.pick(list(self.sources)[1:])]
        taken = {self.pick((WEIGHTS, GOLDEN, GRAPH)), self.pick((MANIFEST, GRAPH))}
        mixed = {n: (other if n in taken else self.files)[n] for n in FILES}
        return self.directory(
            mixed if self.draw.random() < 0.3 else self.rehashed(mixed)
        )

    def manifest(self):
        """One value of the manifest replaced, removed or added, wherever it lies."""
        mapping = parsed(self.files[MANIFEST])
        place, key = mapping, self.pick(mapping)
        while isinstance(place[key], dict | list) and place[key]:
            if self.draw.random() < 0.15:
                break
            place = place[key]
            key = self.pick(place if isinstance(place, dict) else range(len(place)))
        choice = self.draw.random()
        if choice < 0.15:
            del place[key]
        elif choice < 0.25 and isinstance(place, dict):
            place[f"{key}_"] = place[key]
        else:
            place[key] = self.pick(VALUES)
        if self.draw.random() < 0.5:
            self._fit_interface(mapping)
        text = yaml.dump(mapping, Dumper=yaml.CSafeDumper, sort_keys=False)
        return self.directory({**self.files, MANIFEST: text.encode()})

    def _fit_interface(self, mapping):
        try:
            interface = read_interface(mapping["interface"])
        except Exception:  # noqa: BLE001 - a forger gives up where it cannot be read
            return
        for name in ("semantic_hash", "deployment_hash", "control_period_s"):
            mapping[name] = getattr(interface, name)

    def forged_bits(self):
        """Bits of a file turned round, and the hash made to fit."""
        name = self.pick(FILES[1:])
        data = self.flipped(self.files[name])
        return self.directory(self.rehashed({**self.files, name: data}))

    def forged_truncation(self):
        name = self.pick(FILES[1:])
        data = self.shortened(self.files[name])
        return self.directory(self.rehashed({**self.files, name: data}))

    def graph(self):
        """The graph edited in a way that stays a model, and the hash made to fit."""
        model = onnx.load_model_from_string(self.files[GRAPH])
        edit = self.pick(GRAPH_EDITS)
        edit(self, model)
        data = model.SerializeToString()
        return self.directory(self.rehashed({**self.files, GRAPH: data}))

    def weights(self):
        tensors = dict(self.tensors)
        name = self.pick(tensors)
        tensor = tensors.pop(name)
        other = self.pick(tensors)
        edits = (
            lambda: {**tensors, name + "_": tensor},
            lambda: tensors,
            lambda: {**tensors, name: tensor[..., None]},
            lambda: {**tensors, name: tensor * np.float32(np.nan)},
            lambda: {**tensors, name: tensor + np.float32(self.draw.normal())},
            lambda: {**tensors, name: self.draw.permutation(tensor.ravel()).reshape(tensor.shape)},
            lambda: {**tensors, name: tensors[other]},
            lambda: {**tensors, name: tensor * np.float32(1e30)},
        )  # fmt: skip
        data = encode_weights(self.pick(edits)())
        return self.directory(self.rehashed({**self.files, WEIGHTS: data}))

    def probes(self):
        golden = read_golden(self.files[GOLDEN], 10**7, "golden")
        name = self.pick(("observations", "noise", "chunks"))
        array = getattr(golden, name)
        edits = (
            lambda: array[1:],
            lambda: array.astype(np.float64),
            lambda: array * np.float32(np.nan),
            lambda: array + np.float32(0.5),
            lambda: array[::-1],
            lambda: np.zeros_like(array),
            lambda: array * np.float32(3.0),
        )
        data = write_golden(replace(golden, **{name: self.pick(edits)()}))
        return self.directory(self.rehashed({**self.files, GOLDEN: data}))

    def zip_bits(self):
        data = self.zipped(self.files.items(), self.pick((0, 8)))
        if self.draw.random() < 0.5:  # the list of members, where the tricks are
            at = data.index(b"PK\x01\x02")
            return self.file(data[:at] + self.flipped(data[at:]))
        return self.file(self.flipped(data))

    def zip_truncation(self):
        return self.file(self.shortened(self.zipped(self.files.items())))

    def zip_trick(self):
        name = self.pick(FILES)
        entries = list(self.files.items())
        link = zipfile.ZipInfo(name)
        link.external_attr = (self.pick((stat.S_IFLNK, stat.S_IFIFO)) | 0o777) << 16
        rest = [entry for entry in entries if entry[0] != name]
        tricks = (
            lambda: self.zipped([*entries, (self.pick(("../x", "/x", "a/b", "..")), b"x")]),
            lambda: self.zipped([*rest, (f"../{name}", self.files[name])]),
            lambda: self.zipped([*entries, (name, self.files[name])]),
            lambda: self.zipped([*entries, (f"extra{self.draw.integers(9)}", b"x")]),
            lambda: self.zipped(rest),
            lambda: self.zipped([*rest, (link, self.files[name])]),
            lambda: self.zipped([*rest, (name, bytes(9 * 2**20))], zipfile.ZIP_DEFLATED),
            lambda: self.zipped(entries, self.pick((zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))),
            lambda: self.zipped([(f"{k:04}", b"") for k in range(1500)]),
            lambda: self.zipped([*rest, (name.upper(), self.files[name])]),
        )  # fmt: skip
        return self.file(self.pick(tricks)())

    def repacked(self):
        """Another zip of the same files is the same artifact."""
        entries = list(self.files.items())
        self.draw.shuffle(entries)
        return self.file(self.zipped(entries, self.pick((0, 8))))


def _node(maker, model):
    return maker.pick(model.graph.node)


def other_operator(maker, model):
    _node(maker, model).op_type = maker.pick((*OPERATORS, "Tile", "Loop", "Range", ""))


def other_domain(maker, model):
    _node(maker, model).domain = "com.microsoft"


def node_removed(maker, model):
    model.graph.node.remove(_node(maker, model))


def node_twice(maker, model):
    model.graph.node.add().CopyFrom(_node(maker, model))


def rewired(maker, model):
    node = _node(maker, model)
    names = [name for each in model.graph.node for name in (*each.input, *each.output)]
    node.input[int(maker.draw.integers(len(node.input)))] = maker.pick(names)


def other_attribute(maker, model):
    held = [a for node in model.graph.node for a in node.attribute]
    if held:
        attribute = maker.pick(held)
        attribute.i, attribute.f = maker.pick(SIZES), float(maker.draw.normal())
        attribute.name = maker.pick((attribute.name, "to", "axis", "body"))


def other_constant(maker, model):
    tensor = maker.pick(model.graph.initializer)
    array = onnx.numpy_helper.to_array(tensor)
    if array.dtype == np.int64:
        array = np.full(array.shape, maker.pick(SIZES), np.int64)
    else:
        array = np.full(
            array.shape, maker.pick((np.nan, np.inf, 0.0, -7.0)), array.dtype
        )
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))


def other_size_of_a_constant(maker, model):
    tensor = maker.pick(model.graph.initializer)
    tensor.dims[:] = [
        abs(maker.pick(SIZES)) for _ in range(int(maker.draw.integers(3)))
    ]


def other_type_of_a_constant(maker, model):
    maker.pick(model.graph.initializer).data_type = int(maker.draw.integers(25))


def constant_elsewhere(maker, model):
    tensor = maker.pick(model.graph.initializer)
    tensor.external_data.add(key="location", value="/etc/passwd")
    tensor.data_location = onnx.TensorProto.EXTERNAL


def other_versions(maker, model):
    model.ir_version = maker.pick((1, 3, 9, 11, 10**9))
    model.opset_import[0].version = maker.pick((1, 17, 22, 99, 2**40))


def other_signature(maker, model):
    value = maker.pick((*model.graph.input, *model.graph.output))
    if maker.draw.random() < 0.5:
        value.name += "_"
    else:
        value.type.tensor_type.shape.dim[-1].dim_value = maker.pick(SIZES)


def dynamic_input(maker, model):
    maker.pick(model.graph.input).type.tensor_type.shape.dim[0].dim_param = "n"


def huge_tensor(maker, model):
    """A few bytes that ask for gigabytes, in the middle of the graph."""
    node = _node(maker, model)
    size = onnx.numpy_helper.from_array(
        np.array([maker.pick((2**22, 2**31, 2**40)), 4], np.int64), "huge_size"
    )
    model.graph.initializer.append(size)
    one = onnx.numpy_helper.from_array(np.ones((1, 1), np.float32), "huge_one")
    model.graph.initializer.append(one)
    expand = onnx.helper.make_node("Expand", ["huge_one", "huge_size"], ["huge"])
    model.graph.node.insert(list(model.graph.node).index(node), expand)


def inner_graph(maker, model):
    attribute = _node(maker, model).attribute.add(name="body")
    attribute.g.node.add(op_type="Identity")
    attribute.type = onnx.AttributeProto.GRAPH


def added_part(maker, model):
    maker.pick(
        (model.functions, model.training_info, model.graph.sparse_initializer)
    ).add()


def false_claim(maker, model):
    name = maker.pick([name for node in model.graph.node for name in node.output])
    shape = [abs(maker.pick(SIZES))]
    claim = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
    model.graph.value_info.append(claim)


GRAPH_EDITS = (
    *(other_operator, other_domain, node_removed, node_twice, rewired, other_attribute),
    *(other_constant, other_size_of_a_constant, other_type_of_a_constant),
    *(constant_elsewhere, other_versions, other_signature, dynamic_input, huge_tensor),
    *(inner_graph, added_part, false_claim),
)
COUNTS = {
    "bits": 100, "truncation": 50, "swap": 60, "manifest": 200, "forged_bits": 220,
    "forged_truncation": 40, "graph": 260, "weights": 70, "probes": 50, "zip_bits": 60,
    "zip_truncation": 30, "zip_trick": 60, "repacked": 4,
}  # fmt: skip
