"""Bad input at every door: `xdub dub`, ingest, and the server. One table; a row says what each door answers.

The command ends with exit code 2 and one line; ingest puts the file into quarantine with the reason; the server
answers 422, or the job fails with the message where only decoding shows it. Nothing else is lost at any of them.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from model_code import base
from model_code.config import MediaConfig
from model_code.faces.landmarker import Landmarker
from model_code.media.ingest import Quarantined, ingest_file
from tests.xdub_platform.serving import hostile, tiny
from tests.xdub_platform.serving.world import Parts, Server, State, make_state, wait_for
from xdub_platform.cli import main

NO_MEDIA = "not a video or sound file that can be read"
UNREAD = "unreadable: '.*' cannot be read to its end"


@dataclass(frozen=True)
class Case:
    """A row.

    Attributes:
        video: Name of the file of `hostile.make_all` that is given as video.
        audio: The same for the sound.
        said: What the message holds.
        decodes: The server finds out only in the job.
        ingested: What ingest says where that differs.
        fine: No door minds, except ingest if `ingested` says so.
    """

    video: str
    audio: str
    said: str
    decodes: bool = False
    ingested: str | None = None
    fine: bool = False


CASES = {
    "a text file named mp4": Case("text", "speech", NO_MEDIA),
    "an empty file": Case("empty", "speech", "is empty"),
    "a truncated mp4": Case("truncated", "speech", NO_MEDIA),
    "an mp4 whose pictures are cut off": Case("truncated_late", "speech", "(cut off|damaged)", decodes=True),
    "pictures of an unknown kind": Case("unknown_pictures", "speech", "has no pictures that can be decoded"),
    "sound of an unknown kind": Case("face", "unknown_sound", "has no sound that can be decoded"),
    "an mp4 with a bad fragment": Case("bad_fragment", "speech", "no face", decodes=True, ingested=UNREAD),
    "sound that begins in mid-file": Case("late_stream", "speech", "no face", decodes=True, ingested=UNREAD),
    "no video stream": Case("sound_in_mp4", "speech", "has no pictures"),
    "a sound file as video": Case("speech", "speech", "has no pictures"),
    "no sound in the audio file": Case("face", "nobody", "no sound"),
    "a text file as sound": Case("face", "text", NO_MEDIA),
    "0 seconds of sound": Case("face", "silence_0s", "(no sound|0 s|not a video or sound)", decodes=True),
    "0 seconds of video": Case("no_frames", "speech", "(no picture|not a video or sound file)", decodes=True),
    "no face": Case("nobody", "speech", "no face", decodes=True),
    "1 frame": Case("one_frame", "speech", "", ingested="frames", fine=True),
    "an 8K frame": Case("eight_k", "speech", "7680x4320, sides over 4096 px"),
    "a tiny file with a huge frame": Case("huge_frame", "speech", "16000x16000, sides over 4096 px"),
    "a frame that grows in mid-stream": Case("grows", "speech", "5120x64, sides over 4096 px", decodes=True),
    "3 hours of video": Case("three_hours", "speech", "lasts 10800 s"),
    "3 hours of sound": Case("face", "long_sound", "lasts 10800 s"),
    "an m3u8 that names another file": Case("playlist", "speech", NO_MEDIA),
    "an m3u8 that names an address": Case("playlist_url", "speech", NO_MEDIA),
    "a concat list": Case("concat", "speech", NO_MEDIA),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return hostile.make_all(tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="module")
def served(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> State:
    state = make_state(tmp_path_factory.mktemp("doors") / "state", parts)
    state.register()
    return state


@pytest.fixture(scope="module")
def server(served: State) -> Iterator[Server]:
    with served.serving() as server:
        yield server


@pytest.fixture(scope="module")
def landmarker() -> Landmarker:
    return base.load("landmarker")


def dub(
    state: State,
    video: Path,
    audio: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> tuple[int, str]:
    """Exit code and error line of the command, in this process."""
    monkeypatch.setenv("XDUB_STATE_ROOT", str(state.settings.state_root))
    monkeypatch.setattr(sys, "argv", ["xdub", "dub", str(video), str(audio), "-o", str(out)])
    with pytest.raises(SystemExit) as ended:
        main()
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("xdub: ")]
    assert len(lines) <= 1
    return int(ended.value.code or 0), lines[0] if lines else ""


@pytest.mark.parametrize("name", CASES)
def test_dub(
    name: str,
    files: dict[str, Path],
    served: State,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    case, out = CASES[name], tmp_path / "out.mp4"
    out.write_bytes(b"what was there before")
    code, line = dub(served, files[case.video], files[case.audio], out, monkeypatch, capsys)
    if case.fine:
        assert code == 0
        return
    assert code == 2
    assert re.search(case.said, line), line
    assert out.read_bytes() == b"what was there before"
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.video != "face"])
def test_ingest(name: str, files: dict[str, Path], landmarker: Landmarker, tmp_path: Path) -> None:
    case = CASES[name]
    video = tmp_path / f"clip{files[case.video].suffix}"
    shutil.copy(files[case.video], video)
    said = {"speaker_id": "a", "language": "en", "licence": "CC0", "consent": "written"}
    video.with_suffix(".json").write_text(json.dumps(said), encoding="utf-8")
    if video.suffix != ".wav":
        tiny.write_speech(video.with_suffix(".wav"), seconds=1.2)
    (refused,) = ingest_file(video, MediaConfig(), landmarker)
    assert isinstance(refused, Quarantined)
    assert re.search(case.ingested or case.said, str(refused)), str(refused)


@pytest.mark.parametrize("name", CASES)
def test_server(name: str, files: dict[str, Path], server: Server, served: State) -> None:
    case = CASES[name]
    before = _folders(served)
    answer = server.submit(files[case.video], files[case.audio])
    if answer.status_code == 202:
        assert case.decodes or case.fine, answer.text
        job = server.until(answer.json()["id"], "done", "failed")
        assert job["state"] == ("done" if case.fine else "failed")
        assert case.fine or re.search(case.said, job["error"]), job["error"]
    else:
        assert answer.status_code == 422
        assert not case.fine
        assert re.search(case.said, answer.json()["detail"]), answer.json()
        assert answer.json()["remedy"]
    if not case.fine:
        wait_for(lambda: _folders(served) == before, 10, "its folder to go", server.log)


def test_server_serves_on_after_all_of_it(files: dict[str, Path], server: Server) -> None:
    worker = server.worker()
    job_id = server.submit(files["face"], files["speech"]).json()["id"]
    assert server.until(job_id, "done", "failed")["state"] == "done"
    assert server.worker() == worker
    assert 'xdub_worker_restarts{device="cpu"} 0.0' in server.client.get("/metrics").text


def test_missing_files(
    files: dict[str, Path],
    served: State,
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for video, audio in ((tmp_path / "none.mp4", files["speech"]), (files["face"], tmp_path / "none.wav")):
        code, line = dub(served, video, audio, tmp_path / "o.mp4", monkeypatch, capsys)
        assert (code, "does not exist" in line) == (2, True)
    for climbing in ("none.mp4", "../queue.db", "/etc/passwd", "..", "\\..\\x"):
        answer = server.client.post("/v1/jobs", json={"video": climbing, "audio": climbing})
        assert answer.status_code == 422
        assert "no file in the folder of inputs" in answer.json()["detail"]


def test_a_climbing_file_name_in_an_upload_names_nothing(files: dict[str, Path], server: Server, served: State) -> None:
    sent = {
        "video": ("../../../../climbed.mp4", files["face"].read_bytes()),
        "audio": ("/climbed.wav", files["speech"].read_bytes()),
    }
    answer = server.client.post("/v1/jobs", files=sent)
    assert answer.status_code == 202
    assert server.until(answer.json()["id"], "done", "failed")["state"] == "done"
    assert not [path for path in served.settings.state_root.parent.rglob("*climbed*")]
    assert not Path("/climbed.wav").exists()


def _folders(state: State) -> set[str]:
    return {path.name for path in state.settings.path("serving", "jobs").iterdir()}
