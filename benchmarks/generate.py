# SPDX-License-Identifier: Apache-2.0
"""Data generation: rows per CPU-second of each worker against OGBench's own loop in one process.

The baseline is what a script would do: gymnasium environment, oracle, env.step, append. The
generator seeds every episode, records states, labels and writes shards besides. Promise: at least
0.9 of the baseline per core, whatever the number of workers.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from measuring import machine, report

from sim.generate import Target, generate
from sim.oracles import make_driver
from sim.recipes import Recipe, make_recipe
from sim.seeding import global_numpy_seed
from sim.simulators import quiet_simulators
from sim.worlds import make_world


def baseline(recipe: Recipe, rows: int) -> float:
    """Rows per CPU-second of the plain loop, without building the environment."""
    world = make_world(recipe.world, recipe.task)
    environment, driver = world.environment, make_driver(world, recipe)
    made, observations, actions, rewards = 0, [], [], []
    with global_numpy_seed(0), quiet_simulators():
        started = time.process_time()
        while made < rows:
            observation, _ = environment.reset(seed=made)
            driver.begin(np.random.default_rng(made))
            for _ in range(recipe.max_steps):
                action = driver.action()
                observations.append(observation)
                actions.append(action)
                observation, reward, terminated, _, _ = environment.step(action)
                rewards.append(reward)
                made += 1
                if terminated:
                    break
        return made / (time.process_time() - started)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="qam bench generate", description=__doc__)
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    options = parser.parse_args(argv)
    recipe = make_recipe()
    # Half before and half after, because other work on the machine changes with time.
    before = baseline(recipe, options.rows // 2)
    with tempfile.TemporaryDirectory() as folder:
        target = Target(rows=options.rows)
        made = generate(Path(folder) / "data", recipe, target, workers=options.workers)
    plain = 2.0 / (1.0 / before + 1.0 / baseline(recipe, options.rows // 2))
    rate = made.made_rows / made.cpu_s
    report(
        "data generation, cube-single task recipe",
        machine("mujoco", "ogbench", "numpy"),
        ("variant", "workers", "rows", "rows/CPU-s", "rows/s", "ratio"),
        (
            ("plain loop", 1, options.rows, plain, None, 1.0),
            (
                "generator",
                options.workers,
                made.made_rows,
                rate,
                made.made_rows / made.wall_s,
                rate / plain,
            ),
        ),
        as_json=options.json,
    )


if __name__ == "__main__":
    main()
