"""Dubbing of whole files with a model that paints a mouth: the plumbing, pixel by pixel."""

from __future__ import annotations

import subprocess
import tracemalloc
import wave
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import av
import cv2
import imageio_ffmpeg
import numpy as np
import pytest
from numpy.typing import NDArray

from model_code import base
from model_code.avatars.clipspec import draw_spec, render_spec
from model_code.avatars.seeds import head_seed
from model_code.config import FlowConfig, MediaConfig
from model_code.dubbing.color import match_color
from model_code.dubbing.dub import dub_file, dubbed_frames
from model_code.dubbing.longform import runs
from model_code.dubbing.model import DubberConfig, DubbingPipelineModel, load_transformer
from model_code.dubbing.paste import paste
from model_code.dubbing.plan import plan_dub
from model_code.dubbing.strand import DubbedPart, Reel
from model_code.errors import InputError
from model_code.faces.crop import crop_yuv, to_crop
from model_code.faces.landmarker import Landmarker
from model_code.media.audio import Sound
from model_code.media.sample import wav_bytes
from model_code.media.video import read_audio, read_video, stream_video, write_video
from model_code.media.yuv import YuvFrame
from model_code.seeding import seed_for

CONFIG = MediaConfig()
F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]


class PaintedMouth:
    """Paints a dark mouth that opens with the loudness; notes what it was asked for and what it heard."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self.heard: list[F32] = []

    def dub_stream(self, frames: Iterable[U8], count: int, samples: Sound, *_: object) -> Iterator[DubbedPart]:
        self.asked.append((count, len(samples)))
        self.heard.append(samples[:])
        for index, frame in enumerate(frames):
            part = samples[index * 640 : (index + 1) * 640]
            height = 1 + int(20 * np.abs(part).mean()) if len(part) else 1
            painted = frame.copy()
            cv2.ellipse(painted, (48, 72), (9, min(height, 8)), 0, 0, 360, (90, 20, 30), -1, cv2.LINE_AA)
            yield DubbedPart(painted[None], index, 0, False)


@pytest.fixture(scope="module")
def landmarker() -> Landmarker:
    return base.load("landmarker")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rendered, speech = render_spec(draw_spec(head_seed("FRESH", 910), 0, kind="natural", condition="plain"), 256)
    path = tmp_path_factory.mktemp("clip") / "head.mp4"
    write_video(path, rendered.frames[:40], audio=speech.samples[: 40 * 640], crf=12)
    return path


def _wav(path: Path, seconds: float, seed: int = 0) -> Path:
    noise = np.random.default_rng(seed).normal(0, 0.1, round(seconds * 16_000))
    swell = 0.5 + 0.5 * np.sin(np.arange(len(noise)) / 1500)
    path.write_bytes(wav_bytes(np.convolve(noise * swell, np.ones(8) / 8, "same").astype(np.float32) * 2))
    return path


def _ffmpeg(*arguments: str | Path) -> None:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _luma_db(a: U8, b: U8, where: NDArray[np.bool_]) -> float:
    return float(10 * np.log10(255**2 / max(np.mean((a[where].astype(np.float64) - b[where]) ** 2), 1e-9)))


def _outside(frame: YuvFrame, box: F32) -> NDArray[np.bool_]:
    where = np.ones(frame.y.shape, bool)
    x0, y0 = np.maximum(np.floor(box[:2]), 0).astype(int)
    x1, y1 = np.ceil(box[2:]).astype(int)
    where[y0:y1, x0:x1] = False
    return where


def _check(video: Path, audio: Path, out: Path, landmarker: Landmarker) -> None:
    report = dub_file(video, audio, out, PaintedMouth(), landmarker, version="test-1")
    samples, dubbed = read_audio(audio), read_audio(out)
    frames = int(np.ceil(round(len(samples) / 640, 6)))
    assert report.frames == frames
    with av.open(str(out)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == 25
        assert stream.frames == frames
        assert "synthetic" in container.metadata["comment"].lower()
        assert "test-1" in container.metadata["comment"]
    assert abs(len(dubbed) - len(samples)) <= 1100
    both = min(len(samples), len(dubbed))
    assert np.corrcoef(samples[:both], dubbed[:both])[0, 1] > 0.99
    plan = plan_dub(video, len(samples), landmarker, CONFIG)
    originals = stream_video(video)
    changed = 0
    for index, (before, after) in enumerate(
        zip(dubbed_frames(video, plan, samples, PaintedMouth(), CONFIG), stream_video(out), strict=True)
    ):
        if index >= len(plan.boxes):
            continue
        original = next(originals)
        where = _outside(original, plan.boxes[index])
        assert np.array_equal(before.y[where], original.y[where]), "bit-equal before encoding"
        half = where[::2, ::2] & where[1::2, 1::2]
        assert np.array_equal(before.u[half], original.u[half])
        assert np.array_equal(before.v[half], original.v[half])
        assert _luma_db(after.y, original.y, where) >= 45
        changed += int((before.y != original.y).any())
    assert changed == min(len(plan.boxes), report.dubbed)


def test_head_is_dubbed(clip: Path, landmarker: Landmarker, tmp_path: Path) -> None:
    _check(clip, _wav(tmp_path / "speech.wav", 1.6), tmp_path / "out.mp4", landmarker)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.mp4", "speech.wav"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["demo1", "demo2"])
def test_real_clips(name: str, clips_dir: Path, landmarker: Landmarker, tmp_path: Path) -> None:
    with wave.open(str(clips_dir / f"{name}_audio.wav")) as file:
        sound = np.frombuffer(file.readframes(round(1.2 * file.getframerate())), "<i2")
    (tmp_path / "speech.wav").write_bytes(wav_bytes(sound / np.float32(32767)))
    _check(clips_dir / f"{name}_video.mp4", tmp_path / "speech.wav", tmp_path / "out.mp4", landmarker)


@pytest.mark.parametrize(("seconds", "note"), [(0.02, "cut"), (1.0, "cut"), (4.2, "back and forth")])
def test_length_is_that_of_the_sound(
    seconds: float, note: str, clip: Path, landmarker: Landmarker, tmp_path: Path
) -> None:
    model = PaintedMouth()
    report = dub_file(clip, _wav(tmp_path / "a.wav", seconds), tmp_path / "out.mp4", model, landmarker)
    assert report.frames == max(1, int(np.ceil(seconds * 25)))
    assert note in report.notes[0]
    assert model.asked[0][0] == report.frames
    frames = read_video(tmp_path / "out.mp4").frames
    assert len(frames) == report.frames
    if seconds > 4:
        assert np.abs(frames[39 + 20, :40].astype(int) - frames[39 - 20, :40]).mean() < 3, "back and forth"


def test_frames_that_are_shown_again_wait_beside_the_output(clip: Path, landmarker: Landmarker, tmp_path: Path) -> None:
    """They take gigabytes, and /tmp may be memory."""

    class Looking(PaintedMouth):
        def dub_stream(self, frames: Iterable[U8], count: int, samples: Sound, *_: object) -> Iterator[DubbedPart]:
            for part in super().dub_stream(frames, count, samples):
                opened.update(path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink())
                yield part

    opened: set[Path] = set()
    dub_file(clip, _wav(tmp_path / "a.wav", 2.0), tmp_path / "out.mp4", Looking(), landmarker)
    assert [path for path in opened if path.parent == tmp_path and path.name.endswith("(deleted)")]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.wav", "out.mp4"]


def _late(video: Path, audio: Path, out: Path) -> None:
    _ffmpeg("-i", video, "-itsoffset", "0.4", "-i", audio, "-map", "0:v", "-map", "1:a", "-c:v", "copy", out)


def _early(video: Path, audio: Path, out: Path) -> None:
    _ffmpeg("-itsoffset", "0.4", "-i", video, "-i", audio, "-map", "0:v", "-map", "1:a", "-c:v", "copy", out)


def _with_gap(video: Path, audio: Path, out: Path) -> None:
    _ffmpeg("-i", audio, "-af", "asetpts='PTS+gte(T,0.6)*0.4/TB'", out)


def _with_changing_rate(video: Path, audio: Path, out: Path) -> None:
    parts = []
    for start, rate, channels in ((0.0, "44100", "2"), (0.6, "22050", "1")):
        part = out.with_name("part.mp3")
        _ffmpeg("-ss", str(start), "-t", "0.6", "-i", audio, "-ar", rate, "-ac", channels, part)
        parts.append(part.read_bytes())
    out.write_bytes(b"".join(parts))


@pytest.mark.parametrize(
    ("make", "suffix"),
    [
        (_late, ".ts"),
        (_early, ".ts"),
        (_with_gap, ".ts"),
        (_late, ".mkv"),
        (_early, ".mkv"),
        (_with_gap, ".mkv"),
        (_with_changing_rate, ".mp3"),
    ],
)
def test_output_sounds_as_the_model_heard(
    make: Callable[[Path, Path, Path], None], suffix: str, clip: Path, landmarker: Landmarker, tmp_path: Path
) -> None:
    """Speech that does not begin with the file's pictures, has a gap in time, or changes its rate and channels."""
    speech, out, model = tmp_path / f"speech{suffix}", tmp_path / "out.mp4", PaintedMouth()
    sound = _wav(tmp_path / "sound.wav", 1.2)
    make(clip, sound, speech)
    report = dub_file(clip, speech, out, model, landmarker)
    (heard,), made = model.heard, read_audio(out)
    assert len(read_audio(sound)) <= len(heard) <= len(read_audio(sound)) + 2200, "all of it and the encoders' padding"
    assert report.frames == int(np.ceil(round(len(heard) / 640, 6)))
    assert abs(len(made) - len(heard)) <= 1100
    for at in (1600, 12_800):
        lags = np.correlate(made[at - 1600 : at + 6400], heard[at : at + 4800], "valid")
        assert abs(int(np.argmax(lags)) - 1600) <= 32, "2 ms"
    with av.open(str(out)) as container:
        assert abs((container.duration or 0) / av.time_base - report.seconds) < 0.05


