"""Do the lips follow the new sound? Correlations of mouth curves, pooled over clips, with intervals.

A curve is (T,3): opening, width, pucker. Each clip's curves are centred on their own mean, so a head's resting
mouth does not count, and the sums of all clips are pooled before dividing: a still clip then weighs little.
Every measure here is a ratio of sums over clips, which is what `bootstrap` resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

CURVES = ("opening", "width", "pucker")
MIN_CLIPS = 5
"""Fewer give no interval: drawn again they hardly differ, one alone never."""
MIN_KNOWN = 0.99
"""Smallest share of draws with a value that gives one: in fewer, less than about `MIN_CLIPS` clips have what counts."""


class EstimateValues(TypedDict):
    """An `Estimate` in JSON."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Estimate:
    """A value with the interval that a bootstrap over clips gives; None where there are too few."""

    value: float
    low: float | None
    high: float | None

    def as_dict(self) -> EstimateValues:
        """Plain numbers for JSON."""
        return {"value": self.value, "low": self.low, "high": self.high}


def centred(curves: np.ndarray) -> np.ndarray:
    """Curves (T,K) minus their mean over time, float64."""
    values = np.asarray(curves, np.float64)
    return values - values.mean(0)


def moments(*clips: np.ndarray) -> np.ndarray:
    """Second moments (K,S,S) of S signals, each (T,K), of one clip after centring; lengths are cut to the shortest."""
    length = min(len(clip) for clip in clips)
    stacked = np.stack([centred(clip[:length]) for clip in clips])
    return np.einsum("stk,utk->ksu", stacked, stacked)


def correlation(pooled: np.ndarray) -> np.ndarray:
    """Correlation (...) of signals 0 and 1 from pooled moments (...,S,S); NaN where one does not move."""
    with np.errstate(divide="ignore", invalid="ignore"):
        value: np.ndarray = pooled[..., 0, 1] / np.sqrt(pooled[..., 0, 0] * pooled[..., 1, 1])
    return value


def partial_correlation(pooled: np.ndarray) -> np.ndarray:
    """Correlation (...) of signals 0 and 1 after removing what signal 2 explains of both, from moments (...,3,3)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        explained = pooled[..., :, 2, None] * pooled[..., None, 2, :] / pooled[..., 2, 2, None, None]
    return correlation(pooled - explained)


def sum_moments(*signals: Sequence[np.ndarray]) -> np.ndarray:
    """Moments of every clip, (clips,K,S,S)."""
    return np.stack([moments(*clips) for clips in zip(*signals, strict=True)])


def wrong_audio_moments(
    outputs: Sequence[np.ndarray], references: Sequence[np.ndarray], sentences: Sequence[str]
) -> np.ndarray:
    """Moments (clips,clips,K,2,2) of every output with every clip's reference; zero where both say the same.

    The control: what correlation comes from mouths moving at all. All other clips instead of one make it as
    narrow as the data allow.

    Raises:
        ValueError: A clip has no other that says something else.
    """
    if len(set(sentences)) < 2:
        raise ValueError("the wrong-audio control needs at least two different sentences")
    pairs = np.zeros((len(outputs), len(references), len(CURVES), 2, 2))
    for i, (output, own) in enumerate(zip(outputs, sentences, strict=True)):
        for j, (other, text) in enumerate(zip(references, sentences, strict=True)):
            if text != own:
                pairs[i, j] = moments(output, other)
    return pairs


def bootstrap(
    per_clip: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    *,
    rng: np.random.Generator,
    draws: int = 1000,
    level: float = 0.95,
    of_pairs: bool = False,
) -> Estimate:
    """Percentile interval of a statistic of the sum over clips, clips drawn with replacement.

    Args:
        per_clip: (clips, ...) contributions that add up; for a mean use columns (value, 1).
        statistic: Maps sums over clips (draws, ...) to the numbers of interest (draws,).
        rng: Source of the draws.
        draws: Number of resamples.
        level: Coverage of the interval.
        of_pairs: `per_clip` is (clips, clips, ...), a contribution for each pair: drawing a clip draws its row and its
            column.

    Returns:
        The value and, from `MIN_CLIPS` clips and `MIN_KNOWN` draws with a value on, its interval.
    """
    clips = len(per_clip)
    counts = np.concatenate([np.ones((1, clips)), rng.multinomial(clips, np.full(clips, 1 / clips), size=draws)])
    if of_pairs:
        values = statistic(np.einsum("di,dj,ij...->d...", counts, counts, per_clip, optimize=True))
    else:
        values = statistic(np.einsum("di,i...->d...", counts, per_clip, optimize=True))
    known = values[1:][np.isfinite(values[1:])]
    if clips < MIN_CLIPS or known.size < MIN_KNOWN * draws:
        return Estimate(float(values[0]), None, None)
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(values[0]), float(low), float(high))


def ratio(sums: np.ndarray) -> np.ndarray:
    """Statistic of a mean: sums (..., 2) of values and counts -> (...); NaN of nothing."""
    with np.errstate(invalid="ignore"):
        mean: np.ndarray = sums[..., 0] / sums[..., 1]
    return mean


def silence_share(output: np.ndarray, closed: np.ndarray, full: np.ndarray) -> float:
    """Mean opening with silent audio above the closed mouth, as a share of the full range.

    Args:
        output: Opening (T,) read from the silent dub.
        closed: Opening (T,) read from the exact reference of silence.
        full: True opening (T,) of the spoken reference; its largest value above its own closed mouth is the range.
    """
    span = float(np.max(full) - np.min(full))
    return float(np.mean(output) - np.mean(closed)) / max(span, 1e-6)
