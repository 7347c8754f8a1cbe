"""Reading and writing video and sound files at the chain's rates (25 frames, 16,000 samples a second).

Reading streams: a frame is decoded when it is asked for. Frames of any rate are brought to the asked rate by their
timestamps, deinterlaced, turned upright, given square pixels and even sides. Writing is deterministic: same frames,
same bytes.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from av.container import InputContainer, OutputContainer
from av.filter import Graph
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from model_code.config import MediaConfig
from model_code.errors import InputError
from model_code.files import unfinished
from model_code.media.probe import Source, check_limits, check_sample_rate, max_frames, open_media, source_name
from model_code.media.yuv import YuvFrame, from_av

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
Decoded = tuple[float, float, av.VideoFrame]
"""Time since the first and length, both in seconds, and picture."""
BT709 = LIMITED = 1
"""FFmpeg's numbers of the colour matrix and range that pictures are written in."""
REPEATABLE = {"x264-params": "mbtree=0"}
"""x264's macroblock tree gave other bytes in 1 of 400 runs of the same frames."""


@dataclass(frozen=True)
class Video:
    """A whole video in memory.

    Attributes:
        frames: (T, H, W, 3) uint8 red, green, blue.
        fps: Frames per second.
        audio: (N,) float32 mono in [-1, 1], or None without sound.
        sample_rate: Samples per second of `audio`.
    """

    frames: U8
    fps: int
    audio: F32 | None
    sample_rate: int


def stream_video(source: Source, config: MediaConfig | None = None) -> Iterator[YuvFrame]:
    """Decodes a file's first video stream to upright 4:2:0 frames at `config.fps`, one at a time.

    Raises:
        InputError: If the file cannot be read, holds no pictures, is cut off, or exceeds the limits.
    """
    config = config or MediaConfig()
    shape: tuple[int, int] | None = None
    reformatter = VideoReformatter()
    for frame, aspect in _frames_at_rate(source, config):
        out = _upright(from_av(frame, reformatter), frame.rotation, aspect)
        if shape is None:
            shape = out.y.shape
        elif out.y.shape != shape:
            out = _resize(out, shape[1], shape[0])
        yield out


class VideoFrames:
    """The frames of a file, as often as they are asked for: kept where they are small, decoded again where not.

    Args:
        source: The file.
        config: Rate and limits.
        keep_bytes: Planes up to this size stay in memory.
    """

    def __init__(self, source: Source, config: MediaConfig | None = None, keep_bytes: int = 256 << 20) -> None:
        self.source = source
        self.config = config or MediaConfig()
        self._keep_bytes = keep_bytes
        self._kept: list[YuvFrame] | None = None

    def __iter__(self) -> Iterator[YuvFrame]:
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[YuvFrame] | None = []
        used = 0
        for frame in stream_video(self.source, self.config):
            used += sum(plane.nbytes for plane in frame.planes())
            if used > self._keep_bytes:
                kept = None
            if kept is not None:
                kept.append(frame)
            yield frame
        self._kept = kept


def read_video(source: Source, config: MediaConfig | None = None) -> Video:
    """Decodes a short video whole: upright RGB frames at `config.fps` and, where it has one, its sound.

    Raises:
        InputError: As `stream_video`.
    """
    config = config or MediaConfig()
    frames: list[U8] = []
    reformatter = VideoReformatter()
    for frame, aspect in _frames_at_rate(source, config):
        rgb = np.rot90(reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray(), frame.rotation // 90)
        height, width = frames[0].shape[:2] if frames else rgb.shape[:2]
        if not frames and aspect != 1:
            width = max(1, round(width * float(aspect if frame.rotation % 180 == 0 else 1 / aspect)))
        if rgb.shape[:2] != (height, width):
            rgb = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA).astype(np.uint8)
        frames.append(np.ascontiguousarray(rgb))
    audio = None
    with open_media(source) as container:
        name = source_name(source)
        if check_limits(container, name, config).has_audio:
            audio = _joined(_decode_audio(container, name, config, _start(source, config)))
    return Video(np.stack(frames), config.fps, audio, config.sample_rate)


