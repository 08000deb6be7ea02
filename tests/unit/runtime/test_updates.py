# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import numpy as np
import pytest

from qam_ros.contract.messages import PolicyStatus
from qam_ros.contract.weights import encode_weights
from qam_ros.runtime.gate import check
from qam_ros.runtime.policy import Candidate, Swap
from qam_ros.runtime.sampler import OnnxSampler
from qam_ros.runtime.update_parts import GOLDEN_NAME, Offer, PartCollector, split_update
from qam_ros.runtime.updates import MAX_VERSION_STEP, REMEMBERED, PolicyUpdates

KEY = b"0123456789abcdef"


def changed(artifact, amount=0.05, seed=0):
    """Weights a little away from the artifact's, statistics untouched."""
    generator = np.random.default_rng(seed)
    return {
        name: value
        if name.startswith("observation_")
        else value
        + np.float32(amount) * generator.normal(size=value.shape).astype(np.float32)
        for name, value in artifact.weights.items()
    }


def golden_of(artifact, weights):
    sampler = OnnxSampler(artifact)
    sampler.set_weights(weights)
    return sampler.sample_all(artifact.golden.observations, artifact.golden.noise)


def make_parts(
    artifact, version=2, parent=1, weights=None, chunks=None, key=None, run_id="online"
):
    weights = changed(artifact) if weights is None else weights
    chunks = golden_of(artifact, weights) if chunks is None else chunks
    return split_update(
        encode_weights({**weights, GOLDEN_NAME: chunks}),
        run_id=run_id,
        version=version,
        parent_version=parent,
        key=key,
        part_bytes=1000,
    )


@pytest.fixture
def updates(artifact):
    return PolicyUpdates(artifact, OnnxSampler(artifact), robot="arm")


def offer(updates, parts):
    """Receive all parts and judge; the result of the last step."""
    results = [updates.receive(part) for part in parts]
    assert all(result is None for result in results[:-1])
    last = results[-1]
    return updates.judge(last) if isinstance(last, Offer) else last


def accept(updates, artifact, version, parent):
    weights = changed(artifact, seed=version)
    candidate = offer(updates, make_parts(artifact, version, parent, weights))
    assert isinstance(candidate, Candidate)
    return candidate, updates.swapped(Swap(version, candidate.probe_change, 10**5))


def test_good_weights_are_accepted_and_reported_after_the_swap(updates, artifact):
    candidate, status = accept(updates, artifact, 2, 1)
    assert candidate.version == 2
    assert 0 < candidate.probe_change < 0.3
    assert status.accepted
    assert (status.running_version, status.offered_version) == (2, 2)
    assert (status.swaps, status.refused, status.robot) == (1, 0, "arm")
    assert status.swap_ms == pytest.approx(0.1)


def test_parts_come_in_any_order_and_repeatedly(artifact):
    parts = make_parts(artifact)
    assert len(parts) > 3
    collector = PartCollector()
    mixed = [parts[-1], *parts[:-1], *parts[:-1]]
    results = [collector.add(part) for part in mixed]
    whole = [result for result, _ in results if result is not None]
    assert whole[0].data == b"".join(part.data for part in parts)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"part": 7, "parts": 7}, "part 7 of 7"),
        ({"parts": 100_000}, "at most 4096"),
        ({"total_size": 10**9}, "at most 268435456"),
        ({"total_size": 5}, "size 5 bytes"),
    ],
)
def test_parts_that_cannot_be_are_refused(updates, artifact, change, words):
    status = updates.receive(replace(make_parts(artifact)[0], **change))
    assert isinstance(status, PolicyStatus)
    assert words in status.reason
    assert status.refused == 1


def test_damaged_data_is_refused_but_may_be_sent_again(updates, artifact):
    parts = make_parts(artifact)
    data = bytes([parts[1].data[0] ^ 1]) + parts[1].data[1:]
    damaged = [parts[0], replace(parts[1], data=data), *parts[2:]]
    status = offer(updates, damaged)
    assert "sha256" in status.reason
    assert isinstance(offer(updates, parts), Candidate)


def test_signature_is_required_where_a_key_is_configured(artifact):
    updates = PolicyUpdates(artifact, OnnxSampler(artifact), robot="arm", key=KEY)
    assert "HMAC" in offer(updates, make_parts(artifact)).reason
    assert "HMAC" in offer(updates, make_parts(artifact, key=b"x" * 16)).reason
    assert isinstance(offer(updates, make_parts(artifact, key=KEY)), Candidate)


def test_a_verdict_is_repeated_without_judging_again(updates, artifact):
    parts = make_parts(artifact, weights=changed(artifact, amount=3.0))
    first = offer(updates, parts)
    assert "mean action change" in first.reason
    again = updates.receive(parts[0])
    assert (again.reason, again.accepted, again.refused) == (first.reason, False, 1)


