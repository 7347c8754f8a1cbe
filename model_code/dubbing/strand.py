"""One clip on its way through the windows: what is kept of it between two, however long it is."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from model_code.backbones.pieces import PieceDecoder
from model_code.dubbing.longform import Stitcher
from model_code.media.audio import Sound

U8 = NDArray[np.uint8]


class Reel:
    """Frames of a clip that come one after the other and are asked for window by window.

    Args:
        frames: (S, S, 3) each.
        count: How many there are, at least 1.
        behind: So many frames before those that were asked for stay.
    """

    def __init__(self, frames: Iterable[U8], count: int, behind: int = 0) -> None:
        self._frames = iter(frames)
        self._held = deque([next(self._frames)])
        self._first, self._behind = 0, behind
        self.shape = (count, *self._held[0].shape)

    def __len__(self) -> int:
        return self.shape[0]

    def part(self, start: int, count: int) -> U8:
        """`count` frames from `start`, the last one repeated beyond the end; those far before `start` are let go."""
        while self._first + len(self._held) < min(start + count, len(self)):
            self._held.append(next(self._frames))
        while self._first < start - self._behind:
            self._held.popleft()
            self._first += 1
        places = np.minimum(np.arange(start, start + count), len(self) - 1) - self._first
        return np.stack([self._held[int(place)] for place in places])


@dataclass(frozen=True)
class DubItem:
    """One clip to dub.

    Attributes:
        frames: (T, S, S, 3) uint8 crops, or a reel of them.
        samples: 16 kHz sound; cut or followed by silence to T frames.
        seed: Decides the noise.
        landmarks: (T, 68, 2); what masks faces needs them: a generator, an editor with a `companion_share` below 1.
        occluder: (T, S, S) bool, kept by a generator; None if nothing is in the way.
    """

    frames: U8 | Reel
    samples: Sound
    seed: int = 0
    landmarks: NDArray[np.float32] | None = None
    occluder: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class DubbedPart:
    """The next dubbed frames of a clip.

    Attributes:
        frames: (n, S, S, 3) uint8; n may be 0.
        start: First frame of the window that was made.
        retries: How often this window was made again because it looked like noise.
        noise: Whether the best of them still does.
    """

    frames: U8
    start: int
    retries: int
    noise: bool


@dataclass
class Strand:
    """A clip between two windows.

    Attributes:
        item: The clip.
        features: Of its sound, 50 Hz.
        starts: First frames of its windows.
        joined: Joins and decodes latents where windows are stitched so; None where their pixels follow each other.
        motion: Last frames of the window before, or None.
        shown: Frames that are done.
    """

    item: DubItem
    features: NDArray[np.float32]
    starts: list[int]
    joined: tuple[Stitcher, PieceDecoder] | None
    motion: U8 | None = None
    shown: int = field(default=0)

    def take(self, frames: U8) -> U8:
        """Counts the next frames as done; gives those that lie within the clip."""
        frames = frames[: len(self.item.frames) - self.shown]
        self.shown += len(frames)
        return frames

    def decode(self, latents: Tensor, last: bool) -> Tensor:
        """Video (3,t,H,W) that is certain once these latents (C,F,h,w) of the next window are joined to the others."""
        assert self.joined is not None
        stitcher, decoder = self.joined
        return decoder.push(stitcher.push(latents, last)[None], last)[0]
