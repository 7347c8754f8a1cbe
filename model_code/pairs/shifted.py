"""Self-made companions for the base: a clip whose mouth comes from another moment of the same clip.

Video alone makes them, no second utterance and no renderer: the face of frame s is brought onto frame t by an
affine map of landmarks that speech hardly moves. The result is rough at the jaw; it teaches the base that a
reference's mouth is not to be copied.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model_code.faces.carry import carried_faces
from model_code.faces.masks import paste_mask
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
    moved = carried_faces(clip.frames, clip.landmarks, sources)
    return np.rint(moved * masks + clip.frames * (1 - masks)).astype(np.uint8)
