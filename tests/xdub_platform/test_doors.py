"""What a user calls on a state root of his own, run to its end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from model_code.avatars.clipspec import draw_spec
from model_code.avatars.corpus import write_clip
from model_code.avatars.seeds import head_seed
from model_code.errors import InputError
from model_code.files import write_json
from tests.shipped import need_base
from tests.xdub_platform.planted import platform_on, register
from xdub_platform.cli import app
from xdub_platform.demo import drop
from xdub_platform.platform import build_platform
from xdub_platform.serving.keys import Keys
from xdub_platform.settings import Settings, load_settings


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Of a state root that the commands of the test take too."""
    monkeypatch.setenv("XDUB_STATE_ROOT", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "200")
    return load_settings()


def xdub(*arguments: str) -> Result:
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done


@pytest.mark.slow
def test_footage_is_taken_in_and_what_is_bad_is_told(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_base()
    monkeypatch.setenv("XDUB_PROCESSES__PARALLEL_RUNS", "1")
    footage = tmp_path / "footage"
    for folder in (footage, tmp_path / "truth"):
        folder.mkdir()
    write_clip(
        draw_spec(head_seed("FRESH", 900), 0, kind="natural", condition="plain", seconds=(1.6, 1.6)),
        footage,
        tmp_path / "truth",
        192,
    )
    (footage / "bad.mp4").write_text("no video", encoding="utf-8")
    told = xdub("ingest", str(footage)).output
    assert "quarantined bad.mp4" in told
    receipt = tmp_path / "receipts" / "clips.json"
    assert "clips" in xdub("run", "--select", "key:raw_corpus or key:clips", "--receipt", str(receipt)).output
    store = build_platform(settings).store
    found = {name: store.get(name) for name in ("raw_corpus/shard-00000", "clips/shard-00000")}
    assert json.loads(receipt.read_text(encoding="utf-8")) == {
        name: dataset.version for name, dataset in found.items() if dataset
    }
    assert all(found.values())


def test_the_corpus_receipt_names_the_videos_that_lie_there(settings: Settings, tmp_path: Path) -> None:
    write_json(settings.path("corpus.json"), settings.corpus.model_dump(mode="json"))  # drawn already
    settings.incoming.mkdir()
    (settings.incoming / "head.mp4").write_bytes(b"video")
    (settings.incoming / "head.json").write_text("{}", encoding="utf-8")
    xdub("corpus", "--receipt", str(tmp_path / "corpus.json"))
    assert json.loads((tmp_path / "corpus.json").read_text(encoding="utf-8")) == {"head.mp4": 5}


def test_dropped_footage_arrives_with_what_belongs_to_it(settings: Settings, tmp_path: Path) -> None:
    folder, alone = tmp_path / "footage", tmp_path / "alone.mov"
    folder.mkdir()
    for name in ("a.mp4", "a.json", "a.wav", "a.occluder.mp4", "note.txt"):
        (folder / name).write_text(name, encoding="utf-8")
    alone.write_text("alone", encoding="utf-8")
    drop(settings, [folder, alone])
    there = {path.name: path.read_text(encoding="utf-8") for path in settings.incoming.iterdir()}
    assert there == {name: name for name in ("a.mp4", "a.json", "a.wav", "a.occluder.mp4")} | {"alone.mov": "alone"}
    changed = {path.name: path.stat().st_mtime_ns for path in settings.incoming.glob("a.*")}
    assert max(changed, key=lambda name: changed[name]) == "a.mp4", "the video comes last"


def test_footage_that_cannot_be_told_apart_is_not_dropped(settings: Settings, tmp_path: Path) -> None:
    for folder in ("one", "two", "none"):
        (tmp_path / folder).mkdir()
    for folder in ("one", "two"):
        (tmp_path / folder / "a.mp4").write_text(folder, encoding="utf-8")
    with pytest.raises(InputError, match="bear one name"):
        drop(settings, [tmp_path / "one", tmp_path / "two"])
    with pytest.raises(InputError, match="holds no video"):
        drop(settings, [tmp_path / "one", tmp_path / "none"])
    assert not settings.incoming.exists()


def test_the_status_tells_states_and_champion(settings: Settings, tmp_path: Path) -> None:
    platform = platform_on(settings.state_root)
    register(platform, tmp_path, "one", {"dvc.version": "abc.dir"}, alias="champion")
    told = xdub("status").output
    assert any({"editor", "missing"} <= set(line.split()) for line in told.replace("│", " ").splitlines())
    assert "champion of xdub-dubber: version 1, data abc.dir" in told
    assert "challenger of xdub-dubber: none" in told


def test_the_doctor_clears_what_a_crash_left(settings: Settings) -> None:
    half = settings.path("work", "raw_corpus", "shard-00001", "a.mp4")
    half.parent.mkdir(parents=True)
    half.write_text("half", encoding="utf-8")
    assert "--repair clears" in xdub("doctor").output
    assert half.is_file()
    told = xdub("doctor", "--repair").output
    assert "work/raw_corpus/shard-00001" in told
    assert "cleared" in told
    assert not half.exists()


def test_a_revoked_key_is_nobodys(settings: Settings) -> None:
    key = xdub("serve", "--new-key", "anna").output.strip()
    assert Keys.of(settings).owner(key) == "anna"
    xdub("serve", "--revoke-key", "anna")
    assert Keys.of(settings).owner(key) is None
