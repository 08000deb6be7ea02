# SPDX-License-Identifier: Apache-2.0
"""Data generation: rows per CPU-second of each worker against OGBench's own loop in one process.

The baseline is what a script would do: gymnasium environment, oracle, env.step, append. The
generator seeds every episode, records states, labels and writes shards besides. Promise: at least
0.9 of the baseline per core, whatever the number of workers.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path

import numpy as np

from sim.generate import Target, generate, versions
from sim.oracles import make_driver
from sim.recipes import Recipe, make_recipe
from sim.seeding import global_numpy_seed
from sim.worlds import make_world, quiet_simulators


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


def main() -> None:
    """Measure, print and, on request, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    recipe = make_recipe()
    before = baseline(recipe, options.rows // 2)
    with tempfile.TemporaryDirectory() as folder:
        target = Target(rows=options.rows)
        made = generate(Path(folder) / "data", recipe, target, workers=options.workers)
    # Half before and half after, because other work on the machine changes with time.
    plain = 2.0 / (1.0 / before + 1.0 / baseline(recipe, options.rows // 2))
    rate = made.made_rows / made.cpu_s
    result = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": versions(),
        "workers": options.workers,
        "rows": made.made_rows,
        "rows_per_cpu_s": round(rate, 1),
        "rows_per_wall_s": round(made.made_rows / made.wall_s, 1),
        "baseline_rows_per_cpu_s": round(plain, 1),
        "ratio": round(rate / plain, 3),
    }
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
