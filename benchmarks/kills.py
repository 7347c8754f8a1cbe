"""Ten kills (SIGKILL) at random moments of a small chain, at least one in each kind of worker.

    python -m benchmarks.kills [--root FOLDER] [--seed N] [--only ASSET ...] [--select ASSETS]

An undisturbed chain and a disturbed one run from the same footage. After each kill nothing of it may live on, and
whatever can be read must be whole; in the end both chains hold the same bytes and the same scores.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from model_code.media.shards import MANIFEST, Shard
from tests.graph.test_whole_chain import small
from xdub_platform.chain import Status
from xdub_platform.demo import prepare_corpus
from xdub_platform.platform import build_platform
from xdub_platform.repair import leftovers
from xdub_platform.running import run_chain
from xdub_platform.settings import Settings

REPOSITORY = Path(__file__).resolve().parent.parent
STARTUP = 4.0
"""Seconds that a worker takes to import; part of the time in which it may be hit."""
PATIENCE = 900.0
"""Seconds after which a worker that does not come is given up."""
NOTICE = 2.0
"""Seconds in which a run whose worker was killed sees that and fails, before it is killed too."""
LAST_BREATH = 60.0
"""Seconds in which everything that a killed process started must have ended; a worker looks for its parent once it has
imported what it needs."""


@dataclass(frozen=True)
class Target:
    """Whom to kill.

    Attributes:
        place: Asset, or asset and partition's folder, whose worker is waited for.
        victim: ``worker`` or the ``run`` that waits for it.
    """

    place: str
    victim: str = "worker"


TARGETS = (
    Target("clips/heldout-00000"),
    Target("clips/shard-00000", "run"),
    Target("generator"),
    Target("identity_encoder", "run"),
    Target("syncnet"),
    Target("companion_pairs/shard-00000.generated"),
    Target("editor", "run"),
    Target("texture_expert"),
    Target("dubber", "run"),
    Target("benchmark_scores"),
)


@dataclass(frozen=True)
class Kill:
    """What was killed when, and what could be read then that was not whole, or lived on."""

    target: Target
    after: float
    state: str
    broken: tuple[str, ...]
    survivors: tuple[str, ...]


def settings_of(root: Path) -> Settings:
    """The smallest chain; one run at a time, one thread: the same bytes every time."""
    return small(root, processes={"parallel_runs": 1, "training_threads": 1})


def start(root: Path, selection: str = "*") -> subprocess.Popen[bytes]:
    """The chain in a process of its own."""
    log = root.parent / f"{root.name}.log"
    command = [sys.executable, "-m", "benchmarks.kills", "--chain", str(root), "--select", selection]
    with log.open("ab") as file:
        return subprocess.Popen(command, cwd=REPOSITORY, stdout=file, stderr=subprocess.STDOUT)


def strike(root: Path, target: Target, seconds: float, selection: str = "*") -> Kill:
    """Starts the chain, waits for the target's worker, kills `seconds` later, and looks at what is left.

    Raises:
        RuntimeError: The worker never came.
    """
    chain = start(root, selection)
    try:
        worker = _wait_for(chain, root, target)
        with suppress(psutil.TimeoutExpired):
            worker.wait(seconds)  # its end, if it is faster than its undisturbed twin: the moment of the commit
        hit = worker.pid if target.victim == "worker" and worker.is_running() else chain.pid
        state = _told(worker)
        os.kill(hit, signal.SIGKILL)
        if hit != chain.pid:
            # It would go on with what does not depend on this, and make what later kills wait for.
            time.sleep(NOTICE)
            chain.kill()
        chain.wait(PATIENCE)
    finally:
        chain.kill()
        chain.wait()
    return Kill(target, seconds, state, tuple(not_whole(root)), tuple(_survivors(root)))


def _wait_for(chain: subprocess.Popen[bytes], root: Path, target: Target) -> psutil.Process:
    deadline = time.monotonic() + PATIENCE
    while chain.poll() is None and time.monotonic() < deadline:
        for process in processes_of(root):
            if f"{root / 'work' / target.place}{os.sep}" in " ".join(_command(process)):
                return process
        time.sleep(0.05)
    raise RuntimeError(f"no worker made {target.place}: see {root.parent / root.name}.log")


def processes_of(root: Path) -> Iterator[psutil.Process]:
    """Workers of a state root that live."""
    for process in psutil.process_iter():
        command = _command(process)
        if any(part.startswith("model_code.workers.") for part in command) and str(root) in " ".join(command):
            yield process


def _command(process: psutil.Process) -> list[str]:
    try:
        return [] if process.status() == psutil.STATUS_ZOMBIE else process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return []


def _told(worker: psutil.Process) -> str:
    """The last line of a worker's log: how far it was."""
    command = _command(worker)
    if not command:
        return "done, being committed"
    log = Path(command[-1]).with_name("worker.log")
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    return lines[-1].partition(": ")[2] if lines else "starting"


