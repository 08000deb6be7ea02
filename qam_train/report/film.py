# SPDX-License-Identifier: Apache-2.0
"""Frames to a film for the page: two episodes side by side, labelled, h264 in an mp4."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Frame = NDArray[np.uint8]  # (height, width, 3)

_BLOCK = 16  # h264 players expect sizes that are multiples of it
_BAND = 32  # height of the caption band [pixels]


def label(frame: Frame, text: str, colour: str) -> Frame:
    """The frame with a band above it that carries a text."""
    height, width, _ = frame.shape
    canvas = Image.new("RGB", (width, height + _BAND), colour)
    canvas.paste(Image.fromarray(frame), (0, _BAND))
    ImageDraw.Draw(canvas).text(
        (8, 7), text, fill="white", font=ImageFont.load_default(size=14)
    )
    return np.asarray(canvas, dtype=np.uint8)


def side_by_side(left: Sequence[Frame], right: Sequence[Frame]) -> list[Frame]:
    """Two films next to each other; the shorter one stands still at its last frame."""
    length = max(len(left), len(right))
    if not left or not right:
        return []
    gap = np.full((left[0].shape[0], _BLOCK, 3), 255, dtype=np.uint8)
    return [
        np.concatenate(
            [left[min(i, len(left) - 1)], gap, right[min(i, len(right) - 1)]], axis=1
        )
        for i in range(length)
    ]


def encode_mp4(frames: Sequence[Frame], frames_per_s: float) -> bytes:
    """An h264 film that every browser plays; sizes are padded to multiples of 16.

    Args:
        frames: (height, width, 3) each, all of one size.
        frames_per_s: speed.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        imageio.imwrite(
            path,
            np.stack([_padded(frame) for frame in frames]),
            plugin="FFMPEG",
            fps=frames_per_s,
            codec="libx264",
            quality=None,
            ffmpeg_params=["-crf", "28"],
            macro_block_size=_BLOCK,
        )
        return path.read_bytes()


def _padded(frame: Frame) -> Frame:
    """The frame with white at the right and below, up to whole blocks."""
    height, width, _ = frame.shape
    return np.pad(
        frame,
        ((0, -height % _BLOCK), (0, -width % _BLOCK), (0, 0)),
        constant_values=255,
    )
