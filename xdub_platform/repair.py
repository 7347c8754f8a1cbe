"""What a crash left, and how to clear it.

Nothing here is needed for right results: whatever is committed is whole, and a rerun ends with the same bytes. It
frees space and takes runs off the screen that nobody runs any more. Two rules hold throughout: what is committed is
never touched, and neither is anything whose lock a living process holds.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlparse

import dagster as dg
import psutil
from dagster._core.storage.dagster_run import ACTIVE_RUN_STATUSES, FINISHED_STATUSES

from model_code.media.shards import MANIFEST
from xdub_platform.instance import open_instance
from xdub_platform.locks import killed_owner, owner_of, seized
from xdub_platform.platform import Platform, build_platform
from xdub_platform.resources.store import DvcStore
from xdub_platform.resources.workers import committed, whole
from xdub_platform.settings import Settings

REST_SECONDS = 60.0
"""A partial file that no lock guards is left alone for this long after it was last written to."""
NAMELESS_SECONDS = 600.0
"""A run on this machine that has not named its process for this long has none."""
PARTIAL = re.compile(r"^\..+\.part$|\.partial$|\.partial\.npz$")
"""Names that our own writers use; what a user's browser or rsync is still writing has others."""
WRITER = re.compile(r"\.(\d+)\.(part|partial)$")
LOCAL_HOSTS = (None, "", "localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Leftover:
    """One thing that a crash left.

    Attributes:
        kind: What sort of thing.
        what: Which one: a path below the state root, or a run.
        why: Why it is one, and what becomes of it.
        clear: Clears it; None where only a person can.
    """

    kind: str
    what: str
    why: str
    clear: Callable[[], object] | None


def leftovers(settings: Settings, repair: bool = False) -> list[Leftover]:
    """Finds what a crash left, and clears it if told to.

    Each thing is cleared while the lock that guards it is still held.
    """
    found: list[Leftover] = []
    if not settings.state_root.is_dir():
        return found
    for leftover in _all(settings, build_platform(settings)):
        found.append(leftover)
        if repair and leftover.clear:
            leftover.clear()
    return found


def _all(settings: Settings, platform: Platform) -> Iterator[Leftover]:
    runs_are_known = True
    try:
        yield from _runs(settings, platform)
    except Exception as error:  # a database that is away raises in many ways; the files can be looked at without
        told = f"its run records cannot be read: {' '.join(str(error).split())[:200]}"
        runs_are_known = False
        yield Leftover("database", "$XDUB_DATABASE__URL" if settings.database.url else "sqlite", told, None)
    yield from _scratch(settings, platform.store)
    yield from _registry(settings, platform.store)
    yield from _partial_files(settings)
    yield from _locks(settings, runs_are_known)


# Runs


def _runs(settings: Settings, platform: Platform) -> Iterator[Leftover]:
    """Run records in Dagster, then those in MLflow that belong to them."""
    if not settings.database.url and not settings.path("dagster", "history").is_dir():
        return
    by_lock = _gone_by_lock(settings)
    with open_instance(settings) as instance:
        gone = {
            run.run_id: run
            for run in instance.get_runs(dg.RunsFilter(statuses=ACTIVE_RUN_STATUSES))
            if _is_gone(settings, instance, run.run_id, by_lock.get(run.run_id))
        }
        yield from _mlflow_runs(settings, platform, instance, set(gone))
        for run_id, run in gone.items():
            assets = ", ".join(sorted(key.to_user_string() for key in run.asset_selection or ())) or run.job_name
            told = "its process was killed (found by xdub doctor)"
            clear: Callable[[], object] = partial(instance.report_run_failed, run, told)
            yield Leftover("Dagster run", f"{run_id[:8]} of {assets}", "no process runs it; ends as failed", clear)


def end_killed_runs(settings: Settings, instance: dg.DagsterInstance) -> None:
    """Reports runs as failed whose process was killed on this machine; Dagster starts those again that plan.

    Outside a cluster nobody else does where the code location was killed with them: they would count as at work for
    ever. What tells is a lock that such a run held: the kernel gives it back when the process is gone, and not before.
    """
    for path in _lock_files(settings):
        with killed_owner(path) as owner:
            if owner is None:
                continue
            run = instance.get_run_by_id(owner.run_id)
            if run is not None and run.status is dg.DagsterRunStatus.STARTED:
                instance.report_run_failed(run, "its process was killed")
            path.unlink()


def _lock_files(settings: Settings) -> list[Path]:
    """Locks of what runs or was killed at its work."""
    return sorted(settings.path("work").glob("*/*.lock"))


def _gone_by_lock(settings: Settings) -> dict[str, bool]:
    """Whether the process of a run is gone, of those that hold a lock or were killed with one."""
    gone: dict[str, bool] = {}
    for path in _lock_files(settings):
        with killed_owner(path) as killed:
            owner = killed or owner_of(path)
            if owner:
                gone[owner.run_id] = killed is not None and gone.get(owner.run_id, True)
    return gone


def _is_gone(settings: Settings, instance: dg.DagsterInstance, run_id: str, by_lock: bool | None) -> bool:
    """Whether the process that executed a run was on this machine and is no more, or never came to say its number.

    The number counts only where no lock tells of the run.
    """
    if by_lock is not None:
        return by_lock
    if not _is_local(settings.database.url):
        return False
    records = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT).records
    for entry in (record.event_log_entry for record in reversed(records)):
        metadata = entry.dagster_event.engine_event_data.metadata if entry.dagster_event else {}
        if "pid" in metadata:
            return not _alive(int(str(metadata["pid"].value)), entry.timestamp)
    run = instance.get_run_record_by_id(run_id)
    return run is not None and time.time() - run.update_timestamp.timestamp() >= NAMELESS_SECONDS


