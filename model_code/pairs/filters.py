"""What a companion pair must satisfy: same person, other mouth, good picture (paper, section on filters)."""

from __future__ import annotations

from typing import Any

import numpy as np

from model_code.config import FilterConfig
from model_code.faces.align import mouth_distance
from model_code.faces.identity import IdentityEncoder, identity_cosine
from model_code.pairs.aspects import ASPECTS, aspects
from model_code.pairs.pair import Pair

IDENTITY_EVERY = 3
"""Every so many frames one is compared for identity."""


def judge(pair: Pair, identity: IdentityEncoder, config: FilterConfig) -> dict[str, Any]:
    """The completed pair row: scores, whether it is accepted, and the reasons why not.

    Args:
        pair: The pair; its row names clip, variant, seed and so on.
        identity: The chain's own identity encoder.
        config: Thresholds.
    """
    return decide({**pair.row, **scores(pair, identity)}, config)


def scores(pair: Pair, identity: IdentityEncoder) -> dict[str, float]:
    """Identity cosine, mouth distance, the six aspects and their mean."""
    target = pair.target
    first = identity.embed(target.frames[::IDENTITY_EVERY])
    second = identity.embed(pair.companion[::IDENTITY_EVERY])
    quality = aspects(pair.companion, target.frames, target.landmarks)
    return {
        "identity_cosine": identity_cosine(first, second),
        "mouth_distance": mouth_distance(target.landmarks, pair.companion_landmarks),
        **quality,
        "aspect_mean": float(np.mean([quality[name] for name in ASPECTS])),
    }


def decide(row: dict[str, Any], config: FilterConfig) -> dict[str, Any]:
    """Adds `accepted` and `reasons` to a scored row."""
    reasons = []
    if row["identity_cosine"] < config.identity_cosine:
        reasons.append(f"identity cosine {row['identity_cosine']:.3f} < {config.identity_cosine}")
    if row["mouth_distance"] < config.mouth_distance:
        reasons.append(f"mouth distance {row['mouth_distance']:.2f} < {config.mouth_distance}")
    if row["aspect_mean"] <= config.aspect_mean:
        reasons.append(f"mean aspect {row['aspect_mean']:.2f} <= {config.aspect_mean}")
    return {**row, "accepted": not reasons, "reasons": "; ".join(reasons)}
