"""Dubs a file to new speech: decode, follow the face, dub its crops, paste, encode, add the sound."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import ffmpeg
import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray

from model_code.config import MediaConfig
from model_code.dubbing.color import match_color
from model_code.dubbing.listener import Listener
from model_code.dubbing.longform import runs
from model_code.dubbing.paste import paste
from model_code.dubbing.plan import DubPlan, plan_dub
from model_code.dubbing.sampling import Beat
from model_code.dubbing.strand import DubbedPart
from model_code.dubbing.who import Progress, Telling, first
from model_code.errors import InputError
from model_code.faces.crop import crop_yuv
from model_code.faces.landmarker import Landmarker
from model_code.media.audio import Excerpt, Sound
from model_code.media.probe import DEMUXERS
from model_code.media.spool import FrameSpool, spooled_sound
from model_code.media.video import stream_audio, stream_video, write_video
from model_code.media.yuv import YuvFrame
from model_code.seeding import seed_for

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]

CRF = 15
"""Keeps the luma of what was not touched above 45 dB."""
BY_SAMPLES = "setts=ts=(N-1)*1024"
"""Counts the time of the output's AAC packets (1,024 samples each, the first of them lead-in) as the model hears:
sample after sample. By the speech file's own clock its sound may begin late and have gaps."""
NAMED = 5
"""Places that a note lists."""


class DubbingModel(Protocol):
    """What `dub_file` needs of a model."""

    def dub_stream(
        self,
        frames: Iterable[U8],
        count: int,
        samples: Sound,
        seed: int,
        beat: Beat | None = None,
        landmarks: F32 | None = None,
    ) -> Iterator[DubbedPart]:
        """Dubs `count` crops (S, S, 3) to 16 kHz sound, part by part; as many come back.

        `beat` is called before every step of sampling; what it raises ends the dub. `landmarks` (count, 68, 2) are
        the crops'.
        """
        ...


@dataclass(frozen=True)
class DubReport:
    """What came of a dub.

    Attributes:
        frames: Frames written, at 25 a second.
        seconds: Their length.
        dubbed: Frames whose face was dubbed; the others are left as they were.
        faces: Most faces seen at once; one was dubbed.
        shots: Shots in the part of the video that was used.
        notes: Lines for the user: what was cut, extended, left alone.
    """

    frames: int
    seconds: float
    dubbed: int
    faces: int
    shots: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class NoisyWindow:
    """A window that came out as noise at first.

    Attributes:
        start: Its first output frame.
        remains: Whether the best of all seeds still looks like noise.
    """

    start: int
    remains: bool


def dub_file(
    video: str | Path,
    audio: str | Path,
    out: str | Path,
    model: DubbingModel,
    landmarker: Landmarker,
    config: MediaConfig | None = None,
    *,
    version: str = "unregistered",
    seed: int = 0,
    speaker: int | Listener | None = None,
    progress: Progress | None = None,
) -> DubReport:
    """Writes `video` with one of its faces speaking `audio`.

    The output lasts as long as the audio: a longer video is cut, a shorter one runs back and forth. Frames without a
    face are left alone. Nothing but the face's surroundings changes before encoding.

    Args:
        video: Any video file within the limits.
        audio: Any file with sound, of which the first track is taken; pictures in it do not matter.
        out: The mp4 to write, replaced when complete.
        model: Dubs crops.
        landmarker: Finds and follows the face.
        config: Rates and limits.
        version: Model version for the output's metadata, which says that it is synthetic.
        seed: Of the model's noise.
        speaker: Which face, counted from the left in every shot; a shot that never shows so many is left alone. A
            listener: in every shot the one whose lips fit the video's own sound best. None: the largest.
        progress: Told (stage, done, in all) at every frame and at every step of sampling; what it raises ends the dub
            and leaves nothing.

    Raises:
        InputError: Files that cannot be used, or no such face in any frame.
    """
    config = config or MediaConfig()
    out = Path(out)
    if not out.parent.is_dir():
        raise InputError(f"the folder '{out.parent}' of the output does not exist", "create it")
    comment = f"Synthetic: the mouth was dubbed to other speech by xdub_platform, model xdub-dubber {version}"
    with (
        spooled_sound(stream_audio(audio, config, with_pictures=False)) as sound,
        tempfile.TemporaryDirectory(prefix=".xdub-", dir=out.parent) as folder,
    ):
        plan = plan_dub(video, len(sound), landmarker, config, speaker, progress)
        count = len(plan.source)
        silent, done = Path(folder) / "silent.mp4", Path(folder) / "done.mp4"
        noisy: list[NoisyWindow] = []
        telling = Telling(count, "dub", progress)
        frames = dubbed_frames(video, plan, sound, model, config, seed, noisy, telling.again, out.parent)
        write_video(silent, telling.each(frames), config.fps, crf=CRF)
        _mux(silent, Path(audio), done, comment)
        done.replace(out)
    notes = (*_notes(plan, config), *_noise_notes(noisy, config))
    return DubReport(count, count / config.fps, int(plan.dubbed.sum()), plan.faces, plan.shots, notes)