def _is_local(url: str | None) -> bool:
    return url is None or urlparse(url).hostname in LOCAL_HOSTS


def _alive(pid: int, since: float) -> bool:
    """Whether the process `pid` lives and is not a later one of the same number."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= since + 1
    except psutil.NoSuchProcess:
        return False


def _mlflow_runs(
    settings: Settings, platform: Platform, instance: dg.DagsterInstance, gone: set[str]
) -> Iterator[Leftover]:
    if not settings.mlflow.tracking_uri and not settings.path("mlflow", "mlflow.db").is_file():
        return
    client = platform.mlflow.client()
    experiment = client.get_experiment_by_name(settings.mlflow.experiment)
    if experiment is None:
        return
    for run in client.search_runs([experiment.experiment_id], "attributes.status = 'RUNNING'"):
        run_id = run.data.tags.get("dagster.run_id")
        record = instance.get_run_by_id(run_id) if run_id else None
        if record and (record.status in FINISHED_STATUSES or record.run_id in gone):
            clear = partial(client.set_terminated, run.info.run_id, "KILLED")
            what = f"{run.info.run_id[:8]} of {run.info.run_name}"
            yield Leftover("MLflow run", what, "its Dagster run has ended; ends as killed", clear)


# Files


def _scratch(settings: Settings, store: DvcStore) -> Iterator[Leftover]:
    work = settings.path("work")
    for folder in sorted(path for path in work.glob("*/*") if path.is_dir()):
        with seized(folder.with_name(f"{folder.name}.lock")) as free:
            if free:
                yield from _scratch_of(settings, store, folder)


def _scratch_of(settings: Settings, store: DvcStore, folder: Path) -> Iterator[Leftover]:
    """Scratch folders of one asset and partition; the caller holds its lock."""
    place = str(folder.relative_to(settings.state_root))
    if not list(folder.glob("*/config.json")):
        if any(folder.iterdir()):
            yield Leftover("scratch", place, "copied in part; a rerun copies it again", partial(shutil.rmtree, folder))
        return
    asset, partition = folder.parent.name, "" if folder.name == "all" else folder.name.replace(".", "/")
    name = f"{asset}/{partition}" if partition else asset
    dataset, committed_at = store.get(name), store.committed_at(name)
    for scratch in sorted(path.parent for path in folder.glob("*/config.json")):
        with seized(scratch / "output.lock") as free:
            place = str(scratch.relative_to(settings.state_root))
            if not free:
                continue
            waiting = committed(scratch)
            if waiting and dataset and waiting["version"] == dataset.version:
                continue  # a rerun registers it
            if committed_at is not None and committed_at >= _last_written(scratch):
                yield Leftover("scratch", place, "its product is committed", partial(shutil.rmtree, scratch))
            elif not whole(scratch):
                half = _half_written(scratch)
                kept = "; its checkpoint stays" if any(scratch.glob("checkpoints/step_*")) else ""
                if half:
                    told = f"a worker ended in the middle{kept}"
                    yield Leftover("half-written", place, told, partial(_remove, half))


def _half_written(scratch: Path) -> list[Path]:
    output = scratch / "output"
    parts = [path for path in scratch.rglob("*") if PARTIAL.search(path.name) and output not in path.parents]
    parts += [*scratch.glob(".output.*"), *scratch.glob("checkpoints/.step_*")]
    return [output, *parts] if output.is_dir() and any(output.iterdir()) else parts


def _last_written(scratch: Path) -> float:
    lock = scratch / "output.lock"
    return max((path.stat().st_mtime for path in scratch.rglob("*") if path.is_file() and path != lock), default=0.0)


def _registry(settings: Settings, store: DvcStore) -> Iterator[Leftover]:
    if not store.folder.is_dir():
        return
    busy = store.folder / ".dvc" / "tmp" / "lock"
    with ExitStack() as stack:
        # A living `put` or `publish` holds the first, a `dvc` by hand the second.
        if not stack.enter_context(seized(store.lock_file)):
            return
        if busy.is_file() and not stack.enter_context(seized(busy)):
            return
        cut_short = store.cut_short()
        for name in cut_short:
            yield Leftover("replacement", name, "cut short; the version before comes back", store.undo)
        if not cut_short and store.trash.is_dir() and any(store.trash.iterdir()):
            yield Leftover("replaced data", ".trash", "its replacement is committed", store.undo)
        for folder in _uncommitted(store, store.folder / "data"):
            name = str(folder.relative_to(store.folder / "data"))
            if not any(f"{each}/".startswith(f"{name}/") for each in cut_short) and not _in_git(store, folder):
                manifest = (folder / MANIFEST).is_file() or (folder / "config.json").is_file()
                told = "never committed" if manifest else "never committed, and without a manifest"
                yield Leftover("data", name, told, partial(_remove, [folder, folder.with_name(f"{folder.name}.dvc")]))
        for asset in ("clips", "companion_pairs"):
            for name in store.names(asset):
                if not (store.path(name) / MANIFEST).is_file():
                    yield Leftover("damaged", name, "committed, but its manifest is gone: materialise it again", None)
        temporary = [*store.folder.glob(".dvc/tmp/**/*.tmp"), *store.folder.glob(".dvc/cache/**/.*.tmp")]
        for path in [*temporary, *store.folder.glob(".git/**/*.lock"), *store.folder.glob(".dvc/tmp/rwlock")]:
            if _at_rest(path) and not (path.name == "rwlock" and _names_nobody(path)):
                yield Leftover("DVC or git", _place(settings, path), "its command was killed", partial(_remove, [path]))


def _names_nobody(rwlock: Path) -> bool:
    """Whether DVC's list of who reads and writes what is readable and empty, as it is between two commands."""
    try:
        return not any(json.loads(rwlock.read_text(encoding="utf-8")).values())
    except ValueError:
        return False


