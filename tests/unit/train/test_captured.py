# SPDX-License-Identifier: Apache-2.0
"""Recorded updates: replayed on the same memory they equal the plain loop, for every method.

A CUDA graph repeats kernels on fixed memory without their Python. The recorder of these tests does
just that on the CPU: it writes down every operation with its very tensors, refuses any that hands a
number to the host, and repeats the list. So what a graph would freeze or forget shows here, too.
"""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qam_train.agents.registry import METHODS
from qam_train.captured import CapturedUpdates, recorder_for
from qam_train.checkpoint import read_checkpoint, write_checkpoint
from qam_train.data.dataset import FlatDataset
from qam_train.offline_trainer import NonFiniteError, OfflineTrainer

aten = torch.ops.aten
TO_HOST = {  # their result, or its size, is only known to the host after the device has finished
    aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.is_nonzero,
    aten.unique_dim, aten._unique2, aten.bincount, aten.repeat_interleave,
}  # fmt: skip
FROM_HOST = {aten.lift_fresh}  # torch.tensor(numbers): a copy that the device waits for
NAMES = sorted(METHODS)
OPTIONS = [  # settings that change what an update computes
    ("rebrac", {"actor_every": 2}), ("qsm", {"sampler": "posterior"}), ("sqam", {"masked": True}),
    ("qam_edit", {"masked": True}), ("bam", {"masked": True}), ("fql", {"masked": True}),
]  # fmt: skip
RATES = [2.0**-10, 2.0**-12, 2.0**-11]  # the same in float32, as a recording holds them


class Tape(TorchDispatchMode):
    """Writes operations down with their tensors; repeat() does them again on the same memory."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        packet = func.overloadpacket
        assert packet not in TO_HOST | FROM_HOST, f"{func} needs the host"
        if packet in (aten.index, aten.index_put, aten.index_put_):
            masks = [x for x in args[1] if x is not None and x.dtype == torch.bool]
            assert not masks, f"{func} with a mask needs the host"
        out = func(*args, **kwargs)
        made = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        assert not any(x.is_meta for x in made), f"{func} names no device"
        self.lines.append((func, args, kwargs, out))
        return out

    @torch.no_grad()
    def repeat(self):
        for func, args, kwargs, out in self.lines:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                # a view, or changed in place: it is there already
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class TapeRecorder:
    """Recorder of CapturedUpdates on a Tape."""

    def __init__(self):
        self.recordings = 0

    def run(self, work):
        work()

    def record(self, work, generator):
        """Unlike a graph's, this recording does the work; so its first replay does nothing."""
        self.recordings += 1
        tape = Tape()
        with torch.device("meta"), tape:  # where a tensor goes that names no device
            work()
        fresh = [True]

        def replay():
            if not fresh.pop():
                tape.repeat()
            fresh.append(False)

        return replay


def _agent(small_config, data, name, **agent):
    config = small_config(name, behaviour={"updates": 0}, agent=agent)
    return OfflineTrainer(config, data).agent


def _plain(agent, data, generator, rates):
    for rate in rates:
        batch = agent.draw_batch(data, generator, pad_terminated=True)
        noise = agent.draw_noise(agent.config.batch_size, generator)
        metrics = agent.update(batch, noise, rate)
    return metrics


def _pair(small_config, data, name="qam", **agent):
    """Two equal agents, each with its generator."""
    agents = [_agent(small_config, data, name, **agent) for _ in range(2)]
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    return zip(agents, generators, strict=True)


def _captured(agent, data, generator, recorder, k=2):
    return CapturedUpdates(
        agent, data, generator, per_replay=k, pad_terminated=True, recorder=recorder
    )


def _assert_same(first, second):
    ours, reference = first.state_dict(), second.state_dict()
    assert ours.keys() == reference.keys()
    different = [n for n in ours if not torch.equal(ours[n], reference[n])]
    assert not different


def _other_rows(data, shift):
    return FlatDataset(
        data.observations + shift, -data.actions, data.rewards, data.masks,
        data.terminals, data.valid, data.end_observations + shift, data.end_index,
    )  # fmt: skip


@pytest.mark.parametrize(("name", "agent"), [(name, {}) for name in NAMES] + OPTIONS)
def test_replayed_updates_equal_the_plain_loop_and_never_ask_the_host(
    small_config, small_data, name, agent
):
    (ours, our_draws), (reference, draws) = _pair(
        small_config, small_data, name, **agent
    )
    rates = RATES * 3
    captured = _captured(ours, small_data, our_draws, TapeRecorder())
    captured.launch(rates)  # 2 as they are, 6 recorded, 1 left over
    metrics = _plain(reference, small_data, draws, rates)
    _assert_same(ours, reference)
    assert torch.equal(our_draws.get_state(), draws.get_state())
    outcome = captured.settle()
    assert outcome.failed_after is None
    assert list(outcome.metrics) == list(metrics)
    assert all(torch.equal(outcome.metrics[n], metrics[n]) for n in metrics)


