# SPDX-License-Identifier: Apache-2.0
"""Joint clip, Adam and the lagged average."""

import torch

from qam_train import optimizer


def _params(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(size, generator=generator, dtype=torch.float64)
        for name, size in {"a": (3, 4), "b": (5,)}.items()
    }


def test_steps_equal_torch_adam_with_gradients_clipped_together():
    ours, theirs = _params(), list(_params().values())
    joint = optimizer.JointAdam(ours, clip_norm=1.0)
    reference = torch.optim.Adam(theirs, lr=1e-2, eps=1e-8)
    for step in range(5):
        gradients = [10.0 ** (step - 2) * torch.randn_like(value) for value in theirs]
        norm = torch.cat([g.flatten() for g in gradients]).norm()
        for value, gradient in zip(theirs, gradients, strict=True):
            value.grad = gradient / max(1.0, norm.item())
        reference.step()
        metrics = joint.step([g.clone() for g in gradients], 1e-2)
        torch.testing.assert_close(metrics["grad/global_norm"], norm)
    for value, other in zip(ours.values(), theirs, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-12, atol=1e-13)


def test_small_gradients_are_left_alone():
    gradients = [torch.full((4,), 0.1), torch.full((2,), 0.2)]
    before = [g.clone() for g in gradients]
    optimizer.clip_jointly(gradients, 1.0)
    assert all(torch.equal(x, y) for x, y in zip(gradients, before, strict=True))


def test_large_gradients_share_one_scale():
    gradients = [
        torch.full((4,), 3.0, dtype=torch.float64),
        torch.full((2,), 4.0, dtype=torch.float64),
    ]
    norm = optimizer.clip_jointly(gradients, 1.0)
    torch.testing.assert_close(optimizer.global_norm(gradients), torch.ones_like(norm))
    torch.testing.assert_close(
        gradients[0][0] / gradients[1][0], torch.tensor(0.75, dtype=torch.float64)
    )


def test_infinite_clip_norm_switches_the_clip_off():
    gradients = [torch.full((4,), 1e6)]
    optimizer.clip_jointly(gradients, float("inf"))
    assert torch.equal(gradients[0], torch.full((4,), 1e6))


def test_norm_of_many_entries_keeps_float32_accuracy():
    values = torch.rand(4_000_000, generator=torch.Generator().manual_seed(0))
    pieces = list(values.split(100_000))
    exact = values.double().norm()
    # per-tensor sums keep the error near float32 rounding; one flat sum may be off by 3e-4
    assert abs(optimizer.global_norm(pieces).double() / exact - 1) < 3e-6


def test_average_moves_by_the_rate():
    target, online = torch.zeros(3), torch.ones(3)
    optimizer.lagged_average([target], [online], 0.25)
    assert torch.equal(target, torch.full((3,), 0.25))


def test_restored_optimiser_continues_bit_for_bit():
    first = optimizer.JointAdam(_params(), 1.0)
    gradients = [torch.randn_like(value) for value in first.params.values()]
    first.step([g.clone() for g in gradients], 1e-3)
    second = optimizer.JointAdam(
        {name: value.clone() for name, value in first.params.items()}, 1.0
    )
    second.load_state({name: value.clone() for name, value in first.state().items()})
    for joint in (first, second):
        joint.step([g.clone() for g in gradients], 1e-3)
    assert all(
        torch.equal(first.params[name], second.params[name]) for name in first.params
    )
