"""A registry whose writer is killed while it replaces a dataset: the version before or the new one, never a mixture."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from xdub_platform.repair import leftovers
from xdub_platform.resources.store import DvcStore
from xdub_platform.settings import load_settings

WRITER = """
import sys
from pathlib import Path
from dvc.repo import Repo
from xdub_platform.resources.store import DvcStore
print("ready", flush=True)
DvcStore(root=sys.argv[1]).put("models/editor", Path(sys.argv[2]))
print("done", flush=True)
"""
FILES = 40
SEED = random.randrange(2**32)
MOMENTS = random.Random(SEED)


def model(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True)
    for number in range(FILES):
        (folder / f"part-{number:02}.safetensors").write_text(f"{text} {number}", encoding="utf-8")
    return folder


def contents(folder: Path) -> str:
    """Hash of all names and bytes."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.1, 0.4, 0.7, None])
def test_a_killed_replacement_is_undone_or_done(tmp_path: Path, share: float | None) -> None:
    print(f"{SEED=}")  # pytest shows it if the test fails
    settings = load_settings(state_root=tmp_path / "state")
    store = DvcStore(root=str(settings.path("registry")))
    work = settings.path("made")
    whole = {contents(model(tmp_path / text, text)) for text in ("old", "new")}
    started = time.monotonic()
    store.put("models/editor", model(work / "old", "old"))
    seconds = time.monotonic() - started  # includes the first use, so that some kills come too late
    source = model(work / "output", "new")
    command = [sys.executable, "-c", WRITER, store.root, str(source)]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "ready\n"
    time.sleep((MOMENTS.random() if share is None else share) * min(seconds, 1.5))
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    dataset = store.get("models/editor")
    assert dataset is None or contents(dataset.path) in whole
    listed = {leftover.kind for leftover in leftovers(settings)}
    assert ("replacement" in listed) == (dataset is None)
    leftovers(settings, repair=True)
    dataset = store.get("models/editor")
    assert dataset is not None
    assert contents(dataset.path) in whole
    assert not store.trash.is_dir() or not any(store.trash.iterdir())
    if not source.is_dir():
        model(source, "new")
    assert contents(source) in whole  # what goes back to its maker is complete
    assert contents(store.put("models/editor", source).path) in whole
    assert leftovers(settings) == []
