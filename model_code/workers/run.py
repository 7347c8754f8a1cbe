"""What every worker shares: config in, result out, one at a time, gone with its parent.

`python -m model_code.workers.NAME --config FILE` reads FILE (JSON), writes its data into the config's `output`
and `result.json` there last. With a `result.json` present it returns at once; killed and started again it
resumes from what lies beside `output`. Launched through Dagster Pipes it reports progress as messages, in a
terminal as a bar.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import math
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

from filelock import FileLock
from filelock import Timeout as LockTimeout
from pydantic import Field, ValidationError

from model_code.config import BackbonesConfig, Config
from model_code.errors import InputError
from model_code.files import PARTIAL_FOLDER, clear_unfinished, write_json
from model_code.lifetime import die_with_parent

RESULT = "result.json"
REPORT_EVERY = 5.0
"""Seconds between two progress messages."""

logger = logging.getLogger("worker")


class WorkerConfig(Config):
    """What every worker is told."""

    output: Path = Field(description="Folder for the data; checkpoints and caches go beside it.")
    base: str = Field("", description="Digest of the shipped networks in use; names them, loads nothing.")
    backbones: BackbonesConfig = Field(BackbonesConfig(), description="Frozen networks: shipped, or published.")
    device: Literal["cpu", "cuda"] = "cpu"
    cache: Path | None = Field(None, description="Latent cache shared by several workers; None: beside the output.")
    features: Path | None = Field(None, description="Where features of published encoders are kept; None: nowhere.")

    @property
    def work(self) -> Path:
        """Folder of checkpoints and of other things that are no result."""
        return self.output.parent

    @property
    def latents(self) -> Path:
        """Folder of the latent cache."""
        return self.cache or self.work / "latents"


Progress = Callable[[str, int, int, dict[str, float]], None]
"""Told (what, done, total, numbers)."""


def in_silence(what: str, done: int, total: int, numbers: dict[str, float]) -> None:
    """The progress of a process that does not lead."""


C = TypeVar("C", bound=WorkerConfig)
Work = Callable[[C, Progress], dict[str, Any]]


def main(config_type: type[C], work: Work[C], arguments: Sequence[str] | None = None) -> int:
    """Runs a worker; the process's exit status.

    Args:
        config_type: Validates the config file.
        work: Does the work and returns the result (JSON values; `metrics`, `curves`, `pictures` are shown).
        arguments: Command line; None takes the process's.

    Returns:
        0 done; 2 the input is bad (one line says how); other failures raise.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    die_with_parent()
    gc.freeze()  # what is imported by now stays to the end, which then need not search it for garbage
    parser = argparse.ArgumentParser(description=sys.modules[work.__module__].__doc__)
    parser.add_argument("--config", type=Path, required=True, help="JSON file")
    path: Path = parser.parse_args(arguments).config
    try:
        with guarded():
            run(read_config(path, config_type), work)
    except InputError as error:
        logger.error("%s", error)
        return 2
    return 0


def run(config: C, work: Work[C]) -> dict[str, Any]:
    """Does the work unless its result is there; under a lock, so that no two write one output.

    Raises:
        InputError: Another process is writing this output.
    """
    import torch

    config.output.mkdir(parents=True, exist_ok=True)
    lock = FileLock(config.output.with_name(f"{config.output.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except LockTimeout:
        remedy = "wait for it, or end that process"
        raise InputError(f"'{config.output}' is being written by another worker", remedy) from None
    with lock:
        done = config.output / RESULT
        if done.is_file():
            logger.info("already done: %s", done)
            return dict(json.loads(done.read_text(encoding="utf-8")))
        clear_leftovers(config.output)
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        started = time.monotonic()
        with reporting() as progress:
            result = work(config, progress)
        result.setdefault("metrics", {})["seconds"] = round(time.monotonic() - started, 2)
        result = without_nan(result)
        write_json(done, result)
        return result


def read_config(path: Path, config_type: type[C]) -> C:
    """Reads and validates a worker's config.

    Raises:
        InputError: The file is missing or a value is wrong; the message names the first.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error.strerror}", "give a JSON file") from error
    try:
        return config_type.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or "JSON"
        raise InputError(f"'{path}', {name}: {first['msg']}", "correct the config") from error


@contextmanager
def guarded() -> Iterator[None]:
    """Ends the worker's own children (render processes, ffmpeg) with it, even by SIGKILL.

    Linux does not hand the death signal down. A fork that does nothing but wait sees its pipe close, and kills the
    session; only a worker that leads one of its own has it, so that nobody else is hit.
    """
    if os.getsid(0) != os.getpid():
        yield
        return
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.close(writer)
        if not os.read(reader, 1):
            os.killpg(0, signal.SIGKILL)
        os._exit(0)
    os.close(reader)
    try:
        yield
    finally:
        os.write(writer, b".")
        os.close(writer)


def clear_leftovers(output: Path) -> None:
    """Removes what a killed worker was about to put in or in place of `output`; the caller holds its lock."""
    clear_unfinished(output)  # a rerun would commit it with its own files
    ours = re.compile(rf"\.{re.escape(output.name)}\.[^.]+(\.old)?{re.escape(PARTIAL_FOLDER)}")
    for left in output.parent.iterdir():
        if ours.fullmatch(left.name):
            shutil.rmtree(left, ignore_errors=True)


@contextmanager
def reporting() -> Iterator[Progress]:
    """Progress as Pipes messages under Dagster, as a bar in a terminal, as log lines elsewhere."""
    if "DAGSTER_PIPES_CONTEXT" in os.environ:
        from dagster_pipes import open_dagster_pipes

        with open_dagster_pipes() as pipes:

            def tell(what: str, done: int, total: int, numbers: dict[str, float]) -> None:
                pipes.log.info(_line(what, done, total, numbers))
                pipes.report_custom_message({"progress": what, "done": done, "total": total, **without_nan(numbers)})

            yield _seldom(tell)
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress as Bar

        with Bar(console=Console(stderr=True)) as bar:
            tasks: dict[str, Any] = {}

            def draw(what: str, done: int, total: int, numbers: dict[str, float]) -> None:
                if what not in tasks:
                    tasks[what] = bar.add_task(what, total=total)
                told = " ".join(f"{name} {value:.4g}" for name, value in numbers.items())
                bar.update(tasks[what], completed=done, description=f"{what} {told}")

            yield draw
    else:
        yield _seldom(lambda what, done, total, numbers: logger.info(_line(what, done, total, numbers)))


def _seldom(tell: Progress) -> Progress:
    """At most one message in `REPORT_EVERY` seconds, and always the last."""
    last = [-math.inf]

    def limited(what: str, done: int, total: int, numbers: dict[str, float]) -> None:
        now = time.monotonic()
        if done >= total or now - last[0] >= REPORT_EVERY:
            last[0] = now
            tell(what, done, total, numbers)

    return limited


def _line(what: str, done: int, total: int, numbers: dict[str, float]) -> str:
    return " ".join([f"{what} {done}/{total}", *(f"{name}={value:.4g}" for name, value in numbers.items())])


def without_nan(value: Any) -> Any:
    """The same JSON value with None where a number is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return value
