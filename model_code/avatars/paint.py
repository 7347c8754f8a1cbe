"""Colours of the skin, vertex by vertex."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from model_code.avatars.grid import EYE_X, EYE_Y, MOUTH_Y
from model_code.avatars.hair import hairline
from model_code.avatars.sculpt import Face, ramp

Array = NDArray[np.float64]


def paint(face: Face) -> tuple[Array, Array]:
    """Linear albedo (N, 3) and gloss (N,) of the skin."""
    params, grid = face.params, face.grid
    x, y = grid.flat.T
    skin = np.array(params.skin)
    colors = np.tile(skin, (len(x), 1))
    rng = np.random.default_rng(params.seed)

    def mix(color: Array | tuple[float, ...], amount: Array) -> None:
        share = np.clip(amount, 0, 1)[:, None]
        colors[:] = colors * (1 - share) + np.asarray(color) * share

    if params.belly is not None:
        mix(params.belly, np.exp(-((x / 0.42) ** 4) - ((y + 0.72) / 0.42) ** 4) + ramp(y, -1.1, -1.3) * (x < 0.9))
    _pattern(face, mix, rng)
    red = skin * np.array([1.0, 0.55, 0.52])
    mix(red, params.blush * np.exp(-(((x - 0.45) / 0.15) ** 2) - ((y + 0.32) / 0.13) ** 2))
    mix(red, 0.5 * params.blush * np.exp(-((x / 0.14) ** 2) - ((y + 0.36) / 0.09) ** 2))
    socket = np.exp(-(((x - EYE_X) / 0.2) ** 2) - ((y - EYE_Y) / 0.1) ** 2)
    mix(skin * np.array([0.66, 0.54, 0.52]), (0.2 + 0.4 * params.age) * socket)
    if params.makeup > 0:
        mix(np.array(params.lips) * 0.5 + skin * 0.2, params.makeup * socket * (y > 0.0))
    mix(skin * 0.55, 0.55 * (grid.eye[:, 0] == 3) * (np.sin(2 * np.pi * grid.eye[:, 1] / 20) > 0.1))
    mix(
        np.array(params.brow_color) * 0.35,
        (0.75 + 0.2 * params.makeup) * (grid.eye[:, 0] == 1) * (np.sin(2 * np.pi * grid.eye[:, 1] / 20) > -0.05),
    )
    mix(skin * np.array([0.75, 0.45, 0.4]), 0.8 * (grid.eye[:, 0] == 0))
    nostril = np.exp(-(((x - 0.075) / 0.04) ** 2) - ((y + 0.46) / 0.02) ** 2)
    mix(skin * 0.16, 0.9 * nostril)
    mix(skin * 0.72, 0.5 * np.exp(-(((x - 0.2) / 0.03) ** 2) - ((y + 0.43) / 0.05) ** 2))
    fold = 0.2 + (-0.42 - y) * 0.55
    mix(skin * 0.68, (0.1 + 0.5 * params.age) * np.exp(-(((x - fold) / 0.04) ** 2) - ((y + 0.56) / 0.12) ** 2))
    mix(skin * 0.7, 0.35 * np.exp(-((x / 0.2) ** 2) - ((y + 0.865) / 0.04) ** 2))
    beard = (
        ramp(y, -0.36, -0.62)
        * (1 - ramp(x, 1.1, 1.35))
        * (1 - ramp(y, -1.1, -1.25))
        * (1 - ramp(x, 0.9, 0.3) * ramp(y, -0.62, -0.4) * 0.55)
    )
    beard *= 1 - np.exp(-(((x - 0.45) / 0.16) ** 2) - ((y + 0.48) / 0.13) ** 2)
    beard *= (grid.mouth[:, 0] < 0) | (grid.mouth[:, 0] > 4)
    hair_color = np.array(params.brow_color)
    mix(skin * 0.25 + hair_color * 0.5, params.stubble * beard)
    if params.freckles > 0:
        spots = rng.random(len(x)) < 0.5
        mix(
            skin * np.array([0.62, 0.45, 0.38]),
            params.freckles * spots * np.exp(-((x / 0.55) ** 4) - ((y + 0.25) / 0.18) ** 2),
        )
    lip = np.array(params.lips)
    for ring, share in ((0, 1.0), (1, 1.0), (2, 1.0), (3, 0.95), (4, 0.55)):
        rows = grid.mouth[:, 0] == ring
        tone = lip * (0.4, 0.62, 0.98, 1.0, 0.95)[ring]
        tone = np.where((y > MOUTH_Y)[:, None], tone * 0.86, tone)
        colors[rows] = colors[rows] * (1 - share) + tone[rows] * share
    if params.hair not in ("bald",):
        angle = x / 0.85
        grown = ramp(y - hairline(angle, params), -0.02, 0.06)
        mix(np.array(params.hair_color), 0.9 * grown)
    colors *= 1 + 0.02 * rng.standard_normal((len(x), 1))
    gloss = np.full(len(x), params.gloss)
    gloss += 0.1 * np.exp(-((x / 0.12) ** 2) - ((y + 0.33) / 0.1) ** 2)
    gloss[(grid.mouth[:, 0] >= 1) & (grid.mouth[:, 0] <= 3)] += 0.25
    return np.clip(colors, 0.002, 1), np.clip(gloss, 0, 1)


def _pattern(face: Face, mix: Callable[[Array | tuple[float, ...], Array], None], rng: np.random.Generator) -> None:
    """Fur markings, scales or panels."""
    params = face.params
    x, y = face.grid.flat.T
    skin = np.array(params.skin)
    if params.pattern == "mask":
        mix(skin * 0.2, np.exp(-(((x - 0.34) / 0.24) ** 4) - ((y - 0.02) / 0.2) ** 4))
    elif params.pattern == "stripes":
        mix(
            skin * 0.25,
            (np.sin(y * 22 + x * 3) > 0.45) * ramp(x, 0.45, 0.6) + (np.sin(x * 28) > 0.4) * ramp(y, 0.35, 0.5),
        )
    elif params.pattern == "spots":
        mix(skin * 0.4, 0.8 * (rng.random(len(x)) < 0.25) * ramp(x + np.clip(y, 0, 1), 0.45, 0.7))
    elif params.pattern == "blaze":
        mix((0.75, 0.72, 0.68), np.exp(-((x / 0.13) ** 4)) * (y > -0.4))
    elif params.pattern == "panels":
        mix(skin * 0.12, np.exp(-((x / 0.62) ** 6) - ((y - 0.02) / 0.2) ** 6))
        mix(
            skin * 0.3,
            0.8 * (np.abs(y - 0.42) < 0.03)
            + 0.8 * (np.abs(x - 0.72) < 0.04)
            + 0.7 * (np.abs(y + 0.95) < 0.03) * (x < 0.4),
        )
