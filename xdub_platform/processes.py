"""Processes that execute the planner's runs, each with its own definitions and instance."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from types import TracebackType
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
        # A child that ends while it waits for work takes the pool's lock along, and the next one waits for it for ever.
        patience = threading.Timer(LEAVE, lambda: [child.kill() for child in children])
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


def _open(resolved: dict[str, Any], parent: int) -> None:
    die_with_parent(parent, signal.SIGTERM)
    log_as_told()
    for handler in logging.getLogger().handlers:
        handler.setLevel(logging.getLogger().level)  # some libraries give their own loggers a level
    settings = Settings.model_validate(resolved)
    job = build_definitions(settings).resolve_implicit_global_asset_job_def()
    _opened.append(Runtime(job, open_instance(settings), parent))


def _execute(node: Node, tags: dict[str, str], run_id: str) -> Step:
    try:
        return execute(_opened[0].job, _opened[0].instance, node, tags, run_id)
    finally:
        # Dagster turns the signal of a parent's death into a failed run; without a parent there is no next one.
        if os.getppid() != _opened[0].parent:
            os._exit(1)
