"""Eyes, mouth interior, brows, ears, torso and things worn: the pieces beside skin and hair."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from model_code.avatars.avatar import ARKIT_NAMES, Part
from model_code.avatars.grid import MOUTH_STEPS
from model_code.avatars.morphs import GAZE_ANGLE, INDEX, jaw_rotation
from model_code.avatars.paint import paint
from model_code.avatars.pieces import Piece, attach, ball, fan, piece, sheet, tube
from model_code.avatars.sculpt import Face, ramp, surface

Array = NDArray[np.float64]
BLINK_RETREAT = 0.2
"""A half closed lid, moved in a straight line, would cut the eyeball: it draws back by this share of its radius."""


def eyes(face: Face) -> list[Piece]:
    """Two eyeballs with iris, pupil and highlight."""
    params, ball_ = face.params, face.eyeball
    columns = 14
    iris = params.iris_size
    pupil = params.pupil_size
    angles = np.array([pupil, pupil + 0.05, (pupil + iris) / 2 + 0.02, iris, iris + 0.07, 0.95, 1.5])
    around = 2 * np.pi * np.arange(columns) / columns
    points = [np.array([[0.0, 0.0, 0.985]])]
    for angle in angles:
        radius = 0.985 if angle < iris + 0.02 else 1.0
        ring = np.stack(
            [np.sin(angle) * np.cos(around), np.sin(angle) * np.sin(around), np.full(columns, np.cos(angle))], -1
        )
        if params.slit_pupil and angle <= pupil + 0.05:
            ring[:, 0] *= 0.35
            ring[:, 1] *= 1.5
        points.append(ring * radius)
    local = np.concatenate(points)
    faces = np.concatenate([fan(0, np.arange(1, columns + 1)), sheet(len(angles), columns, True) + 1])
    colors = np.zeros((len(local), 3))
    iris_color, sclera = np.array(params.iris), np.array(params.sclera)
    bands = [
        np.zeros(3) + 0.004,
        iris_color * 0.75,
        iris_color * 1.45,
        iris_color * 0.3,
        sclera * 0.94,
        sclera,
        sclera * 0.75,
    ]
    colors[0] = 0.004
    for index, band in enumerate(bands):
        rows = slice(1 + index * columns, 1 + (index + 1) * columns)
        colors[rows] = band
    eyeball = piece(local * ball_.radius + ball_.centre, faces, np.clip(colors, 0, 1), Part.EYE, 0.85)
    morphs = np.zeros((len(ARKIT_NAMES), len(local), 3))
    for name, (yaw, pitch) in {"Up": (0, -0.8), "Down": (0, 0.8), "In": (-1, 0), "Out": (1, 0)}.items():
        turn, nod = yaw * GAZE_ANGLE, pitch * GAZE_ANGLE
        x, y, z = local.T
        y, z = y * np.cos(nod) - z * np.sin(nod), y * np.sin(nod) + z * np.cos(nod)
        x, z = x * np.cos(turn) + z * np.sin(turn), -x * np.sin(turn) + z * np.cos(turn)
        morphs[INDEX[f"eyeLook{name}Left"]] = (np.stack([x, y, z], -1) - local) * ball_.radius
    morphs[INDEX["eyeBlinkLeft"], :, 2] = -BLINK_RETREAT * ball_.radius
    eyeball.morphs = morphs
    right = eyeball.mirrored()
    return [eyeball, right, _highlight(face, 1.0), _highlight(face, -1.0)]


def _highlight(face: Face, side: float) -> Piece:
    """A small bright disc on the wet eye, on the same side of both eyes."""
    around = 2 * np.pi * np.arange(6) / 6
    size = 0.15 * max(face.params.iris_size / 0.46, 0.8)
    x = np.concatenate([[0], size * 0.6 * np.cos(around)]) + 0.2 * side
    y = np.concatenate([[0], size * 0.6 * np.sin(around)]) + 0.2
    local = np.stack([x, y, np.sqrt(np.maximum(1 - x**2 - y**2, 0))], -1)
    centre = face.eyeball.centre
    points = local * (face.eyeball.radius * 1.012) + centre
    result = piece(points, fan(0, np.arange(1, 7)), (0.95, 0.95, 0.95), Part.EYE, 0.9)
    result.morphs = np.zeros((len(ARKIT_NAMES), len(points), 3))
    blink = INDEX["eyeBlinkLeft" if side > 0 else "eyeBlinkRight"]
    result.morphs[blink, :, 2] = -2 * BLINK_RETREAT * face.eyeball.radius
    if side < 0:
        result.points = result.points * np.array([-1.0, 1, 1])
        result.faces = result.faces[:, ::-1]
    return result


def mouth_interior(face: Face, skin_morphs: Array) -> list[Piece]:
    """Dark cavity, two rows of teeth, tongue."""
    return [_cavity(face, skin_morphs), _teeth(face, True), _teeth(face, False), _tongue(face)]


def _mouth_frame(face: Face) -> tuple[float, float, float]:
    """Half width, height and depth of the closed lips' inner line."""
    points = face.points[face.grid.landmarks]
    return float(points[54, 0]), float(points[62, 1]), float(points[62, 2])


