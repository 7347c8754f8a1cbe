"""Frames on disk, for those who want them again in another order."""

from __future__ import annotations

import shutil
import tempfile
from types import TracebackType
from typing import IO

import numpy as np

from model_code.errors import InputError
from model_code.media.yuv import YuvFrame

RESERVE = 1 << 30
"""Bytes of the disk that are left free."""


class FrameSpool:
    """Keeps the planes of equally large frames in a nameless temporary file.

    Args:
        keep: False keeps nothing: `add` only passes frames through.
    """

    def __init__(self, keep: bool) -> None:
        self._file: IO[bytes] | None = tempfile.TemporaryFile() if keep else None  # noqa: SIM115 - closed on exit
        self._like: YuvFrame | None = None

    def __enter__(self) -> FrameSpool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, frame: YuvFrame) -> YuvFrame:
        """Stores the next frame and returns it.

        Raises:
            InputError: If the disk is almost full.
        """
        if self._file is not None:
            if self._like is None:
                self._like = frame
            if shutil.disk_usage(tempfile.gettempdir()).free < RESERVE:
                raise InputError("the temporary folder is full", "free space, or give audio no longer than the video")
            for plane in frame.planes():
                self._file.write(plane.tobytes())
        return frame

    def __getitem__(self, index: int) -> YuvFrame:
        if self._file is None or self._like is None:
            raise IndexError(index)
        like = self._like
        sizes = [plane.size for plane in like.planes()]
        self._file.seek(index * sum(sizes))
        data = np.frombuffer(self._file.read(sum(sizes)), np.uint8)
        y, u, v = (
            part.reshape(p.shape) for part, p in zip(np.split(data, np.cumsum(sizes)[:-1]), like.planes(), strict=True)
        )
        return YuvFrame(y, u, v, like.space, like.full_range)
