"""Per-frame colour correction of generated crops (X-Dub's release)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SIMILAR = 0.07


def match_color(generated: NDArray[np.uint8], source: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Matches mean and standard deviation of each frame and channel to the source's.

    They are measured over the pixels that hardly changed: mean absolute difference over channels < 0.07 of full
    scale. A frame without such pixels is left alone. As in the release, values are cut off, not rounded.

    Args:
        generated: (T,H,W,3) uint8.
        source: (T,H,W,3) uint8.
    """
    corrected = np.empty_like(generated)
    for t in range(len(generated)):
        new, old = generated[t].astype(np.float64) / 255, source[t].astype(np.float64) / 255
        similar = np.abs(new - old).mean(-1) < SIMILAR
        if similar.any():
            mean, deviation = new[similar].mean(0), new[similar].std(0)
            new = (new - mean) / np.maximum(deviation, 1e-6) * old[similar].std(0) + old[similar].mean(0)
        corrected[t] = (np.clip(new, 0, 1) * 255).astype(np.uint8)
    return corrected
