"""Where a head sits: lamps, background, camera framing and what may pass before the mouth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from model_code.avatars.raster import inverse_tone

Array = NDArray[Any]
Condition = Literal["plain", "occluded", "changing_light", "profile"]
CONDITIONS: tuple[Condition, ...] = get_args(Condition)
OccluderKind = Literal["microphone", "hand", "cup", "scarf"]
OCCLUDERS: tuple[OccluderKind, ...] = get_args(OccluderKind)
FPS = 25
BACKGROUND_SIZE = 256


@dataclass(frozen=True)
class Occluder:
    """A thing that passes before the lower face; its unit is the head's interocular distance.

    Attributes:
        vertices: (V, 3) float32 about its own origin.
        faces: (F, 3) int32 counter-clockwise seen from outside.
        colors: (V, 3) float32 linear albedo.
        gloss: (V,) float32.
        path: (T, 3) float32 offset from the resting mouth; z is measured from the foremost point of the lower face.
        rotation: (T, 3) float32 yaw, pitch, roll.
    """

    kind: OccluderKind
    vertices: Array
    faces: Array
    colors: Array
    gloss: Array
    path: Array
    rotation: Array


@dataclass(frozen=True)
class Scene:
    """Light, background and framing over T frames.

    Attributes:
        light_directions: (T, 3, 3) float32 unit vectors towards key, fill and rim lamp.
        light_colors: (T, 3, 3) float32 linear.
        sky: (T, 3) float32 ambient light from above; ground: (T, 3) from below.
        background: (256, 256, 3) float32 linear light, static.
        background_gain: (T, 3) float32 how changing lamps tint the background.
        zoom: side of the view over the side of the face.
        offset: (2,) where the face's centre lies, in sides of the view from the middle, x right, y up.
        occluder: or None.
    """

    light_directions: Array
    light_colors: Array
    sky: Array
    ground: Array
    background: Array
    background_gain: Array
    zoom: float
    offset: Array
    occluder: Occluder | None = None


def _direction(azimuth: Array, elevation: Array) -> Array:
    """(T, 3) unit vectors; azimuth 0 is the camera's side, positive to the viewer's right; radians."""
    return np.stack([np.cos(elevation) * np.sin(azimuth), np.sin(elevation), np.cos(elevation) * np.cos(azimuth)], -1)


def _tint(rng: np.random.Generator, strength: float) -> Array:
    """(3,) a lamp's colour of mean about 1: warm or cool, now and then coloured."""
    warmth = rng.normal(0.0, strength)
    color = np.array([1.0 + warmth, 1.0, 1.0 - warmth])
    if rng.random() < 0.2:
        color = color * (1.0 + strength * rng.uniform(-1.5, 1.5, 3))
    return np.clip(color, 0.25, 2.0) / np.clip(color, 0.25, 2.0).mean()


def _wander(rng: np.random.Generator, n_frames: int, slowest: float, fastest: float) -> Array:
    """(T,) a smooth curve between -1 and 1."""
    time = np.arange(n_frames) / FPS
    frequency = rng.uniform(slowest, fastest, 2)
    phase = rng.uniform(0, 2 * np.pi, 2)
    return np.asarray(
        0.65 * np.sin(2 * np.pi * frequency[0] * time + phase[0])
        + 0.35 * np.sin(2 * np.pi * frequency[1] * time + phase[1])
    )


