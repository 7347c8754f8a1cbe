"""From an avatar, a performance and a scene to frames, with everything that the renderer knows about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from model_code.avatars import raster
from model_code.avatars.avatar import Avatar, Part, mouth_curves
from model_code.avatars.performance import Performance
from model_code.avatars.scene import Scene

Array = NDArray[Any]

TWO_SIDED = (Part.HAIR, Part.CLOTH, Part.BROW, Part.ACCESSORY, Part.CAVITY)
INTERIOR = (Part.TEETH, Part.TONGUE, Part.CAVITY)
WRAP: dict[Part, tuple[float, float, float]] = {
    # Light that travels under skin comes out red behind the terminator.
    Part.SKIN: (0.42, 0.2, 0.14),
    Part.LIPS: (0.45, 0.18, 0.16),
    Part.TONGUE: (0.4, 0.2, 0.2),
    Part.TEETH: (0.3, 0.28, 0.25),
    Part.EYE: (0.3, 0.3, 0.3),
    Part.HAIR: (0.15, 0.12, 0.1),
}
OCCLUDER_ROW = len(Part)
SHADOW_RESOLUTION = 192
OPENNESS_RESOLUTION = 128
OPENNESS_DIRECTIONS = 28


@dataclass(frozen=True)
class Rendered:
    """A rendered clip and what is true of it.

    Attributes:
        frames: (T, S, S, 3) uint8 RGB.
        landmarks: (T, 68, 2) float32 x, y in pixels.
        mouth: (T, 3) float32 opening, width, pucker.
        occluder: (T, S, S) bool, true where the occluder is seen.
    """

    frames: Array
    landmarks: Array
    mouth: Array
    occluder: Array


@dataclass(frozen=True)
class _Anatomy:
    """Measures of a resting head."""

    interocular: float
    mouth: Array
    front: float
    center: Array
    side: float
    pivot: Array


def _measure(avatar: Avatar) -> _Anatomy:
    points = avatar.vertices[avatar.landmarks].astype(np.float64)
    left, right = points[36:42].mean(0), points[42:48].mean(0)
    mouth = points[48:60].mean(0)
    low, high = points.min(0), points.max(0)
    side = float(max(high[0] - low[0], high[1] - low[1]))
    center = np.array([(left + right)[0] / 2, (low[1] + high[1]) / 2, mouth[2]])
    jaw = (points[0] + points[16]) / 2
    pivot = np.array([center[0], points[8][1] + 0.1 * side, jaw[2]])
    front = float(max(points[27:36, 2].max(), points[48:60, 2].max()))
    return _Anatomy(float(np.linalg.norm(right - left)), mouth, front, center, side, pivot)


def _light_axes(direction: Array) -> Array:
    """(3, 3) float32 right, up, towards the light."""
    up = np.array([0.0, 1.0, 0.0]) if abs(direction[1]) < 0.95 else np.array([0.0, 0.0, 1.0])
    right = np.cross(up, direction)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(direction, right), direction]).astype(np.float32)


def _openness(avatar: Avatar, anatomy: _Anatomy) -> tuple[Array, Array]:
    """Ambient occlusion of the resting head and which vertices lie inside the mouth; (V,) float32, (V,) bool."""
    vertices = (avatar.vertices - anatomy.center).astype(np.float32)
    normals = np.zeros_like(vertices)
    raster.vertex_normals(vertices, avatar.faces, normals)
    scale = OPENNESS_RESOLUTION / (2.1 * float(np.abs(vertices).max()))
    steps = np.arange(OPENNESS_DIRECTIONS) + 0.5
    height, turn = 1 - 2 * steps / OPENNESS_DIRECTIONS, np.pi * (1 + 5**0.5) * steps
    flat = np.sqrt(1 - height**2)
    total = np.zeros(len(vertices))
    weight = np.zeros(len(vertices))
    seen = np.zeros(len(vertices), np.float32)
    two_sided = np.isin(avatar.part, TWO_SIDED)
    for direction in np.stack([flat * np.cos(turn), height, flat * np.sin(turn)], 1):
        axes = _light_axes(direction)
        raster.light_visibility(
            vertices, normals, avatar.faces, two_sided, axes, scale, 0.05 * anatomy.side, OPENNESS_RESOLUTION, seen
        )
        facing = np.maximum(0.0, normals @ axes[2])
        total += facing * seen
        weight += facing
    openness = np.clip(0.12 + 0.95 * total / np.maximum(weight, 1e-6), 0.15, 1.0)

    def touched(*parts: Part) -> Array:
        mask = np.zeros(len(vertices), bool)
        mask[avatar.faces[np.isin(avatar.part, parts)]] = True
        return mask

    depth = (anatomy.mouth[2] - avatar.vertices[:, 2]) / anatomy.interocular
    openness[touched(Part.EYE)] = np.maximum(openness[touched(Part.EYE)], 0.6)
    for part, bright, falloff in ((Part.CAVITY, 0.7, 1.3), (Part.TONGUE, 1.0, 0.7), (Part.TEETH, 0.95, 0.9)):
        mask = touched(part)
        openness[mask] = np.clip(bright * np.exp(-falloff * np.maximum(depth[mask], 0.0)), 0.06, 1.0)
    return openness.astype(np.float32), touched(*INTERIOR)


def _body_motion(performance: Performance) -> tuple[Array, Array]:
    """Shoulders follow the head late and little; (T, 3), (T, 3)."""
    n = len(performance.rotation)
    radius = 24
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / 9.0) ** 2)
    kernel /= kernel.sum()

    def slow(track: Array) -> Array:
        padded = np.pad(track.astype(np.float64), ((radius, radius), (0, 0)), mode="edge")
        return np.stack([np.convolve(padded[:, k], kernel, "valid") for k in range(3)], 1)[:n]

    return slow(performance.rotation) * np.array([0.5, 0.1, 0.15]), slow(performance.translation)


def render(avatar: Avatar, performance: Performance, scene: Scene, size: int, first: int | None = None) -> Rendered:
    """Renders a clip.

    Args:
        avatar: the head.
        performance: T frames of motion.
        scene: T frames of light.
        size: S, side of the square frames in pixels.
        first: only so many frames are rendered, as they are in the whole clip; None renders all.

    Raises:
        ValueError: if performance and scene differ in length.
    """
    n_frames = len(performance.coefficients)
    if len(scene.light_colors) != n_frames:
        raise ValueError(f"the performance has {n_frames} frames, the scene {len(scene.light_colors)}")
    if first is not None:
        n_frames = min(n_frames, first)
    anatomy = _measure(avatar)
    openness, interior = _openness(avatar, anatomy)
    deformed = avatar.deform(performance.coefficients)
    body_rotation, body_shift = _body_motion(performance)
    faces, part, colors, gloss = avatar.faces, avatar.part.astype(np.uint8), avatar.colors, avatar.gloss
    n_avatar, first_occluder = len(avatar.vertices), len(avatar.faces)
    two_sided = np.isin(part, TWO_SIDED)
    occluder = scene.occluder
    if occluder is not None:
        faces = np.concatenate([faces, occluder.faces + n_avatar])
        part = np.concatenate([part, np.full(len(occluder.faces), OCCLUDER_ROW, np.uint8)])
        colors = np.concatenate([colors, occluder.colors])
        gloss = np.concatenate([gloss, occluder.gloss])
        openness = np.concatenate([openness, np.full(len(occluder.vertices), 0.95, np.float32)])
        interior = np.concatenate([interior, np.zeros(len(occluder.vertices), bool)])
        two_sided = np.concatenate([two_sided, np.ones(len(occluder.faces), bool)])
    wrap = np.full((len(Part) + 1, 3), 0.1, np.float32)
    for row, amount in WRAP.items():
        wrap[row] = amount
    faces = np.ascontiguousarray(faces, np.int32)
    colors, gloss = np.ascontiguousarray(colors, np.float32), np.ascontiguousarray(gloss, np.float32)

    samples = size * raster.SUPERSAMPLING
    view_side = anatomy.side * scene.zoom
    distance = 3.2 * view_side
    focal = samples * distance / view_side
    middle = np.zeros((1, 3), np.float32)  # where the turned face's centre lies on average
    mean_rotation, mean_shift = performance.rotation.mean(0), performance.translation.mean(0)
    raster.pose_vertices(
        anatomy.center[None], np.ones(1), anatomy.pivot, mean_rotation, mean_shift, mean_rotation, mean_shift, middle
    )
    aim = np.array([middle[0, 0], middle[0, 1], anatomy.center[2]])
    aim = (aim - np.array([scene.offset[0], scene.offset[1], 0.0]) * view_side).astype(np.float32)
    background = cv2.resize(scene.background, (size, size), interpolation=cv2.INTER_AREA)

    vertices = np.zeros((len(colors), 3), np.float32)
    centered = np.zeros_like(vertices)
    normals = np.zeros_like(vertices)
    xy = np.zeros((len(colors), 2), np.float32)
    nearness = np.zeros(len(colors), np.float32)
    key_seen = np.ones(len(colors), np.float32)
    near_buffer = np.zeros((samples, samples), np.float32)
    index_buffer = np.zeros((samples, samples), np.int32)
    shadow_scale = SHADOW_RESOLUTION / (2.3 * anatomy.side)
    frames = np.zeros((n_frames, size, size, 3), np.uint8)
    hidden = np.zeros((n_frames, size, size), bool)
    landmarks = np.zeros((n_frames, 68, 2), np.float32)
    tone = raster.tone_table()
    table = np.zeros((3, 3))
    for t in range(n_frames):
        raster.pose_vertices(
            deformed[t],
            avatar.head_mask,
            anatomy.pivot,
            performance.rotation[t],
            performance.translation[t],
            body_rotation[t],
            body_shift[t],
            vertices[:n_avatar],
        )
        if occluder is not None:
            yaw, pitch, roll = occluder.rotation[t].tolist()
            raster.rotation_matrix(yaw, pitch, roll, table)
            place = np.array([anatomy.mouth[0], anatomy.mouth[1], anatomy.front])
            place = place + occluder.path[t] * anatomy.interocular
            vertices[n_avatar:] = occluder.vertices @ table.T * anatomy.interocular + place
        raster.vertex_normals(vertices, faces, normals)
        np.subtract(vertices, anatomy.center, out=centered, casting="unsafe")
        raster.light_visibility(
            centered,
            normals,
            faces,
            two_sided,
            _light_axes(scene.light_directions[t, 0].astype(np.float64)),
            shadow_scale,
            0.035 * anatomy.side,
            SHADOW_RESOLUTION,
            key_seen,
        )
        key_seen[interior] = openness[interior]
        raster.project(vertices, aim, distance, focal, samples / 2, xy, nearness)
        near_buffer.fill(0.0)
        index_buffer.fill(-1)
        raster.fill_triangles(xy, nearness, faces, two_sided, near_buffer, index_buffer)
        raster.resolve_pixels(
            xy,
            nearness,
            normals,
            colors,
            gloss,
            openness,
            key_seen,
            faces,
            part,
            wrap,
            index_buffer,
            scene.light_directions[t],
            scene.light_colors[t],
            scene.sky[t],
            scene.ground[t],
            background * scene.background_gain[t],
            tone,
            focal,
            first_occluder,
            frames[t],
            hidden[t],
        )
        landmarks[t] = xy[avatar.landmarks] / raster.SUPERSAMPLING
    return Rendered(frames, landmarks, mouth_curves(avatar, performance.coefficients).astype(np.float32), hidden)
