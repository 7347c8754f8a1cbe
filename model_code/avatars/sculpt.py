"""The skin's form: from the flat drawing to space."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

from model_code.avatars.grid import (
    BACK,
    EYE_X,
    EYE_Y,
    MOUTH_STEPS,
    MOUTH_Y,
    RADIUS,
    Grid,
    eye_ring,
    face_grid,
    mouth_ring,
)
from model_code.avatars.params import HeadParams

Array = NDArray[np.float64]

# height: half width, front depth, back depth, roundness of the cross-section
_LEVELS = np.array([-1.45, -1.3, -1.2, -1.12, -1.05, -0.95, -0.82, -0.68, -0.45, -0.2, 0.0, 0.25, 0.55])
_WIDTH = np.array([0.44, 0.42, 0.41, 0.415, 0.43, 0.475, 0.545, 0.60, 0.65, 0.685, 0.70, 0.72, 0.735])
_FRONT = np.array([0.2, 0.2, 0.34, 0.64, 0.765, 0.80, 0.80, 0.81, 0.825, 0.84, 0.85, 0.9, 0.87])
_BACK = np.array([0.58, 0.55, 0.54, 0.55, 0.57, 0.6, 0.64, 0.69, 0.78, 0.87, 0.92, 0.97, 0.98])
_SHAPES = [PchipInterpolator(_LEVELS, column) for column in (_WIDTH, _FRONT, _BACK)]
DOME_FROM, DOME_ARC, DOME_HEIGHT = 0.55, 0.93, 0.58


def bump(value: Array, centre: float, radius: float) -> Array:
    """A bell of height 1."""
    return np.asarray(np.exp(-(((value - centre) / radius) ** 2)))


def ramp(value: Array, start: float, stop: float) -> Array:
    """Smooth step from 0 at `start` to 1 at `stop`."""
    t = np.clip((value - start) / (stop - start), 0, 1)
    return np.asarray(t * t * (3 - 2 * t))


def relax(flat: Array, params: HeadParams) -> Array:
    """Moves flat places (N, 2), |X| and y, to where this identity's features are."""
    x, y = flat[:, 0].copy(), flat[:, 1].copy()
    front = 1 - ramp(x, 0.55, 1.0)
    x *= 1 + (params.mouth_width - 1) * bump(y, MOUTH_Y, 0.24) * (1 - ramp(x, 0.2, 0.62))
    x *= 1 + (params.nose_width - 1) * bump(y, -0.4, 0.14) * (1 - ramp(x, 0.12, 0.32))
    around = np.exp(-(((flat[:, 0] - EYE_X) / 0.34) ** 4) - ((flat[:, 1] - EYE_Y - 0.02) / 0.33) ** 4)
    grow = params.eye_area - 1
    x += around * (params.eye_spacing + grow * 0.75 * (flat[:, 0] - EYE_X))
    y += around * grow * (flat[:, 1] - EYE_Y)
    y -= params.nose_length * bump(flat[:, 1], -0.45, 0.16) * front
    y -= params.mouth_drop * bump(flat[:, 1], MOUTH_Y, 0.26) * front
    below = np.clip(MOUTH_Y - 0.1 - flat[:, 1], 0, 0.32)
    y -= below * (params.chin_length - 1)
    return np.stack([np.maximum(x, 0), y], -1)


def skull(places: Array, params: HeadParams) -> Array:
    """The smooth head under the features: (N, 3) for relaxed flat places, left half."""
    angle, y = np.minimum(places[:, 0] / RADIUS, np.pi), places[:, 1]
    over = np.clip(y - DOME_FROM, 0, DOME_ARC) / DOME_ARC * np.pi / 2
    shrink = np.maximum(np.cos(over), 0.0)
    low = np.clip(y, _LEVELS[0], DOME_FROM)
    stretched = np.where(low < -0.78, -0.78 + (low + 0.78) / max(params.chin_length, 0.5), low)
    width, front, back = (shape(np.clip(stretched, _LEVELS[0], DOME_FROM)) for shape in _SHAPES)
    jaw = bump(low, -0.85, 0.3)
    width = width * (1 + (params.jaw_width - 1) * jaw) * params.width
    width = width * (1 + (params.neck - 1) * ramp(low, -1.05, -1.25))
    width = width + params.cheekbone * bump(low, -0.15, 0.2)
    front = front + params.chin_forward * bump(low, -1.0, 0.16)
    exponent = params.boxiness - 0.3 * bump(low, -0.95, 0.25)
    depth = np.where(angle < np.pi / 2, front, back)
    sine, cosine = np.abs(np.sin(angle)), np.abs(np.cos(angle))
    radius = ((sine / width) ** exponent + (cosine / depth) ** exponent) ** (-1 / exponent)
    height = np.where(y > DOME_FROM, DOME_FROM + DOME_HEIGHT * params.skull * np.sin(over), y)
    tall = np.where(y > DOME_FROM, 1.0, 1 + (params.skull - 1) * 0.35 * ramp(low, 0.1, 0.55))
    grow = np.where(y > DOME_FROM, 1 + (params.skull - 1) * 0.35, tall)
    return np.stack([radius * np.sin(angle) * shrink * grow, height, radius * np.cos(angle) * shrink * grow], -1)


