"""Opens media files that nobody vouches for: local files only, known containers only, within limits."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
from av.container import InputContainer

from model_code.config import MediaConfig
from model_code.errors import InputError

#: Containers that hold their media themselves. Playlists (hls, concat, dash), image patterns and devices,
#: which can point at other files or addresses, are not among them.
DEMUXERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,mxf,wav,w64,flac,mp3,aac,aiff,caf,amr,ac3"
OPEN_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": DEMUXERS}

#: Lowest and highest rate of sound in Hz. Samples that stand for more time than those of any recording would make
#: hours of sound out of a few bytes.
SAMPLE_RATES = (4_000, 384_000)

Source = str | Path | bytes


@dataclass(frozen=True)
class MediaInfo:
    """What a file's header says, checked against the limits but not decoded.

    Attributes:
        name: The file's name, for messages.
        duration: Seconds, or None where the header does not say.
        width: Coded width in pixels, before rotation (0 without video).
        height: Coded height in pixels, before rotation (0 without video).
        fps: Average frames per second (0 without video).
        has_video: Whether the first video stream is of a kind that can be decoded.
        has_audio: Whether the first sound stream is.
    """

    name: str
    duration: float | None
    width: int
    height: int
    fps: float
    has_video: bool
    has_audio: bool


def source_name(source: Source) -> str:
    """How messages call `source`."""
    return "a member of a shard" if isinstance(source, bytes) else f"'{Path(source).name}'"


@contextmanager
def open_media(source: Source) -> Iterator[InputContainer]:
    """Opens a media file, or the bytes of one, for reading.

    Raises:
        InputError: If the file is missing, empty, no regular file, or not a media container of `DEMUXERS`; if reading
            on fails where nothing makes up for it.
    """
    name = source_name(source)
    target: io.BytesIO | str
    if isinstance(source, bytes):
        size, target = len(source), io.BytesIO(source)
    else:
        path = Path(source)
        if not path.exists():
            raise InputError(f"{name} does not exist in '{path.parent}'", "check the path")
        if not path.is_file():
            raise InputError(f"{name} is not a file", "give a video or sound file")
        size, target = path.stat().st_size, str(path.resolve())
    if size == 0:
        raise InputError(f"{name} is empty (0 bytes)", "export or copy it again")
    try:
        container = av.open(target, "r", options=dict(OPEN_OPTIONS), metadata_errors="replace")
    except PermissionError:
        raise InputError(f"{name} may not be read", "check its permissions") from None
    except (av.FFmpegError, ValueError, OSError):
        raise InputError(
            f"{name} is not a video or sound file that can be read",
            "it may be cut off or of another kind: export it as mp4",
        ) from None
    with container:
        try:
            yield container
        except InputError:
            raise
        except (av.FFmpegError, ValueError, IndexError) as error:  # PyAV: a stream that appears later is an IndexError
            raise InputError(
                f"{name} cannot be read to its end", "it may be damaged, or of an odd kind: export it again as mp4"
            ) from error


def _duration(container: InputContainer) -> float | None:
    lengths = [float(s.duration * s.time_base) for s in container.streams if s.duration and s.time_base]
    if container.duration:
        lengths.append(container.duration / av.time_base)
    return max(lengths) if lengths else None


def check_limits(container: InputContainer, name: str, config: MediaConfig) -> MediaInfo:
    """Reads the header of an open file and holds it against the limits.

    Raises:
        InputError: If a side, the duration, the number of frames or the rate of the sound exceeds the limits.
    """
    duration = _duration(container)
    if duration is not None and duration > config.max_seconds:
        raise InputError(
            f"{name} lasts {duration:.0f} s, more than {config.max_seconds:.0f} s", "cut it into shorter files"
        )
    width = height = 0
    fps = 0.0
    # A stream of an unknown kind has no codec.
    has_video, has_audio = (
        bool(streams) and streams[0].codec_context is not None
        for streams in (container.streams.video, container.streams.audio)
    )
    if has_video:
        stream = container.streams.video[0]
        width, height = stream.codec_context.width, stream.codec_context.height
        fps = float(stream.average_rate or stream.guessed_rate or 0)
        if max(width, height) > config.max_side:
            raise InputError(
                f"{name} is {width}x{height}, sides over {config.max_side} px",
                f"scale it to {config.max_side} px or less",
            )
        if stream.frames > max_frames(config):
            raise InputError(
                f"{name} has {stream.frames} frames, more than {max_frames(config)}", "lower its frame rate"
            )
    if has_audio and (rate := container.streams.audio[0].codec_context.sample_rate):
        check_sample_rate(rate, name)
    return MediaInfo(name, duration, width, height, fps, has_video, has_audio)


def check_sample_rate(rate: int, name: str) -> None:
    """Raises `InputError` for sound of a rate outside `SAMPLE_RATES`."""
    low, high = SAMPLE_RATES
    if not low <= rate <= high:
        raise InputError(f"{name} has sound of {rate} Hz, not of {low} to {high} Hz", "export its sound at 48000 Hz")


def max_frames(config: MediaConfig) -> int:
    """Most frames decoded of one file: the longest footage at 240 frames per second."""
    return math.ceil(config.max_seconds * 240)


def probe(source: Source, config: MediaConfig | None = None) -> MediaInfo:
    """Reads a file's header; raises `InputError` for unreadable files and those over the limits."""
    with open_media(source) as container:
        return check_limits(container, source_name(source), config or MediaConfig())