def _cavity(face: Face, skin_morphs: Array) -> Piece:
    grid = face.grid
    _, y0, z0 = _mouth_frame(face)
    rows = np.flatnonzero(grid.mouth[:, 0] == 0)
    left = rows[grid.side[rows] >= 0]
    left = left[np.argsort(grid.mouth[left, 1])]
    loop = np.concatenate([left, grid.twin[left][::-1][1:-1]])
    count = len(loop)
    rim = face.points[loop]
    # behind the skin round the lips, so that no shape pushes it through
    outer = np.array([_same_place(grid.mouth, grid.side, 6, vertex) for vertex in loop])
    behind = face.points[outer] - np.array([0.0, 0.0, 0.13])
    deep = (behind - [0, y0, z0]) * np.array([0.8, 0.8, 1.0]) + np.array([0.0, y0, z0 - 0.28])
    points = np.concatenate([rim, behind, deep, [[0, y0, z0 - 0.6]]])
    faces = np.concatenate([sheet(3, count, True)[:, ::-1], fan(3 * count, np.arange(2 * count, 3 * count)[::-1])])
    colors = np.zeros((len(points), 3)) + np.array([0.10, 0.018, 0.018])
    colors[:count] = np.array(face.params.lips) * 0.45
    colors[2 * count :] = 0.012, 0.003, 0.003
    result = piece(points, faces, colors, Part.CAVITY, 0.3)
    weight = ramp(np.concatenate([np.tile(grid.mouth[loop, 1] / (2 * MOUTH_STEPS), 3), [0.5]]), 0.2, 0.8)
    morphs = np.zeros((len(ARKIT_NAMES), len(points), 3))
    morphs[:, :count] = skin_morphs[:, loop]
    morphs[:, count : 2 * count] = skin_morphs[:, outer]
    morphs[:, 2 * count : 3 * count] = 0.4 * skin_morphs[:, outer]
    morphs[INDEX["jawOpen"], 2 * count :] = jaw_rotation(points[2 * count :], face, weight[2 * count :] * 0.9)
    result.morphs = morphs
    return result


def _same_place(mouth: NDArray[np.int64], side: Array, ring: int, vertex: int) -> int:
    """The vertex of another ring of the mouth at the same step and side."""
    found = (mouth[:, 0] == ring) & (mouth[:, 1] == mouth[vertex, 1]) & (side == side[vertex])
    return int(np.flatnonzero(found)[0])


def _jaw_morphs(face: Face, points: Array) -> Array:
    """Morphs of a rigid piece on the lower jaw."""
    morphs = np.zeros((len(ARKIT_NAMES), len(points), 3))
    morphs[INDEX["jawOpen"]] = jaw_rotation(points, face)
    morphs[INDEX["jawForward"], :, 2] = 0.1
    morphs[INDEX["jawLeft"], :, 0] = 0.1
    morphs[INDEX["jawRight"], :, 0] = -0.1
    return morphs


