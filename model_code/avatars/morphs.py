"""ARKit's 52 shapes on the skin, as displacement fields over the flat drawing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model_code.avatars.avatar import ARKIT_NAMES
from model_code.avatars.grid import EYE_STEPS, EYE_X, EYE_Y, MOUTH_STEPS, MOUTH_Y
from model_code.avatars.sculpt import Face, bump, lid_depth, ramp

Array = NDArray[np.float64]
JAW_ANGLE = np.deg2rad(19.0)
GAZE_ANGLE = np.deg2rad(27.0)
INDEX = {name: index for index, name in enumerate(ARKIT_NAMES)}


def jaw_hinge(face: Face) -> Array:
    """Centre (3,) of the jaw's rotation."""
    return np.array([0.0, -0.2, 0.02])


def jaw_rotation(points: Array, face: Face, weight: Array | float = 1.0) -> Array:
    """Displacement (N, 3) of points that follow the opening jaw by `weight` (N,)."""
    offset = points - jaw_hinge(face)
    cosine, sine = np.cos(JAW_ANGLE), np.sin(JAW_ANGLE)
    turned = np.stack(
        [offset[:, 0], cosine * offset[:, 1] - sine * offset[:, 2], sine * offset[:, 1] + cosine * offset[:, 2]], -1
    )
    return np.asarray((turned - offset) * np.broadcast_to(np.asarray(weight, float), len(points))[:, None])


def skin_morphs(face: Face) -> Array:
    """Displacements (52, N, 3) of the skin's vertices."""
    left = face.left
    shapes = {**_jaw(face, left), **_mouth(face, left), **_eyes(face, left), **_brows_and_cheeks(face, left)}
    side = face.grid.side
    signed = face.grid.flat[:, 0] * side
    share = 0.5 * (1 + np.tanh(signed / 0.05))
    sign = np.where(side == 0, 0.0, side)
    morphs = np.zeros((len(ARKIT_NAMES), len(left), 3))
    for name, field in shapes.items():
        world = field.copy()
        if name not in ("jawLeft", "jawRight", "mouthLeft", "mouthRight"):
            world[:, 0] *= sign
        if name in INDEX:
            morphs[INDEX[name]] = world
        else:
            morphs[INDEX[f"{name}Left"]] = world * share[:, None]
            morphs[INDEX[f"{name}Right"]] = world * (1 - share)[:, None]
    return morphs


def around_mouth(face: Face) -> Array:
    """(N,) 0 above the mouth to 1 below, turning round its corner."""
    flat, mouth = face.grid.flat, face.grid.mouth
    angle = np.arctan2(flat[:, 1] - MOUTH_Y, flat[:, 0] - 0.26)
    turn = 0.5 - angle / (2 * np.pi)
    return np.where((mouth[:, 0] >= 0) & (mouth[:, 0] < 5), mouth[:, 1] / (2 * MOUTH_STEPS), turn)


def jaw_weight(face: Face) -> Array:
    """(N,) how much each vertex follows the jaw."""
    flat = face.grid.flat
    weight = ramp(around_mouth(face), 0.18, 0.82)
    weight = weight * (1 - ramp(flat[:, 0], 0.75, 1.2)) * ramp(flat[:, 1], -0.28, -0.6)
    weight *= 1 - ramp(flat[:, 1], -1.13, -1.36)
    return np.asarray(weight)


def _vector(x: Array | float, y: Array | float, z: Array | float, mask: Array) -> Array:
    return np.stack([np.broadcast_to(np.asarray(part, float), mask.shape) * mask for part in (x, y, z)], -1)


def _jaw(face: Face, left: Array) -> dict[str, Array]:
    flat, mouth = face.grid.flat, face.grid.mouth
    weight = jaw_weight(face)
    open_ = jaw_rotation(left, face, weight)
    corner = np.exp(-(((flat[:, 0] - 0.27) / 0.12) ** 2) - ((flat[:, 1] - MOUTH_Y) / 0.14) ** 2)
    open_ += _vector(-0.035, 0, -0.01, corner)
    close = np.zeros_like(open_)
    falloff = (1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.25, 0.0)
    for ring, share in enumerate(falloff):
        rows = np.flatnonzero((mouth[:, 0] == ring) & (face.grid.side >= 0))
        rows = rows[np.argsort(mouth[rows, 1])]
        gap = open_[rows[::-1]] - open_[rows]
        lower = mouth[rows, 1] > MOUTH_STEPS
        close[rows] = gap * np.where(lower, 0.85, 0.15)[:, None] * share
        close[face.grid.twin[rows]] = close[rows]
    return {
        "jawOpen": open_,
        "mouthClose": close,
        "jawForward": _vector(0, 0, 0.1, weight),
        "jawLeft": _vector(0.1, 0, 0, weight),
        "jawRight": _vector(-0.1, 0, 0, weight),
    }


