"""Gates are enforced where data is read, not only shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assets import clips, syncnet
from assets.editor import editor
from assets.gates import GATE, accepted, accepted_shards, verdict
from assets.produce import INPUTS, RESULT, Product, judged, judged_again
from assets.syncnet import judge
from model_code.media.shards import MANIFEST
from tests.xdub_platform.planted import platform_on
from xdub_platform.chain import Node, failure_line
from xdub_platform.platform import Platform, build_platform
from xdub_platform.resources.mlflow import SYNCNET
from xdub_platform.resources.store import Dataset, DvcStore
from xdub_platform.running import judge_again, rules
from xdub_platform.settings import load_settings


@pytest.fixture
def platform(tmp_path: Path) -> Platform:
    return build_platform(load_settings(state_root=tmp_path))


def with_settings(root: Path, **more: Any) -> Platform:
    return build_platform(load_settings(state_root=root, **more))


def put(store: DvcStore, name: str, *, passed: bool | None, text: str = "data") -> str:
    folder = store.folder.parent / "work" / name
    folder.mkdir(parents=True)
    (folder / "data.txt").write_text(name + text, encoding="utf-8")
    dataset = store.put(name, folder)
    if passed is not None:
        failures = [] if passed else ["same person: 50 % of rows do not"]
        store.record(name, GATE, {"passed": passed, "failures": failures, "warnings": [], "docs": ""})
    return dataset.version


def test_only_what_passed_is_given_out(platform: Platform) -> None:
    store = platform.store
    put(store, "companion_pairs/shard-00000/generated", passed=True)
    put(store, "companion_pairs/shard-00000/relit", passed=False)
    put(store, "companion_pairs/shard-00001/generated", passed=None)
    put(store, "companion_pairs/heldout-00000/generated", passed=True)
    names = [dataset.name for dataset in accepted_shards(store, "companion_pairs")]
    assert names == ["companion_pairs/shard-00000/generated"]


def test_pairs_of_refused_clips_are_not_given_out(platform: Platform) -> None:
    store = platform.store
    for shard, passed in (("shard-00000", True), ("shard-00001", False)):
        put(store, f"clips/{shard}", passed=passed)
        put(store, f"companion_pairs/{shard}/generated", passed=True)
    names = [dataset.name for dataset in accepted_shards(store, "companion_pairs")]
    assert names == ["companion_pairs/shard-00000/generated"]
    refused = "companion_pairs/shard-00001/generated"
    assert (verdict(store, refused) or "").startswith("clips/shard-00001: same person")
    put(store, "editor", passed=None)
    store.record("editor", INPUTS, {"datasets": {refused: "of before"}})
    changed = rules(platform).judged(Node("editor"))
    assert changed(Node("companion_pairs", "shard-00001|generated"))
    assert not changed(Node("companion_pairs", "shard-00000|relit"))


def test_what_a_refused_shard_holds_may_come_again(platform: Platform) -> None:
    for shard, passed in (("shard-00000", True), ("shard-00001", False)):
        put(platform.store, f"clips/{shard}", passed=passed)
        put(platform.store, f"raw_corpus/{shard}", passed=None)
    put(platform.store, "raw_corpus/shard-00002", passed=None)
    incoming = platform.settings.incoming
    incoming.mkdir(parents=True)
    for index in range(4):
        (incoming / f"{index}.mp4").write_bytes(bytes([index]))
        platform.ledger.take(incoming, 1)
    found = clips.arrived_before(platform, "shard-00003")
    assert [Path(path).name for path in found["earlier"]] == ["shard-00000"]
    assert [Path(path).name for path in found["pending"]] == ["shard-00002"]


def test_a_verdict_counts_for_the_version_that_it_judged(platform: Platform) -> None:
    put(platform.store, "clips/shard-00000", passed=True)
    put(platform.store, "clips/shard-00000", passed=None, text="replaced")
    with pytest.raises(dg.Failure, match="no gate has judged this version"):
        accepted(platform.store, "clips/shard-00000")


def test_a_variant_that_is_not_wanted_is_not_given_out(platform: Platform) -> None:
    put(platform.store, "companion_pairs/shard-00000/generated", passed=True)
    put(platform.store, "companion_pairs/shard-00000/rendered", passed=True)
    names = [dataset.name for dataset in accepted_shards(platform.store, "companion_pairs", ("rendered",))]
    assert names == ["companion_pairs/shard-00000/rendered"]


def test_nothing_accepted_says_why(platform: Platform) -> None:
    with pytest.raises(dg.Failure, match="none was made yet"):
        accepted_shards(platform.store, "clips")
    put(platform.store, "clips/shard-00000", passed=False)
    with pytest.raises(dg.Failure, match="clips/shard-00000: same person: 50 % of rows do not"):
        accepted_shards(platform.store, "clips")


def test_the_editor_refuses_after_a_failed_gate_even_when_started_alone(platform: Platform) -> None:
    put(platform.store, "generator", passed=None)
    put(platform.store, "companion_pairs/shard-00000/generated", passed=False)
    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize(
            [editor], instance=instance, resources={"platform": platform}, selection=[editor], raise_on_error=False
        )
    assert not result.success
    line = failure_line(result.all_events)
    assert line.startswith(
        "no shard of companion_pairs is accepted (companion_pairs/shard-00000/generated: same person"
    )


def test_the_syncnet_gate_says_what_it_was_measured_on(tmp_path: Path) -> None:
    dataset = Dataset("syncnet", tmp_path, "a.dir", 0, 0)
    few = Product(dataset, {"metrics": {"accuracy": 0.8}, "measured_on": "other clips of its speakers"})
    found = [judge(with_settings(tmp_path, syncnet={"min_accuracy": least}), few) for least in (0.75, 0.85)]
    assert found[0].passed
    assert found[1].failures == ("accuracy >= 0.85 on other clips of its speakers: found 0.800",)


def test_other_thresholds_have_the_gate_judge_again_what_is_there(tmp_path: Path) -> None:
    strict, lax = (with_settings(tmp_path, gates={"max_quarantined": share}) for share in (0.5, 0.7))
    name, row = (
        "clips/shard-00000",
        {"clip_id": "a", "speaker_id": "anna", "licence": "CC0", "consent": "yes", "split": "train"},
    )
    folder = tmp_path / "work" / "new"
    folder.mkdir(parents=True)
    pq.write_table(
        pa.Table.from_pylist([{**row, "fps": 25, "sample_rate": 16_000, "n_frames": 50, "sha256": "0"}]),
        folder / MANIFEST,
    )
    dataset = strict.store.put(name, folder)
    strict.store.record(name, RESULT, {"quarantine": [{"file": "b.mp4"}, {"file": "c.mp4"}]})
    judged(strict, clips.gate, Product(dataset, strict.store.recorded(name, RESULT) or {}))
    assert verdict(strict.store, name) == "at most 50% turned away: found 67%"
    with dg.DagsterInstance.ephemeral() as instance:
        key = dg.AssetCheckKey(dg.AssetKey("clips"), clips.CHECK)
        for platform, told, checks in ((strict, 1, 0), (lax, None, 1), (lax, None, 1)):
            judge_again(platform, instance)
            assert (verdict(platform.store, name) is None) == (told is None)
            assert len(instance.event_log_storage.get_asset_check_execution_history(key, limit=9)) == checks
    assert strict.store.get(name) == dataset


def test_a_syncnet_that_is_accepted_after_all_becomes_challenger(tmp_path: Path) -> None:
    platform = platform_on(tmp_path / "state", syncnet={"min_accuracy": 0.85})
    put(platform.store, "syncnet", passed=False)
    dataset = platform.store.get("syncnet")
    assert dataset is not None
    platform.store.record("syncnet", RESULT, {"metrics": {"accuracy": 0.8}})
    with platform.mlflow.run("syncnet") as run:
        run.artifact(dataset.path, "model")
        run.register(SYNCNET, "model", tags={"dvc.version": dataset.version})
    found = judged_again(platform, syncnet.gate, "syncnet")
    assert found is not None
    assert not found.passed
    assert platform.mlflow.model_version(SYNCNET, "@challenger") is None
    lax = with_settings(tmp_path / "state", syncnet={"min_accuracy": 0.75})
    assert judged_again(lax, syncnet.gate, "syncnet")
    assert platform.mlflow.model_version(SYNCNET, "@challenger").version == 1  # type: ignore[union-attr]


def test_what_was_trained_on_other_shards_than_are_accepted_now_is_stale(platform: Platform) -> None:
    names = [f"companion_pairs/shard-0000{index}/relit" for index in range(4)]
    for name, passed in zip(names, (True, False, True, False), strict=True):
        put(platform.store, name, passed=passed)
    put(platform.store, "editor", passed=None)
    platform.store.record("editor", INPUTS, {"datasets": dict.fromkeys(names[:2], "1.dir")})
    changed = rules(platform).judged
    parents = [Node("companion_pairs", f"shard-0000{index}|relit") for index in range(4)]
    assert [changed(Node("editor"))(parent) for parent in parents] == [False, True, True, False]
    assert not changed(parents[0])(Node("clips", "shard-00000"))
    assert not changed(Node("lip_expert"))(parents[2]), "it was never made"
