"""Arriving files become shards, each once."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from model_code.errors import InputError
from model_code.files import write_json
from xdub_platform.demo import drop as drop_in
from xdub_platform.demo import prepare_corpus
from xdub_platform.incoming import ShardLedger, members_of
from xdub_platform.settings import load_settings


@pytest.fixture
def incoming(tmp_path: Path) -> Path:
    folder = tmp_path / "incoming"
    folder.mkdir()
    return folder


def drop(folder: Path, name: str, split: str | None = None) -> Path:
    video = folder / f"{name}.mp4"
    video.write_bytes(name.encode())
    if split:
        video.with_suffix(".json").write_text(json.dumps({"split": split}), encoding="utf-8")
    return video


def test_files_are_grouped_by_name_and_split(incoming: Path, tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        drop(incoming, name)
    drop(incoming, "h", split="heldout")
    ledger = ShardLedger(tmp_path / "ledger")
    assert ledger.take(incoming, clips_per_shard=2) == ["shard-00000", "shard-00001", "heldout-00000"]
    assert [file.name for file in ledger.files("shard-00000")] == ["a.mp4", "b.mp4"]
    assert [file.name for file in ledger.files("heldout-00000")] == ["h.mp4"]


def test_a_file_is_taken_once_and_again_when_its_bytes_are_replaced(incoming: Path, tmp_path: Path) -> None:
    ledger = ShardLedger(tmp_path / "ledger")
    video = drop(incoming, "a")
    assert ledger.take(incoming, 10) == ["shard-00000"]
    assert ShardLedger(tmp_path / "ledger").take(incoming, 10) == []
    video.write_bytes(b"something longer")
    assert ledger.take(incoming, 10) == ["shard-00001"]


@pytest.mark.parametrize("suffix", [".json", ".wav", ".occluder.mp4"])
def test_a_file_is_taken_again_when_what_lies_beside_it_arrives_or_changes(
    incoming: Path, tmp_path: Path, suffix: str
) -> None:
    ledger = ShardLedger(tmp_path / "ledger")
    drop(incoming, "a")
    drop(incoming, "b")
    assert ledger.take(incoming, 10) == ["shard-00000"]
    beside = incoming / f"a{suffix}"
    beside.write_text("{}", encoding="utf-8")
    os.utime(beside, (1, 1))  # moved here: it is older than the video
    assert ledger.take(incoming, 10) == ["shard-00001"]
    os.utime(beside)
    assert ledger.take(incoming, 10) == ["shard-00002"]
    assert [file.name for file in ledger.files("shard-00002")] == ["a.mp4"]
    assert ledger.take(incoming, 10) == []


@pytest.mark.parametrize("suffix", [".json", ".wav", ".occluder.mp4"])
def test_a_new_video_inherits_nothing_from_an_old_one_of_its_name(tmp_path: Path, suffix: str) -> None:
    settings = load_settings(state_root=tmp_path / "state")
    for name, text in (("old", "old"), ("same", "old"), ("new", "new")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "clip.mp4").write_text(text, encoding="utf-8")
    beside = tmp_path / "old" / f"clip{suffix}"
    beside.write_text("the old one's", encoding="utf-8")
    drop_in(settings, [tmp_path / "old"])
    drop_in(settings, [tmp_path / "same"])
    (tmp_path / "new" / "another.mp4").touch()
    with pytest.raises(InputError, match=f"'clip{suffix}' lies in .* would count as that of the new 'clip.mp4'"):
        drop_in(settings, [tmp_path / "new"])
    assert sorted(path.name for path in settings.incoming.iterdir()) == sorted([beside.name, "clip.mp4"])
    assert (settings.incoming / "clip.mp4").read_text(encoding="utf-8") == "old"
    (tmp_path / "new" / beside.name).write_text("its own", encoding="utf-8")
    drop_in(settings, [tmp_path / "new"])
    assert (settings.incoming / beside.name).read_text(encoding="utf-8") == "its own"


def test_footage_that_is_dropped_again_does_not_arrive_again(tmp_path: Path) -> None:
    settings = load_settings(state_root=tmp_path / "state")
    ledger, folder = ShardLedger(tmp_path / "ledger"), tmp_path / "mine"
    folder.mkdir()
    drop(folder, "a", split="train")
    drop_in(settings, [folder])
    assert ledger.take(settings.incoming, 10) == ["shard-00000"]
    drop(folder, "b", split="train")
    drop_in(settings, [folder])
    assert ledger.take(settings.incoming, 10) == ["shard-00001"]
    assert [file.name for file in ledger.files("shard-00001")] == ["b.mp4"]


def test_another_corpus_wants_another_state_root(tmp_path: Path) -> None:
    settings = load_settings(state_root=tmp_path / "state")
    write_json(settings.path("corpus.json"), settings.corpus.model_dump(mode="json"))
    prepare_corpus(settings, lambda done, total: None)
    other = load_settings(state_root=tmp_path / "state", corpus={"training_heads": 24})
    with pytest.raises(InputError, match="a corpus of other settings"):
        prepare_corpus(other, lambda done, total: None)


def test_files_still_being_written_wait(incoming: Path, tmp_path: Path) -> None:
    ledger = ShardLedger(tmp_path / "ledger")
    video = drop(incoming, "a")
    assert ledger.take(incoming, 10, rest_seconds=60) == []
    os.utime(video, (1, 1))
    assert ledger.take(incoming, 10, rest_seconds=60) == ["shard-00000"]


def test_masks_sidecars_and_links_are_no_footage(incoming: Path, tmp_path: Path) -> None:
    video = drop(incoming, "ünï 'code'", split="train")
    video.with_suffix(".wav").write_bytes(b"")
    (incoming / "ünï 'code'.occluder.mp4").write_bytes(b"mask")
    (incoming / "link.mp4").symlink_to("/etc/hostname")
    (incoming / ".hidden.mp4").write_bytes(b"")
    ledger = ShardLedger(tmp_path / "ledger")
    ledger.take(incoming, 10)
    assert [file.name for file in ledger.files("shard-00000")] == [video.name]
    assert {path.suffix for path in members_of(video)} == {".mp4", ".wav", ".json"}
    assert len(members_of(video)) == 4


def test_a_broken_sidecar_counts_as_training_footage(incoming: Path, tmp_path: Path) -> None:
    drop(incoming, "a").with_suffix(".json").write_text("{", encoding="utf-8")
    assert ShardLedger(tmp_path / "ledger").take(incoming, 10) == ["shard-00000"]


def test_who_came_first_does_not_hang_on_the_files_times(incoming: Path, tmp_path: Path) -> None:
    ledger = ShardLedger(tmp_path / "ledger")
    drop(incoming, "z", split="heldout")
    ledger.take(incoming, 1)
    for name in ("a", "b"):
        drop(incoming, name)
    ledger.take(incoming, 1)
    came = ["heldout-00000", "shard-00000", "shard-00001"]
    for index, shard in enumerate(reversed(came)):
        os.utime(ledger.folder / f"{shard}.json", (index // 2, index // 2))
    assert [ledger.before(shard) for shard in came] == [came[:0], came[:1], came[:2]]


def test_what_an_earlier_version_wrote_came_before(incoming: Path, tmp_path: Path) -> None:
    ledger = ShardLedger(tmp_path / "ledger")
    drop(incoming, "a", split="train")
    drop(incoming, "b")
    ledger.take(incoming, 1)
    for shard, at in (("shard-00000", 2_000_000_000), ("shard-00001", 1)):
        path = ledger.folder / f"{shard}.json"
        rows = json.loads(path.read_text(encoding="utf-8"))["files"]
        old = [{key: row[key] for key in ("name", "size", "modified_ns")} for row in rows]
        path.write_text(json.dumps(old), encoding="utf-8")
        os.utime(path, (at, at))
    assert ledger.take(incoming, 1) == []
    drop(incoming, "c")
    assert ledger.take(incoming, 1) == ["shard-00002"]
    assert ledger.before("shard-00002") == ["shard-00001", "shard-00000"]
    assert ledger.before("shard-00000") == ["shard-00001"]