def read_audio(source: Source, config: MediaConfig | None = None) -> F32:
    """Decodes a file's first sound stream to mono float32 at `config.sample_rate`.

    Beside pictures, sample 0 is the moment of the first picture.

    Raises:
        InputError: If the file cannot be read, has no sound, or exceeds the limits.
    """
    return _joined(stream_audio(source, config))


def stream_audio(source: Source, config: MediaConfig | None = None, *, with_pictures: bool = True) -> Iterator[F32]:
    """`read_audio` chunk by chunk.

    Args:
        source: The file.
        config: Rate and limits.
        with_pictures: Sample 0 is the moment of the first picture where there are any; False: of the first sound.

    Raises:
        InputError: As `read_audio`; if there are 0 s of sound, at the end.
    """
    config = config or MediaConfig()
    name = source_name(source)
    empty = True
    with open_media(source) as container:
        info = check_limits(container, name, config)
        if not info.has_audio:
            raise InputError(f"{name} has no sound that can be decoded", "give a file with sound, such as wav")
        start = _start(source, config) if info.has_video and with_pictures else None
        for chunk in _decode_audio(container, name, config, start):
            empty = empty and not len(chunk)
            yield chunk
    if empty:
        raise InputError(f"{name} holds 0 s of sound", "give a file with sound in it")