def dubbed_frames(
    video: str | Path,
    plan: DubPlan,
    sound: Sound,
    model: DubbingModel,
    config: MediaConfig,
    seed: int = 0,
    noisy: list[NoisyWindow] | None = None,
    beat: Beat | None = None,
    scratch: Path | None = None,
) -> Iterator[YuvFrame]:
    """The output's frames before encoding.

    One reader goes ahead by a window for the crops, another follows and pastes them. Where the video runs back and
    forth both read what a spool keeps, else each decodes for itself: no more is held than a window.

    Args:
        video: As in `dub_file`, as what is not listed here.
        plan: Of this video and sound.
        sound: The new one.
        model: Dubs crops.
        config: Rates and limits.
        seed: Of the model's noise.
        noisy: Gets the windows that came out as noise.
        beat: Called before every step of sampling; what it raises ends the dub.
        scratch: Folder for the spool, which takes gigabytes where frames are large; None: the system's, often memory.

    Raises:
        InputError: The spool does not fit there.
    """
    noisy = [] if noisy is None else noisy
    with tempfile.TemporaryFile(dir=scratch) as file:
        spool = FrameSpool(stream_video(video, config), len(plan.boxes), file)

        def read() -> Iterator[YuvFrame]:
            if plan.repeats:
                return (spool[index] for index in plan.source.tolist())
            return first(stream_video(video, config), len(plan.source))

        crops = _dubbed_crops(read(), plan, sound, model, config, seed, noisy, beat)
        for index, frame in enumerate(read()):
            if plan.dubbed[index]:
                source = plan.source[index]
                yield paste(frame, next(crops), plan.boxes[source], plan.mask(source, config.crop_size))
            else:
                yield frame


def _dubbed_crops(
    frames: Iterator[YuvFrame],
    plan: DubPlan,
    sound: Sound,
    model: DubbingModel,
    config: MediaConfig,
    seed: int,
    noisy: list[NoisyWindow],
    beat: Beat | None,
) -> Iterator[U8]:
    """Dubbed and colour-corrected crops of the frames that get one, in order."""
    step = config.sample_rate // config.fps
    numbered = enumerate(frames)
    for start, end in runs(plan.dubbed, plan.breaks):
        kept: deque[U8] = deque()  # until they are dubbed

        def crops(end: int = end, start: int = start, kept: deque[U8] = kept) -> Iterator[U8]:
            for index, frame in numbered:
                if index >= start:
                    kept.append(crop_yuv(frame, plan.boxes[plan.source[index]], config.crop_size))
                    yield kept[-1]
                if index + 1 == end:
                    return

        heard = Excerpt(sound, start * step, end * step)
        points = plan.crop_landmarks(plan.source[start:end], config.crop_size)
        for part in model.dub_stream(crops(), end - start, heard, seed_for("dub", seed, start), beat, points):
            if part.retries or part.noise:
                noisy.append(NoisyWindow(start + part.start, part.noise))
            if len(part.frames):
                yield from match_color(part.frames, np.stack([kept.popleft() for _ in part.frames]))


def _notes(plan: DubPlan, config: MediaConfig) -> Iterator[str]:
    count, used = len(plan.source), len(plan.boxes)
    if plan.longer:
        yield f"the video is longer than the audio: cut to {count / config.fps:.2f} s"
    elif plan.repeats:
        yield f"the video ({used / config.fps:.2f} s) is shorter than the audio: it runs back and forth"
    if plan.faces > 1:
        yield f"{plan.faces} faces: {plan.chosen} was dubbed"
    missing = count - int(plan.dubbed.sum())
    if missing:
        yield f"{missing} of {count} frames do not show the face and were left as they are"


def _noise_notes(noisy: Sequence[NoisyWindow], config: MediaConfig) -> Iterator[str]:
    for remains, told_of in ((False, "made again with another seed"), (True, "no other seed helped, look at it")):
        at = [f"{window.start / config.fps:.1f} s" for window in noisy if window.remains == remains]
        if at:
            more = f" and {len(at) - NAMED} more" if len(at) > NAMED else ""
            yield f"noise instead of a face at {', '.join(at[:NAMED])}{more}: {told_of}"


def _mux(video: Path, audio: Path, out: Path, comment: str) -> None:
    """Joins pictures and sound; one line of ffmpeg's own words if it fails."""
    safe = {"protocol_whitelist": "file", "format_whitelist": DEMUXERS}
    pictures = ffmpeg.input(f"file:{video.resolve()}", **safe).video
    sound = ffmpeg.input(f"file:{audio.resolve()}", **safe)["a:0"]  # the one that the model heard
    job = ffmpeg.output(
        pictures,
        sound,
        f"file:{out.resolve()}",
        vcodec="copy",
        acodec="aac",
        audio_bitrate="192k",
        **{"bsf:a": BY_SAMPLES},
        movflags="+faststart",
        fflags="+bitexact",
        map_metadata=-1,
        metadata=f"comment={comment}",
        threads=1,
    )
    try:
        job.run(cmd=imageio_ffmpeg.get_ffmpeg_exe(), quiet=True, overwrite_output=True)
    except ffmpeg.Error as error:
        last = error.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        raise InputError(f"the sound of '{audio.name}' could not be added: {last[0]}", "convert it to wav") from None
