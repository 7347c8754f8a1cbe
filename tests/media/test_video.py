"""Reading and writing of real files made on the fly with ffmpeg."""

from __future__ import annotations

import struct
import subprocess
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import cv2
import imageio_ffmpeg
import numpy as np
import pytest
from numpy.typing import NDArray

from model_code.config import MediaConfig
from model_code.errors import InputError
from model_code.media.audio import Excerpt
from model_code.media.probe import probe
from model_code.media.spool import FrameSpool, spooled_sound
from model_code.media.video import (
    VideoFrames,
    _decode_audio,
    _decode_video,
    _deinterlaced,
    from_mp4_bytes,
    read_audio,
    read_video,
    stream_audio,
    stream_video,
    to_mp4_bytes,
    write_video,
)


def _frames(count: int = 30, height: int = 64, width: int = 96) -> NDArray[np.uint8]:
    """A quartered picture with a white bar that moves one column a frame."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    frames[:, : height // 2, : width // 2] = (200, 30, 30)
    frames[:, : height // 2, width // 2 :] = (30, 180, 30)
    frames[:, height // 2 :, : width // 2] = (30, 30, 200)
    frames[:, height // 2 :, width // 2 :] = (180, 180, 60)
    for index in range(count):
        frames[index, :, 2 * index % width : 2 * index % width + 4] = 255
    return frames


def _tone(seconds: float, frequency: float = 440.0) -> NDArray[np.float32]:
    return (0.4 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * 16_000)) / 16_000)).astype(np.float32)


def _psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(np.float64) - b) ** 2)))


def _ffmpeg(*arguments: str | int | Path) -> None:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "plain.mp4"
    write_video(path, _frames(), audio=_tone(1.2), crf=8)
    return path


def test_round_trip_keeps_pictures_and_sound(clip: Path) -> None:
    video = read_video(clip)
    assert video.frames.shape == (30, 64, 96, 3)
    assert video.fps == 25
    assert _psnr(video.frames, _frames()) > 24  # half-size chroma at hard edges
    assert video.audio is not None
    assert abs(len(video.audio) - 1.2 * 16_000) < 1100
    assert np.corrcoef(video.audio[: round(1.2 * 16_000)], _tone(1.2))[0, 1] > 0.999


def test_full_chroma_crops_survive_bytes() -> None:
    frames = np.stack([cv2.GaussianBlur(frame, (0, 0), 2) for frame in _frames(9, 96, 96)])
    data = to_mp4_bytes(frames, crf=10, pix_fmt="yuv444p")
    assert _psnr(from_mp4_bytes(data), frames) > 40
    assert to_mp4_bytes(frames, crf=10, pix_fmt="yuv444p") == data, "same frames, same bytes"


def test_files_are_deterministic(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / name, _frames(10), audio=_tone(0.4), metadata={"comment": "synthetic"})
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "b.mp4"], "no partial file is left"


def test_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> object:
        yield _frames(1)[0]
        raise RuntimeError("camera fell over")

    with pytest.raises(RuntimeError, match="camera"):
        write_video(tmp_path / "a.mp4", broken())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one frame"):
        write_video(tmp_path / "a.mp4", [])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_rotation_is_honoured(clip: Path, tmp_path: Path, rotation: int) -> None:
    turned, raw = tmp_path / "turned.mp4", tmp_path / "turned.raw"
    _ffmpeg("-display_rotation", str(rotation), "-i", clip, "-c", "copy", turned)
    _ffmpeg("-i", turned, "-f", "rawvideo", "-pix_fmt", "rgb24", raw)  # ffmpeg turns it itself
    frames = read_video(turned).frames
    assert frames.shape[1:3] == ((64, 96) if rotation % 180 == 0 else (96, 64))
    expected = np.fromfile(raw, np.uint8).reshape(-1, *frames.shape[1:])
    assert np.abs(frames[5].astype(int) - expected[5]).mean() < 1.0
    assert np.abs(next(iter(stream_video(turned))).to_rgb().astype(int) - expected[0]).mean() < 4.0


@pytest.mark.parametrize(
    ("rate", "expected"), [("30", 25), ("60000/1001", 25), ("12", 25), ("50", 25), ("24000/1001", 25)]
)
def test_other_rates_become_25(clip: Path, tmp_path: Path, rate: str, expected: int) -> None:
    other = tmp_path / "other.mp4"
    _ffmpeg("-f", "lavfi", "-i", f"testsrc=size=64x64:rate={rate}:duration=2", "-pix_fmt", "yuv420p", other)
    assert abs(len(read_video(other).frames) - 2 * expected) <= 1


def test_variable_rate_is_placed_by_time(tmp_path: Path) -> None:
    """Frames that last 0.04, 0.2, 0.04, 0.4, ... seconds: each shown at its time."""
    source, varied = tmp_path / "source.mp4", tmp_path / "varied.mp4"
    levels = np.arange(20, 240, 20)
    write_video(source, [np.full((64, 64, 3), level, np.uint8) for level in levels], crf=4)
    _ffmpeg(
        "-i",
        source,
        "-vf",
        "setpts='N/25/TB + floor(N/2)*0.16/TB'",
        "-fps_mode",
        "vfr",
        "-video_track_timescale",
        "90000",
        varied,
    )
    frames = read_video(varied).frames
    seen = frames.mean((1, 2, 3))
    times = np.arange(len(levels)) / 25 + np.arange(len(levels)) // 2 * 0.16
    for index in range(len(frames)):
        shown = levels[np.searchsorted(times, index / 25 + 1e-6) - 1]
        assert abs(seen[index] - shown) < 6, index


def test_odd_sides_and_wide_pixels(tmp_path: Path) -> None:
    odd, wide = tmp_path / "odd.mkv", tmp_path / "wide.mp4"
    _ffmpeg(
        "-f", "lavfi", "-i", "testsrc=size=75x51:rate=25:duration=0.4", "-pix_fmt", "yuv444p", "-c:v", "libx264", odd
    )
    assert read_video(odd).frames.shape == (10, 51, 75, 3)
    frame = next(stream_video(odd))
    assert (frame.height, frame.width) == (52, 76)
    _ffmpeg("-f", "lavfi", "-i", "testsrc=size=72x64:rate=25:duration=0.4,setsar=4/3", "-pix_fmt", "yuv420p", wide)
    assert read_video(wide).frames.shape == (10, 64, 96, 3)
    frame = next(stream_video(wide))
    assert (frame.height, frame.width) == (64, 96)
    write_video(tmp_path / "written.mp4", _frames(3, 51, 75))
    assert read_video(tmp_path / "written.mp4").frames.shape == (3, 52, 76, 3)


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuvj420p", "yuv422p10le", "gray", "yuv444p"])
def test_pixel_formats_look_alike(clip: Path, tmp_path: Path, pix_fmt: str) -> None:
    path = tmp_path / "other.mkv"
    codec = "ffv1" if pix_fmt == "gray" else "libx264"
    _ffmpeg(
        "-i",
        clip,
        "-vf",
        f"scale=out_range={'pc' if pix_fmt == 'yuvj420p' else 'tv'}",
        "-pix_fmt",
        pix_fmt,
        "-c:v",
        codec,
        path,
    )
    rgb = read_video(path).frames[3].astype(int)
    planes = next(stream_video(path)).to_rgb()
    assert planes.shape == rgb.shape
    if pix_fmt != "gray":
        assert np.abs(rgb - read_video(clip).frames[3]).mean() < 8


def test_a_still_picture_of_empty_packets(tmp_path: Path) -> None:
    """Theora writes them for pictures like the one before, also at the end."""
    path = tmp_path / "still.ogg"
    levels = np.repeat([40, 200, 120], [20, 10, 70])
    write_video(tmp_path / "plain.mp4", [np.full((64, 96, 3), level, np.uint8) for level in levels], crf=4)
    _ffmpeg("-i", tmp_path / "plain.mp4", "-c:v", "libtheora", "-q:v", 10, "-g", 250, path)
    with av.open(str(path)) as container:
        empty = [packet.size == 0 for packet in container.demux(video=0) if packet.pts is not None]
    assert sum(empty) > 80
    assert empty[-1]
    frames = read_video(path).frames
    assert np.abs(frames.mean((1, 2, 3)) - levels).max() < 4
    assert len(list(stream_video(path))) == 100
    with pytest.raises(InputError, match="more than 3 s"):
        read_video(path, MediaConfig(max_seconds=3.0))


@pytest.mark.parametrize(("suffix", "codec"), [("mpg", "mpeg2video"), ("mts", "libx264"), ("mkv", "ffv1")])
def test_interlaced_video_is_not_combed(suffix: str, codec: str, tmp_path: Path) -> None:
    """A bar that moves 3 columns from field to field: its sides are straight in a whole picture."""
    fields = np.zeros((50, 64, 192, 3), np.uint8)
    for index, field in enumerate(fields):
        field[:, 3 * index + 10 : 3 * index + 30] = 255
    write_video(tmp_path / "fields.mp4", fields, fps=50, crf=1)
    path = tmp_path / f"interlaced.{suffix}"
    woven = ("-vf", "tinterlace=interleave_top", "-flags", "+ilme+ildct", "-c:v", codec, "-b:v", "4M")
    _ffmpeg("-i", tmp_path / "fields.mp4", *woven, path)
    frames = list(stream_video(path))
    whole = read_video(path).frames
    assert len(frames) == len(whole) == 25
    for index, (frame, rgb) in enumerate(zip(frames, whole, strict=True)):
        assert np.abs(np.diff(frame.y[8:-8].astype(int), axis=0)).mean() < 1, index
        assert np.abs(rgb.astype(int) - fields[2 * index]).mean() < 4, index


def test_pictures_are_deinterlaced_from_the_first_such_one_on(clip: Path, tmp_path: Path) -> None:
    """Where size and kind change too; whole pictures are passed on as they are."""
    woven, config = tmp_path / "woven.mpg", MediaConfig()
    source = ("-f", "lavfi", "-i", "testsrc=size=64x64:rate=50:duration=0.4")
    _ffmpeg(*source, "-vf", "tinterlace=interleave_top", "-flags", "+ilme+ildct", "-c:v", "mpeg2video", woven)
    with av.open(str(clip)) as plain, av.open(str(woven)) as other:
        whole = list(_decode_video(plain, "plain", config))
        combed = list(_decode_video(other, "woven", config))
    decoded = [*whole[:3], *combed, *whole[3:]]
    out = list(_deinterlaced(iter(decoded)))
    assert [item[:2] for item in out] == [item[:2] for item in decoded]
    assert not any(frame.interlaced_frame for _, _, frame in out)
    for (_, _, before), (_, _, after) in zip(whole, out[:3] + out[3 + len(combed) :], strict=True):
        assert np.array_equal(before.to_ndarray(), after.to_ndarray())


def test_a_picture_few_narrow_pixels_wide(tmp_path: Path) -> None:
    path = tmp_path / "narrow.mp4"
    _ffmpeg("-f", "lavfi", "-i", "testsrc=size=4x2:rate=25:duration=0.2,setsar=1/4", "-pix_fmt", "yuv420p", path)
    frame = next(stream_video(path))
    assert (frame.height, frame.width) == (2, 2)


def test_rows_from_the_bottom_up(tmp_path: Path) -> None:
    """Raw video that says so has them in its luma."""
    path, raw = tmp_path / "raw.mkv", tmp_path / "raw.yuv"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("rawvideo", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.extradata = b"BottomUp\0"
        frame = av.VideoFrame.from_ndarray(_frames(1)[0], format="rgb24").reformat(format="yuv420p")
        frame.pts, frame.time_base = 0, Fraction(1, 25)
        out.mux(stream.encode(frame))
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).planes[0].line_size < 0
    _ffmpeg("-i", path, "-f", "rawvideo", raw)
    planes = next(stream_video(path)).planes()
    assert b"".join(plane.tobytes() for plane in planes) == raw.read_bytes()


def test_colours_stay_tagged(tmp_path: Path) -> None:
    """HDR without its tags is shown as pale ordinary video. Turned and made square, so by every way of a frame."""
    hdr, turned, out = tmp_path / "hdr.mp4", tmp_path / "turned.mp4", tmp_path / "out.mp4"
    tags = "setparams=colorspace=bt2020nc:color_trc=arib-std-b67:color_primaries=bt2020"
    source = ("-f", "lavfi", "-i", "testsrc=size=72x64:rate=25:duration=0.2")
    _ffmpeg(*source, "-vf", f"setsar=4/3,format=yuv420p10le,{tags}", hdr)
    _ffmpeg("-display_rotation", 90, "-i", hdr, "-c", "copy", turned)
    with tempfile.TemporaryFile() as file:
        spool = FrameSpool(stream_video(turned), 5, file)
        write_video(out, [spool[index] for index in range(5)])
    with av.open(str(out)) as container:
        frame = next(container.decode(video=0))
    assert (frame.colorspace, frame.color_trc, frame.color_primaries, frame.color_range) == (9, 18, 9, 1)


@pytest.mark.parametrize(
    "name", ["with space.mp4", 'it\'s "quoted".mp4', "видео-影片.mp4", "-leading.mp4", "100%d.mp4", "a:b.mp4"]
)
def test_odd_names(clip: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / name
    path.write_bytes(clip.read_bytes())
    assert len(read_video(path).frames) == 30
    monkeypatch.chdir(tmp_path)
    assert probe(name).width == 96
    write_video(tmp_path / f"out {name}", _frames(2))
    assert (tmp_path / f"out {name}").is_file()


def test_sound_starts_with_the_pictures(tmp_path: Path, clip: Path) -> None:
    late = tmp_path / "late.mkv"
    _ffmpeg(
        "-i", clip, "-itsoffset", "0.4", "-i", clip, "-map", "0:v", "-map", "1:a", "-c:v", "copy", "-c:a", "flac", late
    )
    audio = read_audio(late)
    assert np.abs(audio[: round(0.38 * 16_000)]).max() < 0.02
    assert np.abs(audio[round(0.45 * 16_000) : round(0.6 * 16_000)]).max() > 0.3


def test_sound_of_footage_cut_between_keyframes(tmp_path: Path) -> None:
    """Its first picture comes later than its first packet: a flash and a tone that are one must stay so."""
    whole, cut = tmp_path / "whole.ts", tmp_path / "cut.ts"
    frames = np.zeros((150, 64, 96, 3), np.uint8)
    frames[100:] = 255
    tone = _tone(6.0)
    tone[: 4 * 16_000] = 0
    write_video(tmp_path / "plain.mp4", frames, audio=tone)
    _ffmpeg("-i", tmp_path / "plain.mp4", "-c:v", "libx264", "-g", 50, "-sc_threshold", 0, "-c:a", "aac", whole)
    data = whole.read_bytes()
    cut.write_bytes(data[len(data) // 6 // 188 * 188 :])
    for path in (whole, cut):
        video = read_video(path)
        assert video.audio is not None
        assert np.array_equal(read_audio(path), video.audio)
        flash = int(np.argmax(video.frames.mean((1, 2, 3)) > 128)) / 25
        assert abs(np.argmax(np.abs(video.audio) > 0.2) / 16_000 - flash) < 0.04
    assert flash < 3.5, "it begins between keyframes"


def _with_gap(path: Path, first: float, second: float) -> Path:
    """Two seconds of pictures; half a second of a low tone, and one of a high tone at each of two moments."""
    with av.open(str(path), "w") as out:
        pictures = out.add_stream("mpeg4", rate=25)
        pictures.width, pictures.height, pictures.pix_fmt = 96, 64, "yuv420p"
        sound = out.add_stream("pcm_s16le", rate=16_000, layout="mono")
        for index, picture in enumerate(_frames(50)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            out.mux(pictures.encode(frame))
        out.mux(pictures.encode(None))
        for moment, pitch in ((0.0, 200.0), (first, 2000.0), (second, 2000.0)):
            packet = av.Packet((_tone(0.5, pitch) * 32767).astype("<i2").tobytes())
            packet.stream, packet.time_base = sound, Fraction(1, 1000)
            packet.pts = packet.dts = round(1000 * moment)
            out.mux(packet)
    return path


def test_gaps_in_a_videos_sound_are_silent(tmp_path: Path) -> None:
    path = _with_gap(tmp_path / "gap.mkv", 1.0, 1.53)  # 0.03 s are less than a frame
    audio = read_audio(path)
    expected = np.concatenate([_tone(0.5, 200), np.zeros(8_000), _tone(0.5, 2000), _tone(0.5, 2000)])
    assert np.allclose(audio, expected, atol=1e-3)
    speech = np.concatenate(list(stream_audio(path, with_pictures=False)))
    assert np.allclose(speech, np.delete(expected, slice(8_000, 16_000)), atol=1e-3), "speech to dub to has none"
    cut = tmp_path / "cut.mkv"  # pictures begin in the gap
    _ffmpeg("-i", path, "-itsoffset", "0.7", "-i", path, "-map", "1:v", "-map", "0:a", "-c", "copy", cut)
    assert np.allclose(read_audio(cut), expected[round(0.7 * 16_000) :], atol=1e-3)


def test_a_gap_of_hours_becomes_no_hours_of_silence(tmp_path: Path) -> None:
    path = _with_gap(tmp_path / "gap.mkv", 3600.0, 7200.0)
    config = MediaConfig(max_seconds=4.0)
    with av.open(str(path)) as container:
        chunks = list(_decode_audio(container, "gap", config, 0.0))
    assert sum(map(len, chunks)) == 16_000 * (4.0 + 2 * 0.5)


def test_stereo_sound_of_another_rate(tmp_path: Path) -> None:
    path = tmp_path / "stereo.flac"
    _ffmpeg("-f", "lavfi", "-i", "sine=frequency=440:sample_rate=44100:duration=1", "-ac", "2", path)
    audio = read_audio(path)
    assert abs(len(audio) - 16_000) < 20
    assert np.argmax(np.abs(np.fft.rfft(audio[:16_000]))) == 440


def test_sound_whose_rate_and_channels_change(tmp_path: Path) -> None:
    for name, rate, channels, pitch in (("a", 44100, 2, 440), ("b", 22050, 1, 880)):
        _ffmpeg(
            "-f",
            "lavfi",
            "-i",
            f"sine={pitch}:sample_rate={rate}:duration=1",
            "-ac",
            channels,
            tmp_path / f"{name}.mp3",
        )
    a, b, joined = tmp_path / "a.mp3", tmp_path / "b.mp3", tmp_path / "joined.mp3"
    joined.write_bytes(a.read_bytes() + b.read_bytes() + a.read_bytes())
    audio = read_audio(joined)
    assert abs(len(audio) - 3 * 16_000) < 0.2 * 16_000
    for second, pitch in enumerate((440, 880, 440)):
        part = audio[16_000 * second + 4_000 : 16_000 * second + 12_000]
        assert np.argmax(np.abs(np.fft.rfft(part))) * 2 == pitch


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_sound_that_is_no_number(value: float, tmp_path: Path) -> None:
    """One such sample would make all of a dub black."""
    samples = _tone(1.0)
    samples[8_000] = value
    samples.tofile(tmp_path / "raw")
    path = tmp_path / "odd.wav"
    _ffmpeg("-f", "f32le", "-ar", 16_000, "-i", tmp_path / "raw", "-c:a", "pcm_f32le", path)
    with pytest.raises(InputError, match=r"'odd\.wav' has sound with samples that are no numbers \(export it again"):
        read_audio(path)


def test_sound_of_an_unknown_kind(clip: Path, tmp_path: Path) -> None:
    """What needs the pictures alone can go on."""
    path = tmp_path / "odd.mkv"
    _ffmpeg("-i", clip, "-c:v", "copy", "-c:a", "flac", path)
    path.write_bytes(path.read_bytes().replace(b"A_FLAC", b"A_ZZZZ"))
    with pytest.raises(InputError, match="has no sound that can be decoded"):
        read_audio(path)
    video = read_video(path)
    assert video.audio is None
    assert len(video.frames) == 30


def _text(path: Path, clip: Path) -> None:
    path.write_text("this is no film\n" * 50)


def _empty(path: Path, clip: Path) -> None:
    path.write_bytes(b"")


def _cut(path: Path, clip: Path) -> None:
    late = path.with_name("late.mp4")  # its index stands at the end
    _ffmpeg("-i", clip, "-c", "copy", late)
    path.write_bytes(late.read_bytes()[:-200])


def _half(path: Path, clip: Path) -> None:
    data = clip.read_bytes()  # moov in front: the header promises more than the file holds
    path.write_bytes(data[: len(data) * 45 // 100])


def _folder(path: Path, clip: Path) -> None:
    path.mkdir()


def _missing(path: Path, clip: Path) -> None:
    pass


def _playlist(path: Path, clip: Path) -> None:
    path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{clip}\n#EXT-X-ENDLIST\n")


def _concat(path: Path, clip: Path) -> None:
    path.write_text(f"ffconcat version 1.0\nfile '{clip}'\n")


def _dash(path: Path, clip: Path) -> None:
    path.write_text(
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static">'
        f'<Period><AdaptationSet><Representation id="0"><BaseURL>{clip}</BaseURL></Representation></AdaptationSet>'
        "</Period></MPD>"
    )


def _sdp(path: Path, clip: Path) -> None:
    path.write_text("v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n")


def _sound_only(path: Path, clip: Path) -> None:
    _ffmpeg("-i", clip, "-vn", "-c:a", "copy", path)


@pytest.mark.parametrize(
    "spoil", [_text, _empty, _cut, _half, _folder, _missing, _playlist, _concat, _dash, _sdp, _sound_only]
)
@pytest.mark.parametrize("suffix", [".mp4", ".m3u8"])
def test_bad_files_get_one_line(spoil: Callable[[Path, Path], None], suffix: str, clip: Path, tmp_path: Path) -> None:
    path = tmp_path / f"bad{suffix}"
    spoil(path.with_suffix(".mp4"), clip)
    if suffix != ".mp4" and path.with_suffix(".mp4").exists():
        path.with_suffix(".mp4").rename(path)
    with pytest.raises(InputError) as caught:
        read_video(path)
    message = str(caught.value)
    assert "bad" in message
    assert "\n" not in message
    assert len(message) < 160


def test_no_sound(tmp_path: Path) -> None:
    write_video(tmp_path / "silent.mp4", _frames(5))
    assert read_video(tmp_path / "silent.mp4").audio is None
    with pytest.raises(InputError, match="no sound"):
        read_audio(tmp_path / "silent.mp4")


def test_limits_are_checked_before_decoding(tmp_path: Path) -> None:
    huge = tmp_path / "huge.mkv"
    _ffmpeg("-f", "lavfi", "-i", "color=size=7680x4320:rate=25:duration=0.04", "-c:v", "mjpeg", huge)
    with pytest.raises(InputError, match="7680x4320"):
        probe(huge)
    with pytest.raises(InputError, match="7680x4320"):
        read_video(huge)
    write_video(tmp_path / "long.mp4", _frames(60))
    with pytest.raises(InputError, match="lasts 2 s, more than 1 s"):
        read_video(tmp_path / "long.mp4", MediaConfig(max_seconds=1.0))
    with pytest.raises(InputError, match="more than 1 s"):
        read_audio(_wav(tmp_path / "long.wav", 3.0), MediaConfig(max_seconds=1.0))


def _wav(path: Path, seconds: float) -> Path:
    from model_code.media.sample import wav_bytes

    path.write_bytes(wav_bytes(_tone(seconds)))
    return path


def _blocks(path: Path, codec: str, rate: int, *blocks: bytes, header: bytes | None = None) -> Path:
    """A Matroska file of these blocks of sound, each of which claims to last a quarter of a second."""
    with av.open(str(path), "w", format="matroska") as out:
        stream = out.add_stream(codec, rate=rate, layout="mono")
        stream.codec_context.extradata = header
        for number, block in enumerate(blocks):
            packet = av.Packet(block)
            packet.stream, packet.time_base, packet.duration = stream, Fraction(1, 4), 1
            packet.pts = packet.dts = number
            out.mux(packet)
    return path


def _flat_flac(rate: int, samples: int) -> bytes:
    """A frame of so many zeros, in 14 bytes."""

    def remainder(data: bytes, polynomial: int, width: int) -> bytes:
        value = 0
        for byte in data:
            value ^= byte << (width - 8)
            for _ in range(8):
                value = value << 1 ^ (polynomial if value >> (width - 1) else 0)
        return value.to_bytes(width // 8, "big")

    frame = b"\xff\xf8\x7d\x08\x00" + (samples - 1).to_bytes(2, "big") + rate.to_bytes(2, "big")
    frame += remainder(frame, 0x107, 8) + bytes(3)
    return frame + remainder(frame, 0x18005, 16)


def test_few_bytes_become_no_hours_of_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample at 1 Hz is 16,000 at the chain's rate: what lasts too long is turned away before it is resampled."""
    slow = _blocks(tmp_path / "slow.mkv", "pcm_s16le", 1, bytes(8_000))
    long = _blocks(tmp_path / "long.mkv", "pcm_s16le", 4_000, bytes(24_000))
    honest = b"\x10\x00\xff\xff" + bytes(6) + (48_000 << 44 | 15 << 36).to_bytes(8, "big") + bytes(16)
    frames = (_flat_flac(48_000, 16), _flat_flac(1, 4_000))
    later = _blocks(tmp_path / "later.mkv", "flac", 48_000, *frames, header=honest)
    assert slow.stat().st_size < 10_000
    assert later.stat().st_size < 2_000
    with pytest.raises(InputError, match="sound of 1 Hz"):
        probe(slow)
    assert probe(later).has_audio
    real = av.AudioResampler

    class Resampler:
        def __init__(self, **options: object) -> None:
            self.real = real(**options)  # type: ignore[arg-type]

        def resample(self, frame: av.AudioFrame | None) -> list[av.AudioFrame]:
            assert frame is None or frame.samples <= frame.sample_rate
            return self.real.resample(frame)

    monkeypatch.setattr(av, "AudioResampler", Resampler)
    for path, told in ((slow, "sound of 1 Hz"), (later, "sound of 1 Hz"), (long, "more than 1 s of sound")):
        with pytest.raises(InputError, match=told):
            read_audio(path, MediaConfig(max_seconds=1.0))