def draw_background(rng: np.random.Generator) -> Array:
    """A soft gradient, blurred shapes or a simple room, slightly textured; (256, 256, 3) linear light."""
    n = BACKGROUND_SIZE
    y, x = np.mgrid[0:n, 0:n].astype(np.float32) / n
    hue = rng.uniform(0, 180)
    saturation, value = rng.uniform(15, 120), rng.uniform(60, 200)

    def color(hue_shift: float, gain: float) -> Array:
        hsv = np.array([[[(hue + hue_shift) % 180, saturation, np.clip(value * gain, 15, 235)]]], np.uint8)
        return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0], np.float32) / 255.0

    angle = rng.uniform(0, 2 * np.pi)
    ramp = np.clip(0.5 + (x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle), 0, 1)[..., None]
    image = (1 - ramp) * color(0, rng.uniform(0.6, 0.9)) + ramp * color(rng.normal(0, 12), rng.uniform(1.0, 1.3))
    style = rng.choice(["gradient", "shapes", "room"], p=[0.3, 0.35, 0.35])
    if style == "shapes":
        for _ in range(rng.integers(4, 12)):
            center = tuple(int(c) for c in rng.uniform(0, n, 2))
            shade = tuple(float(c) for c in color(rng.normal(0, 30), rng.uniform(0.6, 1.4)))
            if rng.random() < 0.5:
                cv2.circle(image, center, int(rng.uniform(8, 40)), shade, -1, cv2.LINE_AA)
            else:
                corner = (center[0] + int(rng.uniform(15, 90)), center[1] + int(rng.uniform(15, 120)))
                cv2.rectangle(image, center, corner, shade, -1, cv2.LINE_AA)
        image = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(4, 11)))
    elif style == "room":
        floor = int(rng.uniform(0.72, 0.9) * n)
        image[floor:] = image[floor:] * rng.uniform(0.55, 0.8)
        for _ in range(rng.integers(1, 4)):
            left, top = int(rng.uniform(-0.1, 0.8) * n), int(rng.uniform(0.05, 0.5) * n)
            right, bottom = left + int(rng.uniform(0.12, 0.35) * n), top + int(rng.uniform(0.15, 0.45) * n)
            bright = rng.random() < 0.4  # a window; else a picture or a shelf
            pane = color(rng.normal(0, 25), rng.uniform(1.3, 1.7) if bright else rng.uniform(0.5, 0.9))
            cv2.rectangle(image, (left, top), (right, bottom), tuple(float(c) for c in pane), -1)
            frame = tuple(float(c) for c in color(0, 0.45))
            cv2.rectangle(image, (left, top), (right, bottom), frame, int(rng.integers(2, 5)))
            if bright:
                cv2.line(image, ((left + right) // 2, top), ((left + right) // 2, bottom), frame, 3)
        image = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(1.5, 4.0)))
    coarse = cv2.resize(rng.normal(0, 1, (32, 32)).astype(np.float32), (n, n), interpolation=cv2.INTER_CUBIC)
    fine = cv2.GaussianBlur(rng.normal(0, 1, (n, n)).astype(np.float32), (0, 0), 0.9)
    image = image * (1.0 + 0.015 * coarse + rng.uniform(0.008, 0.03) * fine)[..., None]
    vignette = 1.0 - 0.35 * ((x - 0.5) ** 2 + (y - 0.5) ** 2)[..., None]
    return inverse_tone(np.clip(image * vignette, 0.02, 0.92))


def _lathe(profile: Array, segments: int = 18) -> tuple[Array, Array]:
    """A surface of revolution about y from (K, 2) radius and height, bottom first; closed by radius 0 at the ends."""
    angle = np.linspace(0, 2 * np.pi, segments, endpoint=False)
    ring = np.stack([np.sin(angle), np.zeros(segments), np.cos(angle)], 1)
    vertices = np.concatenate([radius * ring + [0, height, 0] for radius, height in profile])
    faces = []
    for k in range(len(profile) - 1):
        for j in range(segments):
            a, b = k * segments + j, k * segments + (j + 1) % segments
            faces += [[a, b, b + segments], [a, b + segments, a + segments]]
    return vertices.astype(np.float32), np.array(faces, np.int32)


def _capsule(radius: float, length: float, tip: float = 1.0) -> Array:
    """(K, 2) profile of a rounded rod from y = 0 up to ``length``; ``tip`` narrows the upper end."""
    bend = np.linspace(-np.pi / 2, np.pi / 2, 11)
    lower, upper = bend[:6], bend[5:]
    return np.concatenate(
        [
            np.stack([radius * np.cos(lower), radius * np.sin(lower)], 1),
            np.stack([radius * tip * np.cos(upper), length + radius * tip * np.sin(upper)], 1),
        ]
    )


def _turn(vertices: Array, roll: float) -> Array:
    cos, sin = np.cos(roll), np.sin(roll)
    return np.asarray(vertices @ np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]]))


