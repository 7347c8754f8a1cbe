"""Footage in, clips out: normalised, cut at shots, one tracked face cropped, judged; or why not."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import av
import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model_code.config import MediaConfig
from model_code.errors import InputError
from model_code.faces.align import interocular
from model_code.faces.crop import crop_yuv, from_crop, resample
from model_code.faces.detect import FaceFinder
from model_code.faces.follow import Follower, Track
from model_code.faces.landmarker import Landmarker
from model_code.media.names import OCCLUDER_SUFFIX
from model_code.media.sample import ClipSample
from model_code.media.shots import find_cuts
from model_code.media.video import VideoFrames, read_audio
from model_code.media.yuv import YuvFrame

F32 = NDArray[np.float32]
logger = logging.getLogger(__name__)


class Sidecar(BaseModel):
    """What a user says about a file, in NAME.json beside NAME.mp4. Other keys are kept but not used."""

    model_config = ConfigDict(extra="allow", frozen=True)

    speaker_id: str = Field(min_length=1, description="Who speaks; the same name in all files of a person.")
    language: str = Field(min_length=1, description="Spoken language, such as `en`.")
    licence: str = Field(min_length=1, description="Under which licence the footage may be used.")
    consent: str = Field(min_length=1, description="How and when the person agreed.")
    split: Literal["train", "heldout"] = Field("train", description="`heldout` keeps a file out of training.")


@dataclass(frozen=True)
class Quarantined:
    """What was turned away.

    Attributes:
        file: The file's name.
        reason: In few words, such as `no face`.
        detail: One line: what was found, and the remedy.
        start: First frame of the part turned away; None: all of the file.
    """

    file: str
    reason: str
    detail: str
    start: int | None = None

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


@dataclass
class Limits:
    """Below what a clip is turned away.

    Attributes:
        found: Share of frames with a face.
        confidence: Mean confidence of the landmarks.
        face_pixels: Median distance of the eyes in pixels of the raw frame.
        sharpness: Of the crop, as `quality` measures it.
        brightness: Darkest and brightest mean of the face, 0..1.
        loudness: Root mean square of the sound.
    """

    found: float = 0.95
    confidence: float = 0.5
    face_pixels: float = 8.0
    sharpness: float = 0.004
    brightness: tuple[float, float] = (0.04, 0.97)
    loudness: float = 1e-3


@dataclass
class _Refusal(Exception):
    reason: str
    detail: str
    start: int | None = field(default=None)


def ingest_file(
    path: str | Path,
    config: MediaConfig,
    landmarker: Landmarker,
    *,
    shard: str = "",
    known: Mapping[str, str] | None = None,
    limits: Limits | None = None,
) -> Iterator[ClipSample | Quarantined]:
    """Takes one file in, part by part, so that a long one needs the memory of one clip.

    A bad one never raises, only a machine that fails does (memory, disk).

    Beside NAME.mp4 stand NAME.json (`Sidecar`), optionally NAME.wav (sound to use instead of the file's own) and
    NAME.occluder.mp4 (white where something stands before the face).

    Args:
        path: The video.
        config: What to normalise to, and limits.
        landmarker: Places the landmarks.
        shard: Name for the rows.
        known: Files taken in before: SHA-256 -> where.
        limits: What is turned away.

    Yields:
        A clip for each shot, or several for a long one; or what was turned away and why.
    """
    path = Path(path)
    limits = limits or Limits()
    finder = FaceFinder(landmarker)
    try:
        sidecar = read_sidecar(path)
        digest = file_digest(path)
        if known and digest in known:
            raise _Refusal("duplicate", f"'{path.name}' has the bytes of {known[digest]}, taken in before: remove it")
        frames = VideoFrames(path, config)
        cuts, count = find_cuts(frames)
        audio = _sound(path, config, count)
        masks = _masks(path, frames)
        readers = _Reader(frames), _Reader(frames), _Reader(masks) if masks else None
    except Exception as error:
        yield _refused(path, error)
        return
    shots = itertools.pairwise([0, *cuts, count])
    parts = [part for shot in shots for part in even_parts(*shot, config.max_clip_frames)]

    def take(number: int, start: int, end: int) -> ClipSample | Quarantined:  # holds no clip while the next is made
        try:
            clip = _clip(_Shot(*readers, start, end), audio, config, finder, limits)
        except Exception as error:
            return _refused(path, error, start if len(parts) > 1 else None)
        clip_id = clip_name(path, digest, number)
        row = {
            "clip_id": clip_id,
            "shard": shard,
            "source_uri": path.name,
            "sha256": digest,
            "start_frame": start,
            "speaker_id": sidecar.speaker_id,
            "language": sidecar.language,
            "licence": sidecar.licence,
            "consent": sidecar.consent,
            "split": sidecar.split,
            "kind": str((sidecar.model_extra or {}).get("kind", "")),
            "condition": str((sidecar.model_extra or {}).get("condition", "")),
            **clip.row,
        }
        return replace(clip, clip_id=clip_id, row=row)

    for number, (start, end) in enumerate(parts):
        yield take(number, start, end)


def _refused(path: Path, error: Exception, start: int | None = None) -> Quarantined:
    """What an error says of a file, for quarantine; raises it where the machine is to blame."""
    if isinstance(error, _Refusal):
        return Quarantined(path.name, error.reason, error.detail, start)
    if isinstance(error, InputError):
        reason = "no sound" if re.search("(has no|of) sound", error.what) else "unreadable"
        return Quarantined(path.name, reason, str(error), start)
    if _machines(error):
        raise error
    logger.warning("'%s' cannot be taken in", path.name, exc_info=error)
    line = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return Quarantined(path.name, "unreadable", f"'{path.name}' cannot be taken in, {line}: export it again", start)


def _machines(error: Exception) -> bool:
    """Whether memory or a disk failed, as Python, OpenCV and torch tell it: the same file may do at the next run."""
    if isinstance(error, OSError):
        return not isinstance(error, av.FFmpegError | PermissionError)  # what FFmpeg says is of the file's content
    short_of_memory = isinstance(error, cv2.error) and error.code == cv2.Error.StsNoMem
    return isinstance(error, MemoryError) or short_of_memory or "DefaultCPUAllocator" in str(error)


def read_sidecar(path: Path) -> Sidecar:
    """Reads NAME.json; raises the refusal that quarantine shows."""
    card = path.with_suffix(".json")
    if not card.is_file():
        raise _Refusal(
            "no sidecar", f"'{path.name}' has no '{card.name}': write speaker_id, language, licence, consent"
        )
    try:
        return Sidecar.model_validate_json(card.read_bytes())
    except ValidationError as error:
        problem = error.errors()[0]
        names = [str(e["loc"][0]) for e in error.errors() if e["loc"]]
        for name, reason in (("consent", "no consent"), ("licence", "no licence")):
            if name in names:
                raise _Refusal(reason, f"'{card.name}' states no {name}: add the key '{name}'") from None
        key = names[0] if names else "JSON"
        raise _Refusal("bad sidecar", f"'{card.name}', {key}: {problem['msg']}: correct it") from None


def file_digest(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        InputError: If there is no such file.
    """
    if not path.is_file():
        raise InputError(f"'{path.name}' does not exist in '{path.parent}'", "check the path")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def clip_name(path: Path, digest: str, number: int) -> str:
    """A key for shards: readable, unique by content, the same every time."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", path.stem).strip("-")[:40] or "clip"
    return f"{stem}-{digest[:8]}-{number}"


def even_parts(start: int, end: int, longest: int) -> list[tuple[int, int]]:
    """Frames [start, end) as the fewest parts of at most `longest` frames, whose lengths differ by one at most."""
    count = max(1, math.ceil((end - start) / longest))
    return list(itertools.pairwise(start + (end - start) * part // count for part in range(count + 1)))


def shift_audio(sample: ClipSample, offset: int) -> ClipSample:
    """Corrects the sound's place by whole frames; silence fills what it leaves free.

    Args:
        sample: The clip.
        offset: Frames by which the sound is late: it moves that much to the front (negative: to the back).
    """
    step = round(int(sample.row.get("sample_rate", 16_000)) / int(sample.row.get("fps", 25)))
    audio = np.zeros_like(sample.audio)
    lag = offset * step
    if lag >= 0:
        audio[: max(len(audio) - lag, 0)] = sample.audio[lag:]
    else:
        audio[-lag:] = sample.audio[:lag]
    row = {**sample.row, "sync_offset": int(sample.row.get("sync_offset", 0)) + offset}
    return replace(sample, audio=audio, row=row)


class _Reader:
    """Reads stretches of a file's frames, one after the other, without starting again."""

    def __init__(self, video: VideoFrames) -> None:
        self._frames = iter(video)
        self._next = 0

    def take(self, start: int, end: int) -> Iterator[YuvFrame]:
        """Frames [start, end); `start` must not lie before what was read."""
        while self._next < end:
            frame = next(self._frames, None)
            if frame is None:
                return
            self._next += 1
            if self._next > start:
                yield frame


@dataclass(frozen=True)
class _Shot:
    """A stretch of a file: frames to follow the face in, the same to crop, and occluder masks."""

    to_follow: _Reader
    to_crop: _Reader
    masks: _Reader | None
    start: int
    end: int


def _sound(path: Path, config: MediaConfig, count: int) -> F32:
    """The whole file's sound, exactly as long as its pictures."""
    audio = read_audio(_companion(path, ".wav") or path, config)
    length = round(count * config.sample_rate / config.fps)
    if len(audio) < 0.5 * length:
        raise _Refusal(
            "no sound", f"'{path.name}' has {len(audio) / config.sample_rate:.1f} s of sound for its pictures"
        )
    return np.pad(audio, (0, max(0, length - len(audio))))[:length]


def _masks(path: Path, frames: VideoFrames) -> VideoFrames | None:
    """The file's occluder masks, if it has any, of the size that crop boxes are measured in."""
    occluder = _companion(path, OCCLUDER_SUFFIX)
    if occluder is None:
        return None
    masks = VideoFrames(occluder, frames.config)
    mask, frame = next(iter(masks)), next(iter(frames))
    if mask.y.shape != frame.y.shape:
        raise _Refusal(
            "bad occluder",
            f"'{occluder.name}' is {mask.width}x{mask.height}, '{path.name}' {frame.width}x{frame.height} "
            "(turned upright, square pixels): export the mask in the video's size",
        )
    return masks


def _companion(path: Path, suffix: str) -> Path | None:
    other = path.with_name(path.stem + suffix)
    return other if other.is_file() and other != path else None


def _clip(shot: _Shot, audio: F32, config: MediaConfig, finder: FaceFinder, limits: Limits) -> ClipSample:
    count = shot.end - shot.start
    if count < config.min_clip_frames:
        raise _Refusal("too short", f"{count} frames, fewer than {config.min_clip_frames}: give longer shots")
    track = Follower(finder, config.crop_scale).follow(shot.to_follow.take(shot.start, shot.end))
    if track is None or track.found.mean() < limits.found:
        share = 0.0 if track is None else float(track.found.mean())
        raise _Refusal("no face", f"a face in {share:.0%} of the frames: keep one face in view")
    size = config.crop_size
    crops, raw_landmarks, confidence, boxes = _crops(shot, track, finder.landmarker, config)
    step = config.sample_rate / config.fps
    sound = audio[round(shot.start * step) : round(shot.end * step)]
    landmarks = ((raw_landmarks - boxes[:, None, :2]) * (size / (boxes[:, None, 2:] - boxes[:, None, :2]))).astype(
        np.float32
    )
    scores = quality(crops, landmarks, sound)
    scores["face_pixels"] = float(np.median(interocular(raw_landmarks)))
    scores["landmark_confidence"] = float(confidence.mean())
    _judge(scores, limits)
    occluder = None
    if shot.masks is not None:
        half = [
            resample(mask.y, box, (size, size)) > 127
            for mask, box in zip(shot.masks.take(shot.start, shot.end), boxes, strict=False)
        ]
        if len(half) != count:
            raise _Refusal("bad occluder", f"the occluder video has {len(half)} of {count} frames: make it as long")
        occluder = np.stack(half)
    row: dict[str, Any] = {
        "n_frames": count,
        "fps": config.fps,
        "size": size,
        "sample_rate": config.sample_rate,
        "sync_offset": 0,
        "sync_confidence": 0.0,
        "faces": track.faces,
        "occluded": bool(occluder is not None and occluder.any()),
        **{name: round(value, 5) for name, value in scores.items()},
        "members": json.dumps({"face_boxes": "boxes.npy", "landmarks": "landmarks.npy"}),
    }
    return ClipSample("", row, crops, landmarks, confidence, sound.astype(np.float32), boxes, occluder)


def _crops(
    shot: _Shot, track: Track, landmarker: Landmarker, config: MediaConfig
) -> tuple[NDArray[np.uint8], F32, F32, F32]:
    """Crops at the track's boxes, and landmarks (in pixels of the raw frame) looked at in every crop."""
    size = config.crop_size
    frames = shot.to_crop.take(shot.start, shot.end)
    crops = np.stack([crop_yuv(frame, box, size) for frame, box in zip(frames, track.boxes, strict=True)])
    landmarks, confidence = landmarker.predict_crops(crops)
    return crops, from_crop(landmarks, track.boxes, size), confidence, track.boxes


def quality(crops: NDArray[np.uint8], landmarks: F32, audio: F32) -> dict[str, float]:
    """Scores of a clip.

    Returns:
        sharpness: mean squared luma Laplacian (luma 0..1) in the middle of the crop; brightness: mean luma there, 0..1;
        loudness: root mean square of the sound; steadiness: 1 - mean movement of the landmarks a frame over the
        interocular distance.
    """
    size = crops.shape[1]
    middle = crops[:, size // 5 : -(size // 5), size // 5 : -(size // 5)].astype(np.float32) @ np.array(
        [0.299, 0.587, 0.114], np.float32
    )
    middle /= 255
    sharpness = float(np.mean([cv2.Laplacian(one, cv2.CV_32F).var() for one in middle[::5]]))
    moved = np.linalg.norm(np.diff(landmarks, axis=0), axis=-1).mean() / max(
        float(np.median(interocular(landmarks))), 1e-3
    )
    return {
        "sharpness": sharpness,
        "brightness": float(middle.mean()),
        "loudness": float(np.sqrt(np.mean(np.square(audio, dtype=np.float64)))) if len(audio) else 0.0,
        "steadiness": float(1 - moved),
    }


def _judge(scores: dict[str, float], limits: Limits) -> None:
    dark, bright = limits.brightness
    # `not >=` instead of `<`: a score that is no number is bad too.
    for bad, reason, detail in (
        (
            not scores["face_pixels"] >= limits.face_pixels,
            "small face",
            f"{scores['face_pixels']:.0f} px between the eyes",
        ),
        (
            not scores["landmark_confidence"] >= limits.confidence,
            "no face",
            f"landmark confidence {scores['landmark_confidence']:.2f} is under {limits.confidence}",
        ),
        # Before the next: sharpness falls with the light.
        (not dark <= scores["brightness"] <= bright, "badly lit", f"face brightness {scores['brightness']:.2f}"),
        (
            not scores["sharpness"] >= limits.sharpness,
            "blurred",
            f"sharpness {scores['sharpness']:.4f} < {limits.sharpness}",
        ),
        (not scores["loudness"] >= limits.loudness, "no sound", "the sound is silent"),
    ):
        if bad:
            raise _Refusal(reason, f"{detail}: film it again")


__all__ = ["Limits", "Quarantined", "Sidecar", "ingest_file", "quality", "shift_audio"]