def write_video(
    target: str | Path | io.BytesIO,
    frames: Iterable[U8] | Iterable[YuvFrame],
    fps: int = 25,
    audio: F32 | None = None,
    *,
    sample_rate: int = 16_000,
    crf: int = 18,
    pix_fmt: str = "yuv420p",
    preset: str = "veryfast",
    metadata: Mapping[str, str] | None = None,
) -> int:
    """Encodes frames (H.264) and sound (AAC) to mp4; one thread and no dates, so the same input gives the same bytes.

    Args:
        target: A path, written beside and renamed when complete, or a buffer.
        frames: RGB (H, W, 3) uint8 arrays or `YuvFrame`s, all of one size; odd sides gain a repeated row or column
            where `pix_fmt` has half-size chroma.
        fps: Frames per second.
        audio: (N,) float32 mono in [-1, 1].
        sample_rate: Of `audio`.
        crf: x264's constant rate factor, 0 (lossless) to 51.
        pix_fmt: yuv420p for players, yuv444p for crops that are decoded again.
        preset: x264's preset.
        metadata: Container tags such as `comment`.

    Returns:
        The number of frames written.

    Raises:
        ValueError: If there are no frames.
    """
    if isinstance(target, io.BytesIO):
        with av.open(target, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
            return _encode(container, frames, fps, audio, sample_rate, crf, pix_fmt, preset, metadata)
    options = {"fflags": "+bitexact", "movflags": "+faststart"}
    with (
        unfinished(Path(target)) as partial,
        av.open(str(partial.resolve()), "w", format="mp4", options=options) as container,
    ):
        return _encode(container, frames, fps, audio, sample_rate, crf, pix_fmt, preset, metadata)


def to_mp4_bytes(frames: Iterable[U8], fps: int = 25, audio: F32 | None = None, **options: Any) -> bytes:
    """`write_video` into memory."""
    buffer = io.BytesIO()
    write_video(buffer, frames, fps, audio, **options)
    return buffer.getvalue()


def from_mp4_bytes(data: bytes) -> U8:
    """(T, H, W, 3) frames of a video that `to_mp4_bytes` wrote."""
    return read_video(data).frames


# --- reading ---------------------------------------------------------------------------------------------------------


def _frames_at_rate(source: Source, config: MediaConfig) -> Iterator[tuple[av.VideoFrame, Fraction]]:
    """Frames and the shape of their pixels.

    Frame n is the one whose time is nearest to n / fps; gaps repeat the frame before.
    """
    name = source_name(source)
    with open_media(source) as container:
        info = check_limits(container, name, config)
        if not info.has_video:
            raise InputError(f"{name} has no pictures that can be decoded", "give a video file, such as mp4")
        aspect = _pixel_aspect(container)
        held: av.VideoFrame | None = None
        held_at = 0.0
        emitted = 0
        end = 0.0
        for seconds, length, frame in _deinterlaced(_decode_video(container, name, config)):
            end = max(end, seconds + length)
            at = seconds * config.fps
            if held is None:
                held, held_at = frame, 0.0
            elif _slot(at) == _slot(held_at):
                if abs(at - _slot(at)) < abs(held_at - _slot(held_at)):
                    held, held_at = frame, at
            elif at > held_at:
                while emitted < _slot(at):
                    yield held, aspect
                    emitted += 1
                held, held_at = frame, at
        if held is None:
            raise InputError(f"{name} holds no picture that can be decoded", "it may be damaged: export it again")
        _check_complete(container, name, info.duration, end)
        for _ in range(emitted, max(emitted + 1, _slot(end * config.fps))):
            yield held, aspect


def _slot(at: float) -> int:
    return int(np.floor(at + 0.5 - 1e-6))


def _decode_video(container: InputContainer, name: str, config: MediaConfig) -> Iterator[Decoded]:
    """The frames of the first video stream, within the limits."""
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1
    start: float | None = None
    usual = float(1 / (stream.average_rate or stream.guessed_rate or config.fps))
    damaged = count = 0
    frame: av.VideoFrame | None = None
    seconds = stands = 0.0  # time of the last picture, and until when empty packets have it stand
    for packet in container.demux(stream):
        if not packet.size and packet.pts is not None:  # decoders would take it for the end
            stands = float(packet.pts * packet.time_base)
            continue
        try:
            decoded = packet.decode()
        except av.FFmpegError:
            damaged += 1
            continue
        for frame in decoded:
            if max(frame.width, frame.height) > config.max_side:
                raise InputError(
                    f"{name} is {frame.width}x{frame.height}, sides over {config.max_side} px",
                    f"scale it to {config.max_side} px or less",
                )
            count += 1
            seconds = float(frame.time) if frame.time is not None else (start or 0.0) + (count - 1) * usual
            start = seconds if start is None else start
            _check_length(seconds - start, count, name, config)
            length = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else usual
            yield seconds - start, min(length, 1.0), frame
    if damaged > 2 + count // 10:
        raise InputError(f"{name} is damaged: {damaged} packets cannot be decoded", "export it again")
    if frame is not None and start is not None and stands > seconds:
        _check_length(stands - start, count, name, config)
        yield stands - start, min(usual, 1.0), frame


def _check_length(seconds: float, count: int, name: str, config: MediaConfig) -> None:
    if seconds > config.max_seconds or count > max_frames(config):
        raise InputError(f"{name} lasts more than {config.max_seconds:.0f} s", "cut it into shorter files")


def _deinterlaced(decoded: Iterator[Decoded]) -> Iterator[Decoded]:
    """Makes pictures of two fields whole, one for one, from the first of them on; others stay as they are."""
    met = False

    def setup(item: Decoded) -> tuple[str, int, int] | None:
        nonlocal met
        frame = item[2]
        met = met or frame.interlaced_frame
        return (frame.format.name, frame.width, frame.height) if met else None

    for interlaced, items in groupby(decoded, setup):
        if interlaced is None:
            yield from items
            continue
        graph: Graph | None = None  # takes one setup alone
        times: deque[tuple[float, float]] = deque()
        for seconds, length, frame in items:
            graph = graph or _deinterlacer(frame)
            times.append((seconds, length))
            for whole in _filtered(graph, frame):
                yield *times.popleft(), whole
        if graph is not None:
            for whole in _filtered(graph, None):
                yield *times.popleft(), whole


def _deinterlacer(frame: av.VideoFrame) -> Graph:
    graph = Graph()
    graph.threads = 1
    graph.link_nodes(
        graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1, 1000)
        ),
        graph.add("bwdif", mode="send_frame", deint="interlaced"),
        graph.add("buffersink"),
    ).configure()
    return graph


def _filtered(graph: Graph, frame: av.VideoFrame | None) -> Iterator[av.VideoFrame]:
    """What a filter gives for one more frame (None: the last has come)."""
    graph.push(frame)
    while True:
        try:
            whole = graph.vpull()
        except (av.BlockingIOError, av.EOFError):
            return
        yield whole


def _check_complete(container: InputContainer, name: str, duration: float | None, end: float) -> None:
    stream = container.streams.video[0]
    if stream.duration and stream.time_base:
        duration = float(stream.duration * stream.time_base)
    if duration is not None and end < 0.8 * duration - 0.5:
        raise InputError(
            f"{name} is cut off: {end:.1f} s of its {duration:.1f} s can be decoded", "copy or export it again"
        )


