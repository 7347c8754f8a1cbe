"""The face of one frame brought onto another, by an affine map of landmarks that speech hardly moves."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from model_code.faces.masks import STABLE_LANDMARKS


def carried_faces(
    frames: NDArray[np.uint8], landmarks: NDArray[np.float32], sources: Sequence[int] | NDArray[np.intp]
) -> NDArray[np.uint8]:
    """Frame `sources[t]` moved so that its face lies where frame t has its own.

    Args:
        frames: (T, S, S, 3).
        landmarks: (T, 68, 2) in pixels.
        sources: One frame number for each of the T frames.

    Returns:
        (T, S, S, 3).
    """
    stable = landmarks[:, STABLE_LANDMARKS]
    size = frames.shape[2], frames.shape[1]
    return np.stack(
        [
            cv2.warpAffine(frames[s], _affine(stable[s], stable[t]), size, borderMode=cv2.BORDER_REPLICATE)
            for t, s in enumerate(sources)
        ]
    )


def _affine(source: NDArray[np.float32], target: NDArray[np.float32]) -> NDArray[np.float32]:
    """(2, 3) least-squares affine map in the image's own pixel centres."""
    design = np.concatenate([source - 0.5, np.ones((len(source), 1), np.float32)], 1)
    return np.linalg.lstsq(design, target - 0.5, rcond=None)[0].T.astype(np.float32)
