"""Bad files among good ones in the incoming folder: turned away with the reason, the rest goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from benchmarks.kills import settings_of
from model_code.media.shards import Shard
from tests.shipped import need_base
from xdub_platform.chain import Status
from xdub_platform.demo import prepare_corpus
from xdub_platform.platform import build_platform
from xdub_platform.running import run_chain

FOOTAGE = "key:raw_corpus or key:clips"


def copy_of(video: Path, name: str) -> Path:
    """The same bytes under another name, with sidecar and sound."""
    for suffix in (".json", ".wav", ".mp4"):
        if video.with_suffix(suffix).is_file():
            shutil.copy(video.with_suffix(suffix), video.with_name(f"{name}{suffix}"))
    return video.with_name(f"{name}.mp4")


@pytest.mark.slow
def test_bad_files_are_quarantined_and_the_rest_goes_on(tmp_path: Path) -> None:
    need_base()
    settings = settings_of(tmp_path / "state")
    prepare_corpus(settings, lambda done, total: None)
    first, second, third, *_ = sorted(path for path in settings.incoming.glob("*.mp4") if ".occluder" not in path.name)
    corrupted = copy_of(first, "corrupted")
    corrupted.write_bytes(corrupted.read_bytes()[:2000])
    refused = copy_of(second, "without-consent")
    refused.write_bytes(refused.read_bytes() + b"\0")  # other bytes: it is no duplicate
    sidecar = json.loads(refused.with_suffix(".json").read_text(encoding="utf-8"))
    refused.with_suffix(".json").write_text(json.dumps({**sidecar, "consent": ""}), encoding="utf-8")
    copy_of(first, "z-duplicate")
    store = build_platform(settings).store

    def turned_away() -> dict[str, str]:
        records = [store.recorded(name, "result") or {} for name in store.names("clips")]
        return {row["file"]: row["reason"] for record in records for row in record["quarantine"]}

    # Four files make a shard here: the duplicate and its original lie in different ones, taken in at once.
    steps = run_chain(settings, selection=FOOTAGE)
    assert {step.status for step in steps} == {Status.DONE}
    expected = {"corrupted.mp4": "unreadable", "without-consent.mp4": "no consent", "z-duplicate.mp4": "duplicate"}
    assert turned_away() == expected
    made = {row["source_uri"] for name in store.names("clips") for row in Shard(store.path(name)).rows}
    assert {first.name, second.name, third.name} <= made

    # Later: a duplicate of an earlier shard's clip, and the refused one's sidecar, put right.
    copy_of(third, "late-duplicate")
    refused.with_suffix(".json").write_text(json.dumps(sidecar), encoding="utf-8")
    before = {name: store.get(name) for name in store.names("clips")}
    run_chain(settings, selection=FOOTAGE)
    assert turned_away() == {**expected, "late-duplicate.mp4": "duplicate"}
    assert {name: store.get(name) for name in before} == before
    (shard,) = sorted(set(store.names("clips")) - set(before))
    assert [row["source_uri"] for row in Shard(store.path(shard)).rows] == [refused.name]
    (told,) = (store.recorded(shard, "result") or {})["quarantine"]
    assert f"'{third.name}' in " in told["detail"]
