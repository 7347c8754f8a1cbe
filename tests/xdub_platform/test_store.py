"""The data registry on a real git + DVC repository."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from dvc.config import Config
from dvc_data.hashfile.build import IgnoreInCollectedDirError

from model_code.errors import InputError
from xdub_platform.resources.store import Dataset, DvcStore

DEPLOY = Path(__file__).resolve().parents[2] / "docs" / "deploy.md"


@pytest.fixture
def store(tmp_path: Path) -> DvcStore:
    return DvcStore(root=str(tmp_path / "registry"))


def directory(tmp_path: Path, name: str, text: str) -> Path:
    folder = tmp_path / "work" / name
    folder.mkdir(parents=True)
    (folder / "data.txt").write_text(text, encoding="utf-8")
    return folder


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout


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
    listed = git(store.folder, "ls-files").split()
    assert "data/clips/s0.dvc" in listed
    assert not any(line.endswith("data.txt") for line in listed)
    assert git(store.folder, "tag").split() == ["2026-01", "2026-01b"]


def test_publishing_after_a_replacement_was_cut_short_publishes_what_was_committed(
    store: DvcStore, tmp_path: Path
) -> None:
    store.put("clips/s0", directory(tmp_path, "a", "one"))
    bad = directory(tmp_path, "b", "two")
    (bad / ".dvcignore").write_text("data.txt", encoding="utf-8")
    with pytest.raises(IgnoreInCollectedDirError):  # DVC refuses such a folder: the pointer is aside by then
        store.put("clips/s0", bad)
    assert store.get("clips/s0") is None
    store.publish("v1", "the version before")
    assert "data/clips/s0.dvc" in git(store.folder, "ls-tree", "-r", "--name-only", "v1").split()
    assert store.get("clips/s0") is not None
    assert (store.path("clips/s0") / "data.txt").read_text(encoding="utf-8") == "one"


def test_a_tag_stays_what_it_names(store: DvcStore, tmp_path: Path) -> None:
    store.put("clips/s0", directory(tmp_path, "a", "one"))
    first = store.publish("v1", "first")
    assert store.publish("v1", "the same again") == first
    store.put("clips/s0", directory(tmp_path, "b", "two"))
    with pytest.raises(InputError, match="the tag 'v1' names an earlier publication"):
        store.publish("v1", "something else")
    assert git(store.folder, "rev-parse", "v1^{commit}", "HEAD").split() == [first, first]
    second = store.publish("v2", "second")
    with pytest.raises(InputError, match="the tag 'v1'"):
        store.publish("v1", "no longer what is there")
    assert git(store.folder, "rev-parse", "v1^{commit}", "v2^{commit}").split() == [first, second]


def restored(remote: Path, folder: Path) -> Path:
    """A registry made anew of what lies at the remote, by the commands of docs/deploy.md."""
    steps = re.search(r"```bash\n(dvc get-url .*?)```", DEPLOY.read_text(encoding="utf-8"), re.DOTALL)
    assert steps is not None
    script = steps[1].replace("s3://xdub/registry", str(remote)).replace("STATE_ROOT", str(folder))
    script = re.sub(r" --fs-config \S+$", "", script, flags=re.MULTILINE)  # S3's alone
    folder.mkdir()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-eux", "-c", script], cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder / "registry"


def test_what_was_published_can_be_restored_from_the_remote(tmp_path: Path) -> None:
    remote = tmp_path / "remote"
    store = DvcStore(root=str(tmp_path / "lost" / "registry"), remote_url=str(remote))
    old = store.put("clips/s0", directory(tmp_path, "a", "one"))
    store.publish("v1", "first")
    new = store.put("clips/s0", directory(tmp_path, "b", "two"))
    editor = store.put("editor", directory(tmp_path, "c", "weights"))
    store.record("editor", "gate", {"passed": True})
    store.publish("v2", "second")
    shutil.rmtree(store.folder.parent)
    again = DvcStore(root=str(restored(remote, tmp_path / "state")), remote_url=str(remote))
    assert (again.get("clips/s0"), again.get("editor")) == (moved(new, again), moved(editor, again))
    assert (again.path("clips/s0") / "data.txt").read_text(encoding="utf-8") == "two"
    assert (again.path("editor") / "data.txt").read_text(encoding="utf-8") == "weights"
    assert (again.recorded("editor", "gate") or {})["passed"] is True
    again.put("clips/s1", directory(tmp_path, "d", "three"))
    again.publish("v3", "it goes on")
    checked_out = restored(remote, tmp_path / "earlier")
    assert git(checked_out, "tag").split() == ["v1", "v2", "v3"]
    git(checked_out, "checkout", "--quiet", "v1")
    subprocess.run([sys.executable, "-m", "dvc", "pull"], cwd=checked_out, check=True, capture_output=True)
    earlier = DvcStore(root=str(checked_out))
    assert earlier.get("clips/s0") == moved(old, earlier)
    assert (earlier.path("clips/s0") / "data.txt").read_text(encoding="utf-8") == "one"


def test_a_publication_whose_push_failed_arrives_with_the_next_one(tmp_path: Path) -> None:
    remote = tmp_path / "remote"
    other = DvcStore(root=str(tmp_path / "other"), remote_url=str(remote))
    other.put("clips/s9", directory(tmp_path, "x", "nine"))
    other.publish("april", "by another registry: its data are at the remote alone")
    store = DvcStore(root=str(tmp_path / "registry"), remote_url=str(tmp_path / "note" / "remote"))
    (tmp_path / "note").write_text("no folder", encoding="utf-8")
    may = store.put("clips/s0", directory(tmp_path, "a", "one"))
    for _ in range(2):
        with pytest.raises(OSError, match="Not a directory"):
            store.publish("may", "the remote is away")
    (tmp_path / "note").unlink()
    (tmp_path / "note").symlink_to(tmp_path)
    june = store.put("clips/s0", directory(tmp_path, "b", "two"))
    store.publish("june", "it is back")
    folder = restored(remote, tmp_path / "state")
    for tag, dataset in (("may", may), ("june", june)):
        git(folder, "checkout", "--quiet", tag)
        subprocess.run([sys.executable, "-m", "dvc", "pull"], cwd=folder, check=True, capture_output=True)
        again = DvcStore(root=str(folder))
        assert again.get("clips/s0") == moved(dataset, again)
    assert git(folder, "tag").split() == ["april", "june", "may"]


def moved(dataset: Dataset, store: DvcStore) -> Dataset:
    return replace(dataset, path=store.path(dataset.name))


def test_a_new_registry_keeps_what_another_one_published(tmp_path: Path) -> None:
    remote = tmp_path / "remote"
    lost = DvcStore(root=str(tmp_path / "lost"), remote_url=str(remote))
    lost.put("clips/s0", directory(tmp_path, "a", "one"))
    first = lost.publish("v1", "by the registry that was lost")
    new = DvcStore(root=str(tmp_path / "new"), remote_url=str(remote))
    new.put("clips/s0", directory(tmp_path, "b", "two"))
    with pytest.raises(InputError, match="the tag 'v1'"):
        new.publish("v1", "by another")
    second = new.publish("v2", "by another")
    folder = restored(remote, tmp_path / "state")
    assert git(folder, "rev-parse", "v1^{commit}", "v2^{commit}", "HEAD").split() == [first, second, second]


def test_a_remote_that_is_set_later_or_changed_counts(tmp_path: Path) -> None:
    root, first, second = str(tmp_path / "registry"), tmp_path / "first", tmp_path / "second"
    DvcStore(root=root).put("clips/s0", directory(tmp_path, "a", "one"))
    DvcStore(root=root, remote_url=str(first)).publish("v1", "to the first place")
    assert sum(path.is_file() for path in first.rglob("*")) >= 2
    before = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    store = DvcStore(root=root, remote_url=str(second), s3_endpoint="http://of.footage.in.a.bucket")
    store.put("clips/s1", directory(tmp_path, "b", "two"))
    store.publish("v2", "to the second place")
    assert {path: path.read_bytes() for path in first.rglob("*") if path.is_file()} == before
    assert len(list(second.rglob("*.dir"))) == 2
    s3 = DvcStore(root=root, remote_url="s3://xdub/registry", s3_endpoint="http://s3:8333")
    s3.put("clips/s2", directory(tmp_path, "c", "three"))
    config = Config(str(store.folder / ".dvc"))
    assert config.read("repo")["remote"] == {"store": {"url": "s3://xdub/registry", "endpointurl": "http://s3:8333"}}
    DvcStore(root=root).put("clips/s3", directory(tmp_path, "d", "four"))
    assert config.read("repo")["remote"] == {}
    assert "remote" not in config.read("repo")["core"]


def test_settings_that_a_crash_left_unwritten_are_written(store: DvcStore, tmp_path: Path) -> None:
    store.put("clips/s0", directory(tmp_path, "a", "one"))
    config, ignored = store.folder / ".dvc" / "config", store.folder / ".gitignore"
    whole = config.read_text(encoding="utf-8")
    assert "reflink, hardlink, symlink" in whole
    config.write_text("", encoding="utf-8")  # as DVC leaves it, before ours are written
    ignored.unlink()
    store.put("clips/s1", directory(tmp_path, "b", "two"))
    assert config.read_text(encoding="utf-8") == whole
    assert ".trash/" in ignored.read_text(encoding="utf-8").split()


def test_what_others_write_into_the_settings_stays(store: DvcStore, tmp_path: Path) -> None:
    store.put("clips/s0", directory(tmp_path, "a", "one"))
    places = [store.folder / ".dvc" / "config", store.folder / ".gitignore"]
    with Config(str(store.folder / ".dvc")).edit() as config:
        config["cache"]["slow_link_warning"] = False
        config["remote"]["mine"] = {"url": "s3://mine"}
    places[1].write_text("notes.md\n.trash/\n*.part\n", encoding="utf-8")
    before = [(path.read_text(encoding="utf-8"), path.stat().st_mtime_ns) for path in places]
    store.put("clips/s1", directory(tmp_path, "b", "two"))
    assert [(path.read_text(encoding="utf-8"), path.stat().st_mtime_ns) for path in places] == before