def test_an_update_of_an_unknown_parent_may_be_offered_again_with_another(
    updates, artifact
):
    """A policy that began anew does not know what its learner has yet to unlearn."""
    refused = offer(updates, make_parts(artifact, version=3, parent=2))
    assert "made from version 2, which never ran here" in refused.reason
    assert isinstance(offer(updates, make_parts(artifact, version=3)), Candidate)


def test_an_update_offered_again_before_its_swap_is_not_refused(updates, artifact):
    parts = make_parts(artifact)
    whole = [updates.receive(part) for part in parts][-1]
    assert all(updates.receive(part) is None for part in parts)
    candidate = updates.judge(whole)
    assert all(updates.receive(part) is None for part in parts)
    status = updates.swapped(Swap(candidate.version, candidate.probe_change, 0))
    again = updates.receive(parts[0])
    assert (again.offered_version, again.accepted) == (2, True)
    assert (again.running_version, again.swap_ms) == (2, status.swap_ms)


def test_an_error_while_judging_refuses_the_update_with_its_reason(
    updates, artifact, monkeypatch
):
    def fail(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(updates._sampler, "sample_all", fail)
    status = offer(updates, make_parts(artifact))
    assert not status.accepted
    assert "could not be judged: RuntimeError: out of memory" in status.reason
    assert updates.refused == 1
    monkeypatch.undo()
    assert isinstance(offer(updates, make_parts(artifact, version=3)), Candidate)


def test_versions_only_grow(updates, artifact):
    accept(updates, artifact, 5, 1)
    assert "not newer" in offer(updates, make_parts(artifact, 4, 5)).reason


def test_a_version_far_ahead_is_refused_and_locks_nothing_out(updates, artifact):
    far = offer(updates, make_parts(artifact, 1 + MAX_VERSION_STEP + 5, 1))
    assert "too far ahead of version 1" in far.reason
    accept(updates, artifact, 2, 1)
    near = offer(updates, make_parts(artifact, 2 + MAX_VERSION_STEP, 2))
    assert isinstance(near, Candidate)


def test_updates_of_another_run_are_ignored_once_one_was_accepted(updates, artifact):
    accept(updates, artifact, 2, 1)
    before = updates.status
    for part in make_parts(artifact, 3, 2, run_id="other"):
        assert updates.receive(part) is None
    # No verdict: the run that is followed would take one on version 3 for its own.
    assert updates.status is before
    assert updates.ignored == 1
    assert "run 'other'" in updates.last_refusal
    assert "follows run 'online'" in updates.last_refusal
    assert "restart the policy" in updates.last_refusal
    accept(updates, artifact, 3, 2)


def test_a_refused_run_does_not_keep_another_from_its_versions(updates, artifact):
    refused = offer(updates, make_parts(artifact, parent=77, run_id="other"))
    assert "made from version 77" in refused.reason
    accept(updates, artifact, 2, 1)


def test_an_update_of_another_run_that_waits_for_its_verdict_is_refused(
    updates, artifact
):
    waiting = [
        updates.receive(part) for part in make_parts(artifact, 4, 1, run_id="other")
    ]
    accept(updates, artifact, 2, 1)
    assert "run 'other'" in updates.judge(waiting[-1]).reason


def test_parts_never_add_up_to_more_than_was_announced(updates, artifact):
    parts = make_parts(artifact)
    long = replace(parts[1], data=parts[1].data + b"x" * len(parts[-1].data))
    results = [updates.receive(part) for part in [parts[0], long, *parts[2:]]]
    assert "more than the" in results[-1].reason
    assert isinstance(offer(updates, parts), Candidate)


def with_value(weights, name, value):
    tensor = weights[name].copy()
    tensor.flat[0] = value
    return {**weights, name: tensor}


def test_not_a_number_in_the_weights_is_refused_by_name(updates, artifact):
    weights = with_value(changed(artifact), "1/weight", np.nan)
    parts = make_parts(artifact, weights=weights, chunks=artifact.golden.chunks)
    status = offer(updates, parts)
    assert not status.accepted
    assert "1/weight" in status.reason
    assert status.running_version == 1
    assert "1/weight" in updates.last_refusal


def test_failing_golden_chunks_are_refused(updates, artifact):
    chunks = golden_of(artifact, changed(artifact)) + np.float32(0.01)
    status = offer(updates, make_parts(artifact, chunks=chunks))
    assert "golden chunks are" in status.reason


def test_tensors_that_do_not_fit_are_refused(updates, artifact):
    weights = changed(artifact)
    chunks = golden_of(artifact, weights)
    weights["1/weight"] = weights["1/weight"][:-1]
    status = offer(updates, make_parts(artifact, weights=weights, chunks=chunks))
    assert "1/weight" in status.reason
    assert "shape" in status.reason


def test_rollback_returns_to_the_version_before(updates, artifact):
    assert updates.rollback() is None
    accept(updates, artifact, 2, 1)
    accept(updates, artifact, 3, 2)
    candidate = updates.rollback()
    assert candidate.version == 2
    status = updates.swapped(Swap(2, 0.0, 0))
    assert (status.running_version, status.reason) == (2, "rolled back")
    accept(updates, artifact, 4, 2)
    assert updates.rollback().version == 2


def test_a_candidate_that_was_rolled_back_before_its_swap_does_not_stand(
    updates, artifact
):
    candidate = offer(updates, make_parts(artifact, 2, 1))
    assert updates.stands(candidate)
    before = updates.rollback()
    assert not updates.stands(candidate)
    assert updates.stands(before)


def test_verdicts_name_version_and_reason(updates, artifact):
    accept(updates, artifact, 2, 1)
    assert updates.last_verdict.startswith("version 2: accepted, mean action change")
    weights = with_value(changed(artifact), "1/weight", np.inf)
    offer(updates, make_parts(artifact, 3, 2, weights, artifact.golden.chunks))
    assert updates.last_verdict.startswith("version 3: refused, update 3: '1/weight'")
    updates = PolicyUpdates(artifact, OnnxSampler(artifact), robot="arm", budget=1e-6)
    offer(updates, make_parts(artifact, 2, 1))
    assert "version 2: refused, mean action change" in updates.last_verdict


def test_only_the_last_versions_are_kept(updates, artifact):
    for version in range(2, 6):
        accept(updates, artifact, version, version - 1)
    assert [updates.rollback().version for _ in range(2)] == [4, 3]
    assert updates.rollback() is None


def test_remembered_verdicts_are_bounded(updates, artifact):
    part = make_parts(artifact)[-1]
    for version in range(10, 10 + REMEMBERED + 50):
        whole = Offer(replace(part, version=version, parent_version=999), b"")
        updates.judge(Offer(replace(whole.header, total_size=0), b""))
    assert len(updates._decided) <= REMEMBERED


def run_of(artifact):
    sampler = OnnxSampler(artifact)

    def run(weights, observations, noise):
        sampler.set_weights(weights)
        return sampler.sample_all(observations, noise)

    return run


def judge(artifact, weights, *, run=None, chunks=None, budget=0.3):
    golden = artifact.golden
    if chunks is None:
        chunks = golden_of(artifact, weights)
    run = run or run_of(artifact)
    golden = replace(golden, chunks=chunks)
    return check(weights, artifact.weights, run, golden, 1e-5, budget)


def test_gate_measures_the_change_of_the_policy(artifact):
    assert judge(artifact, dict(artifact.weights)).probe_change == 0.0
    verdict = judge(artifact, changed(artifact))
    chunks = golden_of(artifact, changed(artifact))
    expected = np.abs(chunks - artifact.golden.chunks).mean()
    assert verdict.accepted
    assert verdict.probe_change == pytest.approx(expected, rel=1e-6)


def test_gate_refuses_a_change_beyond_the_budget(artifact):
    verdict = judge(artifact, changed(artifact), budget=1e-6)
    assert not verdict.accepted
    assert "mean action change" in verdict.reason
    assert verdict.probe_change > 1e-6


def test_gate_refuses_changed_statistics(artifact):
    weights = with_value(changed(artifact), "observation_mean", 1.0)
    assert "statistics are frozen" in judge(artifact, weights).reason


def test_gate_refuses_other_tensors(artifact):
    weights = changed(artifact)
    extra = {**weights, "more": np.zeros(1, np.float32)}
    chunks = artifact.golden.chunks
    assert "more" in judge(artifact, extra, chunks=chunks).reason
    wrong = {**weights, "1/bias": np.zeros(3, np.float32)}
    assert "shape" in judge(artifact, wrong, chunks=chunks).reason
    bad = with_value(weights, "1/bias", np.inf)
    assert "NaN or infinity" in judge(artifact, bad, chunks=chunks).reason


@pytest.mark.parametrize(("value", "words"), [(np.nan, "not finite"), (1.5, "leave")])
def test_gate_refuses_chunks_outside_the_box(artifact, value, words):
    chunks = np.full_like(artifact.golden.chunks, value)
    verdict = judge(
        artifact,
        changed(artifact),
        run=lambda *_: chunks,
        chunks=artifact.golden.chunks,
    )
    assert not verdict.accepted
    assert words in verdict.reason
