"""Frames and sound on disk, for those who want them again or in parts."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO

import numpy as np
from numpy.typing import NDArray

from model_code.errors import InputError
from model_code.media.yuv import YuvFrame

RESERVE = 1 << 30
"""Bytes of the disk that are left free."""


class FrameSpool:
    """The frames of a stream by index, all of one size; what was read stays in a temporary file.

    Args:
        frames: The stream; read as far as somebody asks.
        total: Most that anybody will ask for: they must fit on the disk.
        file: Takes the planes.
    """

    def __init__(self, frames: Iterator[YuvFrame], total: int, file: IO[bytes]) -> None:
        self._frames, self._total, self._file = frames, total, file
        self._like: YuvFrame | None = None
        self._count = 0

    def __getitem__(self, index: int) -> YuvFrame:
        """Frame `index`.

        Raises:
            InputError: The disk has no room for those to come.
            IndexError: The stream ends before.
        """
        while self._count <= index:
            frame = next(self._frames, None)
            if frame is None:
                raise IndexError(index)
            self._add(frame)
        like = self._like
        assert like is not None
        sizes = [plane.size for plane in like.planes()]
        self._file.seek(index * sum(sizes))
        data = np.frombuffer(self._file.read(sum(sizes)), np.uint8)
        y, u, v = (
            part.reshape(p.shape) for part, p in zip(np.split(data, np.cumsum(sizes)[:-1]), like.planes(), strict=True)
        )
        return like.with_planes((y, u, v))

    def _add(self, frame: YuvFrame) -> None:
        if self._like is None:
            self._like = frame
        size = sum(plane.size for plane in frame.planes())
        disk = os.fstatvfs(self._file.fileno())
        free = disk.f_bavail * disk.f_frsize
        if size * (self._total - self._count) > free - RESERVE:  # asked at every frame: others write there too
            raise InputError(
                f"the video is to run back and forth, and its {self._total} frames of {size / 1e6:.1f} MB do not fit "
                f"on the output's disk, which has {free / 1e9:.1f} GB free",
                "free space there, or give audio no longer than the video",
            )
        self._file.seek(0, 2)
        for plane in frame.planes():
            self._file.write(plane.tobytes())
        self._count += 1


class SpooledSound:
    """Samples (N,) float32 in a file (see `model_code.media.audio.Sound`)."""

    def __init__(self, file: IO[bytes], count: int) -> None:
        self._file, self._count = file, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, span: slice, /) -> NDArray[np.float32]:
        first, last, _ = span.indices(self._count)
        self._file.seek(4 * first)
        return np.frombuffer(self._file.read(4 * max(0, last - first)), np.float32)


@contextmanager
def spooled_sound(chunks: Iterable[NDArray[np.float32]]) -> Iterator[SpooledSound]:
    """Writes sound that comes in chunks to a temporary file, 4 MB a minute, and reads it from there."""
    with tempfile.TemporaryFile() as file:
        count = 0
        for chunk in chunks:
            file.write(chunk.tobytes())
            count += len(chunk)
        yield SpooledSound(file, count)
