"""Whose face is dubbed in each shot."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from model_code.config import MediaConfig
from model_code.dubbing.listener import Listener
from model_code.errors import InputError
from model_code.faces.detect import FaceFinder
from model_code.faces.follow import Follower, Track
from model_code.media.video import stream_video
from model_code.media.yuv import YuvFrame

Progress = Callable[[str, int, int], None]
"""Told (stage, done, in all)."""
MOST = 8
"""Faces of a shot that are compared."""


@dataclass(frozen=True)
class Shots:
    """The shots of a video, for following faces in passes over the whole file.

    Attributes:
        video: The file.
        spans: [start, end) frames of each shot, one after the other.
        finder: Finds faces.
        config: Rates and limits.
        progress: Told of every frame.
    """

    video: str | Path
    spans: Sequence[tuple[int, int]]
    finder: FaceFinder
    config: MediaConfig
    progress: Progress | None = None

    def numbered(self, speaker: int | None) -> tuple[list[Track | None], str]:
        """One face a shot, None where it never shows, and which one that is.

        Args:
            speaker: Number from the left; None: the largest.
        """
        follower = Follower(self.finder, self.config.crop_scale, speaker=speaker)
        tracks = [follower.follow(frames) for frames in self._each("follow the face")]
        return tracks, "the largest" if speaker is None else f"number {speaker} from the left"

    def talking(self, listener: Listener) -> tuple[list[Track | None], str]:
        """As `numbered`, the face whose lips fit the video's own sound best; alone in a shot, it is the one.

        Raises:
            InputError: The video has no sound.
        """
        features = self._heard(listener)
        everybody = self._everybody()
        confidences: list[list[float]] = []
        for (start, end), own, frames in zip(self.spans, everybody, self._each("listen"), strict=True):
            if len(own) > 1:
                confidences.append(listener.confidences(own, frames, features[2 * start : 2 * end]))
            else:
                _pass(frames)
                confidences.append([0.0] * len(own))
        chosen = [
            replace(own[int(np.argmax(sure))], faces=len(own)) if own else None
            for own, sure in zip(everybody, confidences, strict=True)
        ]
        return chosen, _described(everybody, confidences)

    def _heard(self, listener: Listener) -> np.ndarray:
        try:
            return listener.hear(self.video, self.spans[-1][1], self.config)
        except InputError as error:
            remedy = "name the speaker by number, counted from the left"
            raise InputError(f"{error.what}: nothing tells who speaks", remedy) from None

    def _everybody(self) -> list[list[Track]]:
        """The tracks of each shot's faces, about the largest first: one more face in every pass."""
        tracks: list[list[Track]] = [[] for _ in self.spans]
        open_shots = set(range(len(self.spans)))
        for number in range(1, MOST + 1):
            for shot, frames in enumerate(self._each(f"follow face {number}")):
                if shot not in open_shots:
                    _pass(frames)
                    continue
                track = Follower(self.finder, self.config.crop_scale, others=tracks[shot]).follow(frames)
                if track is None or any(_same_face(track, other) for other in tracks[shot]):
                    open_shots.remove(shot)
                else:
                    tracks[shot].append(track)
            if not open_shots:
                break
        return tracks

    def _each(self, stage: str) -> Iterator[Iterator[YuvFrame]]:
        """The frames of each shot; the next shot's begin where these were left."""
        count = self.spans[-1][1]
        frames = told(stream_video(self.video, self.config), count, stage, self.progress)
        for start, end in self.spans:
            yield first(frames, end - start)


def _same_face(track: Track, other: Track) -> bool:
    """Whether two tracks show one face: where both see theirs they lie within half a side, more often than not.

    A pass that begins while an earlier one has lost its face for a moment finds that very face.
    """
    both = track.found & other.found
    if not both.any():
        return False
    middles = [(one.boxes[both, :2] + one.boxes[both, 2:]) / 2 for one in (track, other)]
    sides = other.boxes[both, 2] - other.boxes[both, 0]
    return bool(np.median(np.linalg.norm(middles[0] - middles[1], axis=1) / sides) < 0.5)


def first(frames: Iterator[YuvFrame], count: int) -> Iterator[YuvFrame]:
    """Takes up to `count` frames and no more."""
    for _ in range(count):
        frame = next(frames, None)
        if frame is None:
            return
        yield frame


class Telling:
    """Tells how far a stage is, so that whoever listens can also end the dub there by raising.

    Args:
        count: Frames in all.
        stage: Its name.
        progress: Who listens; None: nobody.
    """

    def __init__(self, count: int, stage: str, progress: Progress | None) -> None:
        self._count, self._stage, self._progress = count, stage, progress
        self._done = 0

    def each(self, frames: Iterator[YuvFrame]) -> Iterator[YuvFrame]:
        """The frames, each told of once it was used."""
        for frame in frames:
            yield frame
            self._done += 1
            self.again()

    def again(self) -> None:
        """Tells the same once more, where the next frame takes long."""
        if self._progress is not None:
            self._progress(self._stage, self._done, self._count)


def told(frames: Iterator[YuvFrame], count: int, stage: str, progress: Progress | None) -> Iterator[YuvFrame]:
    """Tells of every frame."""
    return Telling(count, stage, progress).each(frames)


def _pass(frames: Iterator[YuvFrame]) -> None:
    for _ in frames:
        pass


def _described(everybody: Sequence[Sequence[Track]], confidences: Sequence[Sequence[float]]) -> str:
    """Who was chosen, and how sure the least sure choice was."""
    several = [(sure, own) for sure, own in zip(confidences, everybody, strict=True) if len(own) > 1]
    if not several:
        return "the only one"
    sure, own = min(several, key=lambda one: sorted(one[0])[-1] - sorted(one[0])[-2])
    second, best = sorted(sure)[-2:]
    places = [float(np.median(track.boxes[:, 0] + track.boxes[:, 2])) for track in own]
    number = 1 + sum(place < places[int(np.argmax(sure))] for place in places)
    where = f"number {number} from the left" if len(several) == 1 else f"least sure of {len(several)} shots"
    return f"the one whose lips fit the video's sound best ({where}, Sync-C {best:.2f} against {second:.2f})"
