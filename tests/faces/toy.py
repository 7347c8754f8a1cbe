"""Drawn faces with known landmarks: enough for geometry, not for beauty."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]


def _points() -> F32:
    """68 landmarks: origin between the eyes, eye distance 1, y down."""
    jaw = [(-1.18 * np.cos(a), 0.1 + 1.75 * np.sin(a)) for a in np.linspace(0, np.pi, 17)]
    brows = [
        (x, -0.4 - 0.08 * np.cos((abs(x) - 0.55) * 3))
        for x in (-0.9, -0.72, -0.55, -0.38, -0.2, 0.2, 0.38, 0.55, 0.72, 0.9)
    ]
    nose = [(0, 0), (0, 0.19), (0, 0.38), (0, 0.56)] + [
        (x, 0.7 + 0.06 * (1 - abs(x) / 0.25)) for x in (-0.25, -0.12, 0, 0.12, 0.25)
    ]
    eye = [(-0.24, 0), (-0.1, -0.08), (0.1, -0.08), (0.24, 0), (0.1, 0.07), (-0.1, 0.07)]
    eyes = [(x - 0.5, y) for x, y in eye] + [(x + 0.5, y) for x, y in eye]
    outer = [(0.45 * -np.cos(a), 1.18 - 0.17 * np.sin(a)) for a in np.linspace(0, np.pi, 7)]
    outer += [(0.45 * np.cos(a), 1.18 + 0.2 * np.sin(a)) for a in np.linspace(0, np.pi, 7)[1:-1]]
    inner = [(0.33 * -np.cos(a), 1.18 - 0.03 * np.sin(a)) for a in np.linspace(0, np.pi, 5)]
    inner += [(0.33 * np.cos(a), 1.18 + 0.03 * np.sin(a)) for a in np.linspace(0, np.pi, 5)[1:-1]]
    return np.array(jaw + brows + nose + eyes + outer + inner, np.float32)


POINTS = _points()


def toy_landmarks(centre: tuple[float, float], scale: float, opening: float = 0.0, roll: float = 0.0) -> F32:
    """(68, 2) landmarks; `opening` lowers jaw and lower lip, `scale` is the distance of the eyes in pixels."""
    points = POINTS.copy()
    points[4:13, 1] += 0.6 * opening * np.sin(np.linspace(0, np.pi, 9))
    points[[55, 56, 57, 58, 59, 65, 66, 67], 1] += 0.5 * opening
    turn = np.array([[np.cos(roll), -np.sin(roll)], [np.sin(roll), np.cos(roll)]], np.float32)
    return (points @ turn.T * scale + np.array(centre, np.float32)).astype(np.float32)


def draw_face(canvas: NDArray[np.uint8], landmarks: F32, skin: tuple[int, int, int] = (210, 160, 130)) -> None:
    """Paints a face onto an RGB canvas."""

    def fill(points: F32, color: tuple[int, int, int]) -> None:
        cv2.fillPoly(canvas, [np.rint((points - 0.5) * 16).astype(np.int32)], color, lineType=cv2.LINE_AA, shift=4)

    brows = landmarks[17:27]
    top = brows + 0.7 * (brows.mean(0) - landmarks[33])
    fill(np.concatenate([landmarks[:17], top[::-1]]), skin)
    for eye in (landmarks[36:42], landmarks[42:48]):
        fill(eye, (250, 250, 250))
        fill((eye - eye.mean(0)) * np.array([0.45, 0.9], np.float32) + eye.mean(0), (40, 30, 30))
    for brow in (landmarks[17:22], landmarks[22:27]):
        fill(np.concatenate([brow, brow[::-1] + (landmarks[28] - landmarks[27]) * 0.4]), (60, 40, 30))
    fill(landmarks[[27, 31, 33, 35]], tuple(int(0.8 * c) for c in skin))  # type: ignore[arg-type]
    fill(landmarks[48:60], (180, 60, 70))
    fill(landmarks[60:68], (60, 10, 20))


def toy_clip(
    count: int = 40, height: int = 240, width: int = 320, scale: float = 34.0, seed: int = 0, moving: bool = True
) -> tuple[NDArray[np.uint8], F32]:
    """(T, H, W, 3) frames of one talking toy face and (T, 68, 2) landmarks."""
    rng = np.random.default_rng(seed)
    small = rng.integers(40, 200, (6, 8, 3)).astype(np.uint8)
    back = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    frames, places = [], []
    for index in range(count):
        sway = np.sin(index / 9) * 0.3 * scale if moving else 0.0
        opening = 0.5 - 0.5 * np.cos(index * 0.9)
        points = toy_landmarks((width / 2 + sway, height * 0.42), scale, opening, 0.05 * np.sin(index / 7) * moving)
        frame = back.copy()
        draw_face(frame, points)
        frames.append(frame)
        places.append(points)
    return np.stack(frames), np.stack(places)
