"""Several processes of one machine that work on one thing, started by the one that leads them and gone with it.

`model_code/training/parallel.py` trains with such a team, `model_code/dubbing/crew.py` samples with one.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from model_code.errors import InputError
from model_code.lifetime import THREADS, die_with_parent

PATIENCE = timedelta(days=1)
"""How long one process waits for another that lives."""
PARTING = 10.0
"""Seconds for the others to end, and for this process to notice that one has."""
LOOK_EVERY = 0.5
"""Seconds between two looks at whether the others live."""

logger = logging.getLogger(__name__)
_asking = threading.Lock()
Purpose = Literal["training", "sampling"]
"""What a team is for; `processes.PURPOSE_processes` says how many."""


@dataclass(frozen=True)
class Member:
    """This process's place among those of its team; alone by default.

    Attributes:
        rank: 0 leads: it writes and reports.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    def device(self, kind: str) -> torch.device:
        """Where this process computes: `cuda` means the accelerator of its number."""
        return torch.device(kind, self.rank) if kind == "cuda" else torch.device(kind)

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            dist.barrier()

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Around what one process does after another, the leading one first: all at once would take more memory."""
        for _ in range(self.rank):
            self.wait()
        yield
        for _ in range(self.rank, self.size):
            self.wait()

    def leaders(self, values: Tensor) -> Tensor:
        """The leading process's values, in every process's tensor of that shape."""
        if self.size > 1:
            dist.broadcast(values, 0)
        return values


A = TypeVar("A")
P = TypeVar("P", bound=Member)


@contextmanager
def started(
    members: Sequence[P], purpose: Purpose, device: str, work: Callable[[A, P], Any], argument: A, folder: Path
) -> Iterator[P]:
    """Starts the other processes, which do `work(argument, member)`, and gives this one's place.

    They end with this process, and it fails with them.

    Args:
        members: All places, the leading one first, which is this process's.
        purpose: For what is told of them.
        device: `cuda` gives each an accelerator of its own.
        work: What the others do; importable by name.
        argument: Its first argument.
        folder: Where they meet; made anew, and removed.

    Raises:
        InputError: There are fewer accelerators.
        RuntimeError: Another process failed or was killed.
    """
    size = len(members)
    if device == "cuda" and size > torch.cuda.device_count():
        raise InputError(
            f"{size} {purpose} processes for {torch.cuda.device_count()} accelerators",
            f"lower processes.{purpose}_processes; on Kubernetes, give the pod more accelerators (kubernetes.gpus)",
        )
    if size == 1:
        yield members[0]
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    threads = max(1, torch.get_num_threads() // size)
    torch.set_num_threads(threads)
    os.environ.update(dict.fromkeys(THREADS, str(threads)))
    others: list[SpawnProcess] = []
    done = threading.Event()
    try:
        others += [_start(_join, threads, work, argument, member, device, folder) for member in members[1:]]
        threading.Thread(target=_watch, args=(others, purpose, done), daemon=True).start()
        with _joined(members[0], device, folder, lambda: _check(others, purpose)):
            yield members[0]
    except RuntimeError as error:
        # A lost connection does not say why; that a process was lost does.
        for other in others:
            _status(other, PARTING)
        lost = _lost(others, purpose)
        if lost is None:
            raise
        raise RuntimeError(f"{lost}; the leading one: {error}") from error
    else:
        # What they were needed for is done, however they end.
        for other in others:
            _status(other, PARTING)
    finally:
        done.set()
        for other in others:
            other.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _start(function: Callable[..., None], *arguments: Any) -> SpawnProcess:
    process = get_context("spawn").Process(target=function, args=(os.getpid(), *arguments), daemon=True)
    process.start()
    return process


def _join(
    parent: int, threads: int, work: Callable[[A, P], Any], argument: A, own: P, device: str, folder: Path
) -> None:
    """What another process does from beginning to end."""
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C goes to the leading one, too, which ends this
    torch.set_num_threads(threads)
    with _joined(own, device, folder, lambda: None):
        work(argument, own)


@contextmanager
def _joined(own: Member, device: str, folder: Path, check: Callable[[], None]) -> Iterator[None]:
    """A member of the process group; `check` raises if the others are not going to come."""
    if device == "cuda":
        torch.cuda.set_device(own.device(device))
    store = dist.FileStore(str(folder / "store"), own.size)
    store.set_timeout(PATIENCE)  # its own five minutes would end who waits for the first collective
    store.set(f"here {own.rank}", "yes")
    while not store.check([f"here {rank}" for rank in range(own.size)]):
        check()
        time.sleep(0.05)
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=own.rank, world_size=own.size, timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _watch(others: Sequence[SpawnProcess], purpose: Purpose, done: threading.Event) -> None:
    """Ends this process if another was lost and it does not notice: it may wait for that one in a library, for ever."""
    while not done.wait(LOOK_EVERY):
        lost = _lost(others, purpose)
        if lost and not done.wait(PARTING):
            logger.error("%s", lost)
            os._exit(1)


def _status(other: SpawnProcess, patience: float = 0.0) -> int | None:
    """How a process ended, waited for; None if it lives. Of two threads that ask at once one would be told that."""
    until = time.monotonic() + patience
    while True:
        with _asking:
            status = other.exitcode
        if status is not None or time.monotonic() >= until:
            return status
        time.sleep(0.02)


def _lost(others: Sequence[SpawnProcess], purpose: Purpose) -> str | None:
    for rank, other in enumerate(others, 1):
        status = _status(other)
        if status:
            return f"{purpose} process {rank} of {len(others) + 1} ended with status {status}"
    return None


def _check(others: Sequence[SpawnProcess], purpose: Purpose) -> None:
    lost = _lost(others, purpose)
    if lost:
        raise RuntimeError(lost)
