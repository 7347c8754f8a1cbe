"""Contact sheets: what the heads look like, and how a clip moves."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from model_code.avatars.avatar import ARKIT_NAMES
from model_code.avatars.clipspec import ClipSpec, avatar_for, render_spec
from model_code.avatars.corpus import corpus_specs
from model_code.avatars.performance import Performance
from model_code.avatars.render import render
from model_code.avatars.scene import draw_scene
from model_code.config import CorpusConfig
from model_code.seeding import rng_for

Array = NDArray[Any]
log = logging.getLogger(__name__)
SPEAKING = {"jawOpen": 0.45, "mouthUpperUpLeft": 0.35, "mouthUpperUpRight": 0.35, "mouthStretchLeft": 0.2,
            "mouthStretchRight": 0.2, "mouthLowerDownLeft": 0.3, "mouthLowerDownRight": 0.3}  # fmt: skip


def portrait(spec: ClipSpec, size: int) -> Array:
    """(S, S, 3) a clip's head in its light, turned a little; every other one speaks."""
    rng = rng_for("portrait", spec.head_seed)
    coefficients = np.zeros((1, len(ARKIT_NAMES)), np.float32)
    weights = SPEAKING if spec.head_seed % 2 else {"mouthSmileLeft": 0.3, "mouthSmileRight": 0.3}
    for name, weight in weights.items():
        coefficients[0, ARKIT_NAMES.index(name)] = weight
    rotation = np.array([[rng.uniform(-0.35, 0.35), rng.uniform(-0.06, 0.06), 0.0]], np.float32)
    performance = Performance(coefficients, rotation, np.zeros((1, 3), np.float32), coefficients)
    scene = draw_scene(rng, 1, "plain")
    return render(avatar_for(spec.head_seed, spec.kind), performance, scene, size).frames[0]


def label(image: Array, text: str) -> Array:
    """The picture with a line of text at its foot."""
    image = image.copy()
    image[-14:] = (image[-14:] * 0.35).astype(np.uint8)
    cv2.putText(image, text, (4, len(image) - 4), cv2.FONT_HERSHEY_SIMPLEX, 0.36, (240, 240, 240), 1, cv2.LINE_AA)
    return image


def grid(pictures: Sequence[Array], columns: int) -> Array:
    """Pictures of one size in rows; the last row is filled with black."""
    rows = -(-len(pictures) // columns)
    blank = np.zeros_like(pictures[0])
    filled = [*pictures, *[blank] * (rows * columns - len(pictures))]
    return np.concatenate([np.concatenate(filled[r * columns : (r + 1) * columns], 1) for r in range(rows)])


def head_sheet(config: CorpusConfig, columns: int = 8, size: int = 160) -> Array:
    """One portrait of every head of the corpus, labelled with its kind."""
    heads = {spec.head_seed: spec for spec in reversed(corpus_specs(config))}
    pictures = []
    for spec in sorted(heads.values(), key=lambda spec: spec.speaker_id):
        held = " (held out)" if spec.split == "heldout" else ""
        pictures.append(label(portrait(spec, size), f"{spec.speaker_id[-3:]} {spec.kind}{held}"))
    return grid(pictures, columns)


def strip(spec: ClipSpec, size: int, frames: int = 8) -> Array:
    """One row of frames, evenly through a clip."""
    rendered, _ = render_spec(spec, size)
    chosen = np.linspace(0, spec.n_frames - 1, frames).round().astype(int)
    return np.concatenate(list(rendered.frames[chosen]), 1)


def save_png(path: Path, image: Array) -> None:
    """Writes an RGB picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded = cv2.imencode(".png", image[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])[1]
    path.write_bytes(encoded.tobytes())


def main() -> None:
    """``python -m model_code.avatars.sheet --out docs/images/heads.png``"""
    parser = argparse.ArgumentParser(description="Draws the sheet of the corpus's heads.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--columns", type=int, default=8)
    parser.add_argument("--seed", type=int, default=CorpusConfig().seed)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    image = head_sheet(CorpusConfig(seed=arguments.seed), arguments.columns, arguments.size)
    save_png(arguments.out, image)
    log.info("%s: %d x %d, %.2f MB", arguments.out, image.shape[1], image.shape[0], arguments.out.stat().st_size / 1e6)


if __name__ == "__main__":
    main()
