"""Embeds a face crop so that the same head is near and another far: the judge of identity (CSIM).

Not the chain's own identity encoder, which filters pairs and teaches the texture expert; nothing that trains or
filters may import this one.
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
from model_code.metrics.evaluators.trunk import (
    Trunk,
    codec_blur,
    degrade,
    move,
    read_evaluator,
    save_evaluator,
    to_input,
)

logger = logging.getLogger(__name__)


class IdentityJudge(nn.Module):
    """Face crop -> unit embedding.

    Args:
        widths: Channels of the trunk's four levels.
        dim: Width of the embedding.
    """

    def __init__(self, widths: tuple[int, int, int, int] = (16, 32, 64, 128), dim: int = 96) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"widths": list(widths), "dim": dim}
        self.trunk = Trunk(widths)
        self.project = nn.Linear(2 * widths[-1], dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B,3,96,96) in [-1,1] -> (B,dim) of length one."""
        features = self.trunk(x).flatten(2)
        return F.normalize(self.project(torch.cat([features.mean(2), features.amax(2)], 1)), dim=1)

    @torch.inference_mode()
    def embed(self, frames: np.ndarray, batch: int = 64) -> np.ndarray:
        """uint8 crops (T,S,S,3) -> unit embeddings (T,dim) float32."""
        self.eval()
        parts = [
            self(to_input(torch.from_numpy(np.ascontiguousarray(frames[i : i + batch]))))
            for i in range(0, len(frames), batch)
        ]
        values: np.ndarray = torch.cat(parts).numpy()
        return values

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> IdentityJudge:
        """Loads a folder with ``config.json`` and ``model.safetensors``."""
        config, state = read_evaluator(Path(folder))
        model = cls(tuple(config["widths"]), config["dim"])
        model.load_state_dict(state)
        return model.eval()


def train_identity_judge(
    footage: EvaluatorFootage, out_dir: Path, *, steps: int = 700, seed: int = 0
) -> dict[str, Any]:
    """Trains an `IdentityJudge` with additive-margin softmax over the training heads, scores and saves it.

    Returns:
        The card: data, seed, time; on held-out heads verification AUC and EER and the cosines of same and other
        heads, sharp and blurred.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    train = footage.part(held_out=False)
    _, labels = np.unique(train.heads, return_inverse=True)
    target = torch.from_numpy(labels)
    model = IdentityJudge()
    prototypes = nn.Parameter(torch.randn(int(labels.max()) + 1, model.config["dim"]) * 0.1)
    optimizer = torch.optim.AdamW([*model.parameters(), prototypes], 2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps, pct_start=0.15)
    started, losses = time.monotonic(), []
    model.train()
    for step in range(steps):
        index = train.batch(generator, heads=32, frames=2)
        moved, _ = move(to_input(torch.from_numpy(train.crops[index])), generator)
        embedding = model(degrade(moved, generator))
        cosine = embedding @ F.normalize(prototypes, dim=1).T
        margin = 0.2 * min(1.0, step / (0.4 * steps))
        loss = F.cross_entropy(16.0 * (cosine - margin * F.one_hot(target[index], cosine.shape[1])), target[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if step % 50 == 49:
            logger.info(
                "identity judge %d/%d loss %.4f (%.0f s)",
                step + 1,
                steps,
                np.mean(losses[-50:]),
                time.monotonic() - started,
            )
    seconds = time.monotonic() - started
    held_out = footage.part(held_out=True)
    blurred = (
        (codec_blur(to_input(torch.from_numpy(held_out.crops))) * 127.5 + 127.5).round().byte().permute(0, 2, 3, 1)
    )
    sharp, soft = (verification(model.embed(crops), held_out.heads) for crops in (held_out.crops, blurred.numpy()))
    card = {
        "name": "identity_judge",
        "purpose": "evaluator: identity embedding for CSIM; teaches and filters nothing",
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": steps,
        "seed": seed,
        "seconds": round(seconds, 1),
        "data": footage.describe(),
        "loss": round(float(np.mean(losses[-50:])), 5),
        "scores": {"auc": sharp["auc"], "eer": sharp["eer"], "auc_blurred": soft["auc"], "eer_blurred": soft["eer"]},
        "detail": {"sharp": sharp, "blurred": soft},
    }
    save_evaluator(model, out_dir, model.config, card)
    return card


def verification(embeddings: np.ndarray, heads: np.ndarray) -> dict[str, Any]:
    """AUC, equal error rate and cosine quantiles over all pairs of frames.

    Args:
        embeddings: (N,D) of unit length.
        heads: (N,) identity of each frame.
    """
    cosines = embeddings @ embeddings.T
    upper = np.triu_indices(len(heads), 1)
    same_head = heads[upper[0]] == heads[upper[1]]
    same, other = np.sort(cosines[upper][same_head]), np.sort(cosines[upper][~same_head])
    auc = np.searchsorted(other, same, side="left").mean() / len(other)
    false_reject = np.searchsorted(same, same, side="left") / len(same)
    false_accept = 1 - np.searchsorted(other, same, side="left") / len(other)
    best = int(np.argmin(np.abs(false_reject - false_accept)))
    quantiles = (0.05, 0.25, 0.5, 0.75, 0.95)
    return {
        "auc": round(float(auc), 5),
        "eer": round(float((false_reject[best] + false_accept[best]) / 2), 4),
        "same_cosine": {str(q): round(float(np.quantile(same, q)), 4) for q in quantiles},
        "other_cosine": {str(q): round(float(np.quantile(other, q)), 4) for q in quantiles},
    }
