# SPDX-License-Identifier: Apache-2.0
"""Speed of one QAM update, sampling and optimiser included, against the equations written plainly.

Baseline: torch in eager mode, as one would first write it: [s, a, t] joined at every flow step, one
call of automatic differentiation for every step of the adjoint, torch.optim.Adam and
clip_grad_norm_, moving averages tensor by tensor. Same sizes, same precision, same thread count; the
two run in turns. Ratio = baseline / ours in CPU time.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from measuring import interleave, machine, report
from torch import Tensor

from qam_train import adjoint, critic, flow
from qam_train.agents.qam import QAMAgent, QAMNoise
from qam_train.config import AgentConfig, NetworkConfig
from qam_train.data.dataset import ChunkBatch, FlatDataset
from qam_train.networks import Field, Params, mlp

OBSERVATION, ACTION = 28, 5
SIZES = {
    "demo": AgentConfig(
        chunk=5,
        critics=2,
        adjoint_batch=64,
        actor=NetworkConfig((256, 256)),
        critic=NetworkConfig((256, 256), layer_norm=True),
    ),
    "paper": AgentConfig(chunk=5),
}


def plain_field(params: Params, prefix: str, s: Tensor) -> Field:
    """Velocity net on the joined input [s, a, t]."""

    def field(a: Tensor, t: Tensor | float) -> Tensor:
        time = torch.as_tensor(t, dtype=a.dtype).expand(*a.shape[:-1], 1)
        joined = torch.cat([s.expand(*a.shape[:-1], -1), a, time], -1)
        return mlp(params, prefix, joined)

    return field


class PlainAgent(QAMAgent):
    """The same update written plainly; the baseline."""

    def prepare(self) -> None:
        """Make torch's own optimiser."""
        self.adam = torch.optim.Adam(list(self.trained.values()), lr=self.config.lr)

    def plain_update(self, batch: ChunkBatch, noise: QAMNoise) -> None:
        """One update."""
        loss = self.plain_loss(batch, noise)
        self.adam.zero_grad()
        loss.backward()
        with torch.no_grad():
            for target, online in zip(
                self.targets.values(), self._followed, strict=True
            ):
                target += self.config.ema * (online - target)
        torch.nn.utils.clip_grad_norm_(
            list(self.trained.values()), self.config.clip_norm
        )
        self.adam.step()

    def plain_loss(self, batch: ChunkBatch, noise: QAMNoise) -> Tensor:
        """Critic, behaviour flow and adjoint matching."""
        config = self.config
        s = self.normaliser(batch.observations)
        s_next = self.normaliser(batch.next_observations)
        a = batch.actions.flatten(1)
        with torch.no_grad():
            policy = plain_field(self.trained, "fast", s_next)
            a_next = flow.integrate(policy, noise.next_action, config.flow_steps)
            q_next = critic.ensemble(
                self.targets, "target_critic", s_next, a_next.clamp(-1, 1)
            )
            y = critic.td_target(
                q_next,
                batch.rewards,
                batch.masks,
                config.discount**config.chunk,
                config.rho,
            )
        q = critic.ensemble(self.trained, "critic", s, a)
        critic_loss, _ = critic.td_loss(q, y, batch.valid)
        flow_loss, _ = flow.flow_matching_loss(
            plain_field(self.trained, "slow", s),
            a,
            noise.flow_start,
            noise.flow_time,
            batch.valid,
        )
        return (
            critic_loss
            + flow_loss
            + self._plain_matching(s[: len(noise.rollout_start)], noise)
        )

    def _plain_matching(self, s: Tensor, noise: QAMNoise) -> Tensor:
        n = self.config.flow_steps
        h = 1.0 / n
        theta = plain_field(self.trained, "fast", s)
        beta = plain_field(self.targets, "target_slow", s)
        with torch.no_grad():
            states, a_1 = adjoint.rollout(
                theta, beta, noise.rollout_start, noise.rollout
            )
            v_beta = torch.stack([beta(states[k], k * h) for k in range(n)])
        a_1.requires_grad_()
        q = critic.ensemble(self.targets, "target_critic", s, a_1.clamp(-1, 1)).mean(0)
        (gradient,) = torch.autograd.grad(q.sum(), a_1)
        g = -self.config.tau * gradient
        adjoints = []
        for k in reversed(range(n)):
            a = states[k].detach().requires_grad_()
            drift = 2 * beta(a, (k + 1) * h) - a / ((k + 1) * h)
            (pulled,) = torch.autograd.grad(drift, a, g)
            g = g + h * pulled
            adjoints.append(g)
        v_theta = torch.stack([theta(states[k], k * h) for k in range(n)])
        loss, _ = adjoint.matching_loss(v_theta, v_beta, torch.stack(adjoints[::-1]))
        return loss


def made_up_data(rows: int, generator: torch.Generator) -> FlatDataset:
    """Random rows in episodes of 200; the numbers do not matter for speed."""
    observations = torch.randn(rows + 1, OBSERVATION, generator=generator)
    terminals = (torch.arange(rows) % 200 == 199).float()
    return FlatDataset.from_arrays(
        observations[:-1],
        torch.rand(rows, ACTION, generator=generator) * 2 - 1,
        -torch.ones(rows),
        torch.ones(rows),
        terminals,
        observations[1:],
    )


def measure(
    config: AgentConfig, precision: str, updates: int
) -> tuple[dict[str, float], float]:
    """CPU time per update [s] of both, and the loss difference on one batch.

    The latter shows that both compute the same.
    """
    torch.set_float32_matmul_precision(precision)
    generator = torch.Generator().manual_seed(0)
    data = made_up_data(20_000, generator)
    ours = QAMAgent.init(config, OBSERVATION, ACTION, torch.Generator().manual_seed(1))
    plain = PlainAgent.init(
        config, OBSERVATION, ACTION, torch.Generator().manual_seed(1)
    )
    assert isinstance(plain, PlainAgent)
    plain.prepare()

    def draw() -> tuple[ChunkBatch, QAMNoise]:
        batch = data.sample(config.batch_size, config.chunk, config.discount, generator)
        return batch, ours.draw_noise(config.batch_size, generator)

    batch, noise = draw()
    loss = float(ours.loss(batch, noise)[0].detach())
    error = abs(float(plain.plain_loss(batch, noise).detach()) - loss) / abs(loss)
    variants = {
        "ours": lambda: ours.update(*draw()),
        "plain": lambda: plain.plain_update(*draw()),
    }
    timings = interleave(variants, updates, warm_up=3)
    return {name: timing.cpu_p50 for name, timing in timings.items()}, error


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="qam bench train", description=__doc__)
    parser.add_argument("--sizes", choices=[*SIZES, "both"], default="both")
    parser.add_argument("--updates", type=int, default=30, help="timed updates of each")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = []
    for size in SIZES if arguments.sizes == "both" else [arguments.sizes]:
        for precision in ("highest", "medium"):
            seconds, error = measure(SIZES[size], precision, arguments.updates)
            ours, plain = seconds["ours"], seconds["plain"]
            rows.append(
                (
                    size,
                    precision,
                    1e3 * ours,
                    1e3 * plain,
                    plain / ours,
                    1 / ours,
                    error,
                )
            )
    about = machine("torch") | {"threads": 1, "updates": arguments.updates}
    columns = (
        "sizes",
        "matmul precision",
        "ours [CPU-ms]",
        "baseline [CPU-ms]",
        "ratio",
        "updates/s",
        "loss difference",
    )
    title = "QAM update, ours against plain eager torch"
    report(title, about, columns, rows, as_json=arguments.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
