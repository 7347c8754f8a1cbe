"""Six quality aspects of a companion V' beside its clip V, each from 1 to 5 (paper, section on filters).

The paper asks a vision-language model; here each aspect is a classical measure of what V' lost against V,
brought to the scale by 1 + 4 exp(-(loss / scale)^2): no loss gives 5, a loss of half the scale about 4.1,
of the whole scale 2.5. The mouth is left out wherever a measure compares pixels: there V' has to differ.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from model_code.faces.masks import face_mask
from model_code.metrics.image import polygon_mask

ASPECTS = (
    "image_fidelity",
    "aesthetic_appeal",
    "temporal_stability",
    "motion_smoothness",
    "background_consistency",
    "subject_consistency",
)
SCALES: dict[str, float] = {
    "image_fidelity": 0.5,
    "aesthetic_appeal": 0.14,
    "temporal_stability": 2.0,
    "motion_smoothness": 0.5,
    "background_consistency": 4.0,
    "subject_consistency": 0.25,
}
"""Loss at which an aspect has fallen to 2.5; `calibrate` prints where graded bad pairs land."""
Planes = NDArray[np.float32]


def aspects(
    companion: NDArray[np.uint8], target: NDArray[np.uint8], landmarks: NDArray[np.float32]
) -> dict[str, float]:
    """Scores V' (T, S, S, 3) against V of the same shape.

    Args:
        companion: V'.
        target: V.
        landmarks: (T, 68, 2) of V.

    Returns:
        The six `ASPECTS`, 1 to 5 each.
    """
    losses = measures(companion, target, landmarks)
    return {name: float(1 + 4 * np.exp(-((losses[name] / SCALES[name]) ** 2))) for name in ASPECTS}


def measures(
    companion: NDArray[np.uint8], target: NDArray[np.uint8], landmarks: NDArray[np.float32]
) -> dict[str, float]:
    """The losses behind the aspects.

    image_fidelity: share of fine detail lost in the face (energy of the Laplacian).
    aesthetic_appeal: shift of mean colour and of contrast in the face, of full scale.
    temporal_stability: flicker of the whole picture's and the face's brightness beyond V's, in grey levels.
    motion_smoothness: jerk of the upper face's place beyond V's, in pixels.
    background_consistency: root mean square difference outside the face, in grey levels.
    subject_consistency: 1 - structural similarity of the face without its mouth.
    """
    size = companion.shape[1]
    face = face_mask(landmarks, size)
    mouth = polygon_mask(landmarks[:, 48:60], size, dilate=0.6)
    still = face & ~mouth
    a, b = (_luma(frames) for frames in (companion, target))
    return {
        "image_fidelity": _detail_lost(a, b, still),
        "aesthetic_appeal": _colour_shift(companion, target, still),
        "temporal_stability": _flicker(a, b, still),
        "motion_smoothness": _jerk(a, b, landmarks),
        "background_consistency": _difference(a, b, ~face),
        "subject_consistency": _dissimilarity(a, b, still),
    }


def _luma(frames: NDArray[np.uint8]) -> Planes:
    return (frames.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)).astype(np.float32)


def _detail_lost(a: Planes, b: Planes, mask: NDArray[np.bool_]) -> float:
    inner = np.stack([cv2.erode(m.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0 for m in mask])
    energy = []
    for planes in (a, b):
        detail = np.stack([cv2.Laplacian(plane, cv2.CV_32F, ksize=3) for plane in planes])
        energy.append(float(np.abs(detail[inner]).mean()) if inner.any() else 1.0)
    return float(np.clip(1 - energy[0] / max(energy[1], 1e-3), 0, 1))


def _colour_shift(a: NDArray[np.uint8], b: NDArray[np.uint8], mask: NDArray[np.bool_]) -> float:
    if not mask.any():
        return 0.0
    new, old = a[mask].astype(np.float32) / 255, b[mask].astype(np.float32) / 255
    return float(np.abs(new.mean(0) - old.mean(0)).max() + np.abs(new.std(0) - old.std(0)).max())


def _flicker(a: Planes, b: Planes, mask: NDArray[np.bool_]) -> float:
    """Mean absolute second difference of brightness over time, of V' minus V."""
    if len(a) < 3:
        return 0.0
    weight = np.maximum(mask.sum((1, 2)), 1)
    gap = a - b
    face, whole = (gap * mask).sum((1, 2)) / weight, gap.mean((1, 2))
    return float(max(np.abs(np.diff(curve, n=2)).mean() for curve in (face, whole)))


def _jerk(a: Planes, b: Planes, landmarks: NDArray[np.float32]) -> float:
    """Mean second difference of the shift between V' and V of the middle face, in pixels."""
    low = np.floor(np.concatenate([landmarks[:, 17:36], landmarks[:, 36:48]], 1).min((0, 1)))
    high = np.ceil(np.concatenate([landmarks[:, 17:36], landmarks[:, 36:48]], 1).max((0, 1)))
    x0, y0 = np.clip(low, 0, a.shape[1] - 16).astype(int)
    x1, y1 = np.clip(high, 16, a.shape[1]).astype(int)
    x1, y1 = max(x1, x0 + 16), max(y1, y0 + 16)
    window = cv2.createHanningWindow((int(x1 - x0), int(y1 - y0)), cv2.CV_32F)
    shifts = np.array(
        [cv2.phaseCorrelate(np.ascontiguousarray(p[y0:y1, x0:x1]), np.ascontiguousarray(q[y0:y1, x0:x1]), window)[0]
         for p, q in zip(a, b, strict=True)]
    )  # fmt: skip
    if len(shifts) < 3:
        return 0.0
    return float(np.linalg.norm(np.diff(np.clip(shifts, -4, 4), n=2, axis=0), axis=1).mean())


def _difference(a: Planes, b: Planes, mask: NDArray[np.bool_]) -> float:
    return float(np.sqrt(((a - b)[mask] ** 2).mean())) if mask.any() else 0.0


def _dissimilarity(a: Planes, b: Planes, mask: NDArray[np.bool_]) -> float:
    """1 - SSIM (7 px box window) over the mask."""
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for x, y, keep in zip(a, b, mask, strict=True):
        if not keep.any():
            continue
        mx, my, xx, yy, xy = (cv2.blur(plane, (7, 7)) for plane in (x, y, x * x, y * y, x * y))
        vx, vy, cov = xx - mx * mx, yy - my * my, xy - mx * my
        index = (2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
        values.append(float(index[keep].mean()))
    return float(1 - np.mean(values)) if values else 0.0