@pytest.mark.parametrize("k", [1, 4, 10])
def test_without_a_recorder_any_number_per_call_equals_the_plain_loop(
    small_config, small_data, k
):
    (ours, our_draws), (reference, draws) = _pair(small_config, small_data, "trqam")
    rates = [1e-3 * 0.9**i for i in range(9)]
    captured = _captured(ours, small_data, our_draws, None, k)
    captured.launch(rates[:4])
    captured.launch(rates[4:])
    metrics = _plain(reference, small_data, draws, rates)
    _assert_same(ours, reference)
    last = captured.settle().metrics
    assert all(torch.equal(last[n], metrics[n]) for n in metrics)


def test_one_recording_serves_a_whole_schedule_of_learning_rates(
    small_config, small_data
):
    (ours, our_draws), (reference, draws) = _pair(small_config, small_data)
    rates = [2.0**-i for i in range(6, 18)]
    recorder = TapeRecorder()
    captured = _captured(ours, small_data, our_draws, recorder)
    for first in range(0, len(rates), 4):
        captured.launch(rates[first : first + 4])
    _plain(reference, small_data, draws, rates)
    _assert_same(ours, reference)
    assert recorder.recordings == 1


def test_a_loaded_state_is_what_the_recording_goes_on_from(small_config, small_data):
    (ours, our_draws), (reference, draws) = _pair(small_config, small_data, "trqam")
    captured = _captured(ours, small_data, our_draws, TapeRecorder())
    start = {name: value.clone() for name, value in ours.state_dict().items()}
    place = our_draws.get_state()
    captured.launch(RATES * 2)
    ours.load_state_dict(start)
    our_draws.set_state(place)
    captured.launch(RATES * 2)
    _plain(reference, small_data, draws, RATES * 2)
    _assert_same(ours, reference)


def test_other_rows_of_the_same_sizes_are_read_by_the_same_recording(
    small_config, small_data
):
    (ours, our_draws), (reference, draws) = _pair(small_config, small_data, "rql")
    files = [small_data, *(_other_rows(small_data, shift) for shift in (1.0, 2.0, 3.0))]
    before = [rows.observations.clone() for rows in files]
    recorder = TapeRecorder()
    captured = _captured(ours, small_data, our_draws, recorder)
    for rows in files:
        captured.replace(rows)
        captured.launch(RATES[:2] * 2)
        _plain(reference, rows, draws, RATES[:2] * 2)
    _assert_same(ours, reference)
    assert recorder.recordings == 2  # anew on rows of its own, then never again
    for rows, kept in zip(files, before, strict=True):
        assert torch.equal(rows.observations, kept)


def test_rows_that_are_there_already_are_not_copied_again(
    small_config, small_data, monkeypatch
):
    [(ours, our_draws), _] = _pair(small_config, small_data)
    captured = _captured(ours, small_data, our_draws, TapeRecorder())
    captured.launch(RATES[:2] * 2)
    copies = []
    overwrite = FlatDataset.overwrite
    monkeypatch.setattr(
        FlatDataset, "overwrite", lambda *of: copies.append(of) or overwrite(*of)
    )
    for shift in (1.0, 2.0):
        rows = _other_rows(small_data, shift)
        for _ in range(5):
            captured.replace(rows)
            captured.launch(RATES[:2])
    assert len(copies) == 1


def test_rows_of_other_sizes_are_recorded_anew(small_config, small_data, contract_data):
    (ours, our_draws), (reference, draws) = _pair(small_config, small_data)
    recorder = TapeRecorder()
    captured = _captured(ours, small_data, our_draws, recorder)
    for count in (40, 60, 50):
        rows = FlatDataset.from_contract(contract_data(count))
        captured.replace(rows)
        captured.launch(RATES[:2] * 2)
        _plain(reference, rows, draws, RATES[:2] * 2)
    _assert_same(ours, reference)
    assert recorder.recordings == 3


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("spoilt", [1, 4, 5])
def test_the_first_update_that_is_not_finite_is_named_with_its_terms(
    small_config, small_data, spoilt, recorded
):
    [(ours, our_draws), _] = _pair(small_config, small_data)
    captured = _captured(
        ours, small_data, our_draws, TapeRecorder() if recorded else None
    )
    captured.launch([2.0**-10] * 4)
    assert captured.settle().failed_after is None
    rates = [2.0**-10] * 9
    rates[spoilt - 1] = math.nan  # the parameters after it; the loss of the next update
    captured.launch(rates[:6])
    captured.launch(rates[6:])
    outcome = captured.settle()
    assert outcome.failed_after == spoilt + 1
    assert outcome.terms[0] == "loss"
    assert "grad/global_norm" in outcome.terms


def test_terms_are_those_of_the_first_broken_update_not_of_the_last(
    small_config, small_data
):
    """Broken values (tau = inf) reach the loss at once, the critic only one update later."""
    [(ours, our_draws), _] = _pair(small_config, small_data)
    object.__setattr__(ours.config, "tau", math.inf)  # no file may say so
    captured = _captured(ours, small_data, our_draws, TapeRecorder(), k=3)
    captured.launch([2.0**-10] * 6)
    outcome = captured.settle()
    assert outcome.failed_after == 1
    assert "adjoint/loss" in outcome.terms
    assert "critic/td_loss" not in outcome.terms
    assert not math.isfinite(outcome.metrics["critic/td_loss"])


