"""Files of jobs: one folder each under the state root, named by the job."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import BinaryIO

from model_code.errors import InputError
from xdub_platform.serving.queue import FINISHED, JobQueue
from xdub_platform.settings import Settings

PARTS = ("video", "audio")
CHUNK = 1 << 20


class TooLargeError(Exception):
    """More bytes than a job may bring."""


class DiskFullError(Exception):
    """The disk has no room for them."""


def media_limits(settings: Settings) -> dict[str, float]:
    """Fields of `MediaConfig` that are narrower where strangers bring the files."""
    media, limits = settings.media, settings.serving
    return {
        "max_seconds": min(media.max_seconds, limits.max_seconds),
        "max_side": min(media.max_side, limits.max_side),
    }


class JobStore:
    """Inputs and results.

    Args:
        settings: Of the state root.
    """

    def __init__(self, settings: Settings) -> None:
        self.limits = settings.serving
        self.root = settings.path("serving", "jobs")
        self.inputs = settings.serving.inputs or settings.path("serving", "inputs")
        self.root.mkdir(parents=True, exist_ok=True)

    def folder(self, job_id: str) -> Path:
        """A job's folder, which may not exist."""
        return self.root / job_id

    def create(self, job_id: str) -> Path:
        """Makes a job's folder."""
        folder = self.folder(job_id)
        folder.mkdir()
        return folder

    def check_room(self, expected: int) -> None:
        """Refuses what would fill the disk.

        Raises:
            TooLargeError: More than any job may bring.
            DiskFullError: Less than `min_free_bytes` would be left.
        """
        if expected > self.limits.max_upload_bytes:
            raise TooLargeError
        if shutil.disk_usage(self.root).free - expected < self.limits.min_free_bytes:
            raise DiskFullError

    def writer(self, job_id: str) -> JobWriter:
        """Takes a job's input files."""
        return JobWriter(self, self.folder(job_id))

    def named(self, name: str) -> Path:
        """The file that a client named, below the folder of allowed inputs.

        Raises:
            InputError: It lies elsewhere or is not there. Both say the same: what lies elsewhere is nobody's business.
        """
        refused = InputError(f"'{name}' is no file in the folder of inputs", "name a file below it, by a relative path")
        try:
            root = self.inputs.resolve(strict=True)
            path = (root / name).resolve(strict=True)
        except (OSError, ValueError, RuntimeError):
            raise refused from None
        if Path(name).is_absolute() or not path.is_relative_to(root) or not path.is_file():
            raise refused
        return path

    def remove(self, job_id: str) -> None:
        """Removes all files of a job."""
        shutil.rmtree(self.folder(job_id), ignore_errors=True)

    def clean(self, queue: JobQueue) -> int:
        """Applies the retention rules and removes files that belong to nothing; returns how many jobs were removed."""
        present = [path.name for path in self.root.iterdir()]
        old = queue.remove_old(self.limits.retention_hours, self.limits.retention_bytes)
        states: dict[str, object] = {}
        for start in range(0, len(present), 500):
            states.update(queue.known(present[start : start + 500]))
        for name in present:
            # A job is known before it has a folder, so a folder without a job is left over.
            if name not in states:
                self.remove(name)
            elif states[name] in FINISHED:
                for part in PARTS:
                    (self.root / name / part).unlink(missing_ok=True)
        return len(old)


class JobWriter:
    """Writes the inputs of one job within the limits.

    Args:
        store: Knows the limits.
        folder: The job's.
    """

    def __init__(self, store: JobStore, folder: Path) -> None:
        self._store, self._folder = store, folder
        self._open: BinaryIO | None = None
        self._since_check = 0
        self.written = 0

    def begin(self, part: str) -> None:
        """Opens `video` or `audio`."""
        self._open = (self._folder / part).open("xb")

    def write(self, data: bytes) -> None:
        """Adds to the open part.

        Raises:
            TooLargeError: Both parts together exceed the limit.
            DiskFullError: The disk is full, or nearly.
        """
        assert self._open is not None
        self.written += len(data)
        self._since_check += len(data)
        if self.written > self._store.limits.max_upload_bytes:
            raise TooLargeError
        if self._since_check >= CHUNK:
            self._store.check_room(0)
            self._since_check = 0
        try:
            self._open.write(data)
        except OSError as error:
            raise DiskFullError from error

    def end(self) -> None:
        """Closes the open part; its bytes are on the disk when this returns."""
        if self._open is not None:
            try:
                self._open.flush()
                os.fsync(self._open.fileno())
            except OSError as error:
                raise DiskFullError from error
            finally:
                self.close()

    def close(self) -> None:
        """Closes without any promise."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def copy(self, part: str, source: Path) -> None:
        """Copies a file in as `part`: later changes of it do not reach the job."""
        with source.open("rb") as file:
            self._store.check_room(os.fstat(file.fileno()).st_size)
            self.begin(part)
            while data := file.read(CHUNK):
                self.write(data)
        self.end()
