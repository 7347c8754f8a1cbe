"""The face's topology: one triangulation that all procedural heads share.

The skin is drawn flat: `X` runs from the middle of the face (0) round the left side to the back of the
head (`BACK`), `y` from the neck up. Rings of vertices surround the mouth and the eye; between them points
are spread with a density that falls towards the back, and a Delaunay triangulation joins them. Only the
subject's left half (positive X) is made; the right half is its mirror image.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import Delaunay

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

RADIUS = 0.85
BACK = float(np.pi * RADIUS)
BOTTOM, TOP = -1.45, 1.38
MOUTH_Y, EYE_X, EYE_Y = -0.68, 0.325, 0.0
MOUTH_STEPS = 8
"""Ring vertices from the middle of the upper lip to the corner; as many again to the lower middle."""
MOUTH_RINGS = 8
EYE_STEPS = 20
EYE_RINGS = 6


@dataclass(frozen=True)
class Grid:
    """Vertices of the whole skin with what each of them is.

    Attributes:
        flat: (N, 2) place (|X|, y) in the flat drawing.
        side: (N,) +1 subject's left, -1 right, 0 on the middle line.
        faces: (F, 3) counter-clockwise seen from outside.
        mouth: (N, 2) ring and step (0 upper middle, `MOUTH_STEPS` corner) or -1.
        eye: (N, 2) ring and step (0 outer corner, counter-clockwise on the left eye) or -1.
        landmarks: (68,) vertex indices.
        bottom: indices round the neck's rim, from the front middle over the left to the back and on.
        pole: index of the crown.
        twin: (N,) index of the mirrored vertex.
    """

    flat: Array
    side: Array
    faces: Ints
    mouth: Ints
    eye: Ints
    landmarks: Ints
    bottom: Ints
    pole: int
    twin: Ints


def mouth_ring(ring: int, half_width: float = 0.26, upper: float = 0.075, lower: float = 0.09) -> Array:
    """(2 * MOUTH_STEPS + 1, 2) flat places of one ring round the mouth's left half."""
    step = np.arange(2 * MOUTH_STEPS + 1)
    angle = np.pi * step / (2 * MOUTH_STEPS)
    across = np.sin(angle) ** 0.92
    is_upper = step < MOUTH_STEPS
    sign = np.where(is_upper, 1.0, -1.0) * (step != MOUTH_STEPS)
    dome = np.clip(1 - across**2, 0, 1)
    bow = dome**0.85 * (1 - 0.2 * np.exp(-((across / 0.13) ** 2)) + 0.05 * np.exp(-(((across - 0.25) / 0.15) ** 2)))
    border = np.where(is_upper, upper * bow, lower * dome**0.75)
    shapes = {
        0: (half_width * 0.94 * across, sign * 0.05 * dome),
        1: (half_width * 0.985 * across, sign * 0.0 * dome),
        2: (half_width * 0.992 * across, sign * border * 0.33),
        3: (half_width * across, sign * border * 0.7),
        4: ((half_width + 0.008) * across, sign * border),
    }
    if ring in shapes:
        x, y = shapes[ring]
        return np.stack([x, MOUTH_Y + y], -1)
    outer = np.stack([0.43 * np.sin(angle), MOUTH_Y + np.where(is_upper, 0.155, 0.235) * np.cos(angle)], -1)
    border_x, border_y = shapes[4]
    inner = np.stack([border_x, MOUTH_Y + border_y], -1)
    return inner + (outer - inner) * {5: 0.2, 6: 0.55, 7: 1.0}[ring]


def eye_ring(
    ring: int, half_width: float = 0.15, upper: float = 0.07, lower: float = 0.05, tilt: float = 0.01
) -> Array:
    """(EYE_STEPS, 2) flat places of one ring round the left eye."""
    angle = 2 * np.pi * np.arange(EYE_STEPS) / EYE_STEPS
    cosine, sine = np.cos(angle), np.sin(angle)
    height = np.where(sine > 0, upper, lower)
    lid = np.stack([half_width * cosine, height * np.sign(sine) * np.abs(sine) ** 1.15 + tilt * cosine], -1)
    outer = np.stack([0.255 * cosine, 0.03 + 0.195 * sine], -1)
    crease = lid + np.stack([0.02 * cosine, np.where(sine > 0, 0.05, 0.045) * sine], -1)
    shapes = {0: lid * 0.97, 1: lid, 2: lid + (crease - lid) * 0.4, 3: crease, 4: (crease + outer) / 2, 5: outer}
    return shapes[ring] + np.array([EYE_X, EYE_Y])


