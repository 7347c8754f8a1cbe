"""Thresholds of the pair filters from graded bad pairs: where does each filter bite?

For each filter the good pairs stand against pairs that are wrong in one way: for identity the clip of the
nearest other speaker; for the mouth V against itself one and two frames later (other lips, but hardly); for
the aspects a mild blur, flicker or shift of V'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from model_code.config import FilterConfig
from model_code.faces.align import mouth_distance
from model_code.faces.identity import IdentityEncoder, identity_cosine
from model_code.files import write_json
from model_code.pairs.aspects import aspects
from model_code.pairs.filters import IDENTITY_EVERY, scores
from model_code.pairs.pair import Pair
from model_code.seeding import rng_for

BLURS = (0.7, 1.0)
FLICKERS = (0.02, 0.03)
SHIFTS = (0.7, 1.0)
FRAMES = 25
"""Frames of each pair that are looked at."""


@dataclass(frozen=True)
class Curve:
    """One filter's calibration.

    Attributes:
        good: Scores of good pairs.
        bad: Scores of bad pairs by kind of fault.
        threshold: Where good and bad are told apart best (balanced accuracy).
        kept: Share of good pairs at or above the threshold.
        rejected: Share of bad pairs below it, by kind.
    """

    good: list[float]
    bad: dict[str, list[float]]
    threshold: float
    kept: float
    rejected: dict[str, float]


def blurred(frames: NDArray[np.uint8], sigma: float) -> NDArray[np.uint8]:
    """Gaussian blur of every frame, sigma in pixels."""
    return np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in frames])


def flickering(frames: NDArray[np.uint8], amount: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A random gain of relative spread `amount` for every frame."""
    gains = 1 + rng.normal(0, amount, (len(frames), 1, 1, 1))
    return np.clip(np.rint(frames * gains), 0, 255).astype(np.uint8)


def shaking(frames: NDArray[np.uint8], amount: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A random shift of spread `amount` pixels for every frame."""
    out = []
    for frame, (dx, dy) in zip(frames, rng.normal(0, amount, (len(frames), 2)), strict=True):
        matrix = np.array([[1, 0, dx], [0, 1, dy]], np.float32)
        out.append(cv2.warpAffine(frame, matrix, frame.shape[1::-1], borderMode=cv2.BORDER_REPLICATE))
    return np.stack(out)


def calibrate(pairs: Sequence[Pair], identity: IdentityEncoder, seed: int = 0) -> dict[str, Curve]:
    """Curves of the three filters on good pairs and what is made bad of them.

    Args:
        pairs: Pairs believed good, of at least two speakers.
        identity: The chain's identity encoder.
        seed: Of flicker and shift.
    """
    pairs = [_beginning(pair) for pair in pairs]
    good = [scores(pair, identity) for pair in pairs]
    spoilt: dict[str, list[float]] = {}
    for index, pair in enumerate(pairs):
        rng, target = rng_for("calibrate", seed, index), pair.target
        versions = {f"blur {sigma} px": blurred(pair.companion, sigma) for sigma in BLURS}
        versions |= {f"flicker {amount:.0%}": flickering(pair.companion, amount, rng) for amount in FLICKERS}
        versions |= {f"shift {amount} px": shaking(pair.companion, amount, rng) for amount in SHIFTS}
        for name, frames in versions.items():
            quality = aspects(frames, target.frames, target.landmarks)
            spoilt.setdefault(name, []).append(float(np.mean(list(quality.values()))))
    late = {
        f"own mouth {k * 40} ms late": [
            mouth_distance(pair.target.landmarks[:-k], pair.target.landmarks[k:]) for pair in pairs
        ]
        for k in (1, 2)
    }
    return {
        "identity_cosine": curve(
            [row["identity_cosine"] for row in good], {"nearest other speaker": _nearest_other(pairs, identity)}
        ),
        "mouth_distance": curve([row["mouth_distance"] for row in good], late),
        "aspect_mean": curve([row["aspect_mean"] for row in good], spoilt),
    }


def _beginning(pair: Pair) -> Pair:
    """The pair's first `FRAMES` frames."""
    target = replace(pair.target, frames=pair.target.frames[:FRAMES], landmarks=pair.target.landmarks[:FRAMES])
    return replace(
        pair,
        target=target,
        companion=pair.companion[:FRAMES],
        companion_landmarks=pair.companion_landmarks[:FRAMES],
    )


def _nearest_other(pairs: Sequence[Pair], identity: IdentityEncoder) -> list[float]:
    """Of each target the largest cosine to another speaker's, measured as the filter measures a pair's."""
    vectors = [identity.embed(pair.target.frames[::IDENTITY_EVERY]) for pair in pairs]
    speakers = [str(pair.row["speaker_id"]) for pair in pairs]
    nearest = []
    for own, speaker in zip(vectors, speakers, strict=True):
        others = [other for other, name in zip(vectors, speakers, strict=True) if name != speaker]
        if others:
            nearest.append(max(identity_cosine(own[: len(other)], other[: len(own)]) for other in others))
    return nearest


def curve(good: list[float], bad: dict[str, list[float]]) -> Curve:
    """The threshold of best balanced accuracy, in the middle of the gap it falls into."""
    everything = [value for values in bad.values() for value in values]
    points = np.unique(np.array(good + everything))
    middles = (points[1:] + points[:-1]) / 2 if len(points) > 1 else points
    accuracy = [0.5 * (np.mean(np.array(good) >= m) + np.mean(np.array(everything) < m)) for m in middles]
    best = np.flatnonzero(np.isclose(accuracy, np.max(accuracy)))
    threshold = float(np.round(middles[best].mean(), 3))
    return Curve(
        good=good,
        bad=bad,
        threshold=threshold,
        kept=float(np.mean(np.array(good) >= threshold)),
        rejected={name: float(np.mean(np.array(values) < threshold)) for name, values in bad.items()},
    )


def write_calibration(curves: dict[str, Curve], config: FilterConfig, folder: Path) -> dict[str, Any]:
    """Writes calibration.json and calibration.png; returns the JSON's value.

    Args:
        curves: From `calibrate`.
        config: The thresholds in force, drawn beside the calibrated ones.
        folder: Where to.
    """
    in_force = config.model_dump()
    value = {name: {**vars(one), "in_force": in_force[name]} for name, one in curves.items()}
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    for axis, (name, one) in zip(figure.subplots(1, len(curves)), curves.items(), strict=True):
        for label, values in {"good pairs": one.good, **one.bad}.items():
            ordered = np.sort(values)
            share = np.arange(1, len(ordered) + 1) / len(ordered)
            axis.step(ordered, share, where="post", label=label, linewidth=2 if label == "good pairs" else 1)
        axis.axvline(one.threshold, color="black", linestyle=":", label=f"calibrated {one.threshold:g}")
        axis.axvline(in_force[name], color="black", label=f"in force {in_force[name]:g}")
        axis.set(title=name.replace("_", " "), ylabel="share of pairs below")
        axis.legend(fontsize=6)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "calibration.png", dpi=110)
    write_json(folder / "calibration.json", value)
    return value
