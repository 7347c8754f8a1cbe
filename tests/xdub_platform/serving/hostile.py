"""Media that nobody should be able to harm anything with, made small and quickly."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import OutputContainer

from model_code.media.sample import wav_bytes
from tests.xdub_platform.serving import tiny

SECRET = "what another file holds"


def make_all(folder: Path) -> dict[str, Path]:
    """One file of every kind; `face` and `speech` are good."""
    made = {
        "face": tiny.write_face(folder / "face.mp4"),
        "speech": tiny.write_speech(folder / "speech.wav"),
        "text": _text(folder / "text.mp4", "no film"),
        "empty": _text(folder / "empty.mp4", ""),
        "playlist": _text(folder / "playlist.mp4", f"#EXTM3U\n#EXTINF:1,\n{folder}/face.mp4\n#EXT-X-ENDLIST\n"),
        "playlist_url": _text(folder / "url.m3u8", "#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n"),
        "concat": _text(folder / "concat.mp4", f"ffconcat version 1.0\nfile '{folder}/face.mp4'\n"),
        "nobody": _video(folder / "nobody.mp4", 30, (64, 64)),
        "one_frame": _one_frame(folder),
        "no_frames": _video(folder / "no_frames.mkv", 0, (64, 64)),
        "eight_k": _video(folder / "eight_k.mp4", 1, (7680, 4320)),
        "three_hours": _video(folder / "three_hours.mp4", 10_800, (16, 16), rate=1),
        "huge_frame": _huge(folder / "huge.mov", 16_000),
        "silence_0s": folder / "zero.wav",
        "long_sound": _long_sound(folder / "long.flac"),
        "sound_in_mp4": _sound_in_mp4(folder / "sound.mp4"),
    }
    made["silence_0s"].write_bytes(wav_bytes(np.zeros(0, np.float32)))
    made["grows"] = _grows(folder)
    made["truncated"] = _cut(_copied(made["face"], folder / "index_last.mp4"), folder / "truncated.mp4", 0.6)
    made["truncated_late"] = _cut(made["face"], folder / "truncated_late.mp4", 0.6)  # its index comes first
    made["unknown_pictures"] = _changed(made["face"], folder / "unknown_pictures.mp4", b"avc1", b"zzz1")
    made["unknown_sound"] = _changed(_opus(folder / "opus.mkv"), folder / "unknown_sound.mkv", b"A_OPUS", b"A_ZZZZ")
    made["bad_fragment"] = _bad_fragment(made["nobody"], folder)
    made["late_stream"] = _late_stream(folder)
    return made


def _text(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


def _cut(source: Path, path: Path, share: float) -> Path:
    content = source.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def _changed(source: Path, path: Path, old: bytes, new: bytes) -> Path:
    content = source.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))
    return path


def _video(path: Path, frames: int, size: tuple[int, int], rate: int = 25) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"preset": "ultrafast", "crf": "40"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = Fraction(1, rate)
        container.start_encoding()
        plain = av.VideoFrame(*size, "yuv420p")
        for plane in plain.planes:
            plane.update(bytes([128]) * plane.buffer_size)
        for index in range(frames):
            plain.pts, plain.time_base = index, Fraction(1, rate)
            container.mux(stream.encode(plain))
        container.mux(stream.encode(None))
    return path


def _one_frame(folder: Path) -> Path:
    return tiny.write_face(folder / "one.mp4", frames=1)


def _huge(path: Path, side: int) -> Path:
    """A few kB that decode to a black square of `side` pixels: one bit each as PNG, a byte or more when used."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=25)
        stream.width, stream.height, stream.pix_fmt = side, side, "monob"
        frame = av.VideoFrame(side, side, "monob")
        frame.planes[0].update(bytes(frame.planes[0].buffer_size))
        frame.pts, frame.time_base = 0, Fraction(1, 25)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def _grows(folder: Path) -> Path:
    """A header that says 64x64, and 5120x64 pictures from the fourth on."""
    small = _video(folder / "small.ts", 3, (64, 64)).read_bytes()
    wide = _video(folder / "wide.ts", 5, (5120, 64)).read_bytes()
    path = folder / "grows.ts"
    path.write_bytes(small + wide)
    return path


def _long_sound(path: Path) -> Path:
    rate, seconds = 8000, 10_800
    with av.open(str(path), "w") as container:
        stream = container.add_stream("flac", rate=rate, layout="mono")
        silence = np.zeros((1, rate * 60), np.int16)
        for minute in range(seconds // 60):
            frame = av.AudioFrame.from_ndarray(silence, format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = rate, minute * rate * 60, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def _sound_in_mp4(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        _add_second(container, container.add_stream("aac", rate=16_000, layout="mono"))
    return path


def _opus(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        _add_second(container, container.add_stream("libopus", rate=16_000, layout="mono"))
    return path


def _add_second(container: OutputContainer, stream: av.AudioStream) -> None:
    """One second of silence."""
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.float32), format="fltp", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = 16_000, 0, Fraction(1, 16_000)
    container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def _bad_fragment(source: Path, folder: Path) -> Path:
    """An mp4 in fragments; the pictures of the last lie before the file's beginning."""
    fragments = _copied(source, folder / "fragments.mp4", movflags="empty_moov", frag_duration="200000")
    content = bytearray(fragments.read_bytes())
    offset = content.rfind(b"tfhd") + 12
    content[offset : offset + 4] = b"\xff\xff\xff\xff"
    path = folder / "bad_fragment.mp4"
    path.write_bytes(content)
    return path


def _late_stream(folder: Path) -> Path:
    """Pictures for more bytes (5 MB) than are read before the streams are known, then a sound, then none again."""
    before, sound = _noise(folder / "noise.ts", 40, sound=False), _noise(folder / "sound.ts", 2, sound=True)
    path = folder / "late_stream.ts"
    path.write_bytes(before + sound + before[-188 * 6000 :])
    return path


def _noise(path: Path, frames: int, sound: bool) -> bytes:
    """About 200 kB a frame."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        pictures = container.add_stream("mpeg2video", rate=25)
        pictures.width, pictures.height, pictures.pix_fmt, pictures.bit_rate = 640, 360, "yuv420p", 50_000_000
        stream = container.add_stream("aac", rate=16_000, layout="mono") if sound else None
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(rng.integers(0, 256, (540, 640), np.uint8), format="yuv420p")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(pictures.encode(frame))
        container.mux(pictures.encode(None))
        if stream is not None:
            _add_second(container, stream)
    return path.read_bytes()


def _copied(source: Path, path: Path, **options: str) -> Path:
    with av.open(str(source)) as old, av.open(str(path), "w", options=options) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(old.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)
    return path
