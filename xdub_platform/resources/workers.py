"""Starts a long step as its own process, through Dagster Pipes.

``python -m model_code.workers.NAME --config FILE``: the worker reads a JSON config, writes its data into
``output`` and a ``result.json`` last. It can be killed at any moment; started again with the same code version, config
and inputs it resumes in the same folder and ends with the same result.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import dagster as dg

from model_code.files import write_json
from model_code.lifetime import PARENT, THREADS
from model_code.workers.run import RESULT
from xdub_platform.failures import input_error_fails_the_run
from xdub_platform.locks import Owner, owned

LOG_LINES = 15
PARTING = 30.0
"""Seconds that a process that is told to end may take, before it is killed."""
COMMITTED = "committed.json"
"""In the scratch folder of what is committed and waits for gate and registration: the dataset's `version` and the
worker's `result`."""
ALONE = frozenset({"editor", "benchmark_scores"})
"""Assets that nothing runs beside: their workers get every core; the rest run two at a time with a thread each."""


HOW = frozenset({"processes", "sharding"})
"""Parts of a config that decide how something is made, not what: unfinished work goes on with others."""


@dataclass(frozen=True)
class WorkerRun:
    """What a worker left behind.

    Attributes:
        output: Folder with its data; the caller moves it into the registry.
        result: Its ``result.json``.
        scratch: Folder of everything else (config, log, checkpoints).
        config: The config it ran with.
    """

    output: Path
    result: dict[str, Any]
    scratch: Path
    config: dict[str, Any]


class Workers(dg.ConfigurableResource):
    """Launches workers.

    Args:
        work_root: Folder for configs, checkpoints and unfinished output; on the registry's file system.
        threads: OMP threads of a worker that others run beside.
        training_threads: OMP threads of the workers of `ALONE`, and of those that train in several processes.
        training_processes: Processes that train one model together.
        trained_together: Assets whose model they train so.
    """

    work_root: str
    threads: int = 1
    training_threads: int = 1
    training_processes: int = 1
    trained_together: list[str] = []  # noqa: RUF012 - pydantic copies it

    def processes(self, asset: str) -> int:
        """How many train an asset's model together."""
        return self.training_processes if asset in self.trained_together else 1

    @contextmanager
    def alone(self, context: dg.AssetExecutionContext) -> Iterator[None]:
        """Keeps every other run away from this asset and partition, from whatever door it comes.

        Raises:
            dagster.Failure: Another run is making it.
        """
        asset = context.asset_key.to_user_string()
        partition = context.partition_key if context.has_partition_key else ""
        owner = Owner(f"{asset}[{partition}]" if partition else asset, context.run_id)
        with ExitStack() as stack:
            with input_error_fails_the_run():
                stack.enter_context(owned(lock_path(Path(self.work_root), asset, partition), owner))
            yield

    def scratch(self, context: dg.AssetExecutionContext, config: Mapping[str, Any], inputs: Mapping[str, str]) -> Path:
        """Where `run` works with this config and these inputs, by the asset's present code.

        The config says where inputs lie, and every version of a dataset lies in the same place.
        """
        deciding = {
            "code": context.assets_def.get_asset_spec(context.asset_key).code_version,
            "config": {key: value for key, value in config.items() if key not in HOW},
            "inputs": dict(inputs),
        }
        digest = hashlib.sha256(json.dumps(deciding, sort_keys=True, default=str).encode()).hexdigest()[:12]
        partition = context.partition_key if context.has_partition_key else ""
        return work_folder(Path(self.work_root), context.asset_key.to_user_string(), partition) / digest

    def run(
        self, context: dg.AssetExecutionContext, worker: str, config: Mapping[str, Any], inputs: Mapping[str, str]
    ) -> WorkerRun:
        """Runs one worker to its end.

        What a killed run's worker had finished is taken as it is: the same code, config and inputs, the same result.

        Args:
            context: Of the asset that waits for it.
            worker: Module in `model_code.workers`.
            config: JSON-able; the key ``output`` is added.
            inputs: The version of each dataset that it reads, by name.

        Raises:
            dagster.Failure: The worker failed; the description is its last line, the metadata its log.
        """
        name, scratch = context.asset_key.to_user_string(), self.scratch(context, config, inputs)
        output = scratch / "output"
        output.mkdir(parents=True, exist_ok=True)
        resolved = {**config, "output": str(output)}
        config_path, log_path, result_path = scratch / "config.json", scratch / "worker.log", output / RESULT
        finished = scratch / RESULT
        if finished.is_file() and whole(scratch):
            write_json(result_path, json.loads(finished.read_text(encoding="utf-8")))
        finished.unlink(missing_ok=True)
        write_json(config_path, resolved)
        command = command_of(worker, config_path)
        threads = self.training_threads if name in ALONE or self.processes(name) > 1 else self.threads
        status = self._launch(context, command, log_path, threads)
        if status != 0 or not result_path.is_file():
            raise _failure(worker, status, log_path)
        result = json.loads(result_path.read_text(encoding="utf-8"))
        # Whoever commits the output takes its result.json away; a crash in between must not cost the work.
        write_json(finished, result)
        return WorkerRun(output, result, scratch, resolved)

    def _launch(self, context: dg.AssetExecutionContext, command: list[str], log_path: Path, count: int) -> int:
        session = _quiet_session(context)
        threads = dict.fromkeys(THREADS, str(count))
        with session as pipes, log_path.open("ab") as log:
            environment = {**threads, **pipes.get_bootstrap_env_vars()}
            with started(command, environment, log) as process:
                return process.wait()


