# SPDX-License-Identifier: Apache-2.0
"""How well the walking expert of the ant mazes walks: falls, goals and speed of its own data.

Plays episodes of the `navigate` recipe as `qam data generate` does (action noise 0.2) and prints for
each maze the share of episodes that a fall ended, the goals reached per 1000 steps and the mean speed.
The baseline of the ratio is the speed of the expert on open ground without noise.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
from measuring import machine, report

from sim.ant import fallen
from sim.ant_expert import read_expert
from sim.ant_herd import PERIOD_S, measure
from sim.episodes import EpisodeMaker
from sim.recipes import make_recipe

MAZES = ("antmaze-medium", "antmaze-large", "antmaze-giant")


def walk(maze: str, episodes: int, seed: int) -> tuple[int, int, int, float]:
    """Rows, falls, goals and mean speed [m/s] of some episodes."""
    maker = EpisodeMaker(make_recipe("navigate", maze), seed)
    rows, falls, goals, length_m = 0, 0, 0, 0.0
    for index in range(episodes):
        episode = maker.make(index)
        track = np.vstack([episode.observations, episode.end_observation])
        rows += len(episode.rewards)
        falls += int(fallen(track[-1:, :15])[0])
        goals += episode.reached
        length_m += float(np.linalg.norm(np.diff(track[:, :2], axis=0), axis=1).sum())
    return rows, falls, goals, length_m / (rows * PERIOD_S)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="benchmarks/ants.py", description=__doc__)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    options = parser.parse_args(argv)
    expert, _ = read_expert()
    calm = measure(expert, options.seed, noise=0.0)
    results = []
    for maze in MAZES:
        rows, falls, goals, speed = walk(maze, options.episodes, options.seed)
        results.append(
            (
                maze,
                options.episodes,
                rows,
                100.0 * falls / options.episodes,
                1000.0 * falls / rows,
                1000.0 * goals / rows,
                speed,
                speed / calm.speed_m_s,
            )
        )
    report(
        f"walking expert, action noise 0.2 (without: {calm.speed_m_s:.2f} m/s)",
        machine("mujoco", "ogbench", "numpy"),
        (
            *("maze", "episodes", "rows", "fallen %", "falls/1000"),
            *("goals/1000", "m/s", "ratio"),
        ),
        results,
        as_json=options.json,
    )


if __name__ == "__main__":
    main()