def relief(flat: Array, params: HeadParams) -> Array:
    """Forward displacement (N,) of brow, sockets, nose, cheeks and chin at unrelaxed flat places."""
    x, y = flat[:, 0], flat[:, 1]
    z = (0.035 + params.brow_ridge) * bump(y, 0.19, 0.085) * np.exp(-((x / 0.52) ** 4))
    z -= 0.06 * np.exp(-(((x - 0.31) / 0.18) ** 2) - ((y + 0.01) / 0.13) ** 2)
    z -= 0.04 * bump(y, 0.05, 0.08) * bump(x, 0.0, 0.09)
    levels = np.array([-0.6, -0.5, -0.47, -0.445, -0.41, -0.36, -0.27, -0.15, 0.0, 0.08, 0.16])
    hook = params.nose_hook
    ridge = np.array([0.0, 0.015, 0.06, 0.165, 0.225, 0.235, 0.19, 0.13, 0.075, 0.04, 0.0])
    ridge[6:9] *= params.nose_bridge
    ridge[6:8] += hook
    spread = np.array([0.115, 0.115, 0.12, 0.125, 0.125, 0.122, 0.108, 0.1, 0.095, 0.1, 0.11])
    nose = PchipInterpolator(levels, ridge)(np.clip(y, -0.6, 0.16))
    z += (
        params.nose_height
        * nose
        * np.exp(-(np.abs(x / PchipInterpolator(levels, spread)(np.clip(y, -0.6, 0.16))) ** 2.2))
    )
    z += 0.03 * params.nose_height * np.exp(-((x / 0.06) ** 2) - ((y + 0.37) / 0.06) ** 2)
    z += 0.105 * params.nose_height**0.5 * np.exp(-(((x - 0.115) / 0.052) ** 2) - ((y + 0.415) / 0.052) ** 2)
    z -= 0.05 * np.exp(-(((x - 0.07) / 0.03) ** 2) - ((y + 0.465) / 0.022) ** 2)
    z -= 0.03 * np.exp(-(((x - 0.195) / 0.04) ** 2) - ((y + 0.43) / 0.06) ** 2)
    z += (0.03 + params.cheekbone) * np.exp(-(((x - 0.42) / 0.16) ** 2) - ((y + 0.2) / 0.13) ** 2)
    z += params.fullness * np.exp(-(((x - 0.4) / 0.2) ** 2) - ((y + 0.5) / 0.22) ** 2)
    z += 0.045 * np.exp(-((x / 0.3) ** 2) - ((y + 0.66) / 0.17) ** 2)
    z -= 0.018 * bump(x, 0.0, 0.035) * bump(y, -0.56, 0.06)
    z -= 0.045 * np.exp(-((x / 0.22) ** 2) - ((y + 0.865) / 0.055) ** 2)
    z += 0.05 * np.exp(-((x / 0.17) ** 2) - ((y + 1.0) / 0.1) ** 2)
    fold = 0.2 + (-0.42 - y) * 0.55
    z -= (0.006 + 0.028 * params.age) * np.exp(-(((x - fold) / 0.035) ** 2)) * bump(y, -0.58, 0.14)
    z += params.muzzle * np.exp(-((x / 0.33) ** 4) - (np.where(y > -0.6, (y + 0.6) / 0.42, (y + 0.6) / 0.34) ** 4))
    return np.asarray(z)


def surface(flat: Array, params: HeadParams) -> Array:
    """The skin without lips and lids: (N, 3) at flat places, left half."""
    points = skull(relax(flat, params), params)
    points[:, 2] += relief(flat, params) * (1 - ramp(flat[:, 0], 0.75, 1.15))
    return points


@dataclass(frozen=True)
class Eyeball:
    """Sphere of the left eye; the right one is its mirror image."""

    centre: Array
    radius: float


