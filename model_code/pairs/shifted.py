"""Self-made companions for the base: a clip whose mouth comes from another moment of the same clip.

Video alone makes them, no second utterance and no renderer: the face of frame s is brought onto frame t by an
affine map of landmarks that speech hardly moves. The result is rough at the jaw; it teaches the base that a
reference's mouth is not to be copied.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from model_code.faces.masks import STABLE_LANDMARKS, paste_mask
from model_code.media.sample import ClipSample

MIN_SHIFT = 10
"""Frames: the least distance in time between a frame and the mouth it is given."""


def shifted_companion(clip: ClipSample, rng: np.random.Generator) -> NDArray[np.uint8]:
    """(T, S, S, 3): the clip with every frame's face taken from another moment, there and back again in time.

    Args:
        clip: At least 2 * `MIN_SHIFT` frames.
        rng: Draws the shift.
    """
    count, size = len(clip.frames), clip.frames.shape[1]
    shift = int(rng.integers(MIN_SHIFT, max(MIN_SHIFT + 1, count - MIN_SHIFT)))
    sources = (np.arange(count) + shift) % (2 * count - 2)
    sources = np.where(sources < count, sources, 2 * count - 2 - sources)
    masks = paste_mask(clip.landmarks, size, clip.occluder)[..., None]
    out = np.empty_like(clip.frames)
    for t, s in enumerate(sources):
        matrix = _affine(clip.landmarks[s][STABLE_LANDMARKS], clip.landmarks[t][STABLE_LANDMARKS])
        moved = cv2.warpAffine(clip.frames[s], matrix, (size, size), borderMode=cv2.BORDER_REPLICATE)
        out[t] = np.rint(moved * masks[t] + clip.frames[t] * (1 - masks[t])).astype(np.uint8)
    return out


def _affine(source: NDArray[np.float32], target: NDArray[np.float32]) -> NDArray[np.float32]:
    """(2, 3) least-squares affine map in the image's own pixel centres."""
    design = np.concatenate([source - 0.5, np.ones((len(source), 1), np.float32)], 1)
    return np.linalg.lstsq(design, target - 0.5, rcond=None)[0].T.astype(np.float32)
