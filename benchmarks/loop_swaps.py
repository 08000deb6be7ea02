# SPDX-License-Identifier: Apache-2.0
"""The loop on the in-process bus while new weights come in, for `qam bench loop --swaps`.

As in the policy node: one thread takes the parts in and puts them together, another one checks their
hash, decodes and asks the gate; the control thread exchanges the weights after its proposal is out.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
import time

import numpy as np
from loop_inprocess import SETTLE_S, InProcess, LoopOptions, Part

from qam_ros.contract.artifact import Artifact
from qam_ros.contract.messages import PolicyStatus, PolicyUpdate
from qam_ros.contract.weights import encode_weights
from qam_ros.runtime.policy import Candidate, Swap
from qam_ros.runtime.realtime import RealTime
from qam_ros.runtime.sampler import OnnxSampler
from qam_ros.runtime.update_parts import GOLDEN_NAME, Offer, split_update
from qam_ros.runtime.updates import PolicyUpdates

SHIFT = 1e-5
"""Each version's last bias is so much larger than the one before."""


class SwapLoop:
    """Turns of the loop, each with so many updates.

    Args:
        artifact: the policy, version 1 of all.
        options: how it uses its chunks.
        realtime: what the control thread asks of the system.
        count: updates in a turn, made here once.
    """

    def __init__(
        self, artifact: Artifact, options: LoopOptions, realtime: RealTime, count: int
    ) -> None:
        self._artifact = artifact
        self._options = options
        self._realtime = realtime
        self._sampler = OnnxSampler(artifact)
        first = artifact.manifest.policy_version + 1
        self._updates = [self._update(first + index) for index in range(count)]

    def run(self, seconds: float) -> Part:
        """One turn; its shares have the time of each exchange."""
        swaps: list[Swap] = []
        loop = InProcess(self._artifact, self._options, self._realtime, swaps.append)
        robot = self._artifact.interface.robot
        updates = PolicyUpdates(
            self._artifact, OnnxSampler(self._artifact), robot=robot
        )
        offers: queue.Queue[Offer | None] = queue.Queue()
        end = time.monotonic() + SETTLE_S + seconds

        def judge() -> None:
            while (offer := offers.get()) is not None:
                verdict = updates.judge(offer)
                assert isinstance(verdict, Candidate), verdict
                loop.control.offer(verdict)

        def receive() -> None:
            time.sleep(SETTLE_S)
            for index, parts in enumerate(self._updates):
                while len(swaps) < index and time.monotonic() < end:
                    time.sleep(1e-4)  # the one before must run, or it would be replaced
                if time.monotonic() >= end:
                    break
                for part in parts:
                    found = updates.receive(part)
                    assert not isinstance(found, PolicyStatus), found
                    if found is not None:
                        offers.put(found)
            offers.put(None)

        threads = [threading.Thread(target=target) for target in (judge, receive)]
        for thread in threads:
            thread.start()
        part = loop.run(seconds)
        for thread in threads:
            thread.join()
        versions = [swap.version for swap in swaps]
        assert versions == sorted(set(versions)), "versions go back"
        times = np.array([swap.swap_ns for swap in swaps], float)
        return dataclasses.replace(
            part, shares={**part.shares, "exchange of weights": times}
        )

    def _update(self, version: int) -> list[PolicyUpdate]:
        """Parts of an update; every version is made from the first, which stays known."""
        base = self._artifact.manifest.policy_version
        weights = {name: value.copy() for name, value in self._artifact.weights.items()}
        last = [name for name in weights if name.endswith("bias")][-1]
        weights[last] += np.float32(SHIFT * (version - base))
        golden = self._artifact.golden
        self._sampler.set_weights(weights)
        chunks = self._sampler.sample_all(golden.observations, golden.noise)
        return split_update(
            encode_weights({**weights, GOLDEN_NAME: chunks}),
            run_id="benchmark",
            version=version,
            parent_version=base,
        )
