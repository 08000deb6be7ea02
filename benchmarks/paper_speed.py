# SPDX-License-Identifier: Apache-2.0
"""Updates per second of one agent, launched one by one and recorded, in turns on the same rows."""

from __future__ import annotations

import dataclasses
import sys
import time

import torch

from qam_train.data.dataset import FlatDataset
from qam_train.offline_config import OfflineConfig
from qam_train.offline_trainer import OfflineTrainer

WARM_UP = 30  # updates of each before the clock runs; recording falls into them
TURNS = 4
ASKED = 10  # updates between two looks at the clock
VARIANTS = {"eager": 0, "recorded": 10}  # updates per replay


def measure_speed(
    config: OfflineConfig, rows: FlatDataset, seconds: float
) -> dict[str, float]:
    """Updates per second of both, and how far their parameters are apart.

    Args:
        config: of the trainer; seed and draws are the same for both.
        rows: on the device that is measured.
        seconds: of measurement, both together [s].

    Returns:
        eager and recorded [updates/s], their ratio, and the largest difference of a parameter after
        WARM_UP updates over its tensor's largest entry: both compute the same up to rounding.
    """
    endless = dataclasses.replace(config.offline, updates=sys.maxsize)
    config = dataclasses.replace(config, offline=endless)
    trainers = {
        name: OfflineTrainer(dataclasses.replace(config, updates_per_replay=k), rows)
        for name, k in VARIANTS.items()
    }
    for trainer in trainers.values():
        trainer.update(WARM_UP)
    difference = _difference(*trainers.values())
    done = dict.fromkeys(trainers, 0)
    spent = dict.fromkeys(trainers, 0.0)
    share = seconds / TURNS / len(trainers)
    for _ in range(TURNS):
        for name, trainer in trainers.items():
            started = time.perf_counter()
            while (elapsed := time.perf_counter() - started) < share:
                trainer.update(ASKED)  # waits for the device
                done[name] += ASKED
            spent[name] += elapsed
    rates = {name: done[name] / spent[name] for name in trainers}
    ratio = rates["recorded"] / rates["eager"]
    return rates | {"ratio": ratio, "difference": difference}


@torch.no_grad()
def _difference(first: OfflineTrainer, second: OfflineTrainer) -> float:
    ours, reference = first.agent.parameters, second.agent.parameters
    return max(
        float((ours[name] - value).abs().max() / value.abs().max().clamp(min=1e-12))
        for name, value in reference.items()
    )
