# SPDX-License-Identifier: Apache-2.0
"""Sampling ahead: the next chunk is made on a thread of its own while the present one is executed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from qam_ros.runtime.sampler import Sampler

Float32Array = npt.NDArray[np.float32]


class Planner(Protocol):
    """Makes one chunk at a time, meanwhile the caller goes on."""

    @property
    def busy(self) -> bool:
        """A chunk is being made, or was not taken yet."""

    def start(self, observation: Float32Array, noise: Float32Array) -> None:
        """Begin a chunk for an observation (O,) and noise (W,); call only when not ``busy``."""

    def take(self) -> tuple[Float32Array, int] | None:
        """The chunk (h, A) and the time it took [ns], once it is there."""

    def close(self) -> None:
        """No more chunks."""


class ThreadPlanner:
    """A planner on a thread; the sampler must not be used elsewhere while it is ``busy``.

    Args:
        sampler: makes the chunks.
        prepare: called once on the thread.
    """

    def __init__(
        self, sampler: Sampler, prepare: Callable[[], object] | None = None
    ) -> None:
        self._sampler = sampler
        self._prepare = prepare
        self._condition = threading.Condition()
        self._job: tuple[Float32Array, Float32Array] | None = None
        self._result: tuple[Float32Array, int] | None = None
        self._problem: Exception | None = None
        self._busy = self._closed = False
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """A chunk is being made, or was not taken yet."""
        return self._busy

    def start(self, observation: Float32Array, noise: Float32Array) -> None:
        """Begin a chunk."""
        with self._condition:
            self._busy = True
            self._job = (observation, noise)
            self._condition.notify()

    def take(self) -> tuple[Float32Array, int] | None:
        """The chunk and its time, once; an error of the sampler is raised here."""
        with self._condition:
            if self._problem is not None:
                raise self._problem
            result, self._result = self._result, None
            if result is not None:
                self._busy = False
            return result

    def close(self) -> None:
        """End the thread after the chunk that it is at."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        self._thread.join(timeout=0.5)

    def _run(self) -> None:
        try:
            if self._prepare is not None:
                self._prepare()
            self._make_chunks()
        except Exception as problem:  # noqa: BLE001 - raised where the chunk is taken
            self._problem = problem

    def _make_chunks(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._closed or self._job is not None)
                if self._closed or self._job is None:
                    return
                (observation, noise), self._job = self._job, None
            started_ns = time.perf_counter_ns()
            chunk = self._sampler.sample(observation, noise)
            spent_ns = time.perf_counter_ns() - started_ns
            with self._condition:
                self._result = (chunk, spent_ns)
