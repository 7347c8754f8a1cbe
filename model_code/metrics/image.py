"""Image measures against an exact reference: PSNR, SSIM, and a Fréchet distance of perceptual features.

All frames are uint8 RGB (T,H,W,3) of equal shape. Squared errors are pooled over a clip's pixels before the
logarithm, so one bad frame weighs as much as it should.
"""

from __future__ import annotations

import cv2
import numpy as np

#: PSNR of identical pictures; keeps means finite.
PSNR_CEILING = 100.0


def _check(a: np.ndarray, b: np.ndarray) -> None:
    if a.shape != b.shape or a.ndim != 4:
        raise ValueError(f"frames must be (T,H,W,3) of equal shape, got {a.shape} and {b.shape}")


def psnr(a: np.ndarray, b: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Peak signal-to-noise ratio of a clip in dB.

    Args:
        a: Frames (T,H,W,3) uint8.
        b: Frames of the same shape.
        mask: Optional bool (T,H,W): only these pixels count.

    Returns:
        Decibels, at most `PSNR_CEILING`; NaN where the mask is empty.
    """
    _check(a, b)
    squared = (a.astype(np.float32) - b.astype(np.float32)) ** 2
    if mask is not None:
        squared = squared[np.broadcast_to(mask, a.shape[:3])]
    if squared.size == 0:
        return float("nan")
    mean = float(squared.mean(dtype=np.float64))
    return PSNR_CEILING if mean == 0 else min(PSNR_CEILING, 10 * np.log10(255.0**2 / mean))


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Mean structural similarity of luma (Wang et al. 2004: Gaussian window 11, sigma 1.5, K 0.01 and 0.03)."""
    _check(a, b)
    weights = np.array([0.299, 0.587, 0.114], np.float32)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for left, right in zip(a, b, strict=True):
        x, y = left.astype(np.float32) @ weights, right.astype(np.float32) @ weights
        mx, my, xx, yy, xy = (_blur(plane) for plane in (x, y, x * x, y * y, x * y))
        vx, vy, cov = xx - mx * mx, yy - my * my, xy - mx * my
        index = (2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
        values.append(float(index[5:-5, 5:-5].mean(dtype=np.float64)))
    return float(np.mean(values))


def _blur(plane: np.ndarray) -> np.ndarray:
    return cv2.GaussianBlur(plane, (11, 11), 1.5)


def polygon_mask(points: np.ndarray, size: int, dilate: float = 0.0) -> np.ndarray:
    """Filled convex hull of `points` in every frame.

    Args:
        points: (T,N,2) x,y in pixels.
        size: Side of the square frames.
        dilate: Growth of the hull about its centre, as a share of its size.

    Returns:
        bool (T,size,size).
    """
    masks = np.zeros((len(points), size, size), np.uint8)
    for mask, frame in zip(masks, points, strict=True):
        centre = frame.mean(0)
        grown = (centre + (frame - centre) * (1 + dilate) - 0.5).round().astype(np.int32)
        cv2.fillConvexPoly(mask, cv2.convexHull(grown), 1)
    return masks.astype(bool)


def lip_region(*landmarks: np.ndarray, size: int) -> np.ndarray:
    """Pixels about the lips in any of the given clips: bool (T,size,size).

    The union of the input's and the reference's lips is what a dub has to change and to fill.
    """
    return np.any([polygon_mask(points[:, 48:68], size, dilate=0.35) for points in landmarks], axis=0)


def face_region(*landmarks: np.ndarray, size: int) -> np.ndarray:
    """Pixels of the face (jaw to brows, a tenth larger) in any of the given clips: bool (T,size,size)."""
    return np.any([polygon_mask(points, size, dilate=0.12) for points in landmarks], axis=0)


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Smallest (x0, y0, x1, y1) that holds a mask (T,H,W) over all frames, ends exclusive.

    Raises:
        ValueError: The mask is empty.
    """
    rows, columns = np.flatnonzero(mask.any((0, 2))), np.flatnonzero(mask.any((0, 1)))
    if not rows.size:
        raise ValueError("the mask holds no pixel in any frame")
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def frechet(mean_a: np.ndarray, left: np.ndarray, mean_b: np.ndarray, right: np.ndarray) -> float:
    """Fréchet distance of two Gaussians, means (D,) and covariances (D,D).

    Of the perceptual encoder's features it is the formula of FID; not FID, which needs Inception's.
    """
    gap = mean_a - mean_b
    root = _sqrt(left)
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ right @ root), 0, None)).sum()
    return float(max(0.0, gap @ gap + np.trace(left) + np.trace(right) - 2 * cross))


def _sqrt(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    root: np.ndarray = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    return root
