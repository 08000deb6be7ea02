# SPDX-License-Identifier: Apache-2.0
import gc
import warnings

import numpy as np
import pytest

from sim.episodes import EpisodeMaker
from sim.recipes import make_recipe
from sim.render import Trace, render


@pytest.fixture(scope="module")
def trace():
    recipe = make_recipe("task", "pointmaze-medium", 3, goal_probability=1.0)
    episode = EpisodeMaker(recipe, 0).make(0)
    return Trace("pointmaze-medium", 3, episode.extras["qpos"], "scripted episode")


def test_without_a_gl_platform_a_plot_is_drawn_and_the_reason_is_told(trace, tmp_path):
    result = render(trace, tmp_path / "episode", platforms=("none-such",))
    assert result.kind == "plot"
    assert result.path == tmp_path / "episode.png"
    assert result.path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "none-such" in result.reason


@pytest.mark.slow
def test_a_video_shows_the_robot_moving(trace, tmp_path):
    import imageio.v2 as imageio

    result = render(trace, tmp_path / "episode", stride=20)
    if result.kind == "plot":
        pytest.skip(f"no GL platform renders here: {result.reason}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reader leaves its pipes to the collector
        frames = list(imageio.get_reader(result.path).iter_data())
        gc.collect()
    assert len(frames) == -(-len(trace.qpos) // 20)
    difference = np.abs(frames[0].astype(int) - frames[-1].astype(int))
    assert difference.max() > 50, "first and last frame are the same picture"
