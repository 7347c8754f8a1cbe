"""What fails between a worker's end and its materialisation does not cost the worker's work."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from assets.gates import GATE
from assets.produce import INPUTS, RESULT, Gate, Product, produce
from tests.xdub_platform.planted import platform_on
from xdub_platform.platform import Platform
from xdub_platform.resources.quality import GateResult
from xdub_platform.resources.store import Dataset, DvcStore
from xdub_platform.resources.workers import COMMITTED, WorkerRun, Workers

CHECK = dg.AssetCheckSpec("gate", asset="made")


@pytest.fixture
def platform(tmp_path: Path) -> Platform:
    (tmp_path / "raw").mkdir()
    return platform_on(tmp_path / "state")


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A line for each run of a worker."""
    told: list[str] = []
    run = Workers.run

    def counted(
        self: Workers,
        context: dg.AssetExecutionContext,
        worker: str,
        config: Mapping[str, Any],
        inputs: Mapping[str, str],
    ) -> WorkerRun:
        told.append(worker)
        return run(self, context, worker, config, inputs)

    monkeypatch.setattr(Workers, "run", counted)
    return told


def make(
    platform: Platform, *, breaks: bool = False, passes: bool = True, version: str = "1.dir", code: str = "1"
) -> bool:
    """An empty shard of the real worker, from an input of a version; tells whether the run succeeded."""
    raw = Dataset("raw_corpus/shard-00000", platform.settings.state_root, version, 0, 0)

    def judge(platform: Platform, product: Product) -> GateResult:
        if breaks:
            raise OSError("no disk")
        return GateResult(passes, (), (), ())

    @dg.asset(check_specs=[CHECK], code_version=code)
    def made(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult:
        config = {"files": str(platform.settings.state_root.parent / "raw"), "shard": "shard-00000"}
        return produce(context, platform, "ingest", config, inputs=[raw], gate=Gate("gate", judge), register="model")

    with dg.DagsterInstance.ephemeral() as instance:
        resources = {"platform": platform}
        return dg.materialize([made], instance=instance, resources=resources, raise_on_error=False).success


def noted(platform: Platform) -> list[Path]:
    return list(platform.settings.path("work").rglob(COMMITTED))


def test_what_broke_after_the_commit_goes_on_from_there(platform: Platform, ran: list[str]) -> None:
    assert not make(platform, breaks=True)
    dataset, at = platform.store.get("made"), platform.store.committed_at("made")
    assert dataset is not None
    (note,) = noted(platform)
    assert json.loads(note.read_text(encoding="utf-8"))["version"] == dataset.version
    assert make(platform)
    assert ran == ["ingest"]
    assert platform.store.committed_at("made") == at
    assert (platform.store.recorded("made", RESULT) or {})["quarantine"] == []
    assert (platform.store.recorded("made", INPUTS) or {})["datasets"] == {"raw_corpus/shard-00000": "1.dir"}
    assert (platform.store.recorded("made", GATE) or {})["passed"]
    assert platform.mlflow.versions("model")[1]["dvc.version"] == dataset.version
    assert not note.parent.exists()
    assert make(platform)
    assert ran == ["ingest"] * 2, "what was registered is made anew when somebody asks for it"


def test_what_its_gate_refused_is_registered_but_no_challenger(platform: Platform) -> None:
    make(platform, passes=False)
    assert list(platform.mlflow.versions("model")) == [1]
    assert platform.mlflow.model_version("model", "@challenger") is None
    make(platform)
    assert platform.mlflow.model_version("model", "@challenger").version == 1  # type: ignore[union-attr]


def test_other_inputs_or_another_version_are_made_anew(platform: Platform, ran: list[str], tmp_path: Path) -> None:
    assert not make(platform, breaks=True)
    assert not make(platform, breaks=True, version="2.dir")
    assert ran == ["ingest"] * 2
    checkpoints = [note.with_name("checkpoint") for note in noted(platform)]
    for checkpoint in checkpoints:
        checkpoint.touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "data.txt").write_text("by another config", encoding="utf-8")
    platform.store.put("made", tmp_path / "other")
    assert not make(platform, breaks=True, version="2.dir")
    assert ran == ["ingest"] * 3
    assert [checkpoint.exists() for checkpoint in checkpoints].count(True) == 1, "what was replaced is not gone on with"


def test_what_older_code_committed_or_left_is_not_the_new_codes(platform: Platform, ran: list[str]) -> None:
    assert not make(platform, breaks=True)
    (note,) = noted(platform)
    checkpoint = note.with_name("checkpoints") / "step_000010"
    checkpoint.mkdir(parents=True)
    assert make(platform, code="2")
    assert ran == ["ingest"] * 2
    assert checkpoint.exists(), "no worker went on from it"


def test_unfinished_work_is_for_its_own_inputs_alone(
    platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_disk(self: DvcStore, name: str, source: Path) -> Dataset:
        raise OSError("no disk")

    with monkeypatch.context() as broken:
        broken.setattr(DvcStore, "put", no_disk)
        assert not make(platform)
    (config,) = platform.settings.path("work").rglob("config.json")
    checkpoint = config.with_name("checkpoints") / "step_000010"
    checkpoint.mkdir(parents=True)
    assert noted(platform) == []
    (tmp_path / "raw" / "late.mp4").write_bytes(b"no video")
    assert make(platform, version="2.dir")
    assert (platform.store.recorded("made", INPUTS) or {})["datasets"] == {"raw_corpus/shard-00000": "2.dir"}
    assert [row["file"] for row in (platform.store.recorded("made", RESULT) or {})["quarantine"]] == ["late.mp4"]
    assert checkpoint.exists(), "no worker went on from it"