def test_only_the_first_track_of_the_speech_counts(clip: Path, landmarker: Landmarker, tmp_path: Path) -> None:
    """The second one is of a kind that nothing decodes."""
    sound, speech, out = _wav(tmp_path / "a.wav", 0.6), tmp_path / "two.mkv", tmp_path / "out.mp4"
    tracks = ("-map", "0:a", "-map", "1:a", "-c:a:0", "flac", "-c:a:1", "pcm_s24be")
    _ffmpeg("-i", sound, "-i", _wav(tmp_path / "b.wav", 0.6, seed=1), *tracks, speech)
    speech.write_bytes(speech.read_bytes().replace(b"A_PCM/INT/BIG", b"A_XXX/YYY/ZZZ"))
    dub_file(clip, speech, out, PaintedMouth(), landmarker)
    with av.open(str(out)) as container:
        assert len(container.streams.audio) == 1
    assert np.corrcoef(read_audio(out)[:9600], read_audio(sound)[:9600])[0, 1] > 0.99


def test_turned_odd_and_oddly_named(clip: Path, landmarker: Landmarker, tmp_path: Path) -> None:
    frames = read_video(clip).frames[:30, :231, :255]
    odd = tmp_path / "-odd 'Größe' 影.mp4"
    write_video(odd, frames, crf=10)
    out = tmp_path / 'out "x" 影.mp4'
    audio = _wav(tmp_path / "-so und.wav", 1.0)
    report = dub_file(odd, audio, out, PaintedMouth(), landmarker)
    assert report.dubbed == 25
    assert read_video(out).frames.shape == (25, 232, 256, 3)


