"""Similarity alignment of landmarks (Umeyama) and the mouth distance of the pair filter."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]

#: Where ArcFace wants eyes (the viewer's left first), nose tip and mouth corners in a 112 x 112 px image.
ARCFACE_SIZE = 112
ARCFACE_TEMPLATE: F32 = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]], np.float32
)
LIPS = slice(48, 68)


def five_points(landmarks: F32) -> F32:
    """(..., 68, 2) landmarks -> (..., 5, 2): eye centres, nose tip, mouth corners."""
    left, right = landmarks[..., 36:42, :].mean(-2), landmarks[..., 42:48, :].mean(-2)
    return np.stack([left, right, landmarks[..., 30, :], landmarks[..., 48, :], landmarks[..., 54, :]], -2)


def interocular(landmarks: F32) -> F32:
    """(..., 68, 2) -> (...,) distance between the eyes' centres in pixels."""
    left, right = landmarks[..., 36:42, :].mean(-2), landmarks[..., 42:48, :].mean(-2)
    return np.linalg.norm(right - left, axis=-1).astype(np.float32)


def umeyama(source: F32, target: F32) -> F32:
    """Least-squares similarity (scale, rotation, shift; no mirror) that takes `source` to `target`.

    Closed form of Umeyama (1991) in two dimensions: with points as complex numbers, target = a source + b.

    Args:
        source: (..., N, 2) points.
        target: (..., N, 2) points.

    Returns:
        (..., 2, 3) matrices [R | t].
    """
    src = source[..., 0].astype(np.float64) + 1j * source[..., 1]
    dst = target[..., 0].astype(np.float64) + 1j * target[..., 1]
    src_mean, dst_mean = src.mean(-1, keepdims=True), dst.mean(-1, keepdims=True)
    spread = (np.abs(src - src_mean) ** 2).sum(-1)
    a = (np.conj(src - src_mean) * (dst - dst_mean)).sum(-1) / np.maximum(spread, 1e-12)
    b = dst_mean[..., 0] - a * src_mean[..., 0]
    rows = [np.stack([a.real, -a.imag, b.real], -1), np.stack([a.imag, a.real, b.imag], -1)]
    return np.stack(rows, -2).astype(np.float32)


def transform(matrix: F32, points: F32) -> F32:
    """Applies (..., 2, 3) matrices to (..., N, 2) points."""
    moved = points @ np.swapaxes(matrix[..., :2], -1, -2) + matrix[..., None, :, 2]
    return moved.astype(np.float32)


def mouth_distance(landmarks_a: F32, landmarks_b: F32) -> float:
    """How far apart two mouths stand, in pixels of ArcFace's 112 px template.

    Mean over frames and the 20 lip landmarks of the distance after each face is brought to the template by `umeyama` on
    its five points. The paper (section on filters) does not print the scale; 112 px is ours.

    Args:
        landmarks_a: (T, 68, 2).
        landmarks_b: (T, 68, 2), the same moments.
    """

    def lips(landmarks: F32) -> F32:
        five = five_points(landmarks)
        return transform(umeyama(five, np.broadcast_to(ARCFACE_TEMPLATE, five.shape)), landmarks[..., LIPS, :])

    return float(np.linalg.norm(lips(landmarks_a) - lips(landmarks_b), axis=-1).mean())
