# SPDX-License-Identifier: Apache-2.0
"""A record with made-up but consistent measurements."""

import numpy as np
import pytest

from qam_train.report.record import (
    Episodes,
    Film,
    RealTime,
    Record,
    StreamCheck,
    SuccessRate,
    Swap,
)


def _curves(
    count: int, start: float, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    update = np.arange(1, count + 1) * 20.0
    noise = rng.normal(size=(6, count))
    return {
        "update": update,
        "critic/td_loss": start * np.exp(-update / 800) + 1.5 + 0.3 * np.abs(noise[0]),
        "critic/q_mean": -38 * (1 - np.exp(-update / 500)) + 0.4 * noise[1],
        "flow/loss": 0.24 + 0.02 * noise[2],
        "adjoint/norm_mean": 0.4 + 0.05 * np.abs(noise[3]),
        "adjoint/norm_max": 4 + np.abs(noise[4]),
        "adjoint/loss": 30 + 5 * np.abs(noise[5]),
    }


@pytest.fixture
def record() -> Record:
    rng = np.random.default_rng(0)
    steps = np.cumsum(rng.integers(70, 200, size=26))
    period = 50 + rng.normal(scale=0.2, size=499)
    swaps = tuple(
        Swap(v, v != 4, "" if v != 4 else "mean probe change 0.31 is above the budget of 0.25",
             0.05 * v, 0.08 if v != 4 else None, 500 * (v - 1) if v != 4 else None)
        for v in range(2, 8)
    )  # fmt: skip
    return Record(
        seed=0,
        method="QAM",
        machine={"cpu": "two cores", "python": "3.11.2", "torch": "2.13.0"},
        dataset={"rows": 30_056, "episodes": 186, "successful_episodes": 70},
        success={
            "base": SuccessRate(0.12, 0.07, 0.2, 100),
            "offline": SuccessRate(0.8, 0.711, 0.867, 100),
            "online": SuccessRate(0.91, 0.838, 0.952, 100),
        },
        behaviour={
            "update": np.arange(1, 200) * 20.0,
            "flow/loss": 0.2 + 1 / np.arange(1, 200),
        },
        offline=_curves(150, 40, rng),
        online=_curves(120, 3, rng),
        episodes=Episodes(
            steps, rng.random(26) < np.linspace(0.6, 0.95, 26), np.repeat(1, 26)
        ),
        swaps=swaps,
        stream=StreamCheck(
            3010, 3010, 0, 0, 4, {1: 600, 2: 2410}, {"batches": 48, "batches_resent": 1}
        ),
        lockstep_steps_per_s=46.2,
        realtime=RealTime(50.0, 500, 1, period, rng.gamma(4, 0.6, size=500)),
        parity={"probes": 64, "largest_difference": 6.1e-7, "tolerance": 1e-5},
        stages={"data": 28.0, "offline": 120.0, "online": 95.0},
        peak_rss_mib=1650.0,
        clean_stop={"exit_code": 0, "processes_left": 0},
        lockstep={
            "steps_per_s": 46.2,
            "credit_wait_s": 61.0,
            "step_ms": 1.2,
            "chunk_ms": 0.3,
        },
        settings="seed: 0\n",
        film=Film(b"film", "before and after <side by side>"),
    )
