"""Faces brought from one frame onto another."""

from __future__ import annotations

import cv2
import numpy as np

from model_code.faces.carry import carried_faces
from model_code.faces.masks import STABLE_LANDMARKS


def test_a_moved_picture_is_moved_back() -> None:
    """A smooth picture turned, scaled and shifted: carrying frame 0 onto frame 1 gives frame 1 again."""
    rng = np.random.default_rng(0)
    size = 96
    picture = cv2.GaussianBlur(rng.integers(0, 255, (size, size, 3), dtype=np.uint8), (0, 0), 4)
    landmarks = rng.uniform(30, 66, (68, 2)).astype(np.float32)
    matrix = cv2.getRotationMatrix2D((48.0, 48.0), 12.0, 1.1) + np.array([[0, 0, 2.0], [0, 0, -3.0]])
    turned = cv2.warpAffine(picture, matrix, (size, size), borderMode=cv2.BORDER_REPLICATE)
    points = ((landmarks - 0.5) @ matrix[:, :2].T + matrix[:, 2] + 0.5).astype(np.float32)
    frames, both = np.stack([picture, turned]), np.stack([landmarks, points])
    carried = carried_faces(frames, both, [0, 0])
    assert np.abs(carried[0].astype(int) - picture.astype(int)).max() <= 1
    assert np.abs(carried[1].astype(int) - turned.astype(int)).max() <= 2
    back = carried_faces(frames, both, [1, 0])[0]
    assert np.abs(back.astype(int) - picture.astype(int))[30:66, 30:66].mean() < 2


def test_the_mouth_moves_nothing() -> None:
    rng = np.random.default_rng(1)
    frames = rng.integers(0, 255, (2, 48, 48, 3), dtype=np.uint8)
    landmarks = rng.uniform(10, 38, (2, 68, 2)).astype(np.float32)
    other = landmarks.copy()
    other[:, 48:] += 5
    assert not set(STABLE_LANDMARKS) & set(range(48, 68))
    assert np.array_equal(carried_faces(frames, landmarks, [1, 0]), carried_faces(frames, other, [1, 0]))
