"""Index arithmetic of long dubs: how long, which source frame when, which frames in one pass, how passes join."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def output_frames(n_samples: int, sample_rate: int, fps: int) -> int:
    """Frames that cover the sound: the dub lasts as long as the audio (release: n = ceil(25 seconds)), at least one."""
    return max(1, math.ceil(round(n_samples * fps / sample_rate, 6)))


def pingpong(n_source: int, n_out: int) -> NDArray[np.intp]:
    """Source frame of every output frame: cut if the video is longer, else back and forth, end frames not repeated.

    Example:
        >>> pingpong(3, 8).tolist()
        [0, 1, 2, 1, 0, 1, 2, 1]
    """
    if n_source < 1:
        raise ValueError("pingpong needs at least one source frame")
    period = max(1, 2 * (n_source - 1))
    place = np.arange(n_out) % period
    return np.minimum(place, period - place) if n_source > 1 else np.zeros(n_out, np.intp)


def windows(n_frames: int, window: int, overlap: int) -> list[tuple[int, int]]:
    """Spans [start, end) that cover `n_frames`; each begins `overlap` frames (its motion frames) before the last's end.

    All but the last are `window` frames long; the last ends with the frames and may be shorter.

    Raises:
        ValueError: Unless 0 <= overlap < window.
    """
    if not 0 <= overlap < window:
        raise ValueError(f"overlap {overlap} must be at least 0 and less than the window {window}")
    spans = [(0, min(window, n_frames))]
    while spans[-1][1] < n_frames:
        start = spans[-1][1] - overlap
        spans.append((start, min(start + window, n_frames)))
    return spans


class Stitcher:
    """Joins the latents of consecutive windows, as in the release, to be decoded as one.

    The last frame of each window is averaged with the last motion frame of the next, which stands at its place; of
    the next window the frames after its motion frames follow. n windows of F frames give F + (n - 1) (F - motion).

    Args:
        motion: Motion frames at the beginning of every window but the first, in latent frames, at least 1.
    """

    def __init__(self, motion: int) -> None:
        self._motion = motion
        self._end: Tensor | None = None

    def push(self, window: Tensor, last: bool) -> Tensor:
        """Takes the latents (C,F,h,w) of the next window; returns those that no later window changes."""
        if self._end is not None:
            seam = (self._end + window[:, self._motion - 1 : self._motion]) / 2
            window = torch.cat([seam, window[:, self._motion :]], dim=1)
        if last:
            return window
        self._end = window[:, -1:]
        return window[:, :-1]


def runs(usable: NDArray[np.bool_], breaks: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Longest spans [start, end) of usable frames that no break divides; `breaks[n]`: a new shot begins at n."""
    spans: list[tuple[int, int]] = []
    start: int | None = None
    for index, (use, cut) in enumerate(zip(usable.tolist(), breaks.tolist(), strict=True)):
        if start is not None and (cut or not use):
            spans.append((start, index))
            start = None
        if use and start is None:
            start = index
    if start is not None:
        spans.append((start, len(usable)))
    return spans
