# SPDX-License-Identifier: Apache-2.0
"""Which update a version number stands for, what a signature covers, and what a rollback tells."""

from dataclasses import replace

import numpy as np
import pytest

from qam_ros.contract.messages import PolicyStatus
from qam_ros.contract.weights import encode_weights
from qam_ros.runtime.policy import Candidate, Swap
from qam_ros.runtime.sampler import OnnxSampler
from qam_ros.runtime.update_parts import (
    GOLDEN_NAME,
    Offer,
    canonical_header,
    sign,
    split_update,
)
from qam_ros.runtime.updates import PolicyUpdates

KEY = b"0123456789abcdef"


def make_parts(
    artifact, version=2, parent=1, *, seed=0, spread=0.05, key=None, run_id="online"
):
    """Parts of an update whose weights are a function of the seed."""
    draw = np.random.default_rng(seed)
    weights = {
        name: value
        if name.startswith("observation_")
        else value + draw.normal(0, spread, value.shape).astype(np.float32)
        for name, value in artifact.weights.items()
    }
    sampler = OnnxSampler(artifact)
    sampler.set_weights(weights)
    golden = artifact.golden
    chunks = sampler.sample_all(golden.observations, golden.noise)
    return split_update(
        encode_weights({**weights, GOLDEN_NAME: chunks}),
        run_id=run_id,
        version=version,
        parent_version=parent,
        key=key,
        part_bytes=4000,
    )


@pytest.fixture
def updates(artifact):
    return PolicyUpdates(artifact, OnnxSampler(artifact), robot="arm")


@pytest.fixture
def signed(artifact):
    return PolicyUpdates(artifact, OnnxSampler(artifact), robot="arm", key=KEY)


def offer(updates, parts):
    """Receive all parts and judge; the result of the last step."""
    last = [updates.receive(part) for part in parts][-1]
    return updates.judge(last) if isinstance(last, Offer) else last


def swap(updates, version):
    return updates.swapped(Swap(version, 0.1, 10**5))


def run(updates, artifact, version, parent):
    """Offer, accept and swap in a version."""
    assert isinstance(
        offer(updates, make_parts(artifact, version, parent, seed=version)), Candidate
    )
    return swap(updates, version)


def facts(status):
    return status.running_version, status.offered_version, status.accepted


# One number, one content.


def test_other_weights_under_an_accepted_version_are_refused(updates, artifact):
    run(updates, artifact, 2, 1)
    status = offer(updates, make_parts(artifact, 2, 1, seed=99))
    assert isinstance(status, PolicyStatus)
    assert facts(status) == (2, 2, False)
    for words in ("version 2", "other content", "restart the policy", "continue"):
        assert words in status.reason
    assert updates.refused == 1


def test_other_weights_under_a_refused_version_do_not_get_its_verdict(
    updates, artifact
):
    first = offer(updates, make_parts(artifact, 2, 1, spread=3.0))
    assert "mean action change" in first.reason
    second = offer(updates, make_parts(artifact, 2, 1, seed=99))
    assert "other content" in second.reason


def test_a_refusal_of_other_content_leaves_the_verdict_on_the_first(updates, artifact):
    parts = make_parts(artifact, 2, 1)
    offer(updates, parts)
    swap(updates, 2)
    offer(updates, make_parts(artifact, 2, 1, seed=99))
    again = updates.receive(parts[0])
    assert facts(again) == (2, 2, True)
    assert again.refused == 1


def test_other_weights_get_no_verdict_while_their_version_waits_for_one(
    updates, artifact
):
    parts, others = make_parts(artifact), make_parts(artifact, seed=99)
    whole = [updates.receive(part) for part in parts][-1]
    assert all(updates.receive(part) is None for part in others)
    assert isinstance(updates.judge(whole), Candidate)
    assert all(updates.receive(part) is None for part in others)
    swap(updates, 2)
    assert "other content" in offer(updates, others).reason


def test_the_version_of_the_artifact_cannot_be_offered(updates, artifact):
    assert "not newer" in offer(updates, make_parts(artifact, 1, 1)).reason


def test_a_damaged_header_is_not_taken_for_other_content(updates, artifact):
    run(updates, artifact, 2, 1)
    parts = make_parts(artifact, 2, 1, seed=2)
    status = offer(updates, [replace(part, sha256=b"x" * 32) for part in parts])
    assert "damaged on the way" in status.reason


# What a signature covers.


@pytest.mark.parametrize(
    "forged",
    [{"version": 9}, {"parent_version": 0}, {"run_id": "onlinf"}, {"run_id": ""}],
)
def test_a_signed_update_under_a_forged_header_is_refused(signed, artifact, forged):
    parts = make_parts(artifact, key=KEY)
    status = offer(signed, [replace(part, **forged) for part in parts])
    assert isinstance(status, PolicyStatus)
    assert "HMAC" in status.reason
    assert isinstance(offer(signed, parts), Candidate)


def test_an_old_signed_blob_does_not_run_under_a_new_version(signed, artifact):
    old = make_parts(artifact, 2, 1, key=KEY)
    offer(signed, old)
    swap(signed, 2)
    offer(signed, make_parts(artifact, 3, 2, key=KEY, seed=3))
    swap(signed, 3)
    replayed = [replace(part, version=4, parent_version=3) for part in old]
    assert "HMAC" in offer(signed, replayed).reason
    assert signed.running_version == 3
    real = make_parts(artifact, 4, 3, key=KEY, seed=4)
    assert isinstance(offer(signed, real), Candidate)


