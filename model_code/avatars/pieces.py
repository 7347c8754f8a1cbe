"""Pieces of a mesh, and how they are joined."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_code.avatars.avatar import ARKIT_NAMES, Part
from model_code.avatars.params import Color

Array = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass
class Piece:
    """A part of the mesh: points (N, 3), faces (F, 3), colours (N, 3), gloss (N,), morphs (52, N, 3) or None."""

    points: Array
    faces: Ints
    colors: Array
    gloss: Array
    part: NDArray[np.uint8]
    morphs: Array | None = None
    head_mask: Array | None = None

    def mirrored(self) -> Piece:
        """The same on the other side; left and right shapes change places."""
        flip = np.array([-1.0, 1.0, 1.0])
        morphs = None
        if self.morphs is not None:
            order = [ARKIT_NAMES.index(_other_side(name)) for name in ARKIT_NAMES]
            morphs = self.morphs[order] * flip
        return Piece(
            self.points * flip, self.faces[:, ::-1], self.colors, self.gloss, self.part, morphs, self.head_mask
        )


def _other_side(name: str) -> str:
    if name.endswith("Left"):
        return name[:-4] + "Right"
    return name[:-5] + "Left" if name.endswith("Right") else name


def piece(points: Array, faces: Ints, color: Color | Array, part: Part, gloss: float | Array = 0.1) -> Piece:
    """A piece of one kind without morphs; `color` for all points or for each."""
    colors = np.broadcast_to(np.asarray(color, float), points.shape).copy()
    return Piece(
        points,
        faces,
        colors,
        np.broadcast_to(np.asarray(gloss, float), len(points)).copy(),
        np.full(len(faces), part, np.uint8),
    )


def sheet(rows: int, columns: int, closed: bool = False) -> Ints:
    """Faces (F, 3) of a grid of rows x columns vertices; `closed` joins the last column to the first.

    Seen with columns running to the right and rows running down, faces are counter-clockwise.
    """
    faces = []
    for row in range(rows - 1):
        for column in range(columns if closed else columns - 1):
            a, b = row * columns + column, row * columns + (column + 1) % columns
            faces += [(a, a + columns, b), (b, a + columns, b + columns)]
    return np.array(faces, dtype=np.int64)


def fan(pole: int, loop: Ints) -> Ints:
    """Faces (F, 3) from a pole to a closed counter-clockwise loop."""
    return np.array([(pole, a, b) for a, b in zip(loop, np.roll(loop, -1), strict=True)], dtype=np.int64)


def ball(centre: Array, radii: Array, rows: int = 6, columns: int = 10) -> tuple[Array, Ints]:
    """Points and faces of an ellipsoid."""
    height = np.cos(np.linspace(0, np.pi, rows + 2))[1:-1]
    around = 2 * np.pi * np.arange(columns) / columns
    ring = np.sqrt(1 - height**2)[:, None]
    points = np.stack(
        [ring * np.sin(around), np.broadcast_to(height[:, None], (rows, columns)), ring * np.cos(around)], -1
    )
    points = np.concatenate([points.reshape(-1, 3), [[0, 1, 0], [0, -1, 0]]]) * radii + centre
    count = rows * columns
    top, bottom = np.arange(columns), np.arange(count - columns, count)
    faces = np.concatenate([sheet(rows, columns, True), fan(count, top), fan(count + 1, bottom[::-1])])
    return points, faces


def tube(path: Array, radii: Array, columns: int = 6) -> tuple[Array, Ints]:
    """Points and faces of a closed tube along a path (N, 3) with a radius at each point."""
    tangent = np.gradient(path, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True) + 1e-9
    helper = np.where(np.abs(tangent[:, 1:2]) < 0.9, np.array([[0.0, 1.0, 0.0]]), np.array([[1.0, 0.0, 0.0]]))
    side = np.cross(tangent, helper)
    side /= np.linalg.norm(side, axis=1, keepdims=True) + 1e-9
    other = np.cross(tangent, side)
    around = 2 * np.pi * np.arange(columns) / columns
    rings = path[:, None] + radii[:, None, None] * (
        np.cos(around)[:, None] * side[:, None] + np.sin(around)[:, None] * other[:, None]
    )
    count = len(path) * columns
    points = np.concatenate([rings.reshape(-1, 3), path[:1], path[-1:]])
    first, last = np.arange(columns), np.arange(count - columns, count)
    faces = np.concatenate([sheet(len(path), columns, True)[:, ::-1], fan(count, first[::-1]), fan(count + 1, last)])
    return points, faces


def attach(points: Array, skin: Array, skin_morphs: Array, neighbours: int = 4) -> Array:
    """Morphs (52, N, 3) of points that move with the nearest vertices of the skin."""
    distance = np.linalg.norm(points[:, None] - skin[None], axis=-1)
    nearest = np.argpartition(distance, neighbours, axis=1)[:, :neighbours]
    weight = 1 / (np.take_along_axis(distance, nearest, 1) + 0.01) ** 2
    weight /= weight.sum(1, keepdims=True)
    return np.einsum("nk,mnkc->mnc", weight, skin_morphs[:, nearest])