def _survivors(root: Path) -> list[str]:
    deadline = time.monotonic() + LAST_BREATH
    while (living := list(processes_of(root))) and time.monotonic() < deadline:
        time.sleep(0.1)
    return [f"process {process.pid} lives on" for process in living]


def not_whole(root: Path) -> list[str]:
    """What can be read and is not whole: committed data with other bytes, shards that lack samples."""
    platform = build_platform(settings_of(root))
    store, found = platform.store, []
    for name in store.names(""):
        dataset = store.get(name)
        if dataset is None:
            continue
        listed = store.folder / ".dvc" / "cache" / "files" / "md5" / dataset.version[:2] / dataset.version[2:]
        wanted = {row["relpath"]: row["md5"] for row in json.loads(listed.read_text(encoding="utf-8"))}
        files = {str(path.relative_to(dataset.path)): path for path in dataset.path.rglob("*") if path.is_file()}
        # DVC's names of contents are MD5.
        if {place: hashlib.md5(path.read_bytes()).hexdigest() for place, path in files.items()} != wanted:
            found.append(f"{name}: its bytes are not those that were committed")
    for manifest in root.rglob(MANIFEST):
        shard = Shard(manifest.parent)
        keys = {row.get("pair_id") or row["clip_id"] for row in shard.rows}
        if keys != set(shard.keys):
            found.append(f"{manifest.parent}: tar and manifest differ")
    return found


def versions(root: Path) -> dict[str, str]:
    """Dataset -> hash of its bytes."""
    store = build_platform(settings_of(root)).store
    return {name: dataset.version for name in store.names("") if (dataset := store.get(name))}


def scores(root: Path) -> dict[str, Any]:
    """The score table of the benchmark; empty if it was not selected."""
    path = build_platform(settings_of(root)).store.path("benchmark_scores") / "scores.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))["rows"]) if path.is_file() else {}


def expected_seconds(root: Path, target: Target) -> float:
    """How long the target's worker takes in the undisturbed chain `root`."""
    record = build_platform(settings_of(root)).store.recorded(target.place.replace(".", "/"), "result") or {}
    return STARTUP + float(record.get("metrics", {}).get("seconds", 1.0))


def main(arguments: argparse.Namespace) -> int:
    """Runs both chains and prints the table; 0 if nothing was lost and nothing differs."""
    console, draw = Console(), random.Random(arguments.seed)
    calm, struck = arguments.root / "undisturbed", arguments.root / "struck"
    for root in (calm, struck):
        shutil.rmtree(root, ignore_errors=True)
    prepare_corpus(settings_of(calm), lambda done, total: None)
    shutil.copytree(calm / "incoming", struck / "incoming")
    if start(calm, arguments.select).wait():
        console.print(f"the undisturbed chain did not finish: see {calm}.log")
        return 1
    table = Table("killed", "who", "seconds after its start", "how far it was", "whole", "ended")
    kills = []
    for target in [target for target in TARGETS if not arguments.only or target.place.split("/")[0] in arguments.only]:
        kill = strike(struck, target, draw.uniform(0, expected_seconds(calm, target)), arguments.select)
        kills.append(kill)
        signs = ["[green]yes[/green]" if not bad else f"[red]{bad}[/red]" for bad in (kill.broken, kill.survivors)]
        table.add_row(target.place, target.victim, f"{kill.after:.1f}", kill.state, *signs)
        console.print(f"killed {target.place}", highlight=False)
    finished = start(struck, arguments.select).wait() == 0
    console.print(table)
    cleared = leftovers(settings_of(struck), repair=True)
    made, wanted = versions(struck), versions(calm)
    differ = sorted(name for name in made.keys() | wanted.keys() if made.get(name) != wanted.get(name))
    same = finished and not differ and scores(struck) == scores(calm)
    console.print(f"{len(cleared)} leftovers cleared; then {len(leftovers(settings_of(struck)))}")
    told = f"the same bytes in {len(made)} datasets and the same scores in {len(scores(struck))} rows as undisturbed"
    console.print(told if same else f"[red]differs: {differ or 'the rerun failed'}[/red]")
    return 0 if same and not any(kill.broken or kill.survivors for kill in kills) else 1


def chain(root: Path, selection: str) -> int:
    """What is killed: the chain in this process."""
    steps = run_chain(settings_of(root), selection=selection, started_by="kills")
    return int(any(step.status in (Status.FAILED, Status.BLOCKED) for step in steps))


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(tempfile.gettempdir()) / "xdub-kills")
    parser.add_argument("--seed", type=int, default=0, help="Draws the moments.")
    parser.add_argument("--only", nargs="*", help="Assets whose workers are killed; all ten kills without it.")
    parser.add_argument("--chain", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--select", default="*", help="Part of the chain, in Dagster's selection syntax.")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    given = parsed()
    sys.exit(chain(given.chain, given.select) if given.chain else main(given))