def _teeth(face: Face, upper: bool) -> Piece:
    half, y0, z0 = _mouth_frame(face)
    count = 10
    sharp = face.params.species in ("cat", "dog", "wolf", "reptile", "fox", "bear", "lion")
    at = np.linspace(-1, 1, 3 * count + 1)
    gap = np.arange(3 * count + 1) % 3 == 0
    snout = float(face.params.muzzle > 0)
    reach = half * (0.88 if upper else 0.8) * (1 - 0.15 * snout)
    x = reach * np.sin(at * np.pi / 2 * 0.95)
    bow = 0.26 * np.abs(at) ** 2.2
    front = z0 - (0.055 if upper else 0.075) - 0.04 * snout - bow * (1 + 0.3 * snout)
    heights = (0.11, 0.05, -0.03) if upper else (-0.12 + 0.035 * snout, -0.07 + 0.01 * snout, -0.018)
    canine = np.abs(np.abs(at) - 0.5) < 0.09 if sharp else np.zeros(len(at), bool)
    rows, colors = [], []
    tooth, gum = np.array(face.params.teeth), np.array([0.42, 0.13, 0.13])
    for row, height in enumerate(heights):
        y = np.full(len(at), y0 + height)
        if row == 2:
            y = np.where(gap, y + (0.014 if upper else -0.012), y)
            y = y + np.where(canine & ~gap, -0.045 if upper else 0.04, 0.0) + 0.01 * at**2
        z = front - np.where(gap, 0.01, 0.0) - (0.05 + 0.07 * snout if row == 0 else 0.0)
        rows.append(np.stack([x, y, z], -1))
        fade = (1 - 0.55 * np.abs(at) ** 2)[:, None]
        shade = np.where(gap[:, None], 0.6, 1.0) * tooth * fade
        colors.append(np.broadcast_to(gum * fade, shade.shape) if row == 0 else shade)
    points = np.concatenate(rows)
    faces = sheet(3, len(at)) if upper else sheet(3, len(at))[:, ::-1]
    result = piece(points, faces, np.concatenate(colors), Part.TEETH, 0.6)
    morphs = np.zeros((len(ARKIT_NAMES), len(points), 3)) if upper else _jaw_morphs(face, points)
    # rounded lips would cut through the outer teeth, which they hide anyway
    for name, share in (("mouthPucker", 0.3), ("mouthFunnel", 0.15)):
        morphs[INDEX[name], :, 0] -= share * points[:, 0]
        morphs[INDEX[name], :, 2] -= 0.1 * share
    result.morphs = morphs
    return result


def _tongue(face: Face) -> Piece:
    half, y0, z0 = _mouth_frame(face)
    rows, columns = 6, 7
    along, across = np.linspace(0, 1, rows), np.linspace(-1, 1, columns)
    grid_along, grid_across = np.meshgrid(along, across, indexing="ij")
    width = half * 0.62 * np.sqrt(np.clip(1 - 0.9 * grid_along**6, 0, 1))
    x = width * grid_across
    z = z0 - 0.5 - 0.12 * float(face.params.muzzle > 0) + 0.36 * grid_along - 0.05 * grid_across**2 * grid_along
    y = y0 - 0.09 + 0.045 * np.sin(np.pi * np.clip(grid_along, 0, 1)) - 0.04 * grid_across**2
    y -= 0.018 * np.exp(-((grid_across / 0.25) ** 2)) + 0.05 * grid_along**6
    points = np.stack([x, y, z], -1).reshape(-1, 3)
    faces = sheet(rows, columns)
    color = np.array(face.params.tongue)[None] * (0.55 + 0.45 * grid_along.reshape(-1, 1))
    result = piece(points, faces, color, Part.TONGUE, 0.5)
    morphs = _jaw_morphs(face, points)
    out = np.zeros_like(points)
    stretch = grid_along.reshape(-1)
    out[:, 2] = (0.42 + 0.12 * float(face.params.muzzle > 0)) * stretch
    out[:, 1] = 0.075 * stretch - 0.1 * stretch**4
    morphs[INDEX["tongueOut"]] = out
    morphs[INDEX["jawOpen"]] = jaw_rotation(points, face, 0.85)
    result.morphs = morphs
    return result


def brows(face: Face, skin_morphs: Array) -> list[Piece]:
    """Two strips that follow the brow ridge."""
    params = face.params
    if not params.brows:
        return []
    columns = 9
    t = np.linspace(0, 1, columns)
    middle_x = 0.105 + 0.42 * t
    middle_y = 0.205 + params.brow_height + params.brow_arch * np.sin(np.pi * t**1.3) * 2.0 - 0.035 * t**2
    thick = params.brow_thickness * (0.65 + 0.6 * np.sin(np.pi * np.clip(t + 0.18, 0, 1))) * (1 - 0.65 * t**3)
    rows, heights = [], (1.0, 0.25, -0.6, -1.0)
    for height, lift in zip(heights, (-0.012, 0.018, 0.02, -0.012), strict=True):
        flat = np.stack([middle_x, middle_y + height * thick], -1)
        points = surface(flat, params)
        points[:, 2] += lift
        rows.append(points)
    points = np.concatenate(rows)
    shade = np.concatenate([np.full(columns, value) for value in (1.1, 1.0, 0.85, 1.0)])[:, None]
    result = piece(points, sheet(4, columns), np.clip(np.array(params.brow_color) * shade, 0, 1), Part.BROW, 0.1)
    result.morphs = attach(points, face.points, skin_morphs, 4)
    return [result, result.mirrored()]


