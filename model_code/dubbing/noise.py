"""Is a dubbed window noise? The release fails so on about 2 % of windows, ours seldom; another seed helps."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]

GRAIN = 2.0
"""Grain of a frame's half over its source's, from which it is noise. See `docs/numerics.md` for what was measured."""
CHANGE = 12.0
"""Mean change of a frame's upper half, in levels of 255, from which it is noise: a dub leaves eyes and brow alone."""
_SOFT = 2.0  # levels; a source without any grain of its own gets none of ours for noise
_SECOND_DIFFERENCE = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)


def noisiness(dubbed: U8, source: U8) -> float:
    """How much the worst frame looks like noise; above 1 it is.

    Grain is the mean absolute second difference of brightness in both directions (Immerkaer, 1996), which edges hardly
    answer to. It is compared half by half, above and with the mouth, because noise need not fill the frame.

    Args:
        dubbed: (T,S,S,3) crops.
        source: (T,S,S,3) crops that they were made from.
    """
    upper, lower = (_grain(dubbed) + _SOFT) / (_grain(source) + _SOFT)
    half = dubbed.shape[1] // 2
    change = np.abs(dubbed[:, :half].astype(np.int16) - source[:, :half]).mean((1, 2, 3))
    return float(max(upper.max() / GRAIN, lower.max() / GRAIN, change.max() / CHANGE))


def _grain(frames: U8) -> NDArray[np.float32]:
    """(2, T) of the upper and the lower half of every frame."""
    grain = np.empty((2, len(frames)), np.float32)
    for index, frame in enumerate(frames):
        detail = np.abs(cv2.filter2D(frame.astype(np.float32).mean(-1), -1, _SECOND_DIFFERENCE))
        middle = len(detail) // 2
        grain[:, index] = detail[:middle].mean(), detail[middle:].mean()
    return grain
