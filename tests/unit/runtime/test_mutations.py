# SPDX-License-Identifier: Apache-2.0
"""More than a thousand damaged, foreign and forged artifacts: refused, or proven to be the same policy.

Each is made from good artifacts by a seeded generator. Where the manifest's hashes are made to fit
again, the deeper checks have to find it. What is accepted must give the original's chunks on the
original's probes: bit for bit, or, where a number of the graph or the weights was changed by too
little to see, within the artifact's tolerance; and it must be the same in everything that the loader
gives to the robot, topics and ages of its interface included. Outside the claim is what the manifest
merely tells (``TOLD``): no hash covers it, and only its author can vouch for it. What was accepted with
another tale is counted by the field. After each one the old policy acts once more.
"""

import collections
import importlib.util
import re
import resource
import time
from pathlib import Path

import numpy as np
import pytest

from qam_ros.contract.artifact import read_artifact, write_artifact
from qam_ros.contract.errors import ArtifactError, InterfaceError
from qam_ros.contract.interface import read_interface
from qam_ros.runtime.policy import PolicyCore
from qam_ros.runtime.sampler import OnnxSampler, verify

REASONS = (
    *("sha256 is", "not valid YAML", "not a text", "is missing", "unknown (key|file)"),
    *("its interface has", "not a readable zip", "leads out", "is a link", "packed by"),
    *("list of members", "there twice", "list of tensors", "safetensors blob"),
    *("golden chunks come out", "fails on", r"leave \[-1, 1\]", "not a readable npz"),
    *("NaN or infin", "has shape", "has type", "unknown (tensor|weight|array)"),
    *("not an ONNX model", "does not know", "operator sets", r"\(IR\)", "holds '"),
    *("is not allowed", "lies in another file", "a graph inside", "the manifest has"),
    *("the graph is inconsistent", "no fixed shape", "is said to have shape"),
    *("takes its sizes", "too large", "cannot be read", "outputs, expected"),
    *("is newer than", "is not known", "tolerance is", "the graph has", "start with"),
    *("given twice", "unknown (value|transform)", "at most", "expected"),
)


@pytest.fixture(scope="module")
def mutants():
    """The module mutants.py beside this file, which importlib mode cannot import."""
    path = Path(__file__).with_name("mutants.py")
    spec = importlib.util.spec_from_file_location("mutants", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Actor:
    """The policy that runs all the while."""

    def __init__(self, helpers, artifact):
        self.helpers = helpers
        self.k = 0
        self.core = PolicyCore(artifact, OnnxSampler(artifact), 7, session=b"p" * 16)
        self.core.on_event(helpers.event())

    def act(self):
        stamp_ns = self.k * self.helpers.period_ns
        self.core.on_observation(stamp_ns, self.helpers.joints(first=1e-4 * self.k))
        self.k += 1
        proposal = self.core.tick(stamp_ns)
        return proposal.policy_version, proposal.action.tobytes()


@pytest.fixture(scope="module")
def interface(helpers):
    """A robot of one joint pair and one wheel: most of a load is reading its manifest."""
    blocks = {key: [helpers.robot[key][-1]] for key in ("observation", "action")}
    return read_interface({**helpers.robot, **blocks})


@pytest.fixture(scope="module")
def sources(helpers, interface, mutants, tmp_path_factory):
    """Good artifacts: the one that runs, other weights, and another chunk length, as bytes."""
    folder = tmp_path_factory.mktemp("good")
    made = {
        "first": helpers.artifact(interface, width=8),
        "other": helpers.artifact(interface, width=8, seed=1, version=2),
        "longer": helpers.artifact(interface, width=8, chunk=4),
    }
    for name, artifact in made.items():
        parts = (
            artifact.manifest,
            artifact.onnx_bytes,
            artifact.weights,
            artifact.golden,
        )
        write_artifact(folder / name, *parts)
    return {n: {f: (folder / n / f).read_bytes() for f in mutants.FILES} for n in made}


def load(path, interface):
    """What a robot does before a policy may act."""
    artifact = read_artifact(path)
    sampler = OnnxSampler(artifact)
    verify(sampler, artifact)
    PolicyCore(artifact, sampler, 0, interface=interface)
    return artifact, sampler


TOLD = (
    *("algorithm", "run_id", "commit", "dataset_hash", "evaluation"),
    *("policy_version", "parent_version", "tolerance"),
)
"""Fields of a manifest that tell where a policy comes from. None changes a chunk; a false version decides
which later updates are taken for newer, a false tolerance (at most 0.1) how closely they are checked."""
DONE = ("head", "flow_steps", "chunk_length", "graph", "format_version")
"""Fields that say what is done with the graph."""


def proof(artifact, sampler, original, expected):
    """How the accepted artifact is known to be the original's policy; empty if it is not."""
    one, other = artifact.manifest, original.manifest
    same_policy = (
        one.interface.semantic_hash == other.interface.semantic_hash
        and one.interface.deployment_hash == other.interface.deployment_hash
        and all(getattr(one, name) == getattr(other, name) for name in DONE)
    )
    probes = original.golden
    chunks = sampler.sample_all(probes.observations, probes.noise)
    if not same_policy:
        return ""
    tale = [name for name in TOLD if getattr(one, name) != getattr(other, name)]
    told = f", told otherwise: {' '.join(tale)}" if tale else ""
    if chunks.tobytes() == expected.tobytes():
        return f"same chunks bit for bit{told}"
    error = np.abs(chunks - expected).max()
    within = error <= other.tolerance
    return f"same chunks within tolerance{told}" if within else ""


def reason_of(problem):
    text = str(problem)
    if isinstance(problem, InterfaceError):
        return "another robot interface"
    return next((reason for reason in REASONS if re.search(reason, text)), text)


@pytest.mark.timeout(600)  # ten seconds of a free core
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_every_mutated_artifact_is_refused_or_the_same_policy(
    helpers, interface, mutants, sources, tmp_path
):
    maker = mutants.Maker(sources, tmp_path, seed=20)
    original = read_artifact(maker.directory(maker.files))
    maker.tensors = original.weights
    sampler = OnnxSampler(original)
    expected = sampler.sample_all(original.golden.observations, original.golden.noise)
    actor, undisturbed = Actor(helpers, original), Actor(helpers, original)
    verdicts, slowest = collections.Counter(), 0.0
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for kind, count in mutants.COUNTS.items():
        for index in range(count):
            path = getattr(maker, kind)()
            started = time.process_time()
            try:
                artifact, sampler = load(path, interface)
            except (ArtifactError, InterfaceError) as problem:
                verdicts[f"refused: {reason_of(problem)}"] += 1
            else:
                shown = proof(artifact, sampler, original, expected)
                assert shown, f"{kind} {index}: another policy was accepted"
                verdicts[f"accepted: {shown}"] += 1
            slowest = max(slowest, time.process_time() - started)
            assert actor.act() == undisturbed.act()
    total = sum(verdicts.values())
    for line in sorted(verdicts.items(), key=lambda item: -item[1]):
        print(*line, sep="\t")  # noqa: T201 - pytest -s shows what was refused why
    assert total == sum(mutants.COUNTS.values()) >= 1000
    refused = sum(n for verdict, n in verdicts.items() if verdict.startswith("refused"))
    assert refused > 0.8 * total
    assert len(verdicts) > 25  # the deep checks are reached, not the hashes alone
    assert slowest < 5.0  # a hundred times the usual
    grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb
    assert grown_kb < 300_000