def _mouth(face: Face, left: Array) -> dict[str, Array]:
    flat, mouth = face.grid.flat, face.grid.mouth
    x, dy = flat[:, 0], flat[:, 1] - MOUTH_Y
    ring = np.where(mouth[:, 0] >= 0, mouth[:, 0], 9)
    turn = around_mouth(face)
    upper = 1 - ramp(turn, 0.3, 0.7)
    lower = 1 - upper
    near = np.exp(-((x / 0.4) ** 4) - (dy / 0.2) ** 2)
    corner = np.exp(-(((x - 0.28) / 0.16) ** 2) - (dy / 0.14) ** 2)
    dome = np.clip(1 - (x / 0.28) ** 2, 0, 1)
    border = np.where((ring == 3) | (ring == 4), 1.0, 0.0) + 0.6 * (ring == 5) + 0.4 * (ring == 2)
    below_lip = np.exp(-((x / 0.25) ** 2) - ((dy + 0.24) / 0.14) ** 2)
    lip_side = np.exp(-(((x - 0.12) / 0.13) ** 2))
    lift_up = upper * np.exp(-((np.maximum(dy, 0) / 0.15) ** 2))
    pull_down = lower * np.exp(-((np.minimum(dy, 0) / 0.17) ** 2))
    size = face.params.mouth_width
    vertical = upper - lower
    pucker = _vector(-0.44 * left[:, 0], 0, 0.1 * (1.1 - 0.5 * np.clip(x / 0.26, 0, 1) ** 2), near)
    pucker[:, 1] += 0.016 * vertical * border * dome
    funnel = _vector(-0.3 * left[:, 0], 0, 0.085, near)
    funnel[:, 1] += (0.05 * lift_up - 0.065 * pull_down) * (0.25 + 0.75 * dome) * near
    cheek = np.exp(-(((x - 0.44) / 0.15) ** 2) - ((flat[:, 1] + 0.3) / 0.15) ** 2)
    along = (
        np.clip(x / 0.26, 0, 1) ** 2 * np.exp(-((np.maximum(x - 0.26, 0) / 0.13) ** 2)) * np.exp(-((dy / 0.16) ** 2))
    )
    smile = _vector(0.095 * size, 0.09, -0.06, along) + _vector(0.0, 0.03, 0.035, cheek)
    smile[:, 1] -= 0.012 * vertical * border * dome + 0.006 * near * dome
    frown = _vector(0.015, -0.085, -0.01, 0.5 * (corner + along)) + _vector(0, -0.01, 0, near * dome)
    stretch = _vector(0.105 * size, -0.03, -0.035, along)
    stretch[:, 1] -= 0.01 * vertical * border * dome
    roll = border + 0.35 * (ring == 1) + 0.8 * (ring == 2)
    press = _vector(0, -0.02 * vertical * dome, -0.018 * dome, border) + _vector(0.012, 0.01, -0.02, corner)
    return {
        "mouthPucker": pucker,
        "mouthFunnel": funnel,
        "mouthLeft": _vector(0.1, 0, 0, near),
        "mouthRight": _vector(-0.1, 0, 0, near),
        "mouthSmile": smile,
        "mouthFrown": frown,
        "mouthDimple": _vector(0.045, 0.01, -0.06, np.exp(-(((x - 0.3) / 0.1) ** 2) - (dy / 0.1) ** 2)),
        "mouthStretch": stretch,
        "mouthRollLower": _vector(0, 0.045 * dome, -0.055 * dome, roll * lower),
        "mouthRollUpper": _vector(0, -0.04 * dome, -0.05 * dome, roll * upper),
        "mouthShrugLower": _vector(0, 0.035, 0.03 * lower, near) + _vector(0, 0.035, 0.015, below_lip),
        "mouthShrugUpper": _vector(0, 0.032, 0.025, near * upper),
        "mouthPress": press,
        "mouthLowerDown": _vector(0, -0.085, 0.006, pull_down * lip_side * near),
        "mouthUpperUp": _vector(0, 0.075, 0.008, lift_up * lip_side * near),
    }


