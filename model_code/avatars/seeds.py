"""Disjoint ranges of head seeds, so that no head that teaches is ever a head that tests."""

from __future__ import annotations

RANGE = 10_000_000

CORPUS = 1 * RANGE
"""The demo's own speakers, training and held out."""
PRETRAIN = 2 * RANGE
"""Footage of the tiny base."""
EVALUATOR = 3 * RANGE
"""Footage of the evaluators, which judge and never teach."""
RENDERED = 4 * RANGE
"""Other heads of the `rendered` companion pairs."""
FRESH = 5 * RANGE
"""Heads drawn for one benchmark (`xdub benchmark --heads-seed N`)."""

BASES: dict[str, int] = {
    "CORPUS": CORPUS,
    "PRETRAIN": PRETRAIN,
    "EVALUATOR": EVALUATOR,
    "RENDERED": RENDERED,
    "FRESH": FRESH,
}


def head_seed(purpose: str, index: int) -> int:
    """The ``index``-th head seed of a range of `BASES`.

    Raises:
        ValueError: if the index would run into another range.
    """
    if not 0 <= index < RANGE:
        raise ValueError(f"head index {index} is outside 0..{RANGE - 1}")
    return BASES[purpose] + index
