"""Hair as shells over the skull and volumes beside it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model_code.avatars.avatar import Part
from model_code.avatars.params import HeadParams
from model_code.avatars.pieces import Piece, ball, fan, piece, sheet, tube
from model_code.avatars.sculpt import DOME_ARC, DOME_FROM, Face, ramp, skull_shell

Array = NDArray[np.float64]


def hair(face: Face) -> list[Piece]:
    """The pieces of this head's hair."""
    params = face.params
    if params.hair == "bald":
        return []
    pieces = [_shell(params)]
    color = np.array(params.hair_color)
    if params.hair == "bun":
        points, faces = ball(np.array([0.0, 1.12 * params.skull, -0.42]), np.array([0.27, 0.25, 0.27]), 6, 10)
        pieces.append(piece(points, faces, _strands(points, color, params), Part.HAIR, 0.3))
    if params.hair == "ponytail":
        path = np.array([[0, 0.75, -0.95], [0, 0.8, -1.2], [0, 0.3, -1.4], [0, -0.5, -1.35], [0, -1.2, -1.2]])
        points, faces = tube(path, np.array([0.1, 0.17, 0.22, 0.17, 0.04]), 8)
        pieces.append(piece(points, faces, _strands(points, color, params), Part.HAIR, 0.3))
    return pieces


def hairline(angle: Array, params: HeadParams) -> Array:
    """Flat height above which hair grows, at `angle` from the front."""
    side = np.abs(angle)
    front = 0.62 + params.hairline
    temple = ramp(side, 0.55, 1.0)
    line = front + 0.04 * np.sin(side * 4) * (1 - temple)
    line = line * (1 - temple) + 0.1 * temple
    sideburn = ramp(side, 1.15, 1.35)
    line = line * (1 - sideburn) + (-0.18) * sideburn
    nape = ramp(side, 1.75, 2.3)
    line = line * (1 - nape) + (-0.75) * nape
    if params.hair == "receding":
        line = line + (0.75 - 0.2 * params.hairline) * (1 - ramp(side, 0.9, 1.5)) + 0.2 * (1 - nape)
    return np.asarray(line)


def _shell(params: HeadParams) -> Piece:
    style = params.hair
    long = {"bob": -0.95, "long": -1.75, "wavy": -1.6}.get(style)
    rows, columns = (13, 34) if long is None else (15, 34)
    angle = 2 * np.pi * (np.arange(columns) + 0.5) / columns - np.pi
    rng = np.random.default_rng(params.seed)
    locks = rng.normal(size=columns)
    locks = (locks + np.roll(locks, 1)) / 2
    line = hairline(angle, params) + (
        0.035 * locks * ramp(0.9 - np.abs(angle), 0, 0.3) if style not in ("buzz", "receding") else 0.0
    )
    top = DOME_FROM + DOME_ARC * 0.97
    thickness = params.hair_volume
    points = np.zeros((rows, columns, 3))
    shade = np.ones((rows, columns))
    for row in range(rows):
        t = row / (rows - 1)
        # the last row is tucked under the skin below the hairline
        y = top + (line - 0.10 - top) * t ** (0.8 if long is None else 0.75)
        base = skull_shell(angle, y, params)
        centre = np.array([0.0, 0.35, -0.05])
        outward = base - centre
        outward[:, 1] *= 0.85
        outward /= np.linalg.norm(outward, axis=1, keepdims=True)
        above = y - line
        grow = thickness * ramp(above, -0.06, 0.16 if style != "buzz" else 0.05) - 0.055 * (1 - ramp(above, -0.1, 0.02))
        grow = grow + _style(style, angle, y, t, params) * ramp(above, 0.0, 0.2)
        if style in ("curly", "afro", "wavy"):
            wave = np.sin(angle * (9 if style == "curly" else 7) + row * 2.1) * np.cos(row * 1.9 + angle * 3)
            grow = grow + (0.06 if style == "curly" else 0.045 if style == "afro" else 0.03) * wave * ramp(
                above, 0.02, 0.15
            )
            shade[row] += 0.35 * wave
        else:
            shade[row] += 0.16 * locks + 0.1 * np.sin(angle * 11 + t * 2)
            grow = grow + 0.03 * locks * ramp(above, 0.0, 0.1) * (style != "buzz") * (1 - ramp(y, 1.1, 1.4))
        points[row] = base + outward * grow[:, None]
        shade[row] *= 0.75 + 0.35 * (1 - t)
    if long is not None:
        _drape(points, shade, angle, long, params)
    crown = points[0].mean(0) + np.array([0.0, 0.004, 0.0])
    flat = np.concatenate([points.reshape(-1, 3), crown[None]])
    faces = np.concatenate([sheet(rows, columns, True), fan(rows * columns, np.arange(columns))])
    tint = np.concatenate([shade.reshape(-1), [1.1]])[:, None]
    return piece(flat, faces, np.clip(np.array(params.hair_color) * tint, 0.003, 1), Part.HAIR, 0.3)


def _style(style: str, angle: Array, y: Array, t: float, params: HeadParams) -> Array:
    """Extra thickness (N,) that makes the style."""
    front = np.exp(-((angle / 0.9) ** 2))
    if style == "quiff":
        return 0.16 * front * np.exp(-(((y - 0.9) / 0.3) ** 2))
    if style == "side":
        part = np.tanh((angle - params.parting) / 0.35) * np.sign(params.parting or 1.0)
        return np.asarray(
            0.07 * (1 - part) * np.exp(-((angle / 1.3) ** 2)) * ramp(y, 0.6, 0.9) * (1 - ramp(y, 1.15, 1.4))
        )
    if style == "mohawk":
        crest = np.exp(-((np.sin(angle) / 0.3) ** 2)) * ramp(y, 0.4, 0.8)
        return np.asarray(0.38 * crest - params.hair_volume * 0.6 * (1 - crest))
    if style == "afro":
        return np.full(len(angle), 0.2) * ramp(y, -0.5, 0.5)
    return np.zeros(len(angle))


def _drape(points: Array, shade: Array, angle: Array, low: float, params: HeadParams) -> None:
    """Lets the hair hang at the sides and the back down to `low`."""
    rows = len(points)
    first = rows // 2
    hang = ramp(np.abs(angle), 1.0, 1.14)
    start = points[first].copy()
    for row in range(first + 1, rows):
        t = (row - first) / (rows - 1 - first)
        target = start.copy()
        target[:, 1] = start[:, 1] + (low - start[:, 1]) * t
        bulge = 1.05 + 0.08 * np.sin(np.pi * min(t * 1.2, 1.0)) - (0.03 if params.hair == "bob" else 0.0) * t
        frame = np.exp(-(((np.abs(angle) - 1.15) / 0.3) ** 2))
        target[:, 0] = start[:, 0] * (bulge + 0.14 * np.sin(np.pi * t) + 0.04 * t)
        target[:, 2] = start[:, 2] * bulge - 0.05 * t + 0.16 * frame * np.sin(np.pi * 0.8 * t)
        target[:, 1] += 0.06 * t * np.sin(angle * 13)
        if params.hair == "wavy":
            target[:, 0] += 0.04 * np.sin(t * 9 + angle * 5)
        points[row] = points[row] * (1 - hang[:, None]) + target * hang[:, None]
        shade[row] = shade[row] * (1 - hang) + (shade[first] * (1.0 - 0.25 * t)) * hang


def _strands(points: Array, color: Array, params: HeadParams) -> Array:
    around = np.arctan2(points[:, 0], points[:, 2] + 0.6)
    return np.asarray(np.clip(color * (1 + 0.2 * np.sin(around * 9))[:, None], 0.003, 1))
