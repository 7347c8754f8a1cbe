"""Starts the workers, starts them again when they die, and knows what they serve."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from sqlalchemy.exc import SQLAlchemyError

from xdub_platform.serving.queue import JobQueue, WorkerReport
from xdub_platform.settings import Settings

LOOK = 0.5
"""Seconds between two looks at the workers."""
CLEAN = 60.0
"""Seconds between two cleanups."""
STEADY = 60.0
"""A worker that lived so long is started again at once."""
LONGEST_PAUSE = 30.0
SILENT_AFTER = 10.0
LEAVE = 8.0
"""Seconds that workers have to put their jobs back when the server ends."""

log = logging.getLogger("xdub.serve")


@dataclass
class Slot:
    """One device and the process on it."""

    device: str
    process: subprocess.Popen[bytes] | None = None
    name: str = ""
    started: float = 0.0
    deaths: int = 0
    restarts: int = 0
    next_start: float = field(default=0.0)


class Supervisor:
    """Keeps one worker process a device alive while the server lives.

    Args:
        settings: Passed on to the workers.
        queue: Where a dead worker's job is released.
        clean: Called now and then, in a thread.
    """

    def __init__(self, settings: Settings, queue: JobQueue, clean: Callable[[], object]) -> None:
        self._settings, self._queue, self._clean = settings, queue, clean
        devices = settings.serving.devices or (settings.processes.device,)
        self.slots = [Slot(device) for device in devices]
        self.reports: list[WorkerReport] = []
        self._cleaned = 0.0

    @property
    def version(self) -> str | None:
        """The model version that serves (of the first worker here that has one)."""
        return next((report.model_version for report in self.reports if report.model_version), None)

    async def run(self) -> None:
        """Watches until cancelled, then ends the workers.

        Processes are started from the thread of the event loop: they end with the thread that started them.
        """
        try:
            while True:
                for slot in self.slots:
                    await self._look(slot)
                await self._refresh()
                await asyncio.sleep(LOOK)
        finally:
            await asyncio.to_thread(self._end)

    async def _look(self, slot: Slot) -> None:
        if slot.process is not None and slot.process.poll() is not None:
            log.warning("worker %s ended with %s", slot.name, slot.process.returncode)
            slot.process = None
            slot.deaths = 0 if time.monotonic() - slot.started > STEADY else slot.deaths + 1
            slot.restarts += 1
            slot.next_start = time.monotonic() + min(LONGEST_PAUSE, 2.0 ** (slot.deaths - 1) if slot.deaths > 1 else 0)
            await self._release(slot.name)
        if slot.process is None and time.monotonic() >= slot.next_start:
            self._start(slot)

    async def _release(self, name: str) -> None:
        try:
            await asyncio.to_thread(self._queue.release, name)
        except SQLAlchemyError:
            log.warning("the queue's database does not answer; the lease of %s will run out", name)

    def _start(self, slot: Slot) -> None:
        slot.name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        command = [sys.executable, "-m", "xdub_platform.serving.worker", "--name", slot.name, "--device", slot.device]
        environment = {**os.environ, "OMP_NUM_THREADS": str(self._settings.processes.threads)}
        slot.started = time.monotonic()
        try:
            slot.process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment)
        except OSError as error:
            log.error("no worker can be started: %s", error)
            slot.next_start = time.monotonic() + LONGEST_PAUSE
            return
        assert slot.process.stdin is not None
        try:
            slot.process.stdin.write(self._settings.model_dump_json().encode())
            slot.process.stdin.close()
        except BrokenPipeError:
            pass  # it died at once; the next look sees it

    async def _refresh(self) -> None:
        try:
            heard = await asyncio.to_thread(self._queue.workers, SILENT_AFTER)
            mine = {slot.name for slot in self.slots}  # not another server's, nor one that went with an earlier server
            self.reports = [report for report in heard if report.name in mine]
            if time.monotonic() - self._cleaned > CLEAN or not self._cleaned:
                self._cleaned = time.monotonic()
                await asyncio.to_thread(self._clean)
        except SQLAlchemyError as error:
            self.reports = []
            log.warning("the queue's database does not answer: %s", type(error).__name__)
        except OSError as error:
            log.warning("the cleanup failed: %s", error)

    def _end(self) -> None:
        running = [slot.process for slot in self.slots if slot.process is not None]
        for process in running:
            process.terminate()
        ends = time.monotonic() + LEAVE
        for process in running:
            try:
                process.wait(max(0.1, ends - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
