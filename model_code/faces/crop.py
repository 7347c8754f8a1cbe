"""Cutting square boxes out of frames and putting them back: antialiased, at sub-pixel places, edges repeated."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from model_code.media.yuv import YuvFrame, yuv_to_rgb

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]


@lru_cache(maxsize=32)
def resampling_matrix(start: float, end: float, n_out: int, n_in: int) -> tuple[F32, int, int]:
    """Weights that read `n_out` cells of the span [start, end] from a row of `n_in` pixels.

    The kernel is a Catmull-Rom cubic, widened where the span is scaled down so that nothing aliases. Beyond the row
    its end pixels repeat.

    Returns:
        (n_out, last - first) weights, first, last: the pixels [first, last) that they apply to.
    """
    scale = (end - start) / n_out
    width = max(scale, 1.0)
    centres = start + (np.arange(n_out) + 0.5) * scale
    low = int(np.floor(centres[0] - 2 * width - 0.5))
    high = int(np.ceil(centres[-1] + 2 * width + 0.5)) + 1
    distance = (np.abs((np.arange(low, high) + 0.5)[None] - centres[:, None]) / width).astype(np.float32)
    weights = np.where(
        distance < 1,
        (1.5 * distance - 2.5) * distance**2 + 1,
        np.where(distance < 2, ((-0.5 * distance + 2.5) * distance - 4) * distance + 2, 0.0),
    )
    weights /= weights.sum(1, keepdims=True)
    places = np.clip(np.arange(low, high), 0, n_in - 1)  # what lies outside the row reads its end pixels
    starts = np.flatnonzero(np.diff(places, prepend=-1))
    folded = np.add.reduceat(weights, starts, axis=1)
    folded.flags.writeable = False
    return folded, int(places[0]), int(places[-1]) + 1


def resample(
    plane: NDArray[np.uint8] | F32, box: tuple[float, float, float, float] | F32, size: tuple[int, int]
) -> F32:
    """Reads the span `box` (x0, y0, x1, y1) of a (H, W) or (H, W, C) image as (rows, columns) = `size` floats."""
    x0, y0, x1, y1 = (float(value) for value in box)
    factor = max(1, int(min((y1 - y0) / size[0], (x1 - x0) / size[1]) / 1.5))
    if factor > 1:  # far larger than asked: average whole cells first
        plane, (x0, y0, x1, y1) = _reduce(plane, (x0, y0, x1, y1), factor)
    rows, top, bottom = resampling_matrix(y0, y1, size[0], plane.shape[0])
    columns, left, right = resampling_matrix(x0, x1, size[1], plane.shape[1])
    part = plane[top:bottom, left:right].astype(np.float32)
    if part.ndim == 2:
        return np.asarray(rows @ part @ columns.T, np.float32)
    high, wide, channels = part.shape
    tall = (rows @ part.reshape(high, wide * channels)).reshape(size[0], wide, channels)
    return np.asarray(np.matmul(columns, tall), np.float32)


def _reduce(
    plane: NDArray[np.uint8] | F32, box: tuple[float, float, float, float], factor: int
) -> tuple[NDArray[np.uint8] | F32, tuple[float, float, float, float]]:
    """Averages cells of `factor` x `factor` pixels around the box; returns them and the box in their units."""
    margin = 8 * factor
    spans = []
    for low, high, length in ((box[1], box[3], plane.shape[0]), (box[0], box[2], plane.shape[1])):
        start = max(0, min(int(low) - margin, length - factor) // factor * factor)
        cells = max(1, min(length - start, int(high) + margin - start) // factor)
        spans.append((start, cells))
    (top, rows), (left, columns) = spans
    part = plane[top : top + rows * factor, left : left + columns * factor]
    small = cv2.resize(part, (columns, rows), interpolation=cv2.INTER_AREA)
    shift = (left, top, left, top)
    return small, tuple((value - offset) / factor for value, offset in zip(box, shift, strict=True))  # type: ignore[return-value]


def crop(frames: U8, boxes: F32, size: int) -> U8:
    """(T, H, W, 3) frames, (T, 4) boxes (x0, y0, x1, y1 in pixels, may exceed the frame) -> (T, size, size, 3)."""
    out = np.empty((len(frames), size, size, 3), np.uint8)
    for index, (frame, box) in enumerate(zip(frames, boxes, strict=True)):
        out[index] = _to_u8(resample(frame, box, (size, size)))
    return out


def scaled(crops: U8, size: int) -> U8:
    """Square crops (T, S, S, 3) -> (T, size, size, 3) by averaging areas; crops of that size as they are."""
    if crops.shape[1] == size:
        return crops
    return np.stack([cv2.resize(one, (size, size), interpolation=cv2.INTER_AREA) for one in crops]).astype(np.uint8)


def crop_yuv(frame: YuvFrame, box: F32, size: int) -> U8:
    """`crop` of one 4:2:0 frame, converted to (size, size, 3) RGB; only the box is converted."""
    y = resample(frame.y, box, (size, size))
    half = tuple(float(value) / 2 for value in box)
    u, v = (resample(plane, (half[0], half[1], half[2], half[3]), (size, size)) for plane in (frame.u, frame.v))
    return _to_u8(yuv_to_rgb(np.stack([y, u, v], -1), frame.space, frame.full_range))


def to_crop(landmarks: F32, boxes: F32, size: int) -> F32:
    """Landmarks (T, N, 2) in pixels of the frame -> in pixels of its crop."""
    return ((landmarks - boxes[:, None, :2]) * (size / (boxes[:, None, 2:] - boxes[:, None, :2]))).astype(np.float32)


def from_crop(landmarks: F32, boxes: F32, size: int) -> F32:
    """The inverse of `to_crop`."""
    return (landmarks * ((boxes[:, None, 2:] - boxes[:, None, :2]) / size) + boxes[:, None, :2]).astype(np.float32)


def _to_u8(values: F32) -> U8:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