def test_the_number_of_parts_and_the_size_are_signed(artifact):
    (part,) = {part.parts: part for part in make_parts(artifact, key=KEY)}.values()
    for change in ({"parts": part.parts + 1}, {"total_size": part.total_size + 1}):
        assert sign(replace(part, **change), KEY) != part.hmac
    assert sign(part, KEY) == part.hmac


def test_no_two_headers_have_the_same_encoding(artifact):
    part = make_parts(artifact)[0]
    texts = ("", "a", "ab", "a\0", "\0a", "é", "a" * 300)
    numbers = (0, 1, 256, 2**32 - 1)
    headers = {
        canonical_header(
            replace(part, run_id=run_id, version=version, parent_version=parent)
        )
        for run_id in texts
        for version in numbers
        for parent in numbers
    }
    assert len(headers) == len(texts) * len(numbers) ** 2


def test_the_encoding_of_the_header_is_the_documented_one(artifact):
    part = replace(make_parts(artifact)[0], run_id="é1", version=258, parent_version=3)
    part = replace(part, parts=5, total_size=1025, sha256=bytes(range(32)))
    assert canonical_header(part) == (
        b"qam_ros policy update, signature 2\0"
        + b"\x00\x00\x00\x03\xc3\xa91"
        + bytes([0, 0, 0, 0, 0, 0, 1, 2])
        + bytes([0, 0, 0, 0, 0, 0, 0, 3])
        + bytes([0, 0, 0, 5])
        + bytes([0, 0, 0, 0, 0, 0, 4, 1])
        + bytes(range(32))
    )


# What a rollback tells the learner.


def test_a_version_rolled_back_before_its_swap_is_refused(updates, artifact):
    run(updates, artifact, 2, 1)
    parts = make_parts(artifact, 3, 2, seed=3)
    assert isinstance(offer(updates, parts), Candidate)
    assert updates.rollback().version == 2
    assert facts(updates.status) == (2, 3, False)
    assert updates.status.reason == "rolled back before it ran"
    assert facts(updates.receive(parts[0])) == (2, 3, False)  # offered again
    assert facts(swap(updates, 2)) == (2, 3, False)  # the old weights once more
    assert (updates.swaps, updates.refused) == (1, 1)
    run(updates, artifact, 4, 2)


def test_the_status_after_a_rollback_names_the_version_that_was_left(updates, artifact):
    run(updates, artifact, 2, 1)
    left = make_parts(artifact, 3, 2, seed=3)
    offer(updates, left)
    swap(updates, 3)
    updates.rollback()
    status = swap(updates, 2)
    # Accepted, and yet something older runs: nothing but a rollback says that.
    assert facts(status) == (2, 3, True)
    assert status.reason == "rolled back"
    assert facts(updates.receive(left[0])) == (2, 3, True)
    kept = make_parts(artifact, 2, 1, seed=2)
    assert facts(updates.receive(kept[0])) == (2, 2, True)


def test_two_rollbacks_at_once_lead_to_one_swap(updates, artifact):
    for version in (2, 3):
        run(updates, artifact, version, version - 1)
    updates.rollback()
    updates.rollback()
    assert facts(swap(updates, 1)) == (1, 2, True)
    newest = make_parts(artifact, 3, 2, seed=3)
    assert facts(updates.receive(newest[0])) == (1, 3, True)


def test_an_update_on_its_way_during_a_rollback_does_not_undo_it(updates, artifact):
    for version in (2, 3):
        run(updates, artifact, version, version - 1)
    updates.rollback()
    status = offer(updates, make_parts(artifact, 4, 3, seed=4))
    assert "version 3 ran, which was rolled back" in status.reason
    swap(updates, 2)
    run(updates, artifact, 5, 2)


def test_an_update_judged_during_a_rollback_does_not_undo_it(
    updates, artifact, monkeypatch
):
    run(updates, artifact, 2, 1)
    sample_all = updates._sampler.sample_all

    def roll_back(*arguments):
        monkeypatch.undo()
        updates.rollback()
        return sample_all(*arguments)

    monkeypatch.setattr(updates._sampler, "sample_all", roll_back)
    status = offer(updates, make_parts(artifact, 3, 2, seed=3))
    assert "compared with was rolled back" in status.reason
    assert facts(swap(updates, 1)) == (1, 2, True)


def test_a_rollback_that_comes_just_after_the_swap_tells_the_truth_in_the_end(
    updates, artifact
):
    run(updates, artifact, 2, 1)
    offer(updates, make_parts(artifact, 3, 2, seed=3))
    updates.rollback()  # the control thread has swapped, the news is on its way
    assert facts(swap(updates, 3)) == (3, 3, True)
    status = swap(updates, 2)
    assert facts(status) == (2, 3, True)
    assert status.reason == "rolled back"


def test_a_verdict_given_again_says_what_runs_now(updates, artifact):
    run(updates, artifact, 2, 1)
    first = make_parts(artifact, 2, 1, seed=2)
    run(updates, artifact, 3, 2)
    again = updates.receive(first[0])
    assert facts(again) == (3, 2, True)
    assert again.swaps == 2