def ears(face: Face) -> list[Piece]:
    """Two ears of the kind that the species has."""
    params = face.params
    if params.ears == "none":
        return []
    color = np.array(params.ear_color or params.skin)
    inner = color * np.array([0.62, 0.5, 0.48])
    if params.ears == "human" or params.ears == "pointed":
        result = _human_ear(face, color, inner)
    elif params.ears == "disc":
        centre = np.array([0.66 * params.width, 0.0, -0.02])
        points, faces = ball(centre, np.array([0.12, 0.2, 0.2]) * params.ear_size, 4, 10)
        result = piece(points, faces, color, Part.ACCESSORY, 0.8)
    else:
        result = _animal_ear(face, color, inner)
    return [result, result.mirrored()]


def _human_ear(face: Face, color: Array, inner: Array) -> Piece:
    params = face.params
    columns = 12
    around = 2 * np.pi * np.arange(columns) / columns
    back, up = np.cos(around), np.sin(around)
    size = params.ear_size
    egg = 1 + 0.14 * up
    point = 1 + (0.55 * np.clip(up, 0, 1) ** 6 if params.ears == "pointed" else 0.0)
    rings = ((1.0, -0.05, 0.85), (1.06, 0.06, 1.0), (0.92, 0.115, 1.1), (0.72, 0.07, 0.72), (0.4, 0.025, 0.5))
    points, colors = [], []
    for radius, out, shade in rings:
        across = 0.115 * radius * back * egg * size
        height = (0.205 * radius * up * point - 0.02 * (up < -0.7)) * size
        flare = out * size + 0.06 * np.clip(back, -0.2, 1) * (radius > 0.6)
        if radius < 1.05 and out > 0.1:
            flare = flare - 0.07 * np.clip(-back, 0, 1)
        points.append(np.stack([flare, height, -across], -1))
        mix = np.clip(shade, 0, 1)
        colors.append(np.tile(color * mix + inner * (1 - mix) if shade < 1 else color * min(shade, 1.05), (columns, 1)))
    points.append(np.array([[0.0, -0.01, 0.0]]))
    colors.append(inner[None] * 0.5)
    local = np.concatenate(points)
    faces = np.concatenate(
        [
            sheet(len(rings), columns, True),
            fan(columns * len(rings), np.arange(columns * (len(rings) - 1), columns * len(rings))),
        ]
    )
    if _normal_x(local, faces) < 0:
        faces = faces[:, ::-1]
    anchor = surface(np.array([[1.37, -0.1]]), params)[0]
    return piece(
        local + anchor + np.array([-0.015, 0, 0]), faces, np.clip(np.concatenate(colors), 0, 1), Part.SKIN, params.gloss
    )


def _normal_x(points: Array, faces: NDArray[np.int64]) -> float:
    a, b, c = (points[faces[:, corner]] for corner in range(3))
    return float(np.cross(b - a, c - a)[:, 0].sum())


