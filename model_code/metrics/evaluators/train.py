"""``python -m model_code.metrics.evaluators.train``: renders the evaluators' footage and trains both, once."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

from model_code.metrics.evaluators.footage import EvaluatorFootage, render_footage
from model_code.metrics.evaluators.identity_judge import train_identity_judge
from model_code.metrics.evaluators.mouth_reader import train_mouth_reader

logger = logging.getLogger(__name__)


def train_evaluators(
    out: Path,
    *,
    heads: int = 260,
    frames: int = 40,
    held_out: int = 36,
    reader_steps: int = 900,
    judge_steps: int = 700,
    seed: int = 0,
    cache: Path | None = None,
) -> dict[str, Any]:
    """Trains mouth reader and identity judge into ``out/mouth_reader`` and ``out/identity_judge``.

    Args:
        out: Folder of the shipped base.
        heads: Heads rendered, of the evaluator range.
        frames: Frames of each head.
        held_out: How many of the heads only score.
        reader_steps: Steps of the mouth reader, 64 frames each.
        judge_steps: Steps of the identity judge, 64 frames each.
        seed: Of weights, batches and augmentation.
        cache: Optional ``.npz`` in which the footage is kept between calls.

    Returns:
        Both cards by name.
    """
    if cache is not None and cache.is_file():
        footage = EvaluatorFootage.load(cache)
    else:
        footage = render_footage(heads, frames, held_out)
        if cache is not None:
            footage.save(cache)
    logger.info("footage: %s", footage.describe())
    return {
        "mouth_reader": train_mouth_reader(footage, out / "mouth_reader", steps=reader_steps, seed=seed),
        "identity_judge": train_identity_judge(footage, out / "identity_judge", steps=judge_steps, seed=seed),
    }


def main() -> None:
    """Reads the arguments and prints the cards."""
    parser = argparse.ArgumentParser(description="Train the evaluators.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[2] / "base")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--heads", type=int, default=260)
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--held-out", type=int, default=36)
    parser.add_argument("--reader-steps", type=int, default=900)
    parser.add_argument("--judge-steps", type=int, default=700)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    cards = train_evaluators(**vars(arguments))
    logger.info("%s", json.dumps(cards, indent=2))


if __name__ == "__main__":
    main()
