"""Processes that execute the planner's runs, each with its own definitions and instance."""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.process
import os
import signal
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any

import dagster as dg

from model_code.lifetime import die_with_parent
from xdub_platform.chain import Node, Step, execute
from xdub_platform.definitions import build_definitions
from xdub_platform.instance import open_instance
from xdub_platform.logs import log_as_told
from xdub_platform.settings import Settings

LEAVE = 60.0
"""Seconds that the processes have to end."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Runtime:
    """What one process executes with."""

    job: dg.JobDefinition
    instance: dg.DagsterInstance
    parent: int


_opened: list[Runtime] = []
"""This process's runtime: a process pool hands its initializer's product on in no other way."""


class RunProcesses:
    """A pool of processes for runs; they start with the first run and end with this process.

    Args:
        settings: Of the state root; also says how many.
    """

    def __init__(self, settings: Settings) -> None:
        self.others = multiprocessing.active_children()
        self.pool = ProcessPoolExecutor(
            settings.processes.parallel_runs,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_open,
            initargs=(settings.model_dump(mode="json"), os.getpid()),
        )

    def __enter__(self) -> RunProcesses:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        children = [child for child in multiprocessing.active_children() if child not in self.others]
        # A child that was killed while it waited for work took the pool's lock along: the others wait for it for ever.
        patience = threading.Timer(LEAVE, _kill, [children])
        patience.daemon = True
        patience.start()
        if error is not None:
            # Who ends the planner's run means everything that it started; each child reports its own run as failed.
            for child in children:
                child.terminate()
        self.pool.shutdown(cancel_futures=True)
        patience.cancel()

    def submit(self, node: Node, tags: dict[str, str], run_id: str) -> Future[Step]:
        """Makes a node in one of the processes."""
        return self.pool.submit(_execute, node, tags, run_id)


def _kill(children: Sequence[multiprocessing.process.BaseProcess]) -> None:
    for child in children:
        if child.is_alive():
            log.warning("run process %s does not end and is killed", child.pid)
            child.kill()


def _open(resolved: dict[str, Any], parent: int) -> None:
    die_with_parent(parent, signal.SIGTERM)
    log_as_told()
    for handler in logging.getLogger().handlers:
        handler.setLevel(logging.getLogger().level)  # some libraries give their own loggers a level
    settings = Settings.model_validate(resolved)
    job = build_definitions(settings).resolve_implicit_global_asset_job_def()
    _opened.append(Runtime(job, open_instance(settings), parent))
    # Unlike a signal's default action, an exception gives the pool's lock back; Dagster keeps these for after its runs.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(1)


def _execute(node: Node, tags: dict[str, str], run_id: str) -> Step:
    try:
        return execute(_opened[0].job, _opened[0].instance, node, tags, run_id)
    finally:
        # Dagster turns the signal of a parent's death into a failed run; without a parent there is no next one.
        if os.getppid() != _opened[0].parent:
            os._exit(1)
