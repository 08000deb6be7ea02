# SPDX-License-Identifier: Apache-2.0
"""Damaged and forged policy updates: refused with a reason, and the old weights go on acting.

With a key whatever was changed is refused. Without one a forger can make the hash fit, and the deeper
checks have to find it; weights changed by too little to see may pass, and then give the chunks of the
good update within the artifact's tolerance.
"""

import collections
import re
from dataclasses import replace

import numpy as np
import pytest

from qam_ros.contract.interface import read_interface
from qam_ros.contract.messages import PolicyStatus
from qam_ros.contract.weights import encode_weights
from qam_ros.runtime.policy import Candidate, PolicyCore
from qam_ros.runtime.sampler import OnnxSampler
from qam_ros.runtime.update_parts import GOLDEN_NAME, Offer, split_update
from qam_ros.runtime.updates import PolicyUpdates

KEY = b"0123456789abcdef"
REASONS = (
    *("HMAC", "another sha256", "safetensors blob", "NaN or infin", "has shape"),
    *("unknown tensor|is missing", "golden chunks are", "leave", "list of tensors"),
    *("statistics are frozen", "mean action change", "never ran here", "not newer"),
    *("too far ahead", "of run", "at most", "more than the", "has type"),
)


@pytest.fixture(scope="module")
def policy(helpers):
    blocks = {key: [helpers.robot[key][-1]] for key in ("observation", "action")}
    return helpers.artifact(read_interface({**helpers.robot, **blocks}), width=8)