def command_of(worker: str, config: Path) -> list[str]:
    """What runs a module of `model_code.workers`."""
    return [sys.executable, "-m", f"model_code.workers.{worker}", "--config", str(config)]


@contextmanager
def started(command: list[str], environment: Mapping[str, str], log: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that does not outlive this one, nor the block; `environment` is added to ours."""
    process = subprocess.Popen(
        command,
        env={**os.environ, PARENT: str(os.getpid()), **environment},
        stdout=log,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # the worker's own children can then be ended with it, see `guarded`
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(PARTING)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def work_folder(work_root: Path, asset: str, partition: str = "") -> Path:
    """Where the unfinished work on an asset and partition lies."""
    return work_root / asset / (partition.replace("|", ".") or "all")


def lock_path(work_root: Path, asset: str, partition: str = "") -> Path:
    """The lock of an asset and partition."""
    folder = work_folder(work_root, asset, partition)
    return folder.with_name(f"{folder.name}.lock")


def whole(scratch: Path) -> bool:
    """Whether the output in a worker's scratch folder is complete and only waits to be committed."""
    output = scratch / "output"
    done = (output / RESULT).is_file() or (scratch / RESULT).is_file()
    return done and output.is_dir() and any(output.iterdir())


def committed(scratch: Path) -> dict[str, Any] | None:
    """What `COMMITTED` says; None where nothing waits for its registration."""
    try:
        return dict(json.loads((scratch / COMMITTED).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


@contextmanager
def _quiet_session(context: dg.AssetExecutionContext) -> Iterator[dg.PipesSession]:
    """A Pipes session; Dagster warns of a preview in its own code while it opens one."""
    session = dg.open_pipes_session(
        context=context,
        context_injector=dg.PipesTempFileContextInjector(),
        message_reader=dg.PipesTempFileMessageReader(),
    )
    with ExitStack() as stack:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", dg.PreviewWarning)
            opened = stack.enter_context(session)
        yield opened


def _failure(worker: str, status: int, log_path: Path) -> dg.Failure:
    lines = [line for line in log_path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    last = lines[-1].strip() if lines else "no output"
    tail = "\n".join(lines[-LOG_LINES:])
    return dg.Failure(
        description=f"worker {worker} ended with status {status}: {last}",
        metadata={"log": dg.MetadataValue.md(f"```\n{tail}\n```"), "log_file": dg.MetadataValue.path(str(log_path))},
        allow_retries=status < 0,
    )