JAW_LINE = (
    (1.17, 0.02), (1.13, -0.17), (1.08, -0.36), (1.0, -0.55), (0.885, -0.73), (0.74, -0.87), (0.555, -0.98),
    (0.30, -1.06), (0.0, -1.085),
)  # fmt: skip
BROW_LINE = ((0.095, 0.2), (0.19, 0.235), (0.3, 0.25), (0.41, 0.235), (0.51, 0.19))
NOSE_BRIDGE = ((0.0, 0.0), (0.0, -0.12), (0.0, -0.24), (0.0, -0.355))
NOSE_BASE = ((0.0, -0.468), (0.075, -0.462), (0.15, -0.445))
NOSE_DETAIL = (
    (0.0, 0.09), (0.0, -0.06), (0.0, -0.18), (0.0, -0.3), (0.0, -0.405), (0.0, -0.44), (0.045, 0.0), (0.05, -0.08),
    (0.05, -0.16), (0.05, -0.24), (0.05, -0.31), (0.05, -0.37), (0.045, -0.42), (0.035, -0.455), (0.085, -0.425),
    (0.11, -0.07), (0.1, -0.15), (0.1, -0.23), (0.1, -0.3), (0.1, -0.355), (0.1, -0.4), (0.145, -0.35), (0.15, -0.4),
    (0.115, -0.458), (0.185, -0.365), (0.19, -0.43), (0.165, -0.27), (0.165, -0.19), (0.0, -0.495), (0.09, -0.5),
    (0.1, 0.04), (0.06, 0.1), (0.2, -0.48),
)  # fmt: skip


@cache
def face_grid() -> Grid:
    """The shared topology (computed once)."""
    mouth_rings = [mouth_ring(ring, 0.26, 0.075, 0.09) for ring in range(MOUTH_RINGS)]
    eye_rings = [eye_ring(ring) for ring in range(EYE_RINGS)]
    mouth_steps = 2 * MOUTH_STEPS + 1
    flat = np.concatenate([*mouth_rings, *eye_rings])
    n_mouth, n_eye = MOUTH_RINGS * mouth_steps, EYE_RINGS * EYE_STEPS
    mouth = np.full((n_mouth + n_eye, 2), -1)
    eye = mouth.copy()
    mouth[:n_mouth] = np.stack(np.divmod(np.arange(n_mouth), mouth_steps), -1)
    eye[n_mouth:] = np.stack(np.divmod(np.arange(n_eye), EYE_STEPS), -1)

    faces: list[tuple[int, int, int]] = []
    for ring in range(MOUTH_RINGS - 1):
        for step in range(mouth_steps - 1):
            a, b = ring * mouth_steps + step, ring * mouth_steps + step + 1
            c, d = a + mouth_steps, b + mouth_steps
            # steps run clockwise; the diagonal follows the lip's flow away from the corner
            faces += [(a, b, c), (b, d, c)] if step < MOUTH_STEPS else [(a, b, d), (a, d, c)]
    for ring in range(EYE_RINGS - 1):
        for step in range(EYE_STEPS):
            a = n_mouth + ring * EYE_STEPS + step
            b = n_mouth + ring * EYE_STEPS + (step + 1) % EYE_STEPS
            c, d = a + EYE_STEPS, b + EYE_STEPS
            faces += [(a, c, b), (b, c, d)]

    mouth_outer, eye_outer = mouth_rings[-1], eye_rings[-1]
    loose = _loose_points(mouth_outer, eye_outer)
    joined = np.concatenate([mouth_outer, eye_outer, loose])
    index = np.concatenate(
        [
            np.arange(n_mouth - mouth_steps, n_mouth),
            np.arange(n_mouth + n_eye - EYE_STEPS, n_mouth + n_eye),
            n_mouth + n_eye + np.arange(len(loose)),
        ]
    )
    triangles = Delaunay(joined).simplices
    centres = joined[triangles].mean(1)
    outside = ~(_inside(centres, mouth_outer) | _inside(centres, eye_outer))
    for triangle in triangles[outside]:
        a, b, c = joined[triangle]
        area = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
        if abs(area) > 1e-9:
            faces.append(tuple(index[triangle if area > 0 else triangle[::-1]]))
    flat = np.concatenate([flat, loose])
    rest = np.full((len(loose), 2), -1)
    return _mirrored(flat, np.asarray(faces), np.concatenate([mouth, rest]), np.concatenate([eye, rest]))


def _loose_points(mouth_outer: Array, eye_outer: Array) -> Array:
    """Landmarks, nose and filler between the rings, no two too close."""
    rows = [BOTTOM, -1.3, -1.2, -1.135, -1.0, -0.945, 0.2, 0.3, 0.42, 0.55, 0.7, 0.9, 1.15, TOP]
    fixed = [*JAW_LINE, *BROW_LINE, *NOSE_BRIDGE, *NOSE_BASE, *NOSE_DETAIL]
    fixed += [(0.0, y) for y in rows]
    fixed += [(BACK, y) for y in (BOTTOM, -1.2, -0.95, -0.65, -0.35, -0.05, 0.25, 0.55, 0.85, 1.15, TOP)]
    fixed += [(x, BOTTOM) for x in np.linspace(0, BACK, 9)[1:-1]] + [(x, TOP) for x in np.linspace(0, BACK, 9)[1:-1]]
    chosen = [np.array(point) for point in fixed]
    rings = np.concatenate([mouth_outer, eye_outer])
    for y in np.arange(BOTTOM + 0.1, TOP - 0.1, 0.0525):
        for x in np.arange(0.05, BACK - 0.1, 0.05):
            point = np.array([x, y])
            spacing = 0.085 + 0.1 * np.clip((x - 0.5) / 0.5, 0, 1) + 0.12 * np.clip((x - 1.15) / 0.6, 0, 1)
            spacing += 0.09 * np.clip((y - 0.45) / 0.6, 0, 1) + 0.1 * (y < -1.15)
            if _inside(point[None], mouth_outer)[0] or _inside(point[None], eye_outer)[0]:
                continue
            if np.linalg.norm(rings - point, axis=1).min() < 0.65 * spacing:
                continue
            if np.linalg.norm(np.array(chosen) - point, axis=1).min() >= spacing:
                chosen.append(point)
    points = np.array(chosen)
    clear = np.linalg.norm(points[:, None] - rings[None], axis=-1).min(1) > 0.018
    clear &= ~(_inside(points, mouth_outer) | _inside(points, eye_outer))
    clear[: len(JAW_LINE) + len(BROW_LINE) + len(NOSE_BRIDGE) + len(NOSE_BASE)] = True
    return points[clear]