def _occluder_mesh(rng: np.random.Generator, kind: OccluderKind) -> tuple[Array, Array, Array, Array]:
    """Vertices, faces, colours, gloss; the origin is what comes before the mouth, the rest hangs below it."""
    pieces: list[tuple[Array, Array, Array, float]] = []
    if kind == "microphone":
        head = rng.uniform(0.26, 0.38)
        grille = np.full(3, rng.uniform(0.05, 0.3))
        body = rng.choice([0.03, 0.08, 0.25]) * _tint(rng, 0.3)
        pieces.append((*_lathe(_capsule(head, 0.12)), grille, 0.45))
        stick = np.array([[0.0, -4.0], [head * 0.45, -4.0], [head * 0.8, -0.35], [head * 0.85, -0.1], [0.0, -0.1]])
        pieces.append((*_lathe(stick), body, 0.5))
    elif kind == "hand":
        skin = rng.uniform(0.12, 0.6) * np.array([1.0, rng.uniform(0.62, 0.75), rng.uniform(0.45, 0.62)])
        fingers = int(rng.choice([1, 2, 4], p=[0.4, 0.2, 0.4]))
        spread = rng.uniform(0.02, 0.08)
        for k in range(4):
            place = k - 1.5
            length = (1.25 - 0.12 * abs(place - 0.3)) if k < fingers else 0.35
            rod, faces = _lathe(_capsule(0.155, length, 0.8), 14)
            knuckle = np.array([0.0, -1.0, 0.12 if k >= fingers else 0.0])
            rod = _turn(rod + knuckle, -spread * place) + np.array([0.31 * place, 0.0, 0.0])
            pieces.append((rod, faces, skin, 0.22))
        palm, faces = _lathe(
            np.array([[0.0, -4.0], [0.45, -4.0], [0.5, -2.3], [0.66, -1.7], [0.62, -1.0], [0.0, -0.85]])
        )
        pieces.append((palm * [1.0, 1.0, 0.42], faces, skin, 0.2))
    elif kind == "cup":
        radius, height = rng.uniform(0.45, 0.6), rng.uniform(0.9, 1.3)
        top, bottom = height / 2, -height / 2
        wall = np.array(
            [[0.0, bottom], [radius * 0.78, bottom], [radius, top], [radius * 0.93, top], [radius * 0.7, bottom + 0.1]]
        )
        pieces.append((*_lathe(wall, 24), rng.uniform(0.1, 0.8) * _tint(rng, 0.35), 0.55))
        skin = rng.uniform(0.12, 0.6) * np.array([1.0, 0.68, 0.52])
        for k in range(4):
            rod, faces = _lathe(_capsule(0.14, radius * 1.3, 0.8), 12)
            rod = _turn(rod, np.pi / 2) + np.array([radius * 0.75, 0.25 * (1.2 - k), radius * 0.95])
            pieces.append((rod, faces, skin, 0.2))
        arm = np.array([[0.0, -4.5], [0.3, -4.5], [0.36, -0.4], [0.0, 0.2]])
        vertices, faces = _lathe(arm)
        wrist = np.array([radius + 0.2, -0.1, radius * 0.4])
        pieces.append((_turn(vertices, 0.35) + wrist, faces, skin, 0.2))
    else:
        cloth = rng.uniform(0.1, 0.6) * _tint(rng, 0.4)
        along = np.linspace(-3.5, 3.5, 29)
        girth = 0.5 * np.where(np.abs(along) == 3.5, 0.0, 1.0)
        rod, faces = _lathe(np.stack([girth, along], 1), 20)
        rod = _turn(rod, np.pi / 2) * [1.0, rng.uniform(0.6, 0.9), 0.35]
        rod[:, 1] += 0.06 * np.sin(rod[:, 0] * 2.1)
        rod[:, 2] -= 0.1 * rod[:, 0] ** 2
        pieces.append((rod, faces, cloth, 0.05))
    starts = np.cumsum([0] + [len(points) for points, *_ in pieces])
    colors = [
        np.clip(color * (1.0 + 0.06 * rng.normal(0, 1, (len(points), 1))), 0.01, 0.95) for points, _, color, _ in pieces
    ]
    return (
        np.concatenate([points for points, *_ in pieces]).astype(np.float32),
        np.concatenate([piece[1] + start for piece, start in zip(pieces, starts, strict=False)]).astype(np.int32),
        np.concatenate(colors).astype(np.float32),
        np.concatenate([np.full(len(points), shine) for points, _, _, shine in pieces]).astype(np.float32),
    )


def draw_occluder(rng: np.random.Generator, n_frames: int, kind: OccluderKind | None = None) -> Occluder:
    """A thing that comes up before the mouth, stays for a part of the clip, and leaves (or passes across)."""
    kind = kind or OCCLUDERS[int(rng.choice(len(OCCLUDERS), p=[0.35, 0.25, 0.2, 0.2]))]
    mesh = _occluder_mesh(rng, kind)
    side = rng.choice([-1.0, 1.0])
    near = {
        "microphone": [rng.uniform(-0.25, 0.25), rng.uniform(-0.75, -0.3)],
        "hand": [rng.uniform(-0.35, 0.35), rng.uniform(-0.45, 0.1)],
        "cup": [rng.uniform(-0.25, 0.25), rng.uniform(-0.6, -0.15)],
        "scarf": [0.0, rng.uniform(-0.55, 0.0)],
    }[kind]
    away = [side * rng.uniform(0.4, 2.0), -4.2] if kind != "scarf" else [0.0, -3.4]
    depth = {"microphone": 0.55, "hand": 0.32, "cup": 0.75, "scarf": 0.35}[kind]
    tilt = {"microphone": 0.45, "hand": 0.5, "cup": 0.15, "scarf": 0.25}[kind]
    time = np.arange(n_frames) / FPS
    length = n_frames / FPS
    arrive = rng.uniform(-0.3, 0.45) * length
    stay = rng.uniform(0.35, 0.7) * length
    ramp = rng.uniform(0.3, 0.6)
    reach = np.clip((time - arrive) / ramp, 0, 1) * np.clip((arrive + stay - time) / ramp, 0, 1)
    reach = (reach * reach * (3 - 2 * reach))[:, None]
    sway = np.stack([_wander(rng, n_frames, 0.2, 0.9), _wander(rng, n_frames, 0.2, 0.9)], 1) * 0.06
    path = np.zeros((n_frames, 3))
    path[:, :2] = reach * near + (1 - reach) * away + sway
    path[:, 2] = depth
    rotation = np.zeros((n_frames, 3))
    rotation[:, 0] = rng.uniform(-0.4, 0.4)
    rotation[:, 1] = rng.uniform(-0.15, 0.15) + (0.35 if kind == "microphone" else 0.0)
    rotation[:, 2] = rng.uniform(-tilt, tilt) + 0.05 * _wander(rng, n_frames, 0.2, 0.8)
    return Occluder(kind, *mesh, path.astype(np.float32), rotation.astype(np.float32))


