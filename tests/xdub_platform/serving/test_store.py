"""Job files: limits, retention, what a crash left; keys and exposure."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from model_code.errors import InputError
from xdub_platform.serving.app import check_exposure
from xdub_platform.serving.keys import Keys
from xdub_platform.serving.queue import JobQueue, Limits, State
from xdub_platform.serving.store import DiskFullError, JobStore, TooLargeError
from xdub_platform.settings import Settings, load_settings

LIMITS = Limits(100, 100)


def settings_in(tmp_path: Path, **serving: object) -> Settings:
    return load_settings(state_root=tmp_path / "state", serving=serving)


def finished(queue: JobQueue, store: JobStore, size: int = 10) -> str:
    job, _ = queue.reserve("anna", LIMITS, 60, None)
    folder = store.create(job.id)
    (folder / "video").write_bytes(b"x")
    queue.enqueue(job.id, 0)
    claimed = queue.claim("w", "1", 60, 3)
    assert claimed is not None
    (folder / "result-1.mp4").write_bytes(bytes(size))
    assert queue.finish(claimed, State.DONE, result="result-1.mp4", result_bytes=size)
    return job.id


def test_cleanup_removes_what_is_old_or_belongs_to_nothing(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, retention_bytes=25)
    queue, store = JobQueue.open(settings), JobStore(settings)
    old, kept, newest = (finished(queue, store) for _ in range(3))
    waiting, _ = queue.reserve("anna", LIMITS, 60, None)
    (store.create(waiting.id) / "video").write_bytes(b"x")
    (store.root / "left-over").mkdir()
    assert store.clean(queue) == 1
    assert {path.name for path in store.root.iterdir()} == {kept, newest, waiting.id}
    assert queue.get("anna", old) is None
    assert not (store.folder(kept) / "video").exists(), "inputs go when the job is over"
    assert (store.folder(waiting.id) / "video").exists()
    assert (store.folder(newest) / "result-1.mp4").exists()


def test_writers_keep_to_the_limit_and_spare_the_disk(tmp_path: Path) -> None:
    store = JobStore(settings_in(tmp_path, max_upload_bytes=2 << 20))
    store.create("job")
    writer = store.writer("job")
    writer.begin("video")
    writer.write(bytes(1 << 20))
    writer.end()
    writer.begin("audio")
    with pytest.raises(TooLargeError):
        writer.write(bytes(2 << 20))
    writer.close()
    with pytest.raises(TooLargeError):
        store.check_room(3 << 20)
    full = JobStore(settings_in(tmp_path, min_free_bytes=shutil.disk_usage(tmp_path).total * 2))
    with pytest.raises(DiskFullError):
        full.check_room(1)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../secret", "link", "a", "", "x" * 5000, "a\0b"])
def test_names_that_climb_out_are_refused(tmp_path: Path, name: str) -> None:
    store = JobStore(settings_in(tmp_path))
    (store.inputs / "a").mkdir(parents=True)
    (store.inputs / "a" / "b").write_text("b", encoding="utf-8")
    (store.inputs.parent / "secret").write_text("s", encoding="utf-8")
    (store.inputs / "link").symlink_to(store.inputs.parent / "secret")
    with pytest.raises(InputError, match="no file in the folder of inputs"):
        store.named(name)
    assert store.named("a/b").read_text(encoding="utf-8") == "b"


def test_a_key_is_shown_once_and_kept_as_a_hash(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.json")
    key = keys.add("anna")
    assert keys.owner(key) == "anna"
    assert keys.owner(key + "x") is None
    assert key not in (tmp_path / "keys.json").read_text(encoding="utf-8")
    assert (tmp_path / "keys.json").stat().st_mode & 0o777 == 0o600
    for name in ("anna", "../x", "", "local"):
        with pytest.raises(InputError):
            keys.add(name)
    reader = Keys(tmp_path / "keys.json")
    assert reader.owner(key) == "anna"
    keys.revoke("anna")
    assert reader.owner(key) is None
    with pytest.raises(InputError, match="no key named"):
        keys.revoke("anna")


@pytest.mark.parametrize(
    ("profile", "host", "keys", "made", "starts"),
    [
        ("embedded", "127.0.0.1", False, False, True),
        ("embedded", "localhost", False, False, True),
        ("embedded", "0.0.0.0", False, False, False),
        ("embedded", "serving.example", False, True, False),
        ("workstation", "127.0.0.1", False, True, False),
        ("embedded", "127.0.0.1", True, False, False),
        ("cluster", "0.0.0.0", True, True, True),
    ],
)
def test_a_server_that_anybody_could_use_does_not_start(
    tmp_path: Path, profile: str, host: str, keys: bool, made: bool, starts: bool
) -> None:
    settings = load_settings(profile=profile, state_root=tmp_path, serving={"require_keys": keys})
    if made:
        Keys.of(settings).add("anna")
    if starts:
        check_exposure(settings, host)
    else:
        with pytest.raises(InputError):
            check_exposure(settings, host)
