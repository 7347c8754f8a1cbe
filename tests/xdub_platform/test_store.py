"""The data registry on a real git + DVC repository."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from xdub_platform.resources.store import DvcStore


@pytest.fixture
def store(tmp_path: Path) -> DvcStore:
    return DvcStore(root=str(tmp_path / "registry"))


def directory(tmp_path: Path, name: str, text: str) -> Path:
    folder = tmp_path / "work" / name
    folder.mkdir(parents=True)
    (folder / "data.txt").write_text(text, encoding="utf-8")
    return folder


def test_version_is_the_hash_of_the_bytes(store: DvcStore, tmp_path: Path) -> None:
    first = store.put("clips/s0", directory(tmp_path, "a", "one"))
    other = store.put("clips/s0", directory(tmp_path, "b", "two"))
    again = store.put("clips/s0", directory(tmp_path, "c", "one"))
    assert first.version == again.version != other.version
    assert len(first.version) <= 36  # MLflow's longest digest
    assert (store.path("clips/s0") / "data.txt").read_text(encoding="utf-8") == "one"
    assert store.get("clips/s0") == again
    assert store.names("clips") == ["clips/s0"]


def test_what_has_no_pointer_does_not_exist(store: DvcStore, tmp_path: Path) -> None:
    store.put("clips/s0", directory(tmp_path, "a", "one"))
    # A crash between removing the pointer and writing the new one leaves the data alone.
    (store.folder / "data" / "clips" / "s0.dvc").unlink()
    assert store.get("clips/s0") is None
    assert store.names("clips") == []
    assert store.put("clips/s0", directory(tmp_path, "b", "two")).n_files == 1


def test_nothing_to_commit_is_refused(store: DvcStore, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="clips/s0"):
        store.put("clips/s0", tmp_path / "missing")


def test_records_speak_of_one_version_only(store: DvcStore, tmp_path: Path) -> None:
    store.put("clips/s0", directory(tmp_path, "a", "one"))
    store.record("clips/s0", "gate", {"passed": True})
    assert (store.recorded("clips/s0", "gate") or {})["passed"] is True
    store.put("clips/s0", directory(tmp_path, "b", "two"))
    assert store.recorded("clips/s0", "gate") is None


def test_publishing_commits_and_tags_in_the_registry(store: DvcStore, tmp_path: Path) -> None:
    store.put("clips/s0", directory(tmp_path, "a", "one"))
    commit = store.publish("2026-01", "January's clips")
    again = store.publish("2026-01b", "the same")
    assert commit == again
    listed = subprocess.run(["git", "ls-files"], cwd=store.folder, capture_output=True, text=True, check=True).stdout
    assert "data/clips/s0.dvc" in listed.split()
    assert not any(line.endswith("data.txt") for line in listed.split())
    tags = subprocess.run(["git", "tag"], cwd=store.folder, capture_output=True, text=True, check=True).stdout
    assert tags.split() == ["2026-01", "2026-01b"]


def test_publishing_pushes_to_the_remote(tmp_path: Path) -> None:
    remote = tmp_path / "remote"
    store = DvcStore(root=str(tmp_path / "registry"), remote_url=str(remote))
    store.put("clips/s0", directory(tmp_path, "a", "one"))
    store.publish("v1", "first")
    assert sum(path.is_file() for path in remote.rglob("*")) == 2  # the file and the directory's listing
