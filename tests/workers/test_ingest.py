"""The ingest worker on rendered heads."""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import pytest

from model_code.avatars.clipspec import draw_spec
from model_code.avatars.corpus import write_clip
from model_code.avatars.seeds import head_seed
from model_code.config import MediaConfig
from model_code.media.ingest import ingest_file
from model_code.media.sample import ClipSample
from model_code.media.shards import Shard
from model_code.media.shots import find_cuts
from model_code.media.video import read_video, write_video
from model_code.media.yuv import YuvFrame
from model_code.workers import ingest
from model_code.workers.run import in_silence

MEDIA = MediaConfig(max_clip_frames=50)


@pytest.fixture(scope="module")
def dropped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One head speaking: `a.mp4` of three clips, and `b.mp4`, `c.mp4` of one, each other bytes."""
    made, folder = tmp_path_factory.mktemp("made"), tmp_path_factory.mktemp("incoming")
    (made / "truth").mkdir()
    spec = draw_spec(head_seed("FRESH", 900), 0, kind="natural", condition="plain", seconds=(1.6, 1.6))
    write_clip(spec, made, made / "truth", 192)
    (card,) = made.glob("*.json")
    video = read_video(card.with_suffix(".mp4"))
    assert video.audio is not None
    for name, times, crf in (("a", 3, 14), ("b", 1, 14), ("c", 1, 15)):
        audio = np.tile(video.audio, times)
        write_video(folder / f"{name}.mp4", np.concatenate([video.frames] * times), audio=audio, crf=crf)
        shutil.copy(card, folder / f"{name}.json")
    return folder


def test_an_odd_file_stops_no_other(dropped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def odd(frames: Iterable[YuvFrame]) -> tuple[list[int], int]:
        asked.append(frames)
        if len(asked) == 2:
            cv2.resize(next(iter(frames)).y, (0, 1))
        return find_cuts(frames)

    monkeypatch.setattr("model_code.media.ingest.find_cuts", odd)
    config = ingest.IngestConfig(output=tmp_path / "clips", files=dropped, shard="0", media=MEDIA)
    result = ingest.work(config, in_silence)
    assert {row["source_uri"] for row in Shard(config.output).rows} == {"a.mp4", "c.mp4"}
    assert [(each["file"], each["reason"]) for each in result["quarantine"]] == [("b.mp4", "unreadable")]
    assert "error: OpenCV" in result["quarantine"][0]["detail"]


def test_one_clip_is_in_memory_at_a_time(dropped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[np.ndarray]] = []

    def watch(each: ClipSample) -> ClipSample:
        assert not any(frames() is not None for frames in made), "an earlier clip is still held"
        made.append(weakref.ref(each.frames))
        return each

    monkeypatch.setattr(ingest, "ingest_file", lambda *given, **more: map(watch, ingest_file(*given, **more)))
    config = ingest.IngestConfig(output=tmp_path / "clips", files=dropped, shard="0", media=MEDIA)
    assert ingest.work(config, in_silence)["metrics"]["clips"] == len(made) > 4
