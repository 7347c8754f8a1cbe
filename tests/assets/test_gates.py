"""Gates are enforced where data is read, not only shown."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest

from assets.editor import editor
from assets.gates import GATE, accepted, accepted_shards
from assets.produce import Product
from assets.syncnet import judge
from xdub_platform.chain import failure_line
from xdub_platform.platform import Platform, build_platform
from xdub_platform.resources.store import Dataset, DvcStore
from xdub_platform.settings import load_settings


@pytest.fixture
def platform(tmp_path: Path) -> Platform:
    return build_platform(load_settings(state_root=tmp_path))


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
    assert judge(few, 0.75).passed
    assert judge(few, 0.85).failures == ("accuracy >= 0.85 on other clips of its speakers: found 0.800",)