def _uncommitted(store: DvcStore, folder: Path) -> Iterator[Path]:
    for child in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not child.is_dir() or store.get(str(child.relative_to(store.folder / "data"))):
            continue
        if any(pointer.stat().st_size for pointer in child.rglob("*.dvc")):
            yield from _uncommitted(store, child)
        else:
            yield child


def _in_git(store: DvcStore, folder: Path) -> bool:
    """Whether somebody committed files below `folder` to the registry's git."""
    if not (store.folder / ".git").is_dir():
        return False
    command = ["git", "ls-files", "--", str(folder)]
    listed = subprocess.run(command, cwd=store.folder, capture_output=True, text=True, check=False)
    return listed.returncode != 0 or any(not line.endswith(".gitignore") for line in listed.stdout.splitlines())


def _partial_files(settings: Settings) -> Iterator[Leftover]:
    """Partial files where no lock is held while they are written."""
    places = ("incoming", "shards", "cache", "report", "benchmarks", "registry/records", "dagster")
    files = [path for place in places for path in settings.path(place).rglob("*")]
    for path in sorted([*files, *settings.state_root.glob("*")]):
        if PARTIAL.search(path.name) and path.is_file() and _at_rest(path):
            yield Leftover("partial file", _place(settings, path), "its writer was killed", partial(_remove, [path]))


def _at_rest(path: Path) -> bool:
    """Nobody has written to a file for a while, nor could: the process that its name tells of has ended."""
    try:
        written = path.stat().st_mtime
    except FileNotFoundError:
        return False
    writer = WRITER.search(path.name)
    return time.time() - written >= REST_SECONDS and not (writer and _alive(int(writer[1]), written))


def _locks(settings: Settings, runs_are_known: bool) -> Iterator[Leftover]:
    """Locks that nobody holds; those that name a run only if it could be ended, as nothing else may know of it."""
    for path in _lock_files(settings):
        with seized(path) as free:
            owner = owner_of(path)
            if free and (runs_are_known or owner is None):
                told = f"process {owner.pid} has ended" if owner else "nobody holds it"
                yield Leftover("lock", _place(settings, path), told, partial(_remove, [path]))


def _remove(paths: list[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _place(settings: Settings, path: Path) -> str:
    return str(path.relative_to(settings.state_root))