@pytest.fixture
def two(clip: Path, tmp_path: Path) -> Path:
    """A small face on the left and a large one on the right, which goes away for 12 of the 40 frames."""
    wide = []
    for index, frame in enumerate(read_video(clip).frames[:40]):
        both = np.full((256, 512, 3), frame[2, 2], np.uint8)
        both[60:204, 20:164] = cv2.resize(frame, (144, 144), interpolation=cv2.INTER_AREA)
        if not 14 <= index < 26:
            both[:, 230:486] = frame
        wide.append(both)
    write_video(tmp_path / "two.mp4", np.stack(wide), crf=12)
    return tmp_path / "two.mp4"


def test_two_faces_the_largest_and_it_says_so(two: Path, landmarker: Landmarker, tmp_path: Path) -> None:
    samples = read_audio(_wav(tmp_path / "a.wav", 0.5))
    plan = plan_dub(two, len(samples), landmarker, CONFIG)
    assert plan.faces == 2
    assert (plan.boxes[:, 0] > 230).all()
    report = dub_file(two, tmp_path / "a.wav", tmp_path / "o.mp4", PaintedMouth(), landmarker)
    assert "2 faces: the largest was dubbed" in report.notes


def test_the_speaker_is_the_face_that_is_named(two: Path, landmarker: Landmarker, tmp_path: Path) -> None:
    samples = read_audio(_wav(tmp_path / "a.wav", 1.6))
    left = plan_dub(two, len(samples), landmarker, CONFIG, speaker=1)
    assert left.dubbed.all()
    assert (left.boxes[:, 2] < 230).all()
    right = plan_dub(two, len(samples), landmarker, CONFIG, speaker=2)
    assert (right.boxes[right.dubbed, 0] > 230).all()  # never the other face, which is all there is for a while
    assert right.dubbed[:13].all()
    assert not right.dubbed[17:24].any()
    assert right.dubbed[35:].all()
    report = dub_file(two, tmp_path / "a.wav", tmp_path / "o.mp4", PaintedMouth(), landmarker, speaker=1)
    assert "2 faces: number 1 from the left was dubbed" in report.notes
    with pytest.raises(InputError, match="never shows 3 faces at once"):
        plan_dub(two, len(samples), landmarker, CONFIG, speaker=3)


