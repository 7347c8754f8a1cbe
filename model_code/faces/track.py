"""Squares around a face: of one moment, for the landmarker, and steady ones through a shot, for the crops."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d, median_filter

from model_code.config import MediaConfig

F32 = NDArray[np.float32]

LOOK_SCALE = 1.2
"""Side of the landmarker's square over the longer side of the face's box."""
CROP_SCALE: float = MediaConfig.model_fields["crop_scale"].default


def face_box(landmarks: F32, scale: float = LOOK_SCALE) -> F32:
    """The square around one face: `scale` times the longer side of the landmarks' box with a synthetic forehead.

    Args:
        landmarks: (T, 68, 2) in pixels.
        scale: Side over the longer side of the box.

    Returns:
        (T, 4) x0, y0, x1, y1; may exceed the frame.
    """
    brows = landmarks[:, 17:27].mean(1, keepdims=True)
    forehead = brows + 0.7 * (brows - landmarks[:, 33:34])
    points = np.concatenate([landmarks, forehead], 1)
    low, high = points.min(1), points.max(1)
    half = np.maximum((high - low).max(1, keepdims=True) * scale / 2, 1.0)
    centre = (low + high) / 2
    return np.concatenate([centre - half, centre + half], 1).astype(np.float32)


def crop_boxes(landmarks: F32, scale: float = CROP_SCALE, still: float = 0.04) -> F32:
    """Steady crop boxes of a shot: they follow the head, not the mouth.

    The centre follows eyes and nose (zero-phase, about a third of a second) and the size the length from eyes to nose;
    how they lie to the face's box are medians of the shot. Where the head hardly moves the box stands.

    Args:
        landmarks: (T, 68, 2) in pixels.
        scale: As in `face_box`.
        still: Movement under this share of the side counts as none.

    Returns:
        (T, 4) x0, y0, x1, y1; may exceed the frame.
    """
    boxes = face_box(landmarks, scale)
    count = len(boxes)
    sides = boxes[:, 2] - boxes[:, 0]
    length = np.maximum(np.linalg.norm(landmarks[:, 36:48].mean(1) - landmarks[:, 31:36].mean(1), axis=1), 1e-3)
    sides = length * np.median(sides / length)
    anchor = landmarks[:, [36, 39, 42, 45, 27, 30]].mean(1)
    offset = np.median(((boxes[:, :2] + boxes[:, 2:]) / 2 - anchor) / sides[:, None], axis=0)
    side = np.median(sides)
    slow = smooth(median_filter(sides, min(count, 25), mode="nearest"), 12.0)
    if slow.max() / slow.min() < 1.12:
        slow = np.full(count, side)
    centre = smooth(anchor + offset * slow[:, None], 4.0)
    middle = np.median(centre, axis=0)
    if np.abs(centre - middle).max() < still * side and np.ptp(slow) < still * side:
        centre, slow = np.broadcast_to(middle, centre.shape), np.full(count, side)
    half = slow[:, None] / 2
    return np.concatenate([centre - half, centre + half], 1).astype(np.float32)


def smooth(signal: NDArray[np.floating], deviation: float) -> F32:
    """Gaussian smoothing along time (axis 0) without delay; `deviation` in frames."""
    return gaussian_filter1d(signal.astype(np.float64), deviation, axis=0, mode="nearest").astype(np.float32)
