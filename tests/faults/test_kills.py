"""Workers that are killed at a random moment: nothing half-written is ever readable, a rerun ends with the same bytes.

`benchmarks/kills.py` does the same ten times over the whole chain.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.kills import Kill, Target, not_whole, processes_of, settings_of, start, strike
from tests.shipped import need_base
from xdub_platform.demo import prepare_corpus
from xdub_platform.platform import build_platform
from xdub_platform.repair import leftovers

SEED = random.randrange(2**32)
MOMENTS = random.Random(SEED)
FOOTAGE = "key:raw_corpus or key:clips"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state with footage in its incoming folder."""
    need_base()
    root = tmp_path_factory.mktemp("kills") / "state"
    prepare_corpus(settings_of(root), lambda done, total: None)
    return root


def killed(root: Path, target: Target, selection: str, within: float) -> tuple[Kill, Path]:
    """Kills the target's worker within so many seconds of its start; returns its config too."""
    print(f"{SEED=}")  # pytest shows it if the test fails
    kill = strike(root, target, MOMENTS.uniform(0, within), selection)
    config = next(root.glob(f"work/{target.place}/**/config.json"))
    kept = root.parent / f"{target.place.replace('/', '.')}.json"
    kept.write_bytes(config.read_bytes())
    assert (kill.broken, kill.survivors) == ((), ()), kill
    return kill, kept


def undisturbed(config: Path, output: Path) -> dict[str, bytes]:
    """The files that the worker makes when nobody kills it."""
    given = {**json.loads(config.read_text(encoding="utf-8")), "output": str(output), "cache": str(output.parent / "c")}
    worker = next(name for name, key in (("ingest", "files"), ("pairs", "variant"), ("train", "phase")) if key in given)
    if worker != "train":
        given.pop("cache")
    config.with_suffix(".alone.json").write_text(json.dumps(given), encoding="utf-8")
    command = [sys.executable, "-m", f"model_code.workers.{worker}", "--config", str(config.with_suffix(".alone.json"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return files(output)


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != "result.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def check_rerun(root: Path, target: Target, selection: str, kill: Kill, config: Path) -> None:
    """A rerun ends well and with the bytes of an undisturbed worker."""
    log = root.parent / f"{root.name}.log"
    assert start(root, selection).wait() == 0, log.read_text(encoding="utf-8")[-2000:]
    dataset = build_platform(settings_of(root)).store.get(target.place.replace(".", "/"))
    assert dataset is not None
    alone = undisturbed(config, root.parent / f"alone-{config.stem}" / "output")
    made = files(dataset.path)
    assert {name for name in made if made[name] != alone.get(name)} == set(), kill
    assert made.keys() == alone.keys()
    assert not_whole(root) == []
    assert list(processes_of(root)) == []


def test_ingest_is_killed(root: Path) -> None:
    target = Target("clips/shard-00000")
    check_rerun(root, target, FOOTAGE, *killed(root, target, FOOTAGE, 5.0))


def test_training_is_killed(root: Path) -> None:
    target, selection = Target("generator", "run"), f"{FOOTAGE} or key:generator"
    check_rerun(root, target, selection, *killed(root, target, selection, 5.0))


def test_pairs_are_killed_and_the_doctor_clears_up(root: Path) -> None:
    target = Target("companion_pairs/shard-00000.generated")
    selection = f"{FOOTAGE} or key:generator or key:identity_encoder or key:companion_pairs"
    check_rerun(root, target, selection, *killed(root, target, selection, 6.0))
    leftovers(settings_of(root), repair=True)
    assert leftovers(settings_of(root)) == []
    assert not_whole(root) == []