def test_frames_without_a_face_are_left_alone(clip: Path, landmarker: Landmarker, tmp_path: Path) -> None:
    frames = read_video(clip).frames
    empty = np.broadcast_to(np.linspace(60, 120, 256, dtype=np.uint8)[:, None, None], (20, 256, 256, 3))
    write_video(tmp_path / "gap.mp4", np.concatenate([frames[:25], empty, frames[:25]]), crf=12)
    samples = read_audio(_wav(tmp_path / "a.wav", 2.8))
    plan = plan_dub(tmp_path / "gap.mp4", len(samples), landmarker, CONFIG)
    assert plan.dubbed[:25].all()
    assert not plan.dubbed[25:45].any()
    assert plan.dubbed[45:].all()
    for index, (before, original) in enumerate(
        zip(
            dubbed_frames(tmp_path / "gap.mp4", plan, samples, PaintedMouth(), CONFIG),
            stream_video(tmp_path / "gap.mp4"),
            strict=True,
        )
    ):
        if 25 <= index < 45:
            assert np.array_equal(before.y, original.y)


def test_bad_input_gets_one_line(clip: Path, landmarker: Landmarker, tmp_path: Path) -> None:
    audio = _wav(tmp_path / "a.wav", 0.5)
    (tmp_path / "text.mp4").write_text("no film")
    (tmp_path / "empty.mp4").write_bytes(b"")
    write_video(tmp_path / "nobody.mp4", np.full((12, 96, 96, 3), 128, np.uint8))
    write_video(tmp_path / "silent.mp4", np.full((12, 96, 96, 3), 128, np.uint8))
    for video, sound, words in (
        (tmp_path / "text.mp4", audio, "text.mp4"),
        (tmp_path / "empty.mp4", audio, "empty"),
        (tmp_path / "none.mp4", audio, "does not exist"),
        (tmp_path / "nobody.mp4", audio, "no face"),
        (clip, tmp_path / "silent.mp4", "no sound"),
        (clip, tmp_path / "text.mp4", "text.mp4"),
        (audio, audio, "no pictures"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            dub_file(video, sound, tmp_path / "out.mp4", PaintedMouth(), landmarker)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.mp4").exists()
    with pytest.raises(InputError, match="does not exist"):
        dub_file(clip, audio, tmp_path / "nowhere" / "out.mp4", PaintedMouth(), landmarker)


def _frame(height: int = 120, width: int = 160) -> YuvFrame:
    rng = np.random.default_rng(0)
    y = cv2.GaussianBlur(rng.integers(20, 230, (height, width)).astype(np.float32), (0, 0), 1.2).astype(np.uint8)
    u, v = (
        cv2.GaussianBlur(rng.integers(60, 200, (height // 2, width // 2)).astype(np.uint8), (0, 0), 3) for _ in "uv"
    )
    return YuvFrame(y, u, v, space=1)


@pytest.mark.parametrize("box", [(30.3, 20.7, 90.3, 80.7), (-20.0, -30.0, 60.0, 50.0), (100.5, 70.2, 200.5, 170.2)])
def test_pasting_the_same_crop_changes_nothing(box: tuple[float, float, float, float]) -> None:
    """The crop is smaller than the box, yet the frame keeps its own detail where nothing changed."""
    frame, at = _frame(), np.array(box, np.float32)
    ramp = np.minimum(np.arange(32), np.arange(32)[::-1]).clip(0, 4) / 4
    mask = np.minimum(ramp[:, None], ramp[None]).astype(np.float32)
    after = paste(frame, crop_yuv(frame, at, 32), at, mask)
    for old, new in zip(frame.planes(), after.planes(), strict=True):
        assert np.abs(old.astype(int) - new).max() <= 1


def test_pasted_colour_arrives() -> None:
    frame, at = _frame(), np.array([30, 20, 90, 80], np.float32)
    red = np.broadcast_to(np.array([200, 30, 40], np.uint8), (96, 96, 3))
    mask = np.zeros((96, 96), np.float32)
    mask[20:76, 20:76] = 1
    after = paste(frame, red, at, mask)
    assert np.abs(after.to_rgb()[45:55, 55:65].astype(int) - np.array([200, 30, 40])).max() <= 3
    assert np.array_equal(after.y[:28], frame.y[:28])


def test_box_outside_the_frame_is_harmless() -> None:
    frame = _frame()
    after = paste(
        frame,
        np.zeros((16, 16, 3), np.uint8),
        np.array([500, 500, 600, 600], np.float32),
        np.ones((16, 16), np.float32),
    )
    assert np.array_equal(after.y, frame.y)


class Copying:
    """Gives the crops back window by window, as a model holds them."""

    def dub_stream(self, frames: Iterable[U8], count: int, samples: Sound, *_: object) -> Iterator[DubbedPart]:
        reel = Reel(frames, count)
        for start in range(0, count, 25):
            yield DubbedPart(reel.part(start, 25)[: count - start], start, 0, False)


def test_memory_does_not_grow_with_length(clip: Path, landmarker: Landmarker, tmp_path: Path) -> None:
    """What NumPy and Python hold at most; of each frame only places may stay: 1 kB, where a crop has 28."""
    frames = read_video(clip).frames[:25]
    peaks = {}
    for times in (2, 10):
        write_video(tmp_path / "long.mp4", (frame for _ in range(times) for frame in frames), crf=20)
        audio = _wav(tmp_path / "long.wav", times * 1.0)
        tracemalloc.start()
        report = dub_file(tmp_path / "long.mp4", audio, tmp_path / "out.mp4", Copying(), landmarker)
        peaks[report.frames] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert list(peaks) == [50, 250]
    assert (peaks[250] - peaks[50]) / 200 < 3_000


def test_streaming_changes_no_pixel(clip: Path, landmarker: Landmarker, tmp_path: Path) -> None:
    """The shipped base dubs a shot, a gap and another shot that runs back: as if all of it lay in memory."""
    frames = read_video(clip).frames
    empty = np.broadcast_to(np.linspace(60, 120, 256, dtype=np.uint8)[:, None, None], (8, 256, 256, 3))
    video = tmp_path / "gap.mp4"
    write_video(video, np.concatenate([frames[:30], empty, frames[:14]]), crf=12)
    samples = read_audio(_wav(tmp_path / "a.wav", 3.0))
    model = DubbingPipelineModel(
        DubberConfig(mode="editor", flow=FlowConfig(sampling_steps=1, audio_guidance=1.0)),
        base.load("codec"),
        base.load("audio_encoder"),
        load_transformer(base.FOLDER / "prior"),
    )
    plan = plan_dub(video, len(samples), landmarker, CONFIG)
    assert plan.repeats
    assert len(runs(plan.dubbed, plan.breaks)) == 3
    source = [frame for frame, _ in zip(stream_video(video), plan.boxes, strict=True)]
    expected = [source[index] for index in plan.source]
    for start, end in runs(plan.dubbed, plan.breaks):
        places = plan.source[start:end]
        crops = np.stack([crop_yuv(source[index], plan.boxes[index], 96) for index in places])
        points = to_crop(plan.landmarks[places], plan.boxes[places], 96)
        new = model.dub_crops(crops, samples[start * 640 : end * 640], seed_for("dub", 4, start), points)
        for index, crop in zip(range(start, end), match_color(new, crops), strict=True):
            at = plan.source[index]
            expected[index] = paste(source[at], crop, plan.boxes[at], plan.mask(at, 96))
    made = list(dubbed_frames(video, plan, samples, model, CONFIG, seed=4))
    for before, after in zip(expected, made, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(before.planes(), after.planes(), strict=True))


def test_noise_is_told_in_the_notes(clip: Path, landmarker: Landmarker, tmp_path: Path) -> None:
    class Noisy(Copying):
        def dub_stream(self, frames: Iterable[U8], count: int, samples: Sound, *_: object) -> Iterator[DubbedPart]:
            for part in super().dub_stream(frames, count, samples):
                yield replace(part, retries=1 if part.start else 2, noise=not part.start)

    report = dub_file(clip, _wav(tmp_path / "a.wav", 1.4), tmp_path / "o.mp4", Noisy(), landmarker)
    assert report.notes[-2:] == (
        "noise instead of a face at 1.0 s: made again with another seed",
        "noise instead of a face at 0.0 s: no other seed helped, look at it",
    )