def _animal_ear(face: Face, color: Array, inner: Array) -> Piece:
    params = face.params
    shapes = {  # half width, length, roundness, sideways lean, base angle (x, y)
        "cat": (0.33, 0.62, 1.0, 0.38, 0.44), "fox": (0.32, 0.78, 1.0, 0.3, 0.42), "bear": (0.27, 0.42, 0.4, 0.6, 0.5),
        "mouse": (0.5, 0.75, 0.45, 0.7, 0.42), "rabbit": (0.2, 1.15, 0.55, 0.2, 0.26),
        "dog": (0.27, 0.85, 0.6, 2.35, 0.5),
    }  # fmt: skip
    width, length, roundness, lean, base_x = shapes[params.ears]
    rows, columns = 6, 5
    t, s = np.meshgrid(np.linspace(0, 1, rows), np.linspace(-1, 1, columns), indexing="ij")
    outline = width * (
        (1 - t) if roundness >= 1 else np.sqrt(np.clip(1 - t ** (2.4 / roundness), 0, 1)) * (0.75 + 0.5 * t * (1 - t))
    )
    outline = np.maximum(outline, 0.012) * params.ear_size
    layers = []
    for forward in (1.0, -1.0):
        x = outline * s
        up = length * params.ear_size * t
        z = forward * (0.02 - 0.09 * (1 - s**2) * (1 - t) * (1.0 if forward > 0 else 1.6))
        layers.append(np.stack([x, up, z], -1).reshape(-1, 3))
    if params.ears == "dog":
        for layer in layers:
            layer[:, 2] += 0.08 * np.sin(layer[:, 1] / length * np.pi)
    turned = []
    for layer in layers:
        x, y, z = layer.T
        turned.append(np.stack([x * np.cos(lean) + y * np.sin(lean), y * np.cos(lean) - x * np.sin(lean), z], -1))
    anchor = np.array([base_x * params.width, 0.82 * params.skull, 0.05])
    if params.ears == "dog":
        anchor = np.array([0.58 * params.width, 0.72 * params.skull, 0.12])
    faces = sheet(rows, columns)[:, ::-1]
    count = rows * columns
    rim = np.concatenate([np.arange(0, count, columns), np.arange(count - 1, 0, -columns)])
    band = [(a, b, a + count, b + count) for a, b in itertools.pairwise(rim)]
    sides = np.array([f for a, b, c, d in band for f in ((a, c, b), (b, c, d))])
    local = np.concatenate(turned)
    centre_color = np.clip(inner * 1.3, 0, 1)
    weight = ((1 - s**2) * np.clip(1.3 - t, 0, 1)).reshape(-1, 1)
    colors = np.concatenate([color * (1 - weight) + centre_color * weight, np.tile(color, (count, 1))])
    faces = np.concatenate([faces, faces[:, ::-1] + count, sides])
    return piece(local + anchor, faces, np.clip(colors, 0, 1), Part.SKIN, 0.05)


def torso(face: Face) -> list[Piece]:
    """Neck, shoulders and what covers them."""
    params = face.params
    rim = face.points[face.grid.bottom]
    count = len(rim)
    angle = np.arctan2(rim[:, 0], rim[:, 2] + 0.15)
    skin_rows = [rim]
    ring = rim.copy()
    ring[:, :2] *= np.array([1.02, 1.0])
    ring[:, 1] -= 0.17
    ring[:, 2] += 0.03
    skin_rows.append(ring)
    base = np.stack([0.6 * np.sin(angle), np.full(count, -1.76), 0.5 * np.cos(angle) - 0.12], -1)
    skin_rows.append(base)
    rim_colors = paint(face)[0][face.grid.bottom]
    skin = piece(
        np.concatenate(skin_rows), sheet(3, count, True), np.tile(rim_colors, (3, 1)), Part.SKIN, params.gloss * 0.6
    )
    skin.head_mask = np.repeat([1.0, 0.55, 0.0], count)
    columns = 28
    around = 2 * np.pi * np.arange(columns) / columns
    sine, cosine = np.sin(around), np.cos(around)
    low = {"shirt": -1.49, "tee": -1.57, "hoodie": -1.4, "dress": -1.66, "suit": -1.5, "armour": -1.46}[params.clothes]
    dip = {"shirt": 0.16, "tee": 0.05, "hoodie": 0.1, "dress": 0.22, "suit": 0.34, "armour": 0.0}[params.clothes]
    rows = []
    for width, depth, y, shift in (
        (0.5, 0.43, low - 0.03, -0.12), (0.54, 0.47, low, -0.12), (0.62, 0.54, low - 0.06, -0.12),
        (0.98, 0.6, -1.73, -0.14),
        (1.36, 0.64, -1.86, -0.16), (1.58, 0.68, -2.15, -0.16), (1.62, 0.74, -2.75, -0.14),
    ):  # fmt: skip
        squash = np.abs(sine) ** 1.2 if width > 0.9 else np.abs(sine)
        y_row = np.full(columns, y) - dip * np.clip(cosine, 0, 1) ** 4 * (width < 0.65)
        if width > 0.9:
            y_row -= 0.12 * (1 - np.abs(sine)) * (y > -2.0)
        rows.append(np.stack([width * np.sign(sine) * squash, y_row, depth * cosine + shift], -1))
    points = np.concatenate(rows)
    colors = np.tile(np.array(params.cloth_color), (len(points), 1))
    second = np.array(params.cloth_second)
    colors[: 2 * columns] = (
        second if params.clothes in ("shirt", "suit", "tee", "armour") else np.array(params.cloth_color) * 0.8
    )
    row_of = np.repeat(np.arange(len(rows)), columns)
    if params.clothes in ("tee", "hoodie") and params.seed % 2:
        colors[row_of == 5] = second
    wrap = piece(
        points,
        sheet(len(rows), columns, True),
        np.clip(colors, 0, 1),
        Part.CLOTH,
        0.5 if params.clothes == "armour" else 0.05,
    )
    wrap.head_mask = np.zeros(len(points))
    return [skin, wrap]


