"""Looks at what was uploaded before it is queued: in a process of its own, because nobody vouches for the file."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from threading import Lock, Thread

from model_code.config import MediaConfig
from model_code.errors import InputError

MEMORY = 2 << 30
"""Address space of the process, in bytes."""
SECONDS = 30.0
"""Longest look at one file."""
START = 120.0
"""Longest start of the process."""


class Inspector:
    """Checks headers against the limits; a file that kills the process is refused, and the next gets a new one.

    Args:
        media: Limits.
    """

    def __init__(self, media: MediaConfig) -> None:
        self._media = media
        self._lock = Lock()
        self._pool: ProcessPoolExecutor | None = None

    def check(self, video: Path, audio: Path) -> None:
        """Looks at both files of a job.

        Raises:
            InputError: One of them cannot be used.
        """
        for path, kind in ((video, "video"), (audio, "audio")):
            told = self._look(path, kind)
            if told:
                raise InputError(*told)

    def close(self) -> None:
        """Ends the process."""
        with self._lock:
            self._end()

    def _look(self, path: Path, kind: str) -> tuple[str, str] | None:
        with self._lock:
            for _ in range(2):  # the process may have been ended for something that was not this file
                try:
                    pool = self._pool or self._begin()
                    return pool.submit(_look, str(path), kind, self._media.model_dump()).result(SECONDS)
                except BrokenProcessPool:
                    self._end()
                except FutureTimeout:
                    self._end()
                    break
        return f"'{kind}' cannot be read", "it may be damaged: export it again as mp4 or wav"

    def _begin(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, mp_context=context, initializer=_confine, initargs=(os.getpid(),))
        self._pool.submit(_ready).result(START)
        return self._pool

    def _end(self) -> None:
        if self._pool is not None:
            for process in list((self._pool._processes or {}).values()):  # a hung process ends in no other way
                process.kill()
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None


def _confine(parent: int) -> None:
    """Limits this process; the signal of a parent's death would come with the end of the thread that started it."""
    Thread(target=_end_with, args=(parent,), daemon=True).start()
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _ready() -> None:
    """Imports what a look needs: that is no file's fault."""
    import model_code.media.probe  # noqa: F401


def _look(path: str, kind: str, media: dict[str, object]) -> tuple[str, str] | None:
    """What is wrong with a file and what to do about it, or None."""
    from model_code.media.probe import probe

    try:
        info = probe(path, MediaConfig.model_validate(media))
    except InputError as error:
        return error.what, error.remedy
    except MemoryError:
        return f"'{kind}' needs more memory than it is worth", "export it again as mp4 or wav"
    if kind == "video" and not info.has_video:
        return "'video' has no pictures that can be decoded", "give a video file, such as mp4"
    if kind == "audio" and not info.has_audio:
        return "'audio' has no sound that can be decoded", "give a sound file, such as wav"
    return None
