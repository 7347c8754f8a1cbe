"""Lock files: one process at a time, and who makes an asset and partition.

The lock is the kernel's (`flock`), so that it is free the moment its process ends, whatever ended it. Only what
the file says about its owner can be left behind; a file whose lock is free tells of a process that was killed.
"""

from __future__ import annotations

import json
import math
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from model_code.errors import InputError
from model_code.files import write_json

PATIENCE = 2.0
"""Seconds to wait for a lock: a killed run's last breath, not somebody else's work."""


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
def held(path: Path, wait: float = math.inf) -> Iterator[bool]:
    """Holds the lock at `path`; False if somebody else still holds it after `wait` seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A soft lock, filelock's way out on file systems without flock, would outlive a killed process.
    lock = FileLock(path, thread_local=False, fallback_to_soft=False)
    with suppress(Timeout):
        lock.acquire(timeout=wait)
    try:
        yield lock.is_locked
    finally:
        lock.release()


@contextmanager
def owned(path: Path, owner: Owner) -> Iterator[None]:
    """Holds the lock at `path` and says in it for whom; the file goes when the block ends.

    Whom it names already was killed: that one's record moves to a file of its own beside it, as nothing else may know
    of the run that has to be ended.

    Raises:
        InputError: Somebody else holds it; the message says who.
    """
    with held(path, PATIENCE) as free:
        if not free:
            other = owner_of(path)
            told = f" by run {other.run_id[:8]} (process {other.pid} on {other.host})" if other else ""
            raise InputError(f"{owner.what} is already being made{told}", "wait until that run has ended")
        killed = owner_of(path)
        if killed and killed.run_id != owner.run_id:
            write_json(path.with_name(f"{killed.run_id}.lock"), asdict(killed))
        path.write_text(json.dumps(asdict(owner)), encoding="utf-8")
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
    with held(path, 0.0) as free:
        try:
            yield free
        finally:
            if free and not was_there:
                path.unlink(missing_ok=True)


@contextmanager
def killed_owner(path: Path) -> Iterator[Owner | None]:
    """Holds the lock at `path` if its owner was killed on this machine, and says who that was; None if not so.

    Only the lock tells. The owner's process number means nothing in another container of the same host name.
    """
    with seized(path) as free:
        owner = owner_of(path) if free else None
        yield owner if owner and owner.host == socket.gethostname() else None


def owner_of(path: Path) -> Owner | None:
    """Who took the lock last and did not come to give it back; None if nobody did."""
    try:
        return Owner(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
