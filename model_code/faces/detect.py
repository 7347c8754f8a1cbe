"""Finds faces in single frames: OpenCV's frontal cascade first, our landmarker for faces that it does not know."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from model_code.faces.landmarker import Landmarker
from model_code.faces.track import face_box
from model_code.media.yuv import YuvFrame

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

SEARCH_SIDE = 480
"""Longer side of the frame that is searched, in pixels; larger frames are scaled down."""
FLATTEST = 10.0
"""Longer side over the shorter up to which a frame is searched window by window: they grow in number with it."""
SURE = 0.9
"""Landmarker confidence from which a face that the cascade does not know counts."""
LIKELY = 0.35
"""Landmarker confidence from which a face that the cascade knows counts."""


@dataclass(frozen=True)
class Face:
    """A face in one frame.

    Attributes:
        box: (4,) the square of `face_box`, in pixels of the frame.
        landmarks: (68, 2) in pixels of the frame.
        confidence: The landmarker's, 0..1.
        source: Which of the two found it.
    """

    box: F32
    landmarks: F32
    confidence: float
    source: str

    @property
    def side(self) -> float:
        """Side of the box in pixels."""
        return float(self.box[2] - self.box[0])


class FaceFinder:
    """Finds the faces of a frame, the largest first.

    Args:
        landmarker: Confirms and places what is found, and searches where the cascade finds nothing.

    Raises:
        RuntimeError: OpenCV was installed without its cascades.
    """

    def __init__(self, landmarker: Landmarker) -> None:
        self.landmarker = landmarker
        # Not when it is first needed: an install that lacks it must not pass for a bad frame.
        self._cascade = cv2.CascadeClassifier(
            str(Path(cv2.__file__).parent / "data" / "haarcascade_frontalface_alt2.xml")
        )
        if self._cascade.empty():
            raise RuntimeError(
                "OpenCV has no frontal face cascade: install opencv-python-headless<5 and remove opencv-python"
            )

    def find(self, frame: YuvFrame | U8) -> list[Face]:
        """Faces of one frame (4:2:0 planes or (H, W, 3) RGB), largest first."""
        image, scale = _small(frame)
        seeds = self._known(image)
        faces = self._confirm(image, seeds, LIKELY, "cascade")
        if not faces and max(image.shape[:2]) <= FLATTEST * min(image.shape[:2]):
            for share in (1.0, 0.65, 0.4, 0.25):  # of the frame's shorter side
                windows = _windows(image.shape[0], image.shape[1], share)
                _, sure = self.landmarker.predict(_repeat(image, len(windows)), windows)
                best = windows[np.argsort(-sure)[:6]][np.sort(-sure)[:6] < -0.5]
                faces = self._confirm(image, best, SURE, "landmarker")
                if faces:
                    break
        return [
            Face(face.box / scale, face.landmarks / scale, face.confidence, face.source)
            for face in sorted(faces, key=lambda face: -face.side)
        ]

    def _known(self, image: U8) -> F32:
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        least = max(20, round(min(grey.shape) * 0.1))
        found = self._cascade.detectMultiScale(grey, scaleFactor=1.1, minNeighbors=4, minSize=(least, least))
        boxes = np.asarray(found, np.float32).reshape(-1, 4)
        centre = boxes[:, :2] + boxes[:, 2:] * np.array([0.5, 0.53], np.float32)
        half = boxes[:, 2:] * 0.85
        return np.concatenate([centre - half, centre + half], 1)

    def _confirm(self, image: U8, seeds: F32, least: float, source: str) -> list[Face]:
        """Looks again from each answer's own box, then keeps confident, plausible faces that do not overlap."""
        if not len(seeds):
            return []
        boxes = seeds
        for _ in range(3):
            landmarks, confidence = self.landmarker.predict(_repeat(image, len(boxes)), boxes)
            boxes = _bounded(face_box(landmarks), boxes)
        kept: list[Face] = []
        for index in np.argsort(-confidence):
            face = Face(boxes[index], landmarks[index], float(confidence[index]), source)
            if face.confidence < least or not _inside(face.box, image) or _overlap(face.box, seeds[index]) < 0.15:
                continue
            if all(_overlap(face.box, other.box) < 0.3 for other in kept):
                kept.append(face)
        return kept


def _small(frame: YuvFrame | U8) -> tuple[U8, float]:
    height, width = (frame.height, frame.width) if isinstance(frame, YuvFrame) else frame.shape[:2]
    scale = min(1.0, SEARCH_SIDE / max(height, width))
    if scale == 1.0:
        return (frame.to_rgb() if isinstance(frame, YuvFrame) else frame), 1.0
    size = (max(2, round(width * scale / 2) * 2), max(2, round(height * scale / 2) * 2))
    if isinstance(frame, YuvFrame):
        half = (size[0] // 2, size[1] // 2)
        planes = [
            cv2.resize(plane, side, interpolation=cv2.INTER_AREA).astype(np.uint8)
            for plane, side in zip(frame.planes(), (size, half, half), strict=True)
        ]
        return frame.with_planes(planes).to_rgb(), size[0] / width
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA).astype(np.uint8), size[0] / width


def _windows(height: int, width: int, share: float) -> F32:
    """Squares of `share` of the shorter side (and a margin), a third of a side apart."""
    side = min(height, width) * share
    ys = np.linspace(side * 0.4, height - side * 0.4, max(1, round((height - 0.8 * side) / (side / 3)) + 1))
    xs = np.linspace(side * 0.4, width - side * 0.4, max(1, round((width - 0.8 * side) / (side / 3)) + 1))
    centres = np.stack(np.meshgrid(xs, ys), -1).reshape(-1, 2)
    return np.concatenate([centres - side / 2, centres + side / 2], 1).astype(np.float32)


def _repeat(image: U8, count: int) -> U8:
    return np.broadcast_to(image, (count, *image.shape))


def _bounded(boxes: F32, before: F32) -> F32:
    """Boxes whose side changes by at most a half at a time, so that one bad answer does not run away."""
    side, old = boxes[:, 2:3] - boxes[:, :1], before[:, 2:3] - before[:, :1]
    half = np.clip(side, old / 1.5, old * 1.5) / 2
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    return np.concatenate([centre - half, centre + half], 1).astype(np.float32)


def _inside(box: F32, image: U8) -> bool:
    """Whether the box's centre lies in the frame."""
    x, y = (box[:2] + box[2:]) / 2
    return bool(0 <= x <= image.shape[1] and 0 <= y <= image.shape[0])


def _overlap(a: F32, b: F32) -> float:
    """Intersection over union."""
    size = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
    common = float(size[0] * size[1])
    areas = float((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]))
    return common / max(areas - common, 1e-6)
