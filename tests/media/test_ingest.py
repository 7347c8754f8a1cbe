"""Ingest of rendered heads, dropped as a user would drop footage."""

from __future__ import annotations

import errno
import json
import logging
import shutil
import struct
import weakref
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.io import wavfile

from model_code import base
from model_code.avatars.clipspec import ClipSpec, draw_spec, render_spec
from model_code.avatars.corpus import write_clip
from model_code.avatars.seeds import head_seed
from model_code.config import MediaConfig
from model_code.faces.align import interocular
from model_code.faces.crop import crop, to_crop
from model_code.faces.landmarker import Landmarker
from model_code.media.ingest import Quarantined, clip_name, even_parts, file_digest, ingest_file
from model_code.media.sample import ClipSample
from model_code.media.shots import find_cuts
from model_code.media.video import read_audio, read_video, stream_video, write_video

CONFIG = MediaConfig()


@pytest.fixture(scope="module")
def landmarker() -> Landmarker:
    return base.load("landmarker")


def _spec(index: int, condition: str = "plain", kind: str = "natural") -> ClipSpec:
    return draw_spec(head_seed("FRESH", index), 0, kind=kind, condition=condition, seconds=(1.6, 1.6))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def dropped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a plain and an occluded clip."""
    folder = tmp_path_factory.mktemp("incoming")
    (folder / "truth").mkdir()
    for spec in (_spec(900), _spec(905, "occluded")):
        write_clip(spec, folder, folder / "truth", 192)
    return folder


def _videos(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("*.mp4")) if not path.name.endswith(".occluder.mp4")]


def _copy(video: Path, folder: Path, name: str = "clip") -> Path:
    for suffix in (".mp4", ".json"):
        shutil.copy(video.with_suffix(suffix), folder / f"{name}{suffix}")
    return folder / f"{name}.mp4"


def _taken_in(video: Path, landmarker: Landmarker, **more: Any) -> tuple[list[ClipSample], list[Quarantined]]:
    taken = list(ingest_file(video, CONFIG, landmarker, **more))
    clips = [each for each in taken if isinstance(each, ClipSample)]
    return clips, [each for each in taken if isinstance(each, Quarantined)]


def test_clip_is_cropped_and_described(dropped: Path, landmarker: Landmarker) -> None:
    video = _videos(dropped)[0]
    clips, refused = _taken_in(video, landmarker, shard="0001")
    assert not refused
    (clip,) = clips
    rendered, speech = render_spec(_spec(900), 192)
    count = len(rendered.frames)
    assert clip.frames.shape == (count, 96, 96, 3)
    assert len(clip.audio) == count * 640
    assert abs(np.corrcoef(clip.audio[:16_000], speech.samples[:16_000])[0, 1]) > 0.99
    truth = to_crop(rendered.landmarks, clip.boxes, 96)
    error = np.linalg.norm(clip.landmarks - truth, axis=-1).mean() / interocular(truth).mean()
    assert error < 0.12
    assert truth.min() > 0
    assert truth.max() < 96
    card = json.loads(video.with_suffix(".json").read_text())
    for key in ("speaker_id", "language", "licence", "consent"):
        assert clip.row[key] == card[key]
    assert clip.row["shard"] == "0001"
    assert clip.row["sha256"] == file_digest(video)
    assert clip.row["clip_id"] == clip.clip_id == clip_name(video, clip.row["sha256"], 0)
    assert clip.row["n_frames"] == count
    json.dumps(clip.row)


def test_ingest_repeats(dropped: Path, landmarker: Landmarker) -> None:
    video = _videos(dropped)[0]
    first, second = (_taken_in(video, landmarker)[0][0].to_members() for _ in range(2))
    assert first == second


def test_occluder_is_cropped_with_the_face(dropped: Path, landmarker: Landmarker) -> None:
    rendered, _ = render_spec(_spec(905, "occluded"), 192)
    (clip,), _ = _taken_in(_videos(dropped)[1], landmarker)
    assert clip.occluder is not None
    assert clip.row["occluded"]
    for index in range(0, len(clip.frames), 8):
        x0, y0, x1, y1 = clip.boxes[index].round().astype(int)
        seen = rendered.occluder[index, max(y0, 0) : y1, max(x0, 0) : x1].mean()
        assert clip.occluder[index].mean() == pytest.approx(seen, abs=0.08)


def test_shots_are_cut(dropped: Path, landmarker: Landmarker, tmp_path: Path) -> None:
    first, second = (read_video(video) for video in _videos(dropped))
    frames = np.concatenate([first.frames[:35], second.frames[:30], first.frames[:10]])
    audio = np.concatenate([first.audio[: 35 * 640], second.audio[: 40 * 640]])  # type: ignore[index]
    write_video(tmp_path / "cut.mp4", frames, audio=audio, crf=14)
    shutil.copy(_videos(dropped)[0].with_suffix(".json"), tmp_path / "cut.json")
    assert find_cuts(stream_video(tmp_path / "cut.mp4")) == ([35, 65], 75)
    clips, refused = _taken_in(tmp_path / "cut.mp4", landmarker)
    assert [clip.row["start_frame"] for clip in clips] == [0, 35]
    assert [len(clip.frames) for clip in clips] == [35, 30]
    assert [len(clip.audio) for clip in clips] == [35 * 640, 30 * 640]
    assert [(item.reason, item.start) for item in refused] == [("too short", 65)]


def test_a_long_shot_becomes_clips_of_even_length(dropped: Path, landmarker: Landmarker, tmp_path: Path) -> None:
    taken = read_video(_videos(dropped)[0]).frames
    there_and_back = np.concatenate([taken, taken[-2:0:-1]])
    frames = there_and_back[np.arange(755) % len(there_and_back)]
    sound = np.random.default_rng(0).normal(0, 0.1, 755 * 640).astype(np.float32)
    write_video(tmp_path / "long.mp4", frames, audio=sound, crf=14)
    shutil.copy(_videos(dropped)[0].with_suffix(".json"), tmp_path / "long.json")
    assert find_cuts(stream_video(tmp_path / "long.mp4")) == ([], 755)
    clips, refused = _taken_in(tmp_path / "long.mp4", landmarker)
    assert not refused
    digest = file_digest(tmp_path / "long.mp4")
    assert [clip.clip_id for clip in clips] == [clip_name(tmp_path / "long.mp4", digest, n) for n in range(4)]
    assert [clip.row["start_frame"] for clip in clips] == [0, 188, 377, 566]
    assert [clip.row["n_frames"] for clip in clips] == [188, 189, 189, 189]
    heard = read_audio(tmp_path / "long.mp4", CONFIG)
    for clip in clips:
        start, count = clip.row["start_frame"], clip.row["n_frames"]
        assert len(clip.frames) == len(clip.landmarks) == len(clip.boxes) == count
        assert np.array_equal(clip.audio, heard[start * 640 : (start + count) * 640])
        filmed = crop(frames[start : start + count], clip.boxes, 96)
        assert np.abs(filmed.astype(int) - clip.frames).mean() < 3
        assert ((clip.landmarks > 0) & (clip.landmarks < 96)).all()


def test_a_long_files_clips_are_made_one_by_one(dropped: Path, landmarker: Landmarker, tmp_path: Path) -> None:
    video = read_video(_videos(dropped)[0])
    write_video(tmp_path / "long.mp4", np.concatenate([video.frames] * 3), audio=np.tile(video.audio, 3))  # type: ignore[arg-type]
    shutil.copy(_videos(dropped)[0].with_suffix(".json"), tmp_path / "long.json")
    config, made = MediaConfig(max_clip_frames=50), list[weakref.ref[Any]]()
    for each in ingest_file(tmp_path / "long.mp4", config, landmarker):
        assert isinstance(each, ClipSample)
        assert not any(ref() is not None for ref in made), "an earlier clip is still held"
        made += [weakref.ref(each), weakref.ref(each.frames)]
        del each
    assert len(made) > 4


@given(st.integers(1, 200), st.integers(0, 20_000), st.integers(1, 20_000), st.integers(0, 300))
def test_parts_of_a_shot_are_even_and_long_enough(shortest: int, start: int, count: int, more: int) -> None:
    config = MediaConfig(min_clip_frames=shortest, max_clip_frames=2 * shortest + more)
    parts = even_parts(start, start + count, config.max_clip_frames)
    assert [frame for part in parts for frame in range(*part)] == list(range(start, start + count))
    lengths = [end - begin for begin, end in parts]
    assert max(lengths) <= config.max_clip_frames
    assert max(lengths) - min(lengths) <= 1
    assert len(parts) == 1 or min(lengths) >= config.min_clip_frames


def test_parts_that_would_be_too_short_are_refused() -> None:
    with pytest.raises(ValidationError, match="less than twice min_clip_frames 25"):
        MediaConfig(max_clip_frames=49)


def test_changing_light_is_no_cut(tmp_path: Path) -> None:
    rendered, _ = render_spec(_spec(905, "changing_light"), 96)
    light = (0.6 + 0.4 * np.sin(np.arange(len(rendered.frames)) * 0.8))[:, None, None, None]
    write_video(tmp_path / "light.mp4", (rendered.frames * light).astype(np.uint8))
    assert find_cuts(stream_video(tmp_path / "light.mp4"))[0] == []


@pytest.mark.parametrize(
    ("card", "reason"),
    [
        (None, "no sidecar"),
        ("{", "bad sidecar"),
        (
            '{"speaker_id": "a", "language": "en", "licence": "CC0", "consent": "yes", "split": "held-out"}',
            "bad sidecar",
        ),
        ('{"speaker_id": "a", "language": "en", "licence": "CC0"}', "no consent"),
        ('{"speaker_id": "a", "language": "en", "licence": "CC0", "consent": ""}', "no consent"),
        ('{"speaker_id": "a", "language": "en", "consent": "yes"}', "no licence"),
        ('{"language": "en", "licence": "CC0", "consent": "yes"}', "bad sidecar"),
    ],
)
def test_papers_must_be_in_order(
    card: str | None, reason: str, dropped: Path, landmarker: Landmarker, tmp_path: Path
) -> None:
    video = _copy(_videos(dropped)[0], tmp_path)
    video.with_suffix(".json").unlink()
    if card is not None:
        video.with_suffix(".json").write_text(card)
    clips, refused = _taken_in(video, landmarker)
    assert not clips
    assert refused[0].reason == reason
    assert "\n" not in str(refused[0])


def test_bad_footage_is_refused_with_a_reason(dropped: Path, landmarker: Landmarker, tmp_path: Path) -> None:
    good = _videos(dropped)[0]
    video = read_video(good)
    nobody = np.full((40, 192, 192, 3), 90, np.uint8) + np.arange(192, dtype=np.uint8)[:, None, None] // 3
    cases = {
        "no sound": lambda path: write_video(path, video.frames),
        "too short": lambda path: write_video(path, video.frames[:12], audio=video.audio),
        "no face": lambda path: write_video(path, nobody, audio=video.audio),
        "unreadable": lambda path: path.write_text("no film"),
    }
    for reason, make in cases.items():
        path = _copy(good, tmp_path)
        path.unlink()
        make(path)
        clips, refused = _taken_in(path, landmarker)
        assert not clips
        assert [item.reason for item in refused] == [reason]
    silent = _copy(good, tmp_path)
    write_video(silent, video.frames, audio=np.zeros(len(video.frames) * 640, np.float32))
    assert _taken_in(silent, landmarker)[1][0].detail.startswith("the sound is silent")
    assert _taken_in(good, landmarker, known={file_digest(good): "x.mp4"})[1][0].reason == "duplicate"


@pytest.mark.parametrize("step", ["find_cuts", "crop_yuv"])
@pytest.mark.parametrize(
    "error", [cv2.error("two\nlines"), av.error.BugError(0, "odd"), av.error.OSError(5, "odd"), RuntimeError("odd")]
)
def test_what_a_file_raises_turns_it_away(
    step: str,
    error: Exception,
    dropped: Path,
    landmarker: Landmarker,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(f"model_code.media.ingest.{step}", fail)
    video = _videos(dropped)[0]
    with caplog.at_level(logging.WARNING):
        clips, refused = _taken_in(video, landmarker)
    assert not clips
    assert [(item.reason, item.start) for item in refused] == [("unreadable", None)]
    assert f"{type(error).__name__}: " in refused[0].detail
    assert "\n" not in refused[0].detail
    (record,) = caplog.records
    assert record.exc_info
    assert record.exc_info[1] is error


@pytest.mark.parametrize("step", ["find_cuts", "crop_yuv"])
@pytest.mark.parametrize(
    "error", [MemoryError(), KeyboardInterrupt(), OSError(errno.ENOSPC, "disk full"), OSError(errno.EIO, "disk broken")]
)
def test_what_the_machine_raises_turns_nobody_away(
    step: str, error: BaseException, dropped: Path, landmarker: Landmarker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(f"model_code.media.ingest.{step}", fail)
    with pytest.raises(type(error)) as raised:
        _taken_in(_videos(dropped)[0], landmarker)
    assert raised.value is error


def test_memory_that_opencv_or_torch_lacks_is_not_the_files_fault(
    dropped: Path, landmarker: Landmarker, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = cv2.error("Insufficient memory")
    full.code = cv2.Error.StsNoMem
    for error in (full, RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")):

        def fail(*_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr("model_code.media.ingest.find_cuts", fail)
        with pytest.raises(type(error)):
            _taken_in(_videos(dropped)[0], landmarker)


def test_poor_pictures_are_refused_with_a_reason(dropped: Path, landmarker: Landmarker, tmp_path: Path) -> None:
    video = read_video(_videos(dropped)[0])
    far = np.full_like(video.frames, 110)
    far[:, 77:115, 77:115] = [cv2.resize(frame, (38, 38), interpolation=cv2.INTER_AREA) for frame in video.frames]
    cases = {
        "small face": far,
        "blurred": np.stack([cv2.GaussianBlur(frame, (0, 0), 2) for frame in video.frames]),
        "badly lit": (video.frames * 0.073).astype(np.uint8),
    }
    path = _copy(_videos(dropped)[0], tmp_path)
    for reason, frames in cases.items():
        write_video(path, frames, audio=video.audio)
        clips, refused = _taken_in(path, landmarker)
        assert not clips
        assert [item.reason for item in refused] == [reason]


def test_an_occluder_mask_must_be_as_long_as_its_video(dropped: Path, landmarker: Landmarker, tmp_path: Path) -> None:
    path = _copy(_videos(dropped)[0], tmp_path)
    count = len(read_video(path).frames)
    write_video(path.with_name("clip.occluder.mp4"), np.zeros((count - 10, 192, 192, 3), np.uint8))
    clips, refused = _taken_in(path, landmarker)
    assert not clips
    assert [item.reason for item in refused] == ["bad occluder"]
    assert f"has {count - 10} of {count} frames" in refused[0].detail


@pytest.mark.parametrize(("height", "width"), [(96, 96), (384, 384), (190, 192), (192, 256)])
def test_an_occluder_mask_must_be_as_large_as_its_video(
    height: int, width: int, dropped: Path, landmarker: Landmarker, tmp_path: Path
) -> None:
    path = _copy(_videos(dropped)[1], tmp_path)
    masks = read_video(_videos(dropped)[1].with_suffix(".occluder.mp4")).frames
    resized = [cv2.resize(mask, (width, height), interpolation=cv2.INTER_AREA) for mask in masks]
    write_video(path.with_name("clip.occluder.mp4"), np.stack(resized).astype(np.uint8))
    clips, refused = _taken_in(path, landmarker)
    assert not clips
    assert [item.reason for item in refused] == ["bad occluder"]
    assert f"'clip.occluder.mp4' is {width}x{height}, 'clip.mp4' 192x192" in refused[0].detail


def test_a_turned_videos_mask_is_held_against_its_upright_size(
    dropped: Path, landmarker: Landmarker, tmp_path: Path
) -> None:
    """Upright pictures of 192x160, stored lying as a phone stores them; the mask stands and lies."""
    path, upright = _copy(_videos(dropped)[1], tmp_path), tmp_path / "upright.mp4"
    video = read_video(_videos(dropped)[1])
    write_video(upright, np.rot90(video.frames[:, :160], axes=(1, 2)), audio=video.audio)
    path.write_bytes(turned(upright.read_bytes()))
    assert next(stream_video(path)).y.shape == (160, 192)
    masks = read_video(_videos(dropped)[1].with_suffix(".occluder.mp4")).frames[:, :160]
    write_video(path.with_name("clip.occluder.mp4"), masks)
    (clip,), _ = _taken_in(path, landmarker)
    assert clip.row["occluded"]
    write_video(path.with_name("clip.occluder.mp4"), np.rot90(masks, axes=(1, 2)))
    assert "is 160x192, 'clip.mp4' 192x160" in _taken_in(path, landmarker)[1][0].detail


def turned(mp4: bytes) -> bytes:
    """The file with a display matrix of a quarter turn clockwise in its (first) track."""
    at = mp4.index(b"tkhd") + 4 + 4 + 20 + 8 + 8  # version 0: times and number, reserved, layer to volume
    whole, depth = 1 << 16, 1 << 30
    return mp4[:at] + struct.pack(">9i", 0, whole, 0, -whole, 0, 0, 0, 0, depth) + mp4[at + 36 :]


@pytest.mark.parametrize("broken", [1, 16_000])
def test_sound_with_samples_that_are_no_numbers_is_refused(
    broken: int, dropped: Path, landmarker: Landmarker, tmp_path: Path
) -> None:
    path = _copy(_videos(dropped)[0], tmp_path)
    samples = np.random.default_rng(0).normal(0, 0.1, 2 * 16_000).astype(np.float32)
    samples[5_000 : 5_000 + broken] = np.nan
    wavfile.write(path.with_suffix(".wav"), 16_000, samples)
    clips, refused = _taken_in(path, landmarker)
    assert not clips
    (item,) = refused
    assert item.reason == "unreadable"
    assert item.detail.startswith(f"'{path.stem}.wav' has sound with samples that are no numbers")


def test_a_wav_beside_the_video_is_its_sound(dropped: Path, landmarker: Landmarker, tmp_path: Path) -> None:
    good = _videos(dropped)[0]
    silent = _copy(good, tmp_path, 'it\'s a "take" №2')
    write_video(silent, read_video(good).frames)
    shutil.copy(good.with_suffix(".wav"), silent.with_suffix(".wav"))
    (clip,), _ = _taken_in(silent, landmarker)
    assert clip.row["loudness"] > 0.01
    assert clip.clip_id.replace("-", "").replace("_", "").isalnum()
