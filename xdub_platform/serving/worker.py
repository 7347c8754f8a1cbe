"""The process that dubs: one for each device, started by the server and gone with it.

`python -m xdub_platform.serving.worker --name NAME --device DEVICE` reads the resolved settings (JSON) from its
standard input. Before each job it looks whether the champion alias names another version. That one is loaded only if
it is whole; otherwise the version at hand goes on serving, and the worker says why.
"""

from __future__ import annotations

import argparse
import errno
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from model_code.errors import InputError
from model_code.lifetime import die_with_parent
from xdub_platform.dubbing import RegisteredDubber
from xdub_platform.logs import log_as_told
from xdub_platform.platform import Platform, build_platform
from xdub_platform.resources.mlflow import briefly
from xdub_platform.serving.queue import Job, JobQueue, Order, State
from xdub_platform.serving.store import PARTS, JobStore, media_limits
from xdub_platform.settings import Settings

if TYPE_CHECKING:
    from model_code.dubbing.sampling import Crew

IDLE = 0.2
"""Seconds between two looks into an empty queue."""
BEAT = 0.5
"""Seconds between two heartbeats."""
REPORT = 1.0
"""Seconds between two reports of being alive."""
GRACE = 20.0
"""A job that does not end this many seconds after it was told to takes its process with it."""
RECHECK = 30.0
"""Seconds until a version that was refused is looked at again, and a registry that did not answer is asked again."""
LONGEST_RECHECK = 3600.0
"""A version that is refused again rests twice as long as before, at most these seconds."""

log = logging.getLogger("xdub.worker")
T = TypeVar("T")


class StoppedError(Exception):
    """The job must end now."""


@dataclass(frozen=True)
class Refusal:
    """A version that could not be loaded.

    Attributes:
        version: Its number.
        pause: Seconds that it rests.
        until: When it is looked at again.
    """

    version: str
    pause: float
    until: float


class Champion:
    """The version that the champion alias names, as far as it is whole.

    Args:
        platform: Resources.
        device: Where models go.
        crew: Processes that sample with this one; None: there are none.
    """

    def __init__(self, platform: Platform, device: str, crew: Crew | None = None) -> None:
        self._platform, self._device, self._crew = platform, device, crew
        self._refused: Refusal | None = None
        self._asks_from = -math.inf
        self.dubber: RegisteredDubber | None = None
        self.problem: str | None = "no model is loaded yet"

    def follow(self) -> RegisteredDubber | None:
        """Looks at the alias and loads what it names, if that is new and whole; returns what serves now."""
        if self.dubber is not None and time.monotonic() < self._asks_from:
            return self.dubber
        try:
            self._follow()
        except Exception as error:  # whatever a damaged model or an absent registry raises, the old one serves on
            self.problem = " ".join(str(error).split()) or type(error).__name__
            log.warning("the champion cannot be loaded: %s", self.problem)
        return self.dubber

    def _follow(self) -> None:
        name = self._platform.settings.mlflow.model_name
        try:
            with briefly():
                found = self._platform.mlflow.model_version(name, "@champion")
        except Exception:
            self._asks_from = time.monotonic() + RECHECK
            raise
        if found is None:
            self.problem = f"the registry names no champion of {name}"
            return
        version = str(found.version)
        if self.dubber is not None and self.dubber.version == version:
            self.problem = None
            return
        before = self._refused if self._refused and self._refused.version == version else None
        if before and time.monotonic() < before.until:
            return
        try:
            self.dubber = RegisteredDubber(self._platform, version, self._device, crew=self._crew)
        except Exception:
            # From now, not from the attempt's start: the damage may show only when all of a large model is downloaded.
            pause = min(2 * before.pause, LONGEST_RECHECK) if before else RECHECK
            self._refused = Refusal(version, pause, time.monotonic() + pause)
            raise
        self._refused, self.problem = None, None
        log.info("version %s serves now", version)


class Watched:
    """Holds a job's lease while it is dubbed, and stops it when it should not go on.

    Args:
        queue: Where the lease is.
        job: As it was claimed.
        settings: Lease and time limit.
        leaving: Set when the process is to end.
    """

    def __init__(self, queue: JobQueue, job: Job, settings: Settings, leaving: threading.Event) -> None:
        self._queue, self._job, self._limits, self._leaving = queue, job, settings.serving, leaving
        self._ends = time.monotonic() + self._limits.job_seconds
        self._now = ("begin", 0, 0)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._hold, daemon=True)
        self.order = Order.GO_ON
        self.too_long = False

    def progress(self, stage: str, done: int, total: int) -> None:
        """What the dub calls at every frame and before every step of sampling.

        Raises:
            StoppedError: The job was cancelled, lost or took too long, or the process is to end.
        """
        self._now = (stage, done, total)
        if self._stopped():
            raise StoppedError

    def __enter__(self) -> Watched:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _stopped(self) -> bool:
        return self.order is not Order.GO_ON or self.too_long or self._leaving.is_set()

    def _hold(self) -> None:
        """The heartbeat; ends the process when the dub hangs."""
        hung_at: float | None = None
        while not self._over.wait(min(BEAT, self._limits.lease_seconds / 4)):
            self.too_long = self.too_long or time.monotonic() > self._ends
            try:
                answer = self._queue.beat(self._job, *self._now, self._limits.lease_seconds)
                self.order = answer if self.order is Order.GO_ON else self.order
            except SQLAlchemyError as error:
                log.warning("the queue's database does not answer: %s", type(error).__name__)
            if self._stopped() and hung_at is None:
                hung_at = time.monotonic() + GRACE
            if hung_at is not None and time.monotonic() > hung_at:
                log.error("job %s hangs; this process ends", self._job.id)
                os._exit(1)