@pytest.mark.parametrize(
    "asks",
    [
        lambda x: float(x.sum()),
        lambda x: x[x > 0],
        lambda x: x.max() if x.sum() > 0 else x.min(),
        lambda x: torch.tensor([0.5, 0.25]) * x[:2],
    ],
)
def test_the_recorder_of_these_tests_refuses_work_that_needs_the_host(asks):
    x = torch.arange(4.0)
    with pytest.raises(AssertionError, match="needs the host"), Tape():
        asks(x)


def test_the_recorder_of_these_tests_refuses_tensors_that_name_no_device():
    with pytest.raises(AssertionError, match="names no device"):
        TapeRecorder().record(lambda: torch.zeros(3), None)


def test_on_the_cpu_nothing_is_recorded():
    assert recorder_for(torch.device("cpu")) is None


@pytest.fixture
def gpu_data(contract_data):
    return FlatDataset.from_contract(contract_data(400), "cuda")


def _gpu_pair(small_config, data, name):
    agents = [_agent(small_config, data, name) for _ in range(2)]
    generators = [torch.Generator("cuda").manual_seed(3) for _ in range(2)]
    return zip(agents, generators, strict=True)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("name", NAMES)
def test_on_a_gpu_a_graph_equals_the_plain_loop_and_never_waits(
    small_config, gpu_data, name
):
    """Tolerance: a graph may choose other matrix kernels, and rounding grows over 12 updates."""
    (ours, our_draws), (reference, draws) = _gpu_pair(small_config, gpu_data, name)
    recorder = recorder_for(gpu_data.rewards.device)
    captured = _captured(ours, gpu_data, our_draws, recorder)
    torch.cuda.set_sync_debug_mode("error")
    try:
        captured.launch(RATES * 4)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    metrics = _plain(reference, gpu_data, draws, RATES * 4)
    assert torch.equal(our_draws.get_state(), draws.get_state())
    kept = reference.state_dict()
    for key, value in ours.state_dict().items():
        torch.testing.assert_close(value, kept[key], rtol=1e-3, atol=1e-5, msg=key)
    outcome = captured.settle()
    assert outcome.failed_after is None
    assert list(outcome.metrics) == list(metrics)


@pytest.mark.gpu
def test_on_a_gpu_a_trainer_goes_through_both_stages_other_rows_and_a_checkpoint(
    small_config, gpu_data, tmp_path
):
    config = small_config("trqam", behaviour={"updates": 25}, offline={"updates": 60})
    trainer = OfflineTrainer(config, gpu_data)
    assert trainer.stride == 10
    for count in (25, 20):
        trainer.update(count)
    write_checkpoint(tmp_path / "held.safetensors", *trainer.checkpoint())
    for shift in (1.0, 2.0):
        trainer.dataset = _other_rows(gpu_data, shift)
        trainer.update(20)
    assert trainer.complete
    again = OfflineTrainer(config, gpu_data)
    again.restore(read_checkpoint(tmp_path / "held.safetensors"))
    for shift in (1.0, 2.0):
        again.dataset = _other_rows(gpu_data, shift)
        again.update(20)
    ours, reference = trainer.agent.state_dict(), again.agent.state_dict()
    for key, value in ours.items():
        torch.testing.assert_close(value, reference[key], rtol=1e-3, atol=1e-5)


@pytest.mark.gpu
def test_on_a_gpu_two_agents_on_two_streams_do_not_disturb_each_other(
    small_config, gpu_data
):
    config = small_config("qam", behaviour={"updates": 0}, offline={"updates": 60})
    alone, first, second = (OfflineTrainer(config, gpu_data) for _ in range(3))
    alone.update(60)
    streams = [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()
    for _ in range(3):
        for trainer, stream in zip((first, second), streams, strict=True):
            with torch.cuda.stream(stream):
                trainer.launch(20)
        for trainer, stream in zip((first, second), streams, strict=True):
            with torch.cuda.stream(stream):
                trainer.settle()
    for trainer in (first, second):
        for name, value in alone.agent.parameters.items():
            theirs = trainer.agent.parameters[name]
            torch.testing.assert_close(theirs, value, rtol=1e-3, atol=1e-5)


@pytest.mark.gpu
def test_on_a_gpu_a_diverging_run_names_its_first_broken_update(small_config, gpu_data):
    config = small_config("qam", behaviour={"updates": 0}, offline={"updates": 60})
    trainer = OfflineTrainer(config, gpu_data)
    trainer.update(30)
    gpu_data.rewards.fill_(math.inf)
    with pytest.raises(NonFiniteError, match=r"update 31 .*loss") as caught:
        trainer.update(30)
    assert caught.value.details["update"] == 31
