"""Training of the perceptual encoder: contrast between augmented pictures, and attribute heads.

Two pictures of one clip, each changed in colour, size and sharpness only a little, should be close, those of
other clips far (InfoNCE); linear heads read attributes (kind of head, light, condition) from the embedding,
as CLIP's embedding can be read with words.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from model_code.backbones.perceptual import PerceptualConfig, PerceptualEncoder
from model_code.seeding import rng_for, seed_for

TEMPERATURE = 0.1


def augment(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Small changes of brightness, contrast, place and size of (N, 3, H, W) pictures in [-1, 1]."""
    count, size = len(pictures), pictures.shape[-1]

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator) * (high - low) + low

    scale, angle = uniform(0.85, 1.1), uniform(-0.15, 0.15)
    shift = uniform(-0.08, 0.08, 2)
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    theta = torch.stack([torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1)
    grid = F.affine_grid(theta, [count, 3, size, size], align_corners=False)
    moved = F.grid_sample(pictures, grid, padding_mode="reflection", align_corners=False)
    gain, lift = uniform(0.85, 1.15, 3, 1, 1), uniform(-0.1, 0.1, 1, 1, 1)
    return (moved * gain + lift).clamp(-1, 1)


def train_perceptual(
    crops: Sequence[NDArray[np.uint8]],
    attributes: Sequence[Mapping[str, str]],
    out_dir: Path | str,
    steps: int = 600,
    seed: int = 0,
    batch_size: int = 48,
    *,
    heldout_crops: Sequence[NDArray[np.uint8]],
    heldout_attributes: Sequence[Mapping[str, str]],
) -> dict[str, Any]:
    """Trains an encoder on clips of crops and saves it with its card.

    Args:
        crops: Clips (T, S, S, 3), any lengths.
        attributes: Per clip, attribute name -> class (the same names for all).
        out_dir: Receives config.json, model.safetensors and card.json.
        steps: Optimiser steps.
        seed: Decides everything random.
        batch_size: Clips a step; two pictures of each.
        heldout_crops: Clips of other heads, for the scores.
        heldout_attributes: Their attributes.

    Returns:
        The card: data, seed, seconds and scores on held-out clips.
    """
    started = time.monotonic()
    rows = [*attributes, *heldout_attributes]
    classes = {name: tuple(sorted({row[name] for row in rows})) for name in sorted(rows[0])}
    classes = {name: values for name, values in classes.items() if len(values) > 1}
    torch.manual_seed(seed_for("perceptual", seed) % 2**32)
    encoder = PerceptualEncoder(PerceptualConfig(attributes=classes))
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps + 1, pct_start=0.1)
    generator = torch.Generator().manual_seed(seed_for("perceptual augment", seed))
    losses = []
    for step in range(steps):
        rng = rng_for("perceptual", seed, step)
        chosen = rng.choice(len(crops), size=min(batch_size, len(crops)), replace=False)
        first, second = (_pictures(crops, chosen, rng) for _ in range(2))
        a, b = encoder.embed(augment(first, generator)), encoder.embed(augment(second, generator))
        logits = a @ b.T / TEMPERATURE
        labels = torch.arange(len(chosen))
        loss = 0.5 * (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels))
        for name, values in classes.items():
            truth = torch.tensor([values.index(attributes[index][name]) for index in chosen])
            loss = loss + 0.3 * F.cross_entropy(encoder.heads[name](a) * 8.0, truth)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    encoder.eval()
    card = {
        "name": "perceptual",
        "parameters": sum(value.numel() for value in encoder.parameters()),
        "data": {
            "clips": len(crops) + len(heldout_crops),
            "held_out_clips": len(heldout_crops),
            "frames": sum(len(clip) for clip in (*crops, *heldout_crops)),
        },
        "seed": seed,
        "steps": steps,
        "seconds": round(time.monotonic() - started, 1),
        "scores": {
            "loss": float(np.mean(losses[-20:])),
            **_scores(encoder, heldout_crops, heldout_attributes, seed),
        },
    }
    encoder.save_pretrained(out_dir)
    (Path(out_dir) / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    return card


def _pictures(
    crops: Sequence[NDArray[np.uint8]], chosen: Sequence[int] | NDArray[Any], rng: np.random.Generator
) -> Tensor:
    pictures = np.stack([crops[int(index)][rng.integers(len(crops[int(index)]))] for index in chosen])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1.0


@torch.no_grad()
def _scores(
    encoder: PerceptualEncoder,
    crops: Sequence[NDArray[np.uint8]],
    attributes: Sequence[Mapping[str, str]],
    seed: int,
) -> dict[str, float]:
    rng = rng_for("perceptual scores", seed)
    first, second = (_pictures(crops, range(len(crops)), rng) for _ in range(2))
    a, b = encoder.embed(first), encoder.embed(second)
    scores = {"same_clip_retrieval": float((a @ b.T).argmax(1).eq(torch.arange(len(crops))).float().mean())}
    for name, values in encoder.config.attributes.items():
        truth = torch.tensor([values.index(row[name]) for row in attributes])
        scores[f"{name}_accuracy"] = float(encoder.heads[name](a).argmax(1).eq(truth).float().mean())
    blurred = [F.avg_pool2d(first, size, stride=1, padding=size // 2) for size in (3, 5, 9)]
    distances = [float(encoder.distance(first, picture).mean()) for picture in blurred]
    scores["distance_grows_with_blur"] = float(distances == sorted(distances))
    return scores