@pytest.mark.parametrize("rate", [4_000, 5_512, 11_025, 22_255, 37_800, 96_000, 352_800])
def test_sound_of_unusual_rates(rate: int, tmp_path: Path) -> None:
    source = f"sine=frequency=440:sample_rate={rate}:duration=1"
    _ffmpeg("-f", "lavfi", "-i", source, tmp_path / "tone.wav")
    audio = read_audio(tmp_path / "tone.wav")
    assert abs(len(audio) - 16_000) < 20
    assert np.argmax(np.abs(np.fft.rfft(audio, 16_000))) == 440


def test_a_container_that_is_wrong_about_its_sounds_rate(tmp_path: Path) -> None:
    path = tmp_path / "wrong.mkv"
    _ffmpeg("-f", "lavfi", "-i", "sine=frequency=440:sample_rate=48000:duration=1", "-c:a", "aac", path)
    right = struct.pack(">d", 48_000.0)
    assert path.read_bytes().count(right) == 1
    path.write_bytes(path.read_bytes().replace(right, struct.pack(">d", 1.0)))
    assert abs(len(read_audio(path)) - 16_000) < 400


def test_frames_can_be_read_again(clip: Path) -> None:
    for keep in (0, 1 << 20):
        frames = VideoFrames(clip, keep_bytes=keep)
        first, second = list(frames), list(frames)
        assert len(first) == len(second) == 30
        assert all(np.array_equal(a.y, b.y) for a, b in zip(first, second, strict=True))