def _start(source: Source, config: MediaConfig) -> float | None:
    """The moment of the first picture that can be decoded, in seconds of the file's clock (None: it does not say).

    Footage cut between keyframes begins with packets of pictures that cannot.
    """
    with open_media(source) as container:  # of its own: decoding reads past the sound
        _, _, frame = next(_decode_video(container, source_name(source), config), (0.0, 0.0, None))
        stream = container.streams.video[0]
        moment = stream.start_time if frame is None or frame.pts is None else frame.pts
        return float(moment * stream.time_base) if moment is not None and stream.time_base else None


def _decode_audio(container: InputContainer, name: str, config: MediaConfig, start: float | None) -> Iterator[F32]:
    """The sound as mono float32 in chunks, sample 0 at `start` seconds of the file's clock (None: its own first).

    Beside pictures, gaps of more than a frame become silence; else they are closed up.
    """
    stream = container.streams.audio[0]
    stream.codec_context.thread_count = 1
    rate, longest = config.sample_rate, round(config.max_seconds * config.sample_rate)
    at = 0  # sample at which the next chunk begins; what lies before 0 is left out
    for index, (moment, chunk) in enumerate(_resampled(container, stream, name, config)):
        if not np.isfinite(chunk).all():
            raise InputError(f"{name} has sound with samples that are no numbers", "export it again with 16-bit sound")
        if start is not None and (index == 0 or moment is not None):
            due = min(round(((moment or 0.0) - start) * rate), longest)  # clocks may lie: no hours of silence
            if index == 0 or due > at + rate / config.fps:
                yield np.zeros(max(0, due - max(at, 0)), np.float32)
                at = due
        yield np.clip(chunk[max(0, -at) :], -1, 1)
        at += len(chunk)


def _resampled(
    container: InputContainer, stream: av.AudioStream, name: str, config: MediaConfig
) -> Iterator[tuple[float | None, F32]]:
    """Chunks of a sound stream at the wanted rate, each with the time of the frame that it came with."""
    for _, frames in groupby(_decoded_sound(container, stream, name, config), _setup):
        resampler = av.AudioResampler(format="flt", layout="mono", rate=config.sample_rate)  # takes one setup alone
        for frame in frames:
            for part in resampler.resample(frame):
                yield frame.time, part.to_ndarray().reshape(-1).astype(np.float32)
        for part in resampler.resample(None):
            yield frame.time, part.to_ndarray().reshape(-1).astype(np.float32)


def _decoded_sound(
    container: InputContainer, stream: av.AudioStream, name: str, config: MediaConfig
) -> Iterator[av.AudioFrame]:
    """Frames within the limits: headers may lie, and a frame that stands for hours may be small until resampled."""
    length = 0.0
    for packet in container.demux(stream):
        try:
            decoded = packet.decode()
        except av.FFmpegError:
            continue
        for frame in decoded:
            check_sample_rate(frame.sample_rate, name)
            length += frame.samples * config.sample_rate / frame.sample_rate
            if round(length) > config.max_seconds * config.sample_rate:
                raise InputError(
                    f"{name} has more than {config.max_seconds:.0f} s of sound", "cut it into shorter files"
                )
            yield frame


def _setup(frame: av.AudioFrame) -> tuple[str, str, int]:
    return frame.format.name, frame.layout.name, frame.sample_rate


def _joined(chunks: Iterable[F32]) -> F32:
    return np.concatenate([np.zeros(0, np.float32), *chunks])


def _pixel_aspect(container: InputContainer) -> Fraction:
    """Width of a coded pixel over its height (1 where the file does not say)."""
    aspect = container.streams.video[0].sample_aspect_ratio
    return Fraction(aspect) if aspect and Fraction(1, 4) <= Fraction(aspect) <= 4 else Fraction(1)


