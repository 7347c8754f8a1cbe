"""Reads opening, width and pucker of a mouth from a face crop: the judge of lip sync.

It has seen other heads and other seeds than anything it judges, and nothing that trains or filters may import it.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model_code.metrics.evaluators.footage import EvaluatorFootage
from model_code.metrics.evaluators.trunk import Trunk, augment, codec_blur, read_evaluator, save_evaluator, to_input
from model_code.metrics.mouth import CURVES, correlation, sum_moments

logger = logging.getLogger(__name__)


class MouthReader(nn.Module):
    """Face crop -> mouth curves.

    Args:
        widths: Channels of the trunk's four levels.
        mean: Mean of each curve in training, (3,).
        scale: Standard deviation of each curve in training, (3,).
    """

    def __init__(
        self,
        widths: tuple[int, int, int, int] = (16, 32, 64, 96),
        mean: tuple[float, ...] = (0.0, 0.0, 0.0),
        scale: tuple[float, ...] = (1.0, 1.0, 1.0),
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"widths": list(widths), "mean": list(mean), "scale": list(scale)}
        self.trunk = Trunk(widths)
        self.head = nn.Sequential(
            nn.Conv2d(widths[-1], 24, 1), nn.ReLU(), nn.Flatten(), nn.Linear(24 * 36, 96), nn.ReLU(), nn.Linear(96, 3)
        )
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("scale", torch.tensor(scale), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B,3,96,96) in [-1,1] -> standardised curves (B,3)."""
        standardised: Tensor = self.head(self.trunk(x))
        return standardised

    @torch.inference_mode()
    def read(self, frames: np.ndarray, batch: int = 64) -> np.ndarray:
        """uint8 crops (T,S,S,3) -> curves (T,3) float32: opening, width, pucker."""
        self.eval()
        parts = [
            self(to_input(torch.from_numpy(np.ascontiguousarray(frames[i : i + batch])))) * self.scale + self.mean
            for i in range(0, len(frames), batch)
        ]
        values: np.ndarray = torch.cat(parts).numpy()
        return values

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> MouthReader:
        """Loads a folder with ``config.json`` and ``model.safetensors``."""
        config, state = read_evaluator(Path(folder))
        model = cls(tuple(config["widths"]), tuple(config["mean"]), tuple(config["scale"]))
        model.load_state_dict(state)
        return model.eval()


def train_mouth_reader(footage: EvaluatorFootage, out_dir: Path, *, steps: int = 700, seed: int = 0) -> dict[str, Any]:
    """Trains, scores on held-out heads and saves a `MouthReader`.

    A batch holds several frames of each of several heads; besides the plain error the loss counts the error of each
    head's centred values, since centred curves are what the scores use.

    Returns:
        The card: data, seed, time, correlation and error of each curve on held-out heads, per kind, sharp and blurred.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    train = footage.part(held_out=False)
    mean, scale = train.curves.mean(0), train.curves.std(0)
    model = MouthReader(mean=tuple(map(float, mean)), scale=tuple(map(float, scale)))
    target = torch.from_numpy((train.curves - mean) / scale)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.15)
    started, losses = time.monotonic(), []
    model.train()
    for step in range(steps):
        index = train.batch(generator, heads=8, frames=8)
        x = augment(to_input(torch.from_numpy(train.crops[index])), generator)
        error = model(x) - target[index]
        within = error.view(8, 8, 3)
        within = within - within.mean(1, keepdim=True)
        loss = F.smooth_l1_loss(error, torch.zeros_like(error)) + F.smooth_l1_loss(within, torch.zeros_like(within))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if step % 50 == 49:
            logger.info(
                "mouth reader %d/%d loss %.4f (%.0f s)",
                step + 1,
                steps,
                np.mean(losses[-50:]),
                time.monotonic() - started,
            )
    seconds = time.monotonic() - started
    card = {
        "name": "mouth_reader",
        "purpose": "evaluator: reads opening, width and pucker from a face crop; teaches nothing",
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": steps,
        "seed": seed,
        "seconds": round(seconds, 1),
        "data": footage.describe(),
        "loss": round(float(np.mean(losses[-50:])), 5),
        "held_out": _score(model, footage.part(held_out=True)),
    }
    save_evaluator(model, out_dir, model.config, card)
    return card


def _score(model: MouthReader, footage: EvaluatorFootage) -> dict[str, Any]:
    sharp = model.read(footage.crops)
    blurred_crops = (
        (codec_blur(to_input(torch.from_numpy(footage.crops))) * 127.5 + 127.5).round().byte().permute(0, 2, 3, 1)
    )
    blurred = model.read(blurred_crops.numpy())
    scores: dict[str, Any] = {}
    for name, read in {"sharp": sharp, "blurred": blurred}.items():
        scores[name] = {
            kind: _agreement(read, footage, (footage.kinds == kind) | (kind == "all"))
            for kind in ["all", *sorted(set(footage.kinds.tolist()))]
        }
    return scores


def _agreement(read: np.ndarray, footage: EvaluatorFootage, rows: np.ndarray) -> dict[str, dict[str, float]]:
    heads = [(footage.heads == head) & rows for head in np.unique(footage.heads[rows])]
    correlations = correlation(sum_moments([read[r] for r in heads], [footage.curves[r] for r in heads]).sum(0))
    errors = np.abs(read[rows] - footage.curves[rows]).mean(0)
    spread = np.quantile(footage.curves, 0.99, 0) - np.quantile(footage.curves, 0.01, 0)
    return {
        curve: {
            "correlation": round(float(correlations[k]), 4),
            "mean_error": round(float(errors[k]), 5),
            "mean_error_share_of_range": round(float(errors[k] / spread[k]), 4),
        }
        for k, curve in enumerate(CURVES)
    }
