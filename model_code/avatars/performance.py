"""What a head does besides speaking: head motion, blinks, gaze, brows, a mood; and the speech laid over it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from model_code.avatars.avatar import ARKIT_NAMES

Array = NDArray[Any]
Motion = Literal["calm", "lively", "profile"]
MOTIONS: tuple[Motion, ...] = ("calm", "lively", "profile")
FPS = 25


@dataclass(frozen=True)
class Performance:
    """A head's motion over T frames.

    Attributes:
        coefficients: (T, 52) float32 ARKit coefficients in 0..1: ``expression`` and speech together.
        rotation: (T, 3) float32 yaw, pitch, roll in radians.
        translation: (T, 3) float32 in the avatar's units.
        expression: (T, 52) float32 everything but speech; speech is added to it, so that another speech over the
            same expression is exact.
    """

    coefficients: Array
    rotation: Array
    translation: Array
    expression: Array


@cache
def _speech_mask() -> Array:
    from model_code.speech.visemes import SPEECH_COEFFICIENTS

    return np.isin(np.array(ARKIT_NAMES), list(SPEECH_COEFFICIENTS)).astype(np.float32)


def _column(name: str) -> int:
    return ARKIT_NAMES.index(name)


def _drift(rng: np.random.Generator, n_frames: int, slowest: float, fastest: float) -> Array:
    """(T,) smooth noise of about unit deviation with frequencies between two bounds in Hz."""
    n = 5
    time = np.arange(n_frames)[:, None] / FPS
    frequency = np.exp(rng.uniform(np.log(slowest), np.log(fastest), n))
    weight = frequency**-0.5
    weight = weight / np.sqrt(0.5 * (weight**2).sum())
    return np.asarray((np.sin(2 * np.pi * (frequency * time + rng.uniform(0, 1, n))) * weight).sum(1))


def _smooth(signal: Array, deviation: float) -> Array:
    """Gaussian smoothing in time with the ends held; (T, ...) -> (T, ...)."""
    radius = int(3 * deviation) + 1
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / deviation) ** 2)
    kernel = kernel / kernel.sum()
    padded = np.pad(signal, [(radius, radius)] + [(0, 0)] * (signal.ndim - 1), mode="edge")
    windows = np.stack([padded[i : i + len(signal)] for i in range(len(kernel))])
    return np.asarray(np.tensordot(kernel, windows, 1))


def _emphasis(mouth: Array) -> list[int]:
    """Frames of the widest openings of the jaw, at least 0.6 s apart, strongest first."""
    jaw = _smooth(mouth[:, _column("jawOpen")].astype(np.float64), 2.0)
    chosen: list[int] = []
    for frame in np.argsort(-jaw, kind="stable"):
        if jaw[frame] > 0.05 and all(abs(int(frame) - other) > 15 for other in chosen):
            chosen.append(int(frame))
    return chosen


def _bump(n_frames: int, center: float, rise: float, fall: float) -> Array:
    """(T,) a bell with its own width on either side."""
    offset = np.arange(n_frames) - center
    return np.exp(-0.5 * (offset / np.where(offset < 0, rise, fall)) ** 2)


def _blinks(rng: np.random.Generator, n_frames: int) -> Array:
    """(T,) lids: closing in 2-3 frames, opening in 4-6, every 2 to 5 s."""
    lids = np.zeros(n_frames)
    frame = rng.uniform(-1.0, 3.0) * FPS
    while frame < n_frames:
        lids = np.maximum(lids, rng.uniform(0.9, 1.0) * _bump(n_frames, round(frame), 0.9, rng.uniform(1.3, 1.8)))
        if rng.random() < 0.12:
            lids = np.maximum(lids, _bump(n_frames, round(frame) + 9, 0.9, 1.5))
        frame += rng.uniform(2.0, 5.0) * FPS
    return np.where(lids < 0.03, 0.0, lids)


def _gaze(rng: np.random.Generator, n_frames: int, restlessness: float) -> Array:
    """(T, 2) gaze to the viewer's right and up, -1..1: fixations joined by saccades of two frames."""
    gaze = np.zeros((n_frames, 2))
    frame = 0
    while frame < n_frames:
        hold = int(rng.uniform(0.5, 2.4) * FPS)
        away = rng.random() < 0.3 * restlessness
        target = rng.normal(0.0, (0.38, 0.22) if away else (0.07, 0.05))
        gaze[frame : frame + hold] = np.clip(target, -0.7, 0.7)
        frame += hold
    return _smooth(gaze, 0.6)