class Forger:
    """Makes mutated updates of a good one.

    Args:
        policy: artifact that runs.
        seed: of everything drawn.
    """

    def __init__(self, policy, seed):
        self.draw = np.random.default_rng(seed)
        self.policy = policy
        self.sampler = OnnxSampler(policy)
        self.tensors = self._changed(0.05)
        self.chunks = self.tensors[GOLDEN_NAME]

    def _changed(self, amount):
        """Weights a little away from the policy's, with the chunks that they give."""
        golden = self.policy.golden
        weights = {
            name: value
            if name.startswith("observation_")
            else value + self.draw.normal(0, amount, value.shape).astype(np.float32)
            for name, value in self.policy.weights.items()
        }
        self.sampler.set_weights(weights)
        chunks = self.sampler.sample_all(golden.observations, golden.noise)
        return {**weights, GOLDEN_NAME: chunks}

    def pick(self, items):
        return list(items)[int(self.draw.integers(len(items)))]

    def split(self, data, key=None, **header):
        header = {"run_id": "online", "version": 2, "parent_version": 1} | header
        return split_update(data, key=key, part_bytes=700, **header)

    def good(self, key=None, **header):
        return self.split(encode_weights(self.tensors), key, **header)

    def flipped(self, data):
        data = bytearray(data)
        for _ in range(int(self.draw.integers(1, 5))):
            at = int(self.draw.integers(8 * len(data)))
            data[at // 8] ^= 1 << at % 8
        return bytes(data)

    # One method per kind of mutation; each gives parts to receive.

    def bits(self):
        parts = self.good(KEY)
        index = int(self.draw.integers(len(parts)))
        parts[index] = replace(parts[index], data=self.flipped(parts[index].data))
        return parts

    def shortened(self):
        parts = self.good(KEY)
        index = int(self.draw.integers(len(parts)))
        data = parts[index].data
        parts[index] = replace(parts[index], data=data[: self.draw.integers(len(data))])
        return parts

    def mixed(self):
        """Parts of two updates that say they belong together."""
        parts = self.good(KEY)
        others = self.split(encode_weights(self._changed(0.05)), KEY)
        index = int(self.draw.integers(len(parts)))
        parts[index] = replace(parts[index], data=others[index].data)
        return parts

    def header(self):
        field, values = self.pick(
            {
                "parent_version": (0, 7, 2**63),
                "version": (0, 1, 10**9, 2**63),
                "total_size": (0, 1, 699, 10**6, 2**40),
                "parts": (0, 1, 2, 5000),
                "sha256": (bytes(32), b"", b"x" * 32),
                "hmac": (bytes(32), b"", b"x" * 32),
            }.items()
        )
        change = {field: self.pick(values)}
        return [replace(part, **change) for part in self.good(KEY)]

    def unsigned(self):
        """A forger without the key makes the hash fit."""
        return self.forged_bits()

    def forged_bits(self):
        return self.split(self.flipped(encode_weights(self.tensors)))

    def forged_truncation(self):
        data = encode_weights(self.tensors)
        return self.split(data[: int(self.draw.integers(1, len(data)))])

    def forged_tensors(self):
        tensors = dict(self.tensors)
        name = self.pick(tensors)
        tensor = tensors.pop(name)
        other = self.pick(tensors)
        edits = (
            lambda: {**tensors, name + "_": tensor},
            lambda: tensors,
            lambda: {**tensors, name: tensor[..., None]},
            lambda: {**tensors, name: tensor * np.float32(np.nan)},
            lambda: {**tensors, name: tensor + np.float32(0.5)},
            lambda: {**tensors, name: tensors[other]},
            lambda: {**tensors, name: tensor * np.float32(1e30)},
        )
        return self.split(encode_weights(self.pick(edits)()))

    def forged_policy(self):
        """Consistent, but far from what runs, or with other statistics."""
        tensors = self._changed(3.0)
        if self.draw.random() < 0.5:
            tensors = {**self.tensors, "observation_mean": tensors["0/bias"][:2]}
        return self.split(encode_weights(tensors))


COUNTS = {
    "bits": 100, "shortened": 50, "mixed": 40, "header": 80, "unsigned": 60,
    "forged_bits": 120, "forged_truncation": 40, "forged_tensors": 80,
    "forged_policy": 40,
}  # fmt: skip


class Actor:
    """The policy that runs all the while."""

    def __init__(self, helpers, policy):
        self.helpers = helpers
        self.k = 0
        self.core = PolicyCore(policy, OnnxSampler(policy), 7, session=b"p" * 16)
        self.core.on_event(helpers.event())

    def act(self):
        stamp_ns = self.k * self.helpers.period_ns
        self.core.on_observation(stamp_ns, self.helpers.joints(first=1e-4 * self.k))
        self.k += 1
        proposal = self.core.tick(stamp_ns)
        return proposal.policy_version, proposal.action.tobytes()


def verdict_on(parts, updates):
    """What comes of an update: a candidate, the reason of a refusal, or that it stays incomplete."""
    result = None
    for part in parts:
        answer = updates.receive(part)
        if isinstance(answer, Offer):
            answer = updates.judge(answer)
        if isinstance(answer, Candidate):
            return answer
        if isinstance(answer, PolicyStatus):
            assert not answer.accepted
            result = answer.reason
    return result or "never whole"


@pytest.mark.timeout(600)  # four seconds of a free core
def test_every_mutated_update_is_refused_or_the_same_and_the_old_policy_acts_on(
    helpers, policy
):
    forger = Forger(policy, seed=21)
    sampler, golden = OnnxSampler(policy), policy.golden
    actor, undisturbed = Actor(helpers, policy), Actor(helpers, policy)
    verdicts = collections.Counter()
    for kind, count in COUNTS.items():
        key = None if kind.startswith("forged") else KEY
        for index in range(count):
            updates = PolicyUpdates(policy, sampler, robot="arm", key=key)
            verdict = verdict_on(getattr(forger, kind)(), updates)
            if isinstance(verdict, Candidate):
                assert key is None, f"{kind} {index}: accepted without a signature"
                sampler.load(verdict.flat)
                chunks = sampler.sample_all(golden.observations, golden.noise)
                error = np.abs(chunks - forger.chunks).max()
                assert error <= policy.manifest.tolerance, f"{kind} {index}"
                verdicts["accepted: same chunks within tolerance"] += 1
            else:
                reason = next((r for r in REASONS if re.search(r, verdict)), verdict)
                verdicts[f"refused: {reason}"] += 1
                assert updates.running_version == 1
                good = verdict_on(forger.good(key, version=3), updates)
                assert isinstance(good, Candidate), f"{kind} {index} locks out the next"
            assert actor.act() == undisturbed.act()
    for line in sorted(verdicts.items(), key=lambda item: -item[1]):
        print(*line, sep="\t")  # noqa: T201 - pytest -s shows what was refused why
    assert sum(verdicts.values()) == sum(COUNTS.values()) >= 600
    assert len(verdicts) > 10
    assert verdicts["accepted: same chunks within tolerance"] < 60
