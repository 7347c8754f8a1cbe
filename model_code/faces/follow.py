"""One face through a shot: where it is in every frame and its landmarks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_code.faces.detect import Face, FaceFinder
from model_code.faces.track import crop_boxes, face_box
from model_code.media.yuv import YuvFrame

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Track:
    """One face over the frames of a shot.

    Attributes:
        landmarks: (T, 68, 2) in pixels of the frame; where no face was found, those of the nearest frame with one.
        confidence: (T,) 0..1, 0 where no face was found.
        boxes: (T, 4) steady crop boxes in pixels of the frame (`crop_boxes`).
        faces: Most faces seen in one frame; one is followed.
    """

    landmarks: F32
    confidence: F32
    boxes: F32
    faces: int

    @property
    def found(self) -> NDArray[np.bool_]:
        """(T,) where a face was found."""
        return self.confidence > 0


class Follower:
    """Follows one face of a shot, a few frames at a time, from frames in 4:2:0.

    Every `step`-th frame is looked at, `chunk` of them in one batch from the last known box. What fails is looked at
    again frame by frame, and where the face is lost the whole frame is searched.

    Args:
        finder: Searches whole frames.
        crop_scale: Of the track's crop boxes, as in `crop_boxes`.
        step: Frames between looks; the landmarks between are interpolated.
        chunk: Looks in a batch.
        speaker: Which face, counted from the left where that many are first seen; once lost it is looked for where it
            was. None: the largest.
        others: Tracks of the same shot: the largest face that none of them follows is followed, and once lost it is
            looked for where it was. None: there is but one to follow, see `speaker`.
    """

    def __init__(
        self,
        finder: FaceFinder,
        crop_scale: float,
        step: int = 3,
        chunk: int = 4,
        speaker: int | None = None,
        others: Sequence[Track] | None = None,
    ) -> None:
        self.finder = finder
        self.crop_scale = crop_scale
        self.step = step
        self.chunk = chunk
        self.speaker = speaker
        self.others = others

    def follow(self, frames: Iterable[YuvFrame]) -> Track | None:
        """Tracks through a shot; None if no frame shows a face."""
        looks: list[tuple[int, F32, float]] = []
        pending: list[tuple[int, YuvFrame]] = []
        state = _State()
        count = 0
        last: tuple[int, YuvFrame] | None = None
        for count, frame in enumerate(frames, 1):
            last = (count - 1, frame)
            if (count - 1) % self.step == 0:
                pending.append(last)
                last = None
            if len(pending) == self.chunk:
                looks += self._look(pending, state)
                pending = []
        looks += self._look(pending + ([last] if last else []), state)
        if not looks:
            return None
        return _interpolated(looks, count, self.step, max(state.faces, 1), self.crop_scale)

    def _look(self, pending: Sequence[tuple[int, YuvFrame]], state: _State) -> list[tuple[int, F32, float]]:
        out: list[tuple[int, F32, float]] = []
        rest = list(pending)
        if state.box is not None and len(rest) > 1:
            boxes = np.repeat(state.box[None], len(rest), 0)
            landmarks, confidence = self.finder.landmarker.predict([frame for _, frame in rest], boxes)
            if all(_holds(state.box, points, sure) for points, sure in zip(landmarks, confidence, strict=True)):
                state.box = face_box(landmarks[-1:])[0]
                indices = [index for index, _ in rest]
                return list(zip(indices, landmarks, confidence.tolist(), strict=True))
        for index, frame in rest:
            look = self._look_once(index, frame, state)
            if look is not None:
                out.append((index, *look))
        return out

    def _look_once(self, index: int, frame: YuvFrame, state: _State) -> tuple[F32, float] | None:
        if state.box is not None:
            box = state.box
            for _ in range(2):
                landmarks, confidence = self.finder.landmarker.predict([frame], box[None])
                if _holds(box, landmarks[0], float(confidence[0])):
                    state.box = face_box(landmarks)[0]
                    return landmarks[0], float(confidence[0])
                box = face_box(landmarks)[0]
            state.lost, state.box, state.patience = state.box, None, 0
        if state.patience > 0:
            state.patience -= 1
            return None
        faces = self.finder.find(frame)
        state.faces = max(state.faces, len(faces))
        face = self._chosen(index, faces, state.lost)
        if face is None:
            state.patience = 2
            return None
        state.box = face.box
        return face.landmarks, face.confidence

    def _chosen(self, index: int, faces: Sequence[Face], lost: F32 | None) -> Face | None:
        """The one to follow among a frame's faces, the largest first; `lost` is where it was last seen."""
        if self.speaker is None and self.others is None:
            return faces[0] if faces else None
        if self.others is not None:
            held = [face_box(one.landmarks[index : index + 1])[0] for one in self.others if one.found[index]]
            faces = [face for face in faces if all(_away(face.box, box) > 0.5 * face.side for box in held)]
        if lost is not None:
            near = [face for face in faces if _away(face.box, lost) < face.side]
            return min(near, key=lambda face: _away(face.box, lost), default=None)
        if self.speaker is None:
            return faces[0] if faces else None
        from_left = sorted(faces, key=lambda face: float(face.box[0] + face.box[2]))
        return from_left[self.speaker - 1] if len(from_left) >= self.speaker else None


@dataclass
class _State:
    box: F32 | None = None
    lost: F32 | None = None
    faces: int = 0
    patience: int = 0  # looks to let pass before the next search of a whole frame


def _holds(box: F32, landmarks: F32, confidence: float) -> bool:
    """Whether the landmarks found in a box are those of a face that still fills it."""
    found = face_box(landmarks[None])[0]
    side, new = float(box[2] - box[0]), float(found[2] - found[0])
    return confidence >= 0.3 and _away(found, box) < 0.22 * side and 0.7 * side < new < 1.4 * side


def _away(one: F32, other: F32) -> float:
    """How far apart the middles of two boxes are, in the direction in which they are farther."""
    return float(np.abs((one[:2] + one[2:]) - (other[:2] + other[2:])).max()) / 2


def _interpolated(looks: list[tuple[int, F32, float]], count: int, step: int, faces: int, scale: float) -> Track:
    places = np.array([index for index, _, _ in looks])
    points = np.stack([landmarks for _, landmarks, _ in looks]).reshape(len(looks), -1)
    sure = np.array([confidence for _, _, confidence in looks])
    frames = np.arange(count)
    columns = np.empty((count, 2 * 68), np.float32)
    for column, values in enumerate(points.T):
        columns[:, column] = np.interp(frames, places, values)
    landmarks = columns.reshape(count, 68, 2)
    confidence = np.interp(frames, places, sure)
    after = np.minimum(np.searchsorted(places, frames), len(places) - 1)
    nearest = np.minimum(np.abs(places[after] - frames), np.abs(frames - places[np.maximum(after - 1, 0)]))
    confidence[nearest >= step] = 0.0
    return Track(landmarks, confidence.astype(np.float32), crop_boxes(landmarks, scale), faces)
