# SPDX-License-Identifier: Apache-2.0
"""Updates without the host: k of them recorded once as a CUDA graph and replayed by one launch.

One update of a method is some hundred small kernels, and a host in eager mode needs longer to launch
them than the device to run them. Recorded are drawing the batch from the resident rows, the noise,
and the whole update with clip, Adam, moving averages and trust region. A replay repeats these
kernels on the same memory, so whatever lasts between updates must be changed in place, and nothing
may be read back to the host meanwhile (tested for every method). On the CPU the same calls run as
they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from qam_train.agents.base import Agent, Metrics
from qam_train.data.dataset import FlatDataset

Work = Callable[[], None]
DECISIVE = ("loss", "grad/global_norm")  # once one is not finite, training is lost


class Recorder(Protocol):
    """A way to repeat the kernels of some work without its Python."""

    def run(self, work: Work) -> None:
        """Do the work as it is, in a way that leaves it ready to be recorded."""

    def record(self, work: Work, generator: torch.Generator) -> Work:
        """What repeats the work, drawing on from the generator; recording changes no number."""


class CudaRecorder:
    """CUDA graphs, recorded and replayed on the caller's current stream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._side = torch.cuda.Stream(device)

    def run(self, work: Work) -> None:
        """On a side stream, as a recording will be; the current stream waits for it."""
        current = torch.cuda.current_stream(self._device)
        self._side.wait_stream(current)
        with torch.cuda.stream(self._side):
            work()
        current.wait_stream(self._side)

    def record(self, work: Work, generator: torch.Generator) -> Work:
        """One graph; its replays advance the generator as the work itself would."""
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(generator)
        with torch.cuda.device(self._device), torch.cuda.graph(graph):
            work()
        return graph.replay


def recorder_for(device: torch.device) -> Recorder | None:
    """CUDA graphs where there is a CUDA device; None on the CPU."""
    return CudaRecorder(device) if device.type == "cuda" else None


@dataclass(frozen=True)
class Outcome:
    """What the updates since the last look left behind.

    Args:
        metrics: of the last one, on the CPU.
        failed_after: updates up to and with the first one that was not finite; None: all were.
        terms: names of the metrics of that update that were not finite.
    """

    metrics: Metrics
    failed_after: int | None = None
    terms: tuple[str, ...] = ()