def _eyes(face: Face, left: Array) -> dict[str, Array]:
    params, eye, ball = face.params, face.grid.eye, face.eyeball
    ring, step = eye[:, 0], eye[:, 1]
    on = ring >= 0
    sine = np.where(on, np.sin(2 * np.pi * step / EYE_STEPS), 0.0)
    upper, lower = np.clip(sine, 0, None) > 1e-9, np.clip(-sine, 0, None) > 1e-9
    follow = np.select([ring == 0, ring == 1, ring == 2, ring == 3, ring == 4], [1.0, 1.0, 0.68, 0.36, 0.1], 0.0)
    # the lower lid's line under each upper vertex
    rows = np.flatnonzero((ring == 1) & (face.grid.side > 0) & (sine <= 1e-9))
    rows = rows[np.argsort(left[rows, 0])]
    line = np.interp(left[:, 0], left[rows, 0], left[rows, 1]) + 0.006
    edge_rows = np.flatnonzero((ring == 1) & (face.grid.side > 0) & (sine >= -1e-9))
    edge_rows = edge_rows[np.argsort(left[edge_rows, 0])]
    edge = np.interp(left[:, 0], left[edge_rows, 0], left[edge_rows, 1])
    gap = np.maximum(edge - line, 0.0)
    area = params.eye_area

    def lids(up: float, low: float) -> Array:
        """Moves the upper and lower lid by a share of the opening, sliding over the eyeball."""
        moved = left.copy()
        moved[:, 1] += np.where(upper, up * follow * gap, 0) + np.where(lower, low * follow * gap, 0)
        for at, lift in ((0, 0.004), (1, 0.02), (2, 0.036), (3, 0.036)):
            chosen = (ring == at) & (upper | lower)
            over = lid_depth(moved[chosen], ball, lift * ball.radius / 0.18, moved[chosen, 2], 1.0)
            moved[chosen, 2] = np.maximum(over, left[chosen, 2])
        return moved - left

    flat = face.grid.flat
    pouch = np.exp(-(((flat[:, 0] - EYE_X) / 0.2) ** 2) - ((flat[:, 1] - EYE_Y + 0.13) / 0.08) ** 2)
    return {
        "eyeBlink": lids(-1.0, 0.06),
        "eyeLookDown": lids(-0.35, -0.05),
        "eyeLookUp": lids(0.16, 0.06),
        "eyeLookIn": _vector(-0.006, 0, 0, follow * area),
        "eyeLookOut": _vector(0.006, 0, 0, follow * area),
        "eyeSquint": lids(-0.12, 0.34) + _vector(0, 0.03, 0.012, pouch),
        "eyeWide": lids(0.34, -0.1),
    }


def _brows_and_cheeks(face: Face, left: Array) -> dict[str, Array]:
    x, y = face.grid.flat[:, 0], face.grid.flat[:, 1]
    band = np.exp(-(((y - 0.25) / 0.13) ** 2)) * ramp(y, 0.06, 0.2)
    inner, outer = np.exp(-((x / 0.2) ** 2)), np.exp(-(((x - 0.46) / 0.17) ** 2))
    whole = np.exp(-((np.maximum(x - 0.2, 0) / 0.25) ** 2))
    cheek = np.exp(-(((x - 0.42) / 0.17) ** 2) - ((y + 0.24) / 0.13) ** 2)
    puff = np.exp(-(((x - 0.47) / 0.17) ** 2) - ((y + 0.56) / 0.2) ** 2)
    wing = np.exp(-(((x - 0.13) / 0.07) ** 2) - ((y + 0.38) / 0.09) ** 2)
    groove = np.exp(-(((x - 0.2) / 0.12) ** 2) - ((y + 0.48) / 0.1) ** 2)
    outward = left * np.array([1.0, 0, 0.6])
    return {
        "browDown": _vector(-0.02 * inner, -0.075 * whole, 0.012, band),
        "browInnerUp": _vector(0, 0.1, 0, band * inner),
        "browOuterUp": _vector(0, 0.1, 0, band * outer),
        "cheekPuff": outward * puff[:, None] * 0.25,
        "cheekSquint": _vector(0, 0.05, 0.035, cheek),
        "noseSneer": _vector(0.008, 0.045, 0.008, wing) + _vector(0, 0.025, 0.01, groove),
        "tongueOut": _vector(0, -0.012, 0.01, bump(x, 0.0, 0.2) * bump(y, MOUTH_Y - 0.06, 0.06)),
    }
