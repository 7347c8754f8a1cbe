"""One maker at a time: a lock file for each asset and partition.

The lock is the kernel's (`flock`), so that it is free the moment its process ends, whatever ended it. Only what
the file says about its owner can be left behind; a file whose lock is free tells of a process that was killed.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from model_code.errors import InputError

PATIENCE = 2.0
"""Seconds to wait for a lock: a killed run's last breath, not somebody else's work."""
LOOK_EVERY = 0.1


@dataclass(frozen=True)
class Owner:
    """Who holds a lock.

    Attributes:
        what: What is being made, such as ``clips[shard-00000]``.
        run_id: Dagster's run.
    """

    what: str
    run_id: str
    pid: int = field(default_factory=os.getpid)
    host: str = field(default_factory=socket.gethostname)
    since: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


@contextmanager
def held(path: Path, owner: Owner, patience: float = PATIENCE) -> Iterator[None]:
    """Holds the lock at `path`; the file goes when the block ends.

    Raises:
        InputError: Somebody else holds it; the message says who.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience
    while (handle := _take(path)) is None:
        if time.monotonic() >= deadline:
            other = owner_of(path)
            told = f" by run {other.run_id[:8]} (process {other.pid} on {other.host})" if other else ""
            raise InputError(f"{owner.what} is already being made{told}", "wait until that run has ended")
        time.sleep(LOOK_EVERY)
    with handle:
        handle.truncate(0)
        handle.write(json.dumps(asdict(owner)))
        handle.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def seized(path: Path) -> Iterator[bool]:
    """Holds the lock at `path` for a look at what its owner left; False if a living process holds it.

    A lock file that is not there is nobody's; it is made for the time of the block, and gone afterwards.
    """
    was_there = path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = _take(path)
    if handle is None:
        yield False
        return
    with handle:
        try:
            yield True
        finally:
            if not was_there:
                path.unlink(missing_ok=True)


def owner_of(path: Path) -> Owner | None:
    """Who took the lock last and did not come to give it back; None if nobody did."""
    try:
        return Owner(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _take(path: Path) -> IO[str] | None:
    """The open, locked file, or None where another process holds it."""
    while True:
        handle = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.close()
            return None
        # Whoever held it before may have removed the file meanwhile: then this lock is on nothing.
        if path.exists() and path.stat().st_ino == os.fstat(handle.fileno()).st_ino:
            return handle
        handle.close()