class CapturedUpdates:
    """Updates of one agent from one set of rows, k per replay.

    The first k updates, and those beyond the last whole k of a call, are run as they are; the first
    ones also make the libraries ready for recording. Settings, optimiser and normaliser of the agent
    must stay the same objects; its state may be loaded in between.

    Args:
        agent: what learns.
        dataset: resident rows, on the agent's device.
        generator: source of all draws, on the same device.
        per_replay: k.
        pad_terminated: see FlatDataset.sample.
        recorder: how updates are repeated; None: every update is run as it is.
    """

    def __init__(
        self,
        agent: Agent[Any, Any],
        dataset: FlatDataset,
        generator: torch.Generator,
        *,
        per_replay: int = 10,
        pad_terminated: bool = False,
        recorder: Recorder | None = None,
    ) -> None:
        self.agent = agent
        self._given = dataset
        self._rows = dataset.indexed()
        self._owns_rows = False
        self._generator = generator
        self._k = per_replay
        self._pad_terminated = pad_terminated
        self._recorder = recorder
        self._replay: Work | None = None
        self._rates = torch.zeros(per_replay, device=dataset.rewards.device)
        self._sent: list[float] = []
        self._watch: _Watch | None = None

    def replace(self, dataset: FlatDataset) -> None:
        """Draw from other rows from now on.

        A recording reads fixed memory: the first replacement records anew, on a copy of the rows;
        later ones of the same sizes are copied into that.
        """
        if dataset is self._given:
            return
        self._given = dataset
        if self._owns_rows and self._rows.overwrite(dataset):
            return
        self._owns_rows = self._replay is not None
        self._rows = (dataset.clone() if self._owns_rows else dataset).indexed()
        self._replay = None

    def launch(self, rates: Sequence[float]) -> None:
        """Start one update per learning rate; on a device this does not wait for them."""
        if self._recorder is None:
            self._run(rates)
            return
        for first in range(0, len(rates), self._k):
            self._launch_block(rates[first : first + self._k], self._recorder)

    def settle(self) -> Outcome:
        """Wait for what was launched since the last call and say how it went."""
        assert self._watch is not None, "settle() before launch()"
        return self._watch.read()

    def _launch_block(self, rates: Sequence[float], recorder: Recorder) -> None:
        self._send(rates)
        if self._watch is None or len(rates) < self._k:
            recorder.run(lambda: self._run(self._rates[: len(rates)].unbind()))
            return
        if self._replay is None:
            self._replay = recorder.record(
                lambda: self._run(self._rates.unbind()), self._generator
            )
        self._replay()

    def _send(self, rates: Sequence[float]) -> None:
        """Put learning rates where the recording reads them."""
        if self._sent == list(rates):
            return
        # pinned: the copy is queued behind the replays before it, and the host goes on
        pinned = self._rates.device.type == "cuda"
        host = torch.tensor(rates, dtype=torch.float32, pin_memory=pinned)
        self._rates[: len(rates)].copy_(host, non_blocking=True)
        self._sent = list(rates)

    def _run(self, rates: Sequence[float] | Sequence[Tensor]) -> None:
        history = [self._update(rate) for rate in rates]
        if self._watch is None:
            self._watch = _Watch(history[0])
        self._watch.note(history)

    def _update(self, rate: float | Tensor) -> Metrics:
        agent = self.agent
        batch = agent.draw_batch(
            self._rows, self._generator, pad_terminated=self._pad_terminated
        )
        noise = agent.draw_noise(agent.config.batch_size, self._generator)
        return agent.update(batch, noise, rate)


class _Watch:
    """Metrics on the device until somebody looks: the last ones, and the first that were not finite."""

    def __init__(self, metrics: Metrics) -> None:
        self._names = (*DECISIVE, *(name for name in metrics if name not in DECISIVE))
        self._order = tuple(metrics)
        like = metrics[DECISIVE[0]]
        self._last = like.new_zeros(len(self._names))
        self._broken = torch.zeros_like(self._last)
        self._done = torch.zeros((), dtype=torch.int64, device=like.device)
        self._failed_after = torch.zeros_like(self._done)  # 0: none failed

    @torch.no_grad()
    def note(self, history: Sequence[Metrics]) -> None:
        """Take in the metrics of n consecutive updates."""
        n = len(history)
        table = torch.stack([m[name] for m in history for name in self._names])
        table = table.view(n, -1)  # (n, M)
        bad = torch.isfinite(table[:, : len(DECISIVE)]).all(1).logical_not()
        steps = torch.arange(1, n + 1, device=table.device)
        first = torch.where(bad, steps, n + 1).amin()
        news = (first <= n) & (self._failed_after == 0)
        row = table.index_select(0, (first.clamp(max=n) - 1).unsqueeze(0)).squeeze(0)
        self._broken.copy_(torch.where(news, row, self._broken))
        self._failed_after.copy_(
            torch.where(news, self._done + first, self._failed_after)
        )
        self._last.copy_(table[-1])
        self._done.add_(n)

    @torch.no_grad()
    def read(self) -> Outcome:
        """One copy to the host; counting starts anew."""
        after = self._failed_after.to(torch.float64).unsqueeze(0)
        parts = [self._last.double(), self._broken.double(), after]
        report = torch.cat(parts).cpu()
        self._done.zero_()
        self._failed_after.zero_()
        count = len(self._names)
        last = dict(zip(self._names, report[:count].to(self._last.dtype), strict=True))
        metrics = {name: last[name] for name in self._order}
        if report[-1] == 0:
            return Outcome(metrics)
        finite = torch.isfinite(report[count : 2 * count]).tolist()
        terms = {n for n, fine in zip(self._names, finite, strict=True) if not fine}
        ordered = tuple(name for name in self._order if name in terms)
        return Outcome(metrics, int(report[-1]), ordered)
