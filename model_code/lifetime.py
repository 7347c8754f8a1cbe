"""Processes that live no longer than the one that started them."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import signal
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

PARENT = "WORKER_PARENT"
"""Environment variable: the process that this one must not outlive."""
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Environment variables: how many threads a started process's libraries take."""
PR_SET_PDEATHSIG = 1

logger = logging.getLogger(__name__)


def die_with_parent(parent: int | None = None, by: signal.Signals = signal.SIGKILL) -> None:
    """Asks Linux to end this process when the thread that started it ends; elsewhere nothing.

    Args:
        parent: Its process, which may have ended while this one was still importing; None takes what `PARENT` says.
        by: SIGKILL where nothing is to be cleared up: a parent that ignores SIGTERM hands that down.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, by)
    told = os.environ.pop(PARENT, None)
    if os.getppid() != (parent or int(told or os.getppid())):
        logger.error("the process that started this one has ended")
        os._exit(1)


def process_pool(processes: int) -> ProcessPoolExecutor:
    """Spawned processes that end with this one, however it ends."""
    return ProcessPoolExecutor(processes, get_context("spawn"), initializer=_begin, initargs=(os.getpid(),))


def _begin(parent: int) -> None:
    die_with_parent(parent)
    gc.freeze()  # as in a worker: the imports stay, and nobody need search them for garbage