def draw_performance(rng: np.random.Generator, mouth: Array, *, motion: Motion) -> Performance:
    """Head motion, blinks, gaze, brows and a mood over one speech.

    Args:
        rng: the only source of chance.
        mouth: (T, 52) speech coefficients in ARKit order.
        motion: "calm" (small, slow), "lively" (nods, turns, brows) or "profile" (35 to 60 degrees of yaw).

    Returns:
        A `Performance` of T frames.

    Raises:
        ValueError: if ``motion`` is not one of `MOTIONS`.
    """
    if motion not in MOTIONS:
        raise ValueError(f"motion must be one of {MOTIONS}, not {motion!r}")
    n = len(mouth)
    amount = {"calm": 0.55, "lively": 1.35, "profile": 0.7}[motion]
    yaw = np.radians(5.0) * amount * _drift(rng, n, 0.08, 0.5)
    pitch = np.radians(2.6) * amount * _drift(rng, n, 0.1, 0.7) + np.radians(rng.normal(0.0, 2.0))
    roll = np.radians(2.2) * amount * _drift(rng, n, 0.08, 0.45) + np.radians(rng.normal(0.0, 1.2))
    base = rng.normal(0.0, 5.0)
    if motion == "profile":
        base = rng.choice([-1.0, 1.0]) * rng.uniform(38.0, 56.0)
    yaw = yaw + np.radians(base)

    expression = np.zeros((n, len(ARKIT_NAMES)))
    brow = np.zeros(n)
    for frame in _emphasis(mouth):
        strength = rng.uniform(0.0, 1.0)
        if strength > 0.75 - 0.35 * (motion == "lively"):
            pitch = pitch + np.radians(4.0) * amount * strength * _bump(n, frame + 1, 3.0, 5.0)
            brow = brow + rng.uniform(0.2, 0.7) * strength * _bump(n, frame - 1, 4.0, 7.0)

    if motion == "profile":
        yaw = np.sign(base) * np.clip(np.abs(yaw), np.radians(35.0), np.radians(60.0))

    lids = _blinks(rng, n)
    gaze = _gaze(rng, n, 0.5 + 0.5 * amount)
    gaze[:, 0] += -0.9 * (yaw - np.radians(base)) - 0.25 * np.radians(base)
    gaze[:, 1] += 0.9 * (pitch - pitch.mean())
    right, up = np.clip(gaze[:, 0], -0.8, 0.8), np.clip(gaze[:, 1], -0.7, 0.7)
    looks = {
        "eyeLookOutLeft": right,
        "eyeLookInRight": right,
        "eyeLookInLeft": -right,
        "eyeLookOutRight": -right,
        "eyeLookUpLeft": up,
        "eyeLookUpRight": up,
        "eyeLookDownLeft": -up,
        "eyeLookDownRight": -up,
    }
    for name, value in looks.items():
        expression[:, _column(name)] = np.maximum(value, 0.0)

    slow_brow = np.maximum(0.0, 0.12 * amount * _drift(rng, n, 0.1, 0.4))
    expression[:, _column("browInnerUp")] = 0.8 * brow + slow_brow
    lift = rng.uniform(0.6, 1.0, 2)
    expression[:, _column("browOuterUpLeft")] = lift[0] * (0.7 * brow + slow_brow)
    expression[:, _column("browOuterUpRight")] = lift[1] * (0.7 * brow + slow_brow)
    mood = rng.normal(0.0, 1.0)
    frown = max(0.0, -0.12 * mood) * (1.0 + 0.4 * _drift(rng, n, 0.05, 0.3))
    smile = max(0.0, 0.12 * mood)  # held: a mouth that moves without speech would be nobody's to predict
    squint = rng.uniform(0.0, 0.15)
    for side in ("Left", "Right"):
        expression[:, _column("eyeBlink" + side)] = np.maximum(lids, 0.25 * np.maximum(-up, 0.0))
        expression[:, _column("browDown" + side)] = frown
        expression[:, _column("mouthSmile" + side)] = smile
        expression[:, _column("cheekSquint" + side)] = 0.8 * smile
        expression[:, _column("eyeSquint" + side)] = squint + 0.5 * smile

    rotation = np.stack([yaw, pitch, roll], 1)
    translation = np.stack(
        [
            0.05 * amount * _drift(rng, n, 0.08, 0.4) + 0.25 * np.sin(yaw - np.radians(base)),
            0.03 * amount * _drift(rng, n, 0.1, 0.5),
            0.06 * amount * _drift(rng, n, 0.08, 0.4),
        ],
        1,
    )
    silent = Performance(
        np.zeros((n, len(ARKIT_NAMES)), np.float32),
        rotation.astype(np.float32),
        translation.astype(np.float32),
        np.clip(expression, 0.0, 1.0).astype(np.float32),
    )
    return replace_speech(silent, mouth)


def replace_speech(performance: Performance, mouth: Array) -> Performance:
    """The same head saying something else: only speech-correlated coefficients change.

    Args:
        performance: T frames.
        mouth: (T, 52) speech coefficients; those that are not speech's are ignored.

    Raises:
        ValueError: if the lengths differ.
    """
    if mouth.shape != performance.expression.shape:
        raise ValueError(f"mouth has shape {mouth.shape}, the performance {performance.expression.shape}")
    spoken = mouth.astype(np.float32) * _speech_mask()
    coefficients = np.clip(performance.expression + spoken, 0.0, 1.0).astype(np.float32)
    return Performance(coefficients, performance.rotation, performance.translation, performance.expression)