def worn(face: Face) -> list[Piece]:
    """Glasses, antennae and the like; they follow the head, not the face."""
    params = face.params
    if params.worn == "glasses":
        return _glasses(face)
    pieces = _antennae(face) if params.worn == "antennae" else []
    if params.species == "robot":
        pieces += _eye_rims(face)
    if params.muzzle > 0 and params.species != "reptile":
        pieces.append(_nose_pad(face))
    return pieces


def _glasses(face: Face) -> list[Piece]:
    params, eyeball = face.params, face.eyeball
    pieces = []
    around = np.linspace(0, 2 * np.pi, 13)
    squareness = 0.75 if params.seed % 3 else 1.0
    wide = max(0.215, params.eye_width * params.eye_area * 1.3)
    front = face.points[:, 2][(face.grid.eye[:, 0] >= 0) & (np.abs(face.points[:, 0]) < 0.5)].max()
    ring = np.stack(
        [
            eyeball.centre[0] + wide * np.sign(np.cos(around)) * np.abs(np.cos(around)) ** squareness,
            eyeball.centre[1] - 0.03 + wide * 0.8 * np.sign(np.sin(around)) * np.abs(np.sin(around)) ** squareness,
            np.full(13, front + 0.05) - 0.1 * np.clip(np.cos(around), 0, 1) ** 2,
        ],
        -1,
    )
    side = np.array(
        [
            [ring[0, 0], ring[0, 1] + 0.06, ring[0, 2]],
            [0.66 * params.width, 0.03, 0.25],
            [0.7 * params.width, 0.0, -0.1],
        ]
    )
    bridge = np.array(
        [
            [ring[6, 0], ring[6, 1] + 0.05, ring[6, 2]],
            [0, ring[6, 1] + 0.09, front + 0.08],
            [-ring[6, 0], ring[6, 1] + 0.05, ring[6, 2]],
        ]
    )
    for path, thick in ((ring, 0.017), (side, 0.016)):
        points, faces = tube(path, np.full(len(path), thick), 4)
        half = piece(points, faces, params.worn_color, Part.ACCESSORY, 0.6)
        pieces += [half, half.mirrored()]
    points, faces = tube(bridge, np.full(3, 0.016), 4)
    return [*pieces, piece(points, faces, params.worn_color, Part.ACCESSORY, 0.6)]


def _eye_rims(face: Face) -> list[Piece]:
    """Rings round a robot's eyes."""
    params = face.params
    rows = face.grid.eye[:, 0] == 3
    rows &= face.grid.side > 0
    order = np.argsort(face.grid.eye[rows, 1])
    loop = face.points[rows][order]
    path = np.concatenate([loop, loop[:2]])
    path[:, 2] = path[:, 2] * 0.5 + path[:, 2].max() * 0.5
    points, faces = tube(path, np.full(len(path), 0.028), 5)
    rim = piece(points, faces, np.array(params.skin) * 0.35, Part.ACCESSORY, 0.8)
    return [rim, rim.mirrored()]


def _nose_pad(face: Face) -> Piece:
    """An animal's dark wet nose."""
    params = face.params
    tip = face.points[face.grid.landmarks[30]]
    size = np.array([0.13, 0.085, 0.07]) * params.nose_width
    points, faces = ball(np.zeros(3), size, 5, 10)
    points[:, 0] *= 1 + 0.45 * points[:, 1] / size[1]
    color = (0.35, 0.13, 0.13) if params.seed % 3 == 0 else (0.012, 0.01, 0.01)
    return piece(points + tip + np.array([0.0, -0.01, -0.01]), faces, color, Part.ACCESSORY, 0.8)


def _antennae(face: Face) -> list[Piece]:
    params = face.params
    top = 1.08 * params.skull
    path = np.array([[0.22, top - 0.12, 0.1], [0.3, top + 0.18, 0.14], [0.42, top + 0.4, 0.2]])
    stem, stem_faces = tube(path, np.array([0.035, 0.025, 0.02]), 5)
    knob, knob_faces = ball(path[-1], np.full(3, 0.08), 4, 8)
    pieces = [piece(stem, stem_faces, np.array(params.skin) * 0.8, Part.ACCESSORY, 0.4)]
    pieces.append(piece(knob, knob_faces, params.worn_color, Part.ACCESSORY, 0.7))
    return pieces + [part.mirrored() for part in pieces]
