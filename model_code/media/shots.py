"""Finds cuts between shots."""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np

from model_code.media.yuv import YuvFrame

SIDE = 24


def find_cuts(frames: Iterable[YuvFrame]) -> tuple[list[int], int]:
    """Frames at which a new shot begins, and the number of frames.

    A cut changes the picture's structure at once and for good: small luma images on both sides, brought to the same
    mean and contrast so that changing light is no cut, correlate less than 0.6 and far less than their neighbours do.
    """
    images = []
    for frame in frames:
        small = cv2.resize(frame.y, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32).reshape(-1)
        images.append((small - small.mean()) / (small.std() + 2.0))
    if len(images) < 2:
        return [], len(images)
    flat = np.stack(images)
    likeness = (flat[1:] * flat[:-1]).mean(1)
    usual = np.array([np.median(likeness[max(0, i - 6) : i + 7]) for i in range(len(likeness))])
    cuts = np.flatnonzero((likeness < 0.6) & (likeness < usual - 0.25)) + 1
    return [int(cut) for cut in cuts], len(images)