def _upright(frame: YuvFrame, rotation: int, aspect: Fraction) -> YuvFrame:
    """Turns a frame counter-clockwise by its rotation (90, 180, ... degrees), squares its pixels, evens its sides."""
    turns = rotation // 90
    planes = [np.ascontiguousarray(np.rot90(plane, turns)) for plane in frame.planes()]
    if turns % 2:
        aspect = 1 / aspect
    height, width = planes[0].shape
    even = (height + height % 2, width + width % 2)
    sides = [even, (even[0] // 2, even[1] // 2), (even[0] // 2, even[1] // 2)]
    padded = [
        np.pad(plane, ((0, h - plane.shape[0]), (0, w - plane.shape[1])), mode="edge")
        if plane.shape != (h, w)
        else plane
        for plane, (h, w) in zip(planes, sides, strict=True)
    ]
    out = frame.with_planes(padded)
    square = max(2, round(even[1] * float(aspect) / 2) * 2)
    return out if square == even[1] else _resize(out, square, even[0])


def _resize(frame: YuvFrame, width: int, height: int) -> YuvFrame:
    def scale(plane: U8, w: int, h: int) -> U8:
        method = cv2.INTER_AREA if w < plane.shape[1] else cv2.INTER_LINEAR
        return cv2.resize(plane, (w, h), interpolation=method).astype(np.uint8, copy=False)

    u, v = (scale(plane, width // 2, height // 2) for plane in (frame.u, frame.v))
    return frame.with_planes((scale(frame.y, width, height), u, v))


# --- writing ---------------------------------------------------------------------------------------------------------


def _encode(
    container: OutputContainer,
    frames: Iterable[U8] | Iterable[YuvFrame],
    fps: int,
    audio: F32 | None,
    sample_rate: int,
    crf: int,
    pix_fmt: str,
    preset: str,
    metadata: Mapping[str, str] | None,
) -> int:
    container.metadata.update(metadata or {})
    stream: Any = None
    sound: Any = None
    count = 0
    reformatter = VideoReformatter()
    for item in frames:
        frame = _to_av(item, pix_fmt, reformatter)
        if stream is None:
            stream = container.add_stream(
                "libx264", rate=fps, options={"crf": str(crf), "preset": preset, **REPEATABLE}
            )
            stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, pix_fmt
            context = stream.codec_context
            context.thread_count = 1
            context.flags |= av.codec.context.Flags.bitexact
            context.colorspace, context.color_range = int(frame.colorspace), int(frame.color_range)
            context.color_trc, context.color_primaries = int(frame.color_trc), int(frame.color_primaries)
            context.time_base = Fraction(1, fps)
            if audio is not None:
                sound = container.add_stream("aac", rate=sample_rate, layout="mono")
                sound.bit_rate = 96_000
                sound.codec_context.flags |= av.codec.context.Flags.bitexact
        frame.pts, frame.time_base = count, Fraction(1, fps)
        for packet in stream.encode(frame):
            container.mux(packet)
        count += 1
    if stream is None:
        raise ValueError("write_video needs at least one frame")
    for packet in stream.encode(None):
        container.mux(packet)
    if sound is not None and audio is not None:
        _encode_audio(container, sound, audio, sample_rate)
    return count


def _encode_audio(container: OutputContainer, stream: Any, audio: F32, sample_rate: int) -> None:
    for start in range(0, len(audio), 1024):
        chunk = np.ascontiguousarray(audio[start : start + 1024], np.float32)[None]
        frame = av.AudioFrame.from_ndarray(chunk, format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = sample_rate, start, Fraction(1, sample_rate)
        for packet in stream.encode(frame):
            container.mux(packet)
    for packet in stream.encode(None):
        container.mux(packet)


def _to_av(item: U8 | YuvFrame, pix_fmt: str, reformatter: VideoReformatter) -> av.VideoFrame:
    if isinstance(item, YuvFrame):
        return item.to_av()
    rgb = np.ascontiguousarray(item)
    if pix_fmt == "yuv420p" and (rgb.shape[0] % 2 or rgb.shape[1] % 2):
        rgb = np.pad(rgb, ((0, rgb.shape[0] % 2), (0, rgb.shape[1] % 2), (0, 0)), mode="edge")
    frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
    frame = reformatter.reformat(frame, format=pix_fmt, dst_colorspace=BT709, dst_color_range=LIMITED, threads=1)
    frame.colorspace, frame.color_range = BT709, LIMITED
    return frame
