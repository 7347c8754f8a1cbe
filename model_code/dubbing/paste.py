"""Puts a dubbed crop back into its frame, plane by plane, and leaves every other pixel as it was."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from model_code.faces.crop import crop_yuv, resample
from model_code.media.yuv import YuvFrame, rgb_to_yuv

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

KEEP_DETAIL = (0.02, 0.08)
"""Change of the crop (share of full scale) up to which the frame's own fine detail stays, and from which none does."""


def paste(frame: YuvFrame, dubbed: U8, box: F32, mask: F32) -> YuvFrame:
    """Blends a dubbed crop into a 4:2:0 frame.

    Where the crop hardly changed, the frame's own detail, finer than the crop, is kept: there only the difference
    between dubbed and original crop is added. All pixels with weight 0 are bit-equal.

    Args:
        frame: The original.
        dubbed: (S, S, 3) RGB crop.
        box: (4,) x0, y0, x1, y1 of the crop in pixels of the frame; may exceed it.
        mask: (S, S) weights 0..1, 0 at the border.

    Returns:
        A new frame.
    """
    size = dubbed.shape[0]
    original = crop_yuv(frame, box, size).astype(np.float32)
    new = dubbed.astype(np.float32)
    change = cv2.GaussianBlur(np.abs(new - original).mean(-1), (0, 0), size / 48) / 255
    low, high = KEEP_DETAIL
    plain = np.clip((change - low) / (high - low), 0, 1).astype(np.float32)
    new_yuv = rgb_to_yuv(new, frame.space, frame.full_range)
    old_yuv = rgb_to_yuv(original, frame.space, frame.full_range)
    planes = []
    for channel, plane in enumerate(frame.planes()):
        half = 1.0 if channel == 0 else 0.5
        x0, y0, x1, y1 = (float(value) * half for value in box)
        left, top = max(0, int(np.floor(x0))), max(0, int(np.floor(y0)))
        right, bottom = min(plane.shape[1], int(np.ceil(x1))), min(plane.shape[0], int(np.ceil(y1)))
        if left >= right or top >= bottom:
            planes.append(plane)
            continue
        scale = (size / (x1 - x0), size / (y1 - y0))
        span = ((left - x0) * scale[0], (top - y0) * scale[1], (right - x0) * scale[0], (bottom - y0) * scale[1])
        shape = (bottom - top, right - left)
        weight = np.clip(resample(mask, span, shape), 0, 1)
        weight[weight < 1 / 255] = 0
        there = plane[top:bottom, left:right].astype(np.float32)
        wanted = resample(new_yuv[..., channel], span, shape)
        detail = there - resample(old_yuv[..., channel], span, shape)
        wanted += detail * (1 - np.clip(resample(plain, span, shape), 0, 1))
        blended = there + weight * (wanted - there)
        out = plane.copy()
        out[top:bottom, left:right] = np.clip(np.rint(blended), 0, 255).astype(np.uint8)
        planes.append(out)
    return frame.with_planes(planes)