def draw_scene(rng: np.random.Generator, n_frames: int, condition: Condition) -> Scene:
    """Lamps, background and framing for one clip.

    Args:
        rng: the only source of chance.
        n_frames: T.
        condition: "occluded" adds an `Occluder`, "changing_light" moves and colours the lamps over time.

    Raises:
        ValueError: if ``condition`` is not one of `CONDITIONS`.
    """
    if condition not in CONDITIONS:
        raise ValueError(f"condition must be one of {CONDITIONS}, not {condition!r}")
    still = np.zeros(n_frames)
    side = rng.choice([-1.0, 1.0])
    key = np.stack([still + side * rng.uniform(0.25, 1.05), still + rng.uniform(0.3, 0.85)])
    fill = np.stack([still - side * rng.uniform(0.5, 1.2), still + rng.uniform(-0.1, 0.4)])
    rim = np.stack([still - side * rng.uniform(2.3, 2.9), still + rng.uniform(0.25, 0.8)])
    key_gain = still + rng.uniform(0.62, 0.95)
    fill_gain = still + rng.uniform(0.12, 0.36)
    rim_gain = still + rng.uniform(0.2, 0.9)
    ambient_gain = still + rng.uniform(0.22, 0.4)
    tint = np.stack([_tint(rng, 0.1), _tint(rng, 0.12), _tint(rng, 0.25)])
    tints = np.repeat(tint[None], n_frames, 0)
    if condition == "changing_light":
        other = np.stack([_tint(rng, 0.4), _tint(rng, 0.4), _tint(rng, 0.5)])
        mix = 0.5 + 0.5 * _wander(rng, n_frames, 0.25, 0.7)[:, None, None]
        tints = (1 - mix) * tints + mix * other
        key[0] += rng.uniform(0.6, 1.3) * _wander(rng, n_frames, 0.2, 0.6)
        key[1] += 0.25 * _wander(rng, n_frames, 0.2, 0.6)
        key_gain = key_gain * (1.0 + rng.uniform(0.4, 0.65) * _wander(rng, n_frames, 0.3, 1.2))
        fill_gain = fill_gain * (1.0 + 0.7 * _wander(rng, n_frames, 0.3, 0.9))
        ambient_gain = ambient_gain * (1.0 + 0.35 * _wander(rng, n_frames, 0.2, 0.7))
    directions = np.stack([_direction(*lamp) for lamp in (key, fill, rim)], 1)
    colors = np.stack([key_gain, fill_gain, rim_gain], 1)[:, :, None] * tints
    mean_tint = tints[:, 0] ** 0.5
    sky = ambient_gain[:, None] * mean_tint * np.array([0.97, 1.0, 1.05])
    ground = sky * rng.uniform(0.35, 0.65) * np.array([1.06, 1.0, 0.92])
    light = (colors[:, :2].sum(1) + sky) / (colors[:, :2].sum(1) + sky).mean(0)
    gain = np.sqrt(light) if condition == "changing_light" else np.ones((n_frames, 3))
    background = draw_background(rng)
    zoom = float(rng.uniform(2.15, 2.65))
    offset = np.array([rng.uniform(-0.06, 0.06), rng.uniform(-0.11, -0.03)])
    occluder = draw_occluder(rng, n_frames) if condition == "occluded" else None
    return Scene(
        directions.astype(np.float32),
        colors.astype(np.float32),
        sky.astype(np.float32),
        ground.astype(np.float32),
        background,
        gain.astype(np.float32),
        zoom,
        offset.astype(np.float32),
        occluder,
    )