def _inside(points: Array, polygon: Array) -> NDArray[np.bool_]:
    """Even-odd test of (N, 2) points against a closed polygon (M, 2)."""
    x, y = points[:, 0, None], points[:, 1, None]
    (x0, y0), (x1, y1) = polygon.T, np.roll(polygon, -1, 0).T
    crosses = (y0 > y) != (y1 > y)
    at = x0 + (y - y0) * (x1 - x0) / np.where(y1 == y0, 1.0, y1 - y0)
    return np.asarray((crosses & (x < at)).sum(1) % 2 == 1)


def _mirrored(flat: Array, faces: Ints, mouth: Ints, eye: Ints) -> Grid:
    """Both halves as one mesh, closed at the crown, with landmarks."""
    n = len(flat)
    middle = (np.abs(flat[:, 0]) < 1e-9) | (np.abs(flat[:, 0] - BACK) < 1e-9)
    other = np.arange(n)
    other[~middle] = n + np.arange(int((~middle).sum()))
    flat2 = np.concatenate([flat, flat[~middle], [[0.0, TOP + 0.1]]])
    pole = len(flat2) - 1
    side = np.concatenate([np.where(middle, 0.0, 1.0), -np.ones(int((~middle).sum())), [0.0]])
    twin = np.arange(len(flat2))
    twin[:n] = other
    twin[other] = np.arange(n)
    all_faces = [*faces, *other[faces][:, ::-1]]
    for y, target in ((TOP, "pole"), (BOTTOM, "bottom")):
        row = np.flatnonzero(np.abs(flat[:, 1] - y) < 1e-9)
        row = row[np.argsort(flat[row, 0])]
        loop = np.concatenate([row, other[row][::-1][1:-1]])
        if target == "pole":
            all_faces += [(a, b, pole) for a, b in zip(loop, np.roll(loop, -1), strict=True)]
        else:
            bottom = loop

    def at(place: tuple[float, float], left: bool) -> int:
        vertex = int(np.argmin(np.linalg.norm(flat - np.array(place), axis=1)))
        return vertex if left else int(other[vertex])

    def ring_vertex(kind: Ints, ring: int, step: int, left: bool) -> int:
        vertex = int(np.flatnonzero((kind[:, 0] == ring) & (kind[:, 1] == step))[0])
        return vertex if left else int(other[vertex])

    landmarks = [at(place, False) for place in JAW_LINE] + [at(place, True) for place in JAW_LINE[-2::-1]]
    landmarks += [at(place, False) for place in BROW_LINE[::-1]] + [at(place, True) for place in BROW_LINE]
    landmarks += [at(place, True) for place in NOSE_BRIDGE]
    landmarks += [at(place, False) for place in NOSE_BASE[:0:-1]] + [at(place, True) for place in NOSE_BASE]
    landmarks += [ring_vertex(eye, 1, step, False) for step in (0, 3, 7, 10, 13, 17)]
    landmarks += [ring_vertex(eye, 1, step, True) for step in (10, 7, 3, 0, 17, 13)]
    corner, low = MOUTH_STEPS, 2 * MOUTH_STEPS
    outer = [(corner, False), (4, False), (2, False), (0, True), (2, True), (4, True), (corner, True)]
    outer += [(low - 4, True), (low - 2, True), (low, True), (low - 2, False), (low - 4, False)]
    inner = [(corner, False), (3, False), (0, True), (3, True), (corner, True)]
    inner += [(low - 3, True), (low, True), (low - 3, False)]
    landmarks += [ring_vertex(mouth, 4, *place) for place in outer]
    landmarks += [ring_vertex(mouth, 1, *place) for place in inner]

    rest = np.full((1, 2), -1)
    return Grid(
        flat=flat2,
        side=side,
        faces=np.array(all_faces, dtype=np.int64),
        mouth=np.concatenate([mouth, mouth[~middle], rest]),
        eye=np.concatenate([eye, eye[~middle], rest]),
        landmarks=np.array(landmarks, dtype=np.int64),
        bottom=np.array(bottom, dtype=np.int64),
        pole=pole,
        twin=twin,
    )
