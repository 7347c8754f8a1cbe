"""Dubs a file to new speech: decode, follow the face, dub its crops, paste, encode, add the sound."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import ffmpeg
import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray

from model_code.config import MediaConfig
from model_code.dubbing.color import match_color
from model_code.dubbing.longform import output_frames, pingpong, runs
from model_code.dubbing.paste import paste
from model_code.errors import InputError
from model_code.faces.crop import crop_yuv, to_crop
from model_code.faces.detect import FaceFinder
from model_code.faces.follow import Follower
from model_code.faces.landmarker import Landmarker
from model_code.faces.masks import paste_mask
from model_code.media.probe import DEMUXERS
from model_code.media.shots import find_cuts
from model_code.media.spool import FrameSpool
from model_code.media.video import read_audio, stream_video, write_video
from model_code.media.yuv import YuvFrame
from model_code.seeding import seed_for

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
log = logging.getLogger(__name__)

CRF = 15
"""Keeps the luma of what was not touched above 45 dB."""
Progress = Callable[[str, int, int], None]
"""Told (stage, done, in all)."""


class DubbingModel(Protocol):
    """What `dub_file` needs of a model."""

    def dub_crops(self, frames: U8, samples: F32, seed: int) -> U8:
        """Dubs (T, S, S, 3) crops of any length to 16 kHz sound; same shape back."""
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
class DubPlan:
    """Everything known before pasting.

    Attributes:
        source: (N,) source frame of every output frame.
        boxes: (M, 4) crop box of every source frame.
        masks: Paste weights of a source frame's crop, (S, S); computed when asked for.
        crops: (N, S, S, 3) dubbed crops in output order; meaningless where not `dubbed`.
        dubbed: (N,) which output frames get their crop.
        faces: Most faces seen at once.
        shots: Number of shots.
    """

    source: NDArray[np.intp]
    boxes: F32
    landmarks: F32
    crops: U8
    dubbed: NDArray[np.bool_]
    faces: int
    shots: int

    def mask(self, source: int) -> F32:
        """(S, S) paste weights of a source frame's crop."""
        size = self.crops.shape[1]
        points = to_crop(self.landmarks[source : source + 1], self.boxes[source : source + 1], size)
        return paste_mask(points, size)[0]


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
    speaker: int | None = None,
    progress: Progress | None = None,
) -> DubReport:
    """Writes `video` with one of its faces speaking `audio`.

    The output lasts as long as the audio: a longer video is cut, a shorter one runs back and forth. Frames without a
    face are left alone. Nothing but the face's surroundings changes before encoding.

    Args:
        video: Any video file within the limits.
        audio: Any file with sound.
        out: The mp4 to write, replaced when complete.
        model: Dubs crops.
        landmarker: Finds and follows the face.
        config: Rates and limits.
        version: Model version for the output's metadata, which says that it is synthetic.
        seed: Of the model's noise.
        speaker: Which face, counted from the left in every shot; a shot that never shows so many is left alone.
            None: the largest.
        progress: Told (stage, done, in all); what it raises ends the dub and leaves nothing.

    Raises:
        InputError: Files that cannot be used, or no such face in any frame.
    """
    config = config or MediaConfig()
    out = Path(out)
    if not out.parent.is_dir():
        raise InputError(f"the folder '{out.parent}' of the output does not exist", "create it")
    samples = read_audio(audio, config)
    plan, n_source = plan_dub(video, samples, model, landmarker, config, seed, speaker, progress)
    count = len(plan.source)
    comment = f"Synthetic: the mouth was dubbed to other speech by xdub_platform, model xdub-dubber {version}"
    with tempfile.TemporaryDirectory(prefix=".xdub-", dir=out.parent) as folder:
        silent, done = Path(folder) / "silent.mp4", Path(folder) / "done.mp4"
        shown = _told(pasted(video, plan, config), count, "paste and encode", progress)
        write_video(silent, shown, config.fps, crf=CRF)
        _mux(silent, Path(audio), done, comment)
        done.replace(out)
    notes = tuple(_notes(plan, n_source, config, speaker))
    return DubReport(count, count / config.fps, int(plan.dubbed.sum()), plan.faces, plan.shots, notes)


