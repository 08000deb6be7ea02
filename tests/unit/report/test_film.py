# SPDX-License-Identifier: Apache-2.0
"""Two episodes become one labelled film that decodes to what went in."""

import imageio.v3 as imageio
import numpy as np
import pytest

from qam_train.report.film import encode_mp4, label, side_by_side


def frames(count: int, value: int) -> list[np.ndarray]:
    return [np.full((64, 96, 3), value, dtype=np.uint8) for _ in range(count)]


def test_shorter_episode_stands_still_at_its_end() -> None:
    together = side_by_side(frames(2, 10), frames(5, 200))
    assert len(together) == 5
    assert together[4][0, 0, 0] == 10
    assert together[4][0, -1, 0] == 200


# imageio's ffmpeg reader leaves its pipes to the garbage collector.
@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"
)
def test_film_keeps_length_speed_and_brightness(tmp_path) -> None:
    path = tmp_path / "film.mp4"
    path.write_bytes(
        encode_mp4(side_by_side(frames(12, 20), frames(12, 220)), frames_per_s=10)
    )
    read = imageio.imread(path, plugin="FFMPEG")
    assert read.shape == (12, 64, 208, 3)  # 2 x 96 and a gap of 16
    assert imageio.immeta(path, plugin="FFMPEG")["fps"] == 10
    assert abs(int(read[5, 32, 20, 0]) - 20) < 12
    assert abs(int(read[5, 32, 150, 0]) - 220) < 12


def test_label_leaves_the_picture_below_its_band_untouched() -> None:
    (frame,) = frames(1, 77)
    labelled = label(frame, "before", "#767676")
    np.testing.assert_array_equal(labelled[-64:], frame)
    assert (labelled[:-64] == 255).any()  # the text
