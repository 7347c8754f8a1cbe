"""A ball with a face's labels: the smallest avatar that the renderer accepts."""

from __future__ import annotations

import numpy as np
import pytest

from model_code.avatars.avatar import ARKIT_NAMES, Avatar, Part


@pytest.fixture(scope="session")
def ball() -> Avatar:
    """A sphere of skin whose jaw (lower front) can drop."""
    n = 24
    theta, phi = np.linspace(0.02, np.pi - 0.02, n), np.linspace(0, 2 * np.pi, 2 * n, endpoint=False)
    points = np.stack(
        [
            np.sin(theta)[:, None] * np.sin(phi),
            np.cos(theta)[:, None] + 0 * phi,
            np.sin(theta)[:, None] * np.cos(phi),
        ],
        -1,
    )
    vertices = points.reshape(-1, 3).astype(np.float32)
    faces = []
    for i in range(n - 1):
        for j in range(2 * n):
            a, b = i * 2 * n + j, i * 2 * n + (j + 1) % (2 * n)
            faces += [[a, a + 2 * n, b], [b, a + 2 * n, b + 2 * n]]
    morphs = np.zeros((52, len(vertices), 3), np.float32)
    low = (vertices[:, 1] < -0.3) & (vertices[:, 2] > 0)
    morphs[ARKIT_NAMES.index("jawOpen"), low, 1] = -0.3
    angle = np.linspace(0, 2 * np.pi, 68, endpoint=False)
    wanted = np.stack([0.7 * np.cos(angle), 0.7 * np.sin(angle), np.full(68, 0.7)], 1)
    wanted[36:48] = [[-0.3, 0.2, 0.9]] * 6 + [[0.3, 0.2, 0.9]] * 6
    around = 3.4 * angle[:20]
    wanted[48:68] = np.stack([0.25 * np.cos(around), 0.1 * np.sin(around) - 0.4, np.full(20, 0.9)], 1)
    landmarks = np.linalg.norm(vertices[None] - wanted[:, None], axis=-1).argmin(1)
    return Avatar(
        name="ball",
        kind="stylised",
        vertices=vertices,
        faces=np.array(faces, np.int32),
        colors=np.full_like(vertices, 0.5),
        gloss=np.full(len(vertices), 0.2, np.float32),
        part=np.full(len(faces), Part.SKIN, np.uint8),
        morphs=morphs,
        landmarks=landmarks.astype(np.int32),
        head_mask=np.ones(len(vertices), np.float32),
    )