@dataclass(frozen=True)
class Face:
    """The sculpted skin: `points` (N, 3) on the shared grid, with the left eyeball."""

    params: HeadParams
    grid: Grid
    points: Array
    eyeball: Eyeball

    @property
    def left(self) -> Array:
        """(N, 3) the points folded onto the left half."""
        return self.points * np.where(self.grid.side < 0, -1.0, 1.0)[:, None] ** np.array([1, 0, 0])


def sculpt(params: HeadParams) -> Face:
    """Gives the shared grid this identity's form."""
    grid = face_grid()
    flat = identity_flat(params)
    points = surface(flat, params)
    eyeball = _eyeball(params)
    _raise_lips(points, grid, params)
    for ring in range(5):
        rows = grid.eye[:, 0] == ring
        lift = (-0.03, 0.012, 0.02, 0.016 - 0.02 * (1 - params.hooded), 0.0)[ring]
        points[rows, 2] = lid_depth(points[rows], eyeball, lift, points[rows, 2], (1.0, 1.0, 1.0, 0.75, 0.25)[ring])
    points[grid.pole] = [0, DOME_FROM + DOME_HEIGHT * params.skull, 0]
    points[:, 0] *= np.where(grid.side == 0, 0, grid.side)
    return Face(params, grid, points, eyeball)


def identity_flat(params: HeadParams) -> Array:
    """(N, 2) the grid's flat places with this identity's lips and eye openings."""
    grid = face_grid()
    flat = grid.flat.copy()
    for ring in range(int(grid.mouth[:, 0].max()) + 1):
        rows = np.flatnonzero(grid.mouth[:, 0] == ring)
        places = mouth_ring(ring, 0.26, params.upper_lip, params.lower_lip)
        places[:, 1] += params.corner_lift * np.clip(places[:, 0] / 0.26, 0, 1.3) ** 2 * (ring < 6)
        flat[rows] = places[grid.mouth[rows, 1]]
    for ring in range(int(grid.eye[:, 0].max()) + 1):
        rows = np.flatnonzero(grid.eye[:, 0] == ring)
        places = eye_ring(ring, params.eye_width, params.eye_upper, params.eye_lower, params.eye_tilt)
        flat[rows] = places[grid.eye[rows, 1]]
    return flat


def lid_depth(points: Array, eyeball: Eyeball, lift: float, fallback: Array, weight: float) -> Array:
    """Depth (N,) of lid vertices lying `lift` above the eyeball, mixed with `fallback`."""
    across = ((points[:, :2] - eyeball.centre[:2]) ** 2).sum(-1)
    sphere = eyeball.centre[2] + np.sqrt(np.maximum((eyeball.radius + lift) ** 2 - across, 0.04 * eyeball.radius**2))
    return np.asarray(weight * sphere + (1 - weight) * fallback)


def _eyeball(params: HeadParams) -> Eyeball:
    places = np.array(
        [[EYE_X, EYE_Y], [EYE_X - params.eye_width, EYE_Y], [EYE_X + params.eye_width, EYE_Y], [EYE_X, 0.2]]
    )
    points = surface(places, params)
    radius = 0.62 * (points[2, 0] - points[1, 0])
    centre = np.array([(points[1, 0] + points[2, 0]) / 2, points[0, 1] + 0.005, points[0, 2] + 0.03 - radius])
    return Eyeball(centre, float(radius))


def _raise_lips(points: Array, grid: Grid, params: HeadParams) -> None:
    """Gives the rings of the mouth the lips' cross-section."""
    profile = (-0.10, -0.004, 0.04, 0.036, 0.01, 0.002, 0.0, 0.0)
    for ring, forward in enumerate(profile):
        rows = grid.mouth[:, 0] == ring
        step = grid.mouth[rows, 1]
        across = np.sin(np.pi * step / (2 * MOUTH_STEPS))
        thickness = np.where(step < MOUTH_STEPS, params.upper_lip / 0.075, params.lower_lip / 0.09)
        dome = 1 - across**2.5
        scale = params.lip_forward * np.clip(thickness, 0.4, 1.6) * (0.25 + 0.75 * dome) if forward > 0 else 1.0
        corner = -0.035 * across**6 * (ring in (0, 1, 2, 3, 4)) - 0.015 * across**6 * (ring == 5)
        points[rows, 2] += forward * scale + corner


def skull_shell(angle: Array, y: Array, params: HeadParams) -> Array:
    """Points (N, 3) of the bare skull at `angle` from the front (signed) and flat height `y`."""
    flat = np.stack([np.abs(angle) * RADIUS, y], -1)
    flat[:, 0] = np.minimum(flat[:, 0], BACK)
    points = skull(flat, params)
    points[:, 0] *= np.sign(angle)
    return points