def test_spool_gives_frames_back(clip: Path) -> None:
    frames = list(stream_video(clip))
    with tempfile.TemporaryFile() as file:
        spool = FrameSpool(iter(frames), 30, file)
        for index in (3, 29, 0, 13):
            for plane, kept in zip(frames[index].planes(), spool[index].planes(), strict=True):
                assert np.array_equal(plane, kept)
        with pytest.raises(IndexError):
            spool[30]


def test_spool_takes_nothing_unless_all_fits(clip: Path) -> None:
    with tempfile.TemporaryFile() as file:
        with pytest.raises(InputError, match=r"its 1000000000000 frames of 0\.0 MB do not fit on the output's disk"):
            FrameSpool(stream_video(clip), 10**12, file)[0]
        assert file.tell() == 0


def test_sound_in_chunks_is_the_sound(tmp_path: Path) -> None:
    samples = read_audio(_wav(tmp_path / "tone.wav", 1.3))
    chunks = list(stream_audio(tmp_path / "tone.wav"))
    assert len(chunks) > 1
    assert np.array_equal(np.concatenate(chunks), samples)
    with spooled_sound(iter(chunks)) as sound:
        assert len(sound) == len(samples)
        for span in (slice(0, 10), slice(5000, 20000), slice(20000, 99999), slice(None)):
            assert np.array_equal(sound[span], samples[span])
        part = Excerpt(sound, 300, 30000)
        assert len(part) == len(samples) - 300
        assert np.array_equal(part[100:200], samples[400:500])
        assert len(Excerpt(sound, 30000, 40000)) == 0