def serve(settings: Settings, name: str, device: str, leaving: threading.Event, crew: Crew | None = None) -> None:
    """Takes job after job until `leaving` is set, the device fails, or the processes that sample together lose step."""
    queue, store, limits = JobQueue.open(settings), JobStore(settings), settings.serving
    champion = Champion(build_platform(settings), device, crew)
    threading.Thread(target=_report, args=(queue, name, device, champion, leaving), daemon=True).start()
    looked = -math.inf
    while not leaving.is_set() and not (crew and crew.broken):
        try:
            waiting = queue.waiting()
            if waiting or time.monotonic() - looked > limits.model_check_seconds:
                champion.follow()
                looked = time.monotonic()
            dubber = champion.dubber
            if not waiting or dubber is None:  # nothing is claimed that came after the look at the alias
                leaving.wait(IDLE)
                continue
            job = queue.claim(name, dubber.version, limits.lease_seconds, limits.max_attempts)
            if job is not None and not make(job, dubber, queue, store, settings, leaving, crew):
                return
        except SQLAlchemyError as error:
            log.warning("the queue's database does not answer: %s", type(error).__name__)
            leaving.wait(1.0)


def make(
    job: Job,
    dubber: RegisteredDubber,
    queue: JobQueue,
    store: JobStore,
    settings: Settings,
    leaving: threading.Event,
    crew: Crew | None = None,
) -> bool:
    """Makes one job from beginning to end with one model, and records what became of it.

    Returns:
        Whether this process can make another.
    """
    folder, result = store.folder(job.id), f"result-{job.attempts}.mp4"
    limits, lost = media_limits(settings), False
    ended: dict[str, Any]
    with Watched(queue, job, settings, leaving) as watched:
        try:
            video, audio = (folder / part for part in PARTS)
            report = dubber.dub(
                video,
                audio,
                folder / result,
                seed=job.seed,
                speaker=job.speaker,
                progress=watched.progress,
                limits=limits,
            )
            size = (folder / result).stat().st_size
            ended = {"state": State.DONE, "notes": report.notes, "result": result, "result_bytes": size}
        except StoppedError:
            if watched.order is Order.CANCEL:
                ended = {"state": State.CANCELLED}
            elif watched.too_long:
                ended = {"state": State.FAILED, "error": f"it took more than {settings.serving.job_seconds:.0f} s"}
            elif watched.order is Order.LOST:
                log.warning("job %s is no longer ours", job.id)
                return True
            else:
                ended = {}
        except InputError as error:
            ended = {"state": State.FAILED, "error": str(error)}
        except Exception as error:  # one job's failure must not end the worker; the log has the whole of it
            log.exception("job %s failed", job.id)
            full = isinstance(error, OSError) and error.errno == errno.ENOSPC
            what = "the server's disk is full" if full else f"the dub failed: {type(error).__name__}"
            # A lost process or the job may be at fault: whoever comes next tries it again, while attempts are left.
            lost = bool(crew and crew.broken) or not usable(dubber.device)
            ended = {} if lost else {"state": State.FAILED, "error": what}
    if not ended:
        _insist(lambda: queue.hand_back(job, counts=lost))
    elif not _insist(lambda: queue.finish(job, **ended)):
        (folder / result).unlink(missing_ok=True)  # the inputs are another attempt's now
    elif ended.get("result"):
        for part in PARTS:
            (folder / part).unlink(missing_ok=True)
    else:
        store.remove(job.id)
    return not lost


def usable(device: str) -> bool:
    """Whether a device still computes: after some of CUDA's errors every later call of the process fails too."""
    import torch

    if not device.startswith("cuda"):
        return True
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        log.error("%s can no longer be used, this process ends: %s", device, error)
        return False
    return True


def _report(queue: JobQueue, name: str, device: str, champion: Champion, leaving: threading.Event) -> None:
    """Says every second that this process lives, also while it loads or dubs."""
    while not leaving.wait(REPORT):
        try:
            version = champion.dubber.version if champion.dubber else None
            queue.report(name, device, version, champion.problem)
        except SQLAlchemyError as error:
            log.warning("the queue's database does not answer: %s", type(error).__name__)


def _insist(record: Callable[[], T]) -> T | None:
    """Tries for a minute; a result that cannot be recorded is made again by whoever gets the lease."""
    for attempt in range(60):
        try:
            return record()
        except SQLAlchemyError as error:
            log.warning("the queue's database does not answer: %s", type(error).__name__)
            time.sleep(1.0 if attempt else 0.1)
    return None


def main() -> int:
    """Entry point of the process."""
    die_with_parent()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True)
    parser.add_argument("--device", required=True)
    given = parser.parse_args()
    log_as_told()
    settings = Settings.model_validate_json(sys.stdin.buffer.read())
    import torch

    from model_code.dubbing.crew import sampling_crew

    torch.set_num_threads(settings.processes.threads)
    leaving = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: leaving.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C goes to the server, which ends its workers
    with sampling_crew(settings.processes.sampling_processes, given.device) as crew:
        serve(settings, given.name, given.device, leaving, crew)
    return 0


if __name__ == "__main__":
    sys.exit(main())
