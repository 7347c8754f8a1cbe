"""A state root at the smallest numbers, with the Dagster UI that `xdub ui` opens on it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from playwright.sync_api import Page

from tests.graph.test_whole_chain import EASY, SMALL
from tests.shipped import need_base
from tests.xdub_platform.serving.world import free_port
from xdub_platform.demo import prepare_corpus
from xdub_platform.settings import load_settings

XDUB = (sys.executable, "-c", "from xdub_platform.cli import main; main()")
PATIENCE = 1800.0
"""Seconds after which something is given up: the machine may be busy."""

SETTINGS: dict[str, Any] = {
    **SMALL,
    "corpus": {**SMALL["corpus"], "training_heads": 3},  # type: ignore[dict-item]
    "pairs": {"sampling_steps": 2, "clip_fraction": 1.0, "filters": EASY},
    "variants": ("generated",),
}
LATER = "speaker002"
"""The last speaker that training may see."""

RUNS = """{ runsOrError(limit: 100) { ... on Runs { results {
    status assetSelection { path } tags { key value } } } } }"""


@dataclass(frozen=True)
class Run:
    """A run as the UI's own interface tells of it."""

    status: str
    assets: tuple[str, ...]
    tags: dict[str, str]


@dataclass(frozen=True)
class Ui:
    """A running UI."""

    url: str
    log: Path

    def runs(self) -> list[Run]:
        """All runs, the newest first."""
        answer = httpx.post(f"{self.url}/graphql", json={"query": RUNS}, timeout=60.0).json()
        return [
            Run(
                one["status"],
                tuple(key["path"][0] for key in one["assetSelection"] or ()),
                {tag["key"]: tag["value"] for tag in one["tags"]},
            )
            for one in answer["data"]["runsOrError"]["results"]
        ]


@dataclass(frozen=True)
class Desk:
    """A state root and what its processes are told."""

    folder: Path
    settings: dict[str, Any]

    @property
    def root(self) -> Path:
        """The state root."""
        return self.folder / "state"

    @property
    def later(self) -> Path:
        """Footage that has not arrived yet."""
        return self.folder / "later"

    def keep(self) -> None:
        """Keeps the state root as it is now."""
        shutil.copytree(self.root, self.folder / "kept", symlinks=True)

    def restore(self) -> None:
        """Brings back what was kept, at the same place: MLflow's database names whole paths."""
        shutil.rmtree(self.root)
        shutil.copytree(self.folder / "kept", self.root, symlinks=True)

    def drop(self) -> None:
        """Copies the later footage into the incoming folder as users do, one file after the other."""
        for path in sorted(self.later.iterdir()):
            shutil.copyfile(path, self.root / "incoming" / path.name)

    def environment(self, **more: Any) -> dict[str, str]:
        """Of a process on this state root; `more` are settings that differ."""
        given = {
            f"XDUB_{name.upper()}": value if isinstance(value, str) else json.dumps(value)
            for name, value in {**self.settings, **more}.items()
        }
        return {**os.environ, **given, "XDUB_STATE_ROOT": str(self.root), "COLUMNS": "200"}

    def run(self, select: str, **more: Any) -> None:
        """`xdub run --select`: makes of it what is missing or stale."""
        done = subprocess.run(
            [*XDUB, "run", "--select", select],
            env=self.environment(**more),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    @contextmanager
    def ui(self, **more: Any) -> Iterator[Ui]:
        """`xdub ui` with webserver and daemon, ended with every process that it started."""
        port, log = free_port(), self.folder / "ui.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [*XDUB, "ui", "--port", str(port)],
                env=self.environment(**more),
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        ui = Ui(f"http://127.0.0.1:{port}", log)
        try:
            until(lambda: _answers(ui), "the UI to answer", log)
            yield ui
        finally:
            _end(process.pid)
            process.wait()


def prepare(folder: Path) -> Desk:
    """A state root with two speakers' clips and what pairs are made with; a third speaker is still to come."""
    need_base()
    desk = Desk(folder, SETTINGS)
    loaded = load_settings(state_root=desk.root, **SETTINGS)
    prepare_corpus(loaded, lambda done, total: None)
    desk.later.mkdir()
    for path in loaded.incoming.glob(f"{LATER}_*"):
        path.rename(desk.later / path.name)
    desk.run("key:raw_corpus or key:clips or key:syncnet or key:identity_encoder or key:generator")
    desk.keep()
    return desk


def until(condition: Callable[[], bool], what: str, log: Path) -> None:
    """Polls; on failure shows the end of the UI's log."""
    ends = time.monotonic() + PATIENCE
    while not condition():
        told = "\n".join(log.read_text(errors="replace").splitlines()[-25:])
        assert time.monotonic() < ends, f"waited {PATIENCE:.0f} s for {what}\n{told}"
        time.sleep(1.0)


def picture(page: Page, folder: Path, name: str) -> None:
    """A screenshot into the test's folder, or into $XDUB_SCREENSHOTS."""
    where = Path(os.environ.get("XDUB_SCREENSHOTS", folder))
    where.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=where / f"{name}.png")


def _answers(ui: Ui) -> bool:
    try:
        return httpx.get(f"{ui.url}/server_info", timeout=10.0).status_code == 200
    except httpx.TransportError:
        return False


def _end(pid: int) -> None:
    """`dagster dev` ignores polite signals in the background: its processes are ended one by one."""
    try:
        leader = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return
    family = [*leader.children(recursive=True), leader]
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family, timeout=30)
