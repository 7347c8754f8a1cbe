"""Masks from landmarks: what the generator paints anew, and where losses look.

The inpainting mask must not tell how the mouth stands (paper, section on the generator: a face with its jaw fixed at
0.4). Here a canonical outline with the jaw open at 0.4 is fitted to landmarks that speech hardly moves.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from model_code.faces.align import interocular

F32 = NDArray[np.float32]
Bool = NDArray[np.bool_]

# Canonical coordinates: origin between the eyes' centres, distance of the eyes 1, x to the viewer's right, y down,
# z towards the viewer; means of procedural natural heads.
_STABLE: dict[int, tuple[float, float, float, float]] = {  # landmark: x, y, z, weight
    0: (-1.15, -0.02, -0.95, 0.5), 1: (-1.13, 0.29, -0.89, 0.5), 15: (1.13, 0.29, -0.89, 0.5),
    16: (1.15, -0.02, -0.95, 0.5), 19: (-0.49, -0.45, 0.21, 0.25), 24: (0.49, -0.45, 0.21, 0.25),
    27: (0.0, 0.01, 0.27, 1.0), 28: (0.0, 0.22, 0.36, 0.5), 29: (0.0, 0.42, 0.43, 0.5), 30: (0.0, 0.59, 0.58, 1.0),
    31: (-0.24, 0.73, 0.28, 0.5), 33: (0.0, 0.76, 0.29, 1.0), 35: (0.24, 0.73, 0.28, 0.5),
    36: (-0.72, -0.01, -0.04, 1.0), 39: (-0.26, 0.03, -0.04, 1.0), 42: (0.26, 0.03, -0.04, 1.0),
    45: (0.72, -0.01, -0.04, 1.0),
}  # fmt: skip
#: Outer points of the middle and lower face with the jaw open at 0.4 (and a margin): one side, then what stands out in
#: the middle. The other side mirrors the first.
_SIDE = [
    (-1.17, 0.28, -0.85), (-1.12, 0.62, -0.80), (-1.03, 0.95, -0.72), (-0.90, 1.26, -0.64), (-0.76, 1.54, -0.60),
    (-0.61, 1.78, -0.52), (-0.42, 1.97, -0.34), (-0.55, 0.30, 0.08), (-0.30, 1.38, 0.18), (-0.45, 1.12, 0.05),
]  # fmt: skip
_MIDDLE = [(0.0, 2.03, -0.15), (0.0, 0.30, 0.40), (0.0, 0.60, 0.62), (0.0, 1.05, 0.34), (0.0, 1.35, 0.30)]
#: Landmarks that speech hardly moves.
STABLE_LANDMARKS = list(_STABLE)
_OUTLINE: F32 = np.array(_SIDE + [(-x, y, z) for x, y, z in _SIDE] + _MIDDLE, np.float32)


def face_outline(landmarks: F32) -> list[F32]:
    """Outline of the middle and lower face of each frame, its jaw open at 0.4 however the mouth stands.

    The canonical face is seen through an affine camera fitted to the stable landmarks.

    Args:
        landmarks: (T, 68, 2) in pixels.

    Returns:
        T convex polygons (n, 2).
    """
    canonical = np.array([_STABLE[i][:3] for i in STABLE_LANDMARKS], np.float64)
    weights = np.sqrt(np.array([_STABLE[i][3] for i in STABLE_LANDMARKS], np.float64))
    design = np.concatenate([canonical, np.ones((len(STABLE_LANDMARKS), 1))], 1) * weights[:, None]
    cameras = np.linalg.pinv(design)[None] @ (landmarks[:, STABLE_LANDMARKS] * weights[None, :, None])  # (T, 4, 2)
    shape = np.concatenate([_OUTLINE, np.ones((len(_OUTLINE), 1), np.float32)], 1)
    return [cv2.convexHull((shape @ camera).astype(np.float32))[:, 0] for camera in cameras]


def face_mask(landmarks: F32, size: int | tuple[int, int]) -> Bool:
    """The face that the generator repaints, however the mouth stands.

    Args:
        landmarks: (T, 68, 2) in pixels.
        size: Side of the square frame, or (height, width).

    Returns:
        (T, H, W), True inside the face.
    """
    return np.stack([_fill(outline, size) for outline in face_outline(landmarks)])


def inpaint_mask(landmarks: F32, size: int | tuple[int, int], occluder: Bool | None = None) -> Bool:
    """The generator's mask: (T, H, W), True = keep: not face, or an occluder before it (paper: M_inp)."""
    keep = ~face_mask(landmarks, size)
    return keep if occluder is None else keep | occluder


def lip_mask(landmarks: F32, size: int | tuple[int, int]) -> F32:
    """Soft (T, H, W) loss mask in [0, 1] over the lips where they stand in each frame (paper: M_lip)."""
    return _soft(landmarks, landmarks[:, 48:60], size, grow=0.16, blur=0.08)


def face_loss_mask(landmarks: F32, size: int | tuple[int, int]) -> F32:
    """Soft (T, H, W) loss mask in [0, 1] over the hull of all landmarks of each frame (paper: M)."""
    return _soft(landmarks, landmarks, size, grow=0.1, blur=0.1)


def paste_mask(landmarks: F32, size: int, occluder: Bool | None = None) -> F32:
    """Soft (T, size, size) weights for putting a dubbed crop back: 1 over the face, 0 at the crop's border."""
    border = max(2.0, size * 16 / 512)
    ramp = np.clip((np.minimum(np.arange(size), np.arange(size)[::-1])) / border, 0, 1).astype(np.float32)
    frame = np.minimum(ramp[:, None], ramp[None])
    mask = np.stack([_feather(_fill(points, size), size * 0.03) for points in face_outline(landmarks)])
    if occluder is not None:
        mask = mask * (1 - np.stack([_feather(one, size * 0.01) for one in occluder]))
    mask = (mask * frame).astype(np.float32)
    mask[mask < 1 / 255] = 0
    return mask


def _fill(points: F32, size: int | tuple[int, int]) -> Bool:
    height, width = (size, size) if isinstance(size, int) else size
    canvas = np.zeros((height, width), np.uint8)
    fixed = np.rint(np.clip(points - 0.5, -4 * width, 5 * width) * 16).astype(np.int32)  # 4 fractional bits
    cv2.fillPoly(canvas, [fixed], 1, shift=4)
    return canvas.astype(bool)


def _feather(mask: Bool, sigma: float) -> F32:
    """Widens a mask by about 2 sigma and blurs it, so that it is still 1 inside."""
    reach = 2 * round(2 * sigma) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach))
    return cv2.GaussianBlur(cv2.dilate(mask.astype(np.float32), kernel), (0, 0), max(sigma, 0.3)).astype(np.float32)


def _soft(landmarks: F32, points: F32, size: int | tuple[int, int], grow: float, blur: float) -> F32:
    """Hull of `points`, widened and blurred by shares of the interocular distance (in profile: of what it would be)."""
    out = []
    depth = np.linalg.norm(landmarks[:, 36:48].mean(1) - landmarks[:, 33], axis=-1)
    for distance, cloud in zip(np.maximum(interocular(landmarks), depth), points, strict=True):
        hull = cv2.convexHull(cloud.astype(np.float32))[:, 0]
        reach = 2 * round(float(distance) * grow) + 1
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach))
        wide = cv2.dilate(_fill(hull, size).astype(np.float32), kernel)
        out.append(cv2.GaussianBlur(wide, (0, 0), max(float(distance) * blur, 0.3)))
    return np.stack(out).astype(np.float32)