def plan_dub(
    video: str | Path,
    samples: F32,
    model: DubbingModel,
    landmarker: Landmarker,
    config: MediaConfig,
    seed: int = 0,
    speaker: int | None = None,
    progress: Progress | None = None,
) -> tuple[DubPlan, int]:
    """First pass: follows the face and dubs its crops. Returns the plan and the number of source frames seen."""
    size = config.crop_size
    n_out = output_frames(len(samples), config.sample_rate, config.fps)
    looked = _told(_first(stream_video(video, config), n_out + 1), n_out + 1, "look for cuts", progress)
    cuts, n_source = find_cuts(looked)
    used = min(n_source, n_out)
    cuts = [cut for cut in cuts if cut < used]
    landmarks, boxes = np.zeros((used, 68, 2), np.float32), np.zeros((used, 4), np.float32)
    found = np.zeros(used, bool)
    faces = 0
    frames = _told(stream_video(video, config), used, "follow the face", progress)
    for start, end in pairwise([0, *cuts, used]):
        track = Follower(FaceFinder(landmarker), config.crop_scale, speaker=speaker).follow(_first(frames, end - start))
        if track is not None:
            landmarks[start:end], boxes[start:end], found[start:end] = track.landmarks, track.boxes, track.found
            faces = max(faces, track.faces)
    if not found.any():
        name = Path(video).name
        if (speaker or 1) > 1:
            raise InputError(f"'{name}' never shows {speaker} faces at once", "give the speaker a lower number")
        raise InputError(f"no face was found in '{name}'", "give a video with a face in view")
    crops = np.zeros((used, size, size, 3), np.uint8)
    for index, frame in enumerate(_first(stream_video(video, config), used)):
        if found[index]:
            crops[index] = crop_yuv(frame, boxes[index], size)
    source = pingpong(used, n_out)
    shot = np.searchsorted(np.array(cuts), np.arange(used), side="right")[source]
    breaks = np.diff(shot, prepend=shot[:1]) != 0
    dubbed = found[source]
    result = np.zeros((n_out, size, size, 3), np.uint8)
    step = config.sample_rate // config.fps
    for start, end in runs(dubbed, breaks):
        part = crops[source[start:end]]
        new = model.dub_crops(part, samples[start * step : end * step], seed_for("dub", seed, start))
        result[start:end] = match_color(new, part)
        if progress is not None:
            progress("dub", end, n_out)
    return DubPlan(source, boxes, landmarks, result, dubbed, faces, len(cuts) + 1), n_source


def pasted(video: str | Path, plan: DubPlan, config: MediaConfig) -> Iterator[YuvFrame]:
    """Second pass: the output's frames before encoding."""
    used = len(plan.boxes)
    frames = _first(stream_video(video, config), used)
    with FrameSpool(keep=len(plan.source) > used) as spool:
        for index, source in enumerate(plan.source.tolist()):
            frame = spool.add(next(frames)) if index < used else spool[source]
            if plan.dubbed[index]:
                frame = paste(frame, plan.crops[index], plan.boxes[source], plan.mask(source))
            yield frame


def _notes(plan: DubPlan, n_source: int, config: MediaConfig, speaker: int | None) -> Iterator[str]:
    count, used = len(plan.source), len(plan.boxes)
    if n_source > count:
        yield f"the video is longer than the audio: cut to {count / config.fps:.2f} s"
    elif used < count:
        yield f"the video ({used / config.fps:.2f} s) is shorter than the audio: it runs back and forth"
    if plan.faces > 1:
        which = "the largest" if speaker is None else f"number {speaker} from the left"
        yield f"{plan.faces} faces: {which} was dubbed"
    missing = count - int(plan.dubbed.sum())
    if missing:
        yield f"{missing} of {count} frames do not show the face and were left as they are"


def _mux(video: Path, audio: Path, out: Path, comment: str) -> None:
    """Joins pictures and sound; one line of ffmpeg's own words if it fails."""
    safe = {"protocol_whitelist": "file", "format_whitelist": DEMUXERS}
    pictures = ffmpeg.input(f"file:{video.resolve()}", **safe).video
    sound = ffmpeg.input(f"file:{audio.resolve()}", **safe).audio
    job = ffmpeg.output(
        pictures,
        sound,
        f"file:{out.resolve()}",
        vcodec="copy",
        acodec="aac",
        audio_bitrate="192k",
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


def _first(frames: Iterator[YuvFrame], count: int) -> Iterator[YuvFrame]:
    """Takes up to `count` frames and no more."""
    for _ in range(count):
        frame = next(frames, None)
        if frame is None:
            return
        yield frame


def _told(frames: Iterator[YuvFrame], count: int, stage: str, progress: Progress | None) -> Iterator[YuvFrame]:
    """Tells of every frame, so that whoever listens can also end the dub there by raising."""
    for index, frame in enumerate(frames, 1):
        yield frame
        if progress is not None:
            progress(stage, index, count)
