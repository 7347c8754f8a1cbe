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
from model_code.metrics.evaluators.trunk import (
    CROP,
    Residual,
    codec_blur,
    degrade,
    move,
    read_evaluator,
    save_evaluator,
    to_input,
)
from model_code.metrics.mouth import CURVES, correlation, sum_moments

logger = logging.getLogger(__name__)


#: Where a mirrored face's lip landmark 48+i comes from.
MIRRORED_LIPS = [6, 5, 4, 3, 2, 1, 0, 11, 10, 9, 8, 7, 16, 15, 14, 13, 12, 19, 18, 17]
PATCH = (40, 56)
#: Half height and half width of the patch in distances from the eyes' middle to the base of the nose, which neither
#: yaw nor speech changes much.
REACH = (0.85, 1.19)


class MouthReader(nn.Module):
    """Face crop -> mouth curves, in two looks: find the mouth, then read a patch upright and of even scale.

    Args:
        widths: Channels of the patch network's four levels.
        mean: Mean of each curve in training, (3,).
        scale: Standard deviation of each curve in training, (3,).
    """

    def __init__(
        self,
        widths: tuple[int, int, int, int] = (24, 40, 72, 104),
        mean: tuple[float, ...] = (0.0, 0.0, 0.0),
        scale: tuple[float, ...] = (1.0, 1.0, 1.0),
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"widths": list(widths), "mean": list(mean), "scale": list(scale)}
        a, b, c, d = widths
        self.look = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            Residual(16, 40, 2),
            Residual(40, 64, 2),
            nn.Flatten(),
            nn.Linear(64 * 36, 96),
            nn.ReLU(),
        )
        self.find = nn.Linear(96, 6)
        self.read_patch = nn.Sequential(
            nn.Conv2d(3, a, 3, 1, 1, bias=False),
            nn.BatchNorm2d(a),
            nn.ReLU(),
            Residual(a, b, 2),
            Residual(b, c, 2),
            Residual(c, d, 2),
            nn.Conv2d(d, 24, 1),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.head = nn.Sequential(nn.Linear(24 * 35 + 96, 128), nn.ReLU(), nn.Linear(128, 3 + 40))
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("scale", torch.tensor(scale), persistent=False)

    def forward(self, x: Tensor, anchors: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Finds and reads.

        Args:
            x: (B,3,96,96) in [-1,1].
            anchors: (B,3,2) eyes' middle, base of the nose and mouth in [-1,1], in training; found where None.

        Returns:
            Standardised curves (B,3), lips (B,20,2) within the patch and the anchors (B,3,2) as found.
        """
        seen = self.look(F.avg_pool2d(x, 2))
        found = self.find(seen).view(-1, 3, 2)
        theta = patch_map(found.detach() if anchors is None else anchors)
        grid = F.affine_grid(theta, [len(x), 3, *PATCH], align_corners=False)
        patch = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
        out = self.head(torch.cat([self.read_patch(patch), seen], 1))
        return out[:, :3], out[:, 3:].view(-1, 20, 2), found

    @torch.inference_mode()
    def read(self, frames: np.ndarray, batch: int = 64) -> np.ndarray:
        """uint8 crops (T,S,S,3) -> curves (T,3) float32: opening, width, pucker."""
        self.eval()
        parts = [
            self(to_input(torch.from_numpy(np.ascontiguousarray(frames[i : i + batch]))))[0] * self.scale + self.mean
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


def anchors_of(landmarks: Tensor) -> Tensor:
    """(B,68,2) -> (B,3,2): eyes' middle, base of the nose, middle of the outer lips."""
    eyes, mouth = landmarks[:, 36:48].mean(1), landmarks[:, 48:60].mean(1)
    return torch.stack([eyes, landmarks[:, 33], mouth], 1)


def patch_map(anchors: Tensor) -> Tensor:
    """(B,3,2) anchors -> (B,2,3) affine maps from the patch's [-1,1] square to the crop's."""
    down = anchors[:, 1] - anchors[:, 0]
    right = torch.stack([down[:, 1], -down[:, 0]], 1)
    return torch.stack([right * REACH[1], down * REACH[0], anchors[:, 2]], 2)


def _inverse(theta: Tensor, points: Tensor) -> Tensor:
    """Points (B,N,2) that the affine maps (B,2,3) send to `points`."""
    solved: Tensor = torch.linalg.solve(theta[:, :, :2], (points - theta[:, None, :, 2]).transpose(1, 2)).transpose(
        1, 2
    )
    return solved


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
    landmarks = torch.from_numpy(train.landmarks) / (CROP / 2) - 1
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.15)
    started, losses = time.monotonic(), []
    model.train()
    for step in range(steps):
        index = train.batch(generator, heads=8, frames=8)
        x, theta = move(to_input(torch.from_numpy(train.crops[index])), generator)
        points = _inverse(theta, landmarks[index])
        anchors = anchors_of(points)
        lips = points[:, 48:]
        lips = torch.where(torch.linalg.det(theta[:, :, :2])[:, None, None] < 0, lips[:, MIRRORED_LIPS], lips)
        x = degrade(x, generator)
        near = anchors + 0.02 * torch.randn(anchors.shape, generator=generator)
        if step > steps // 3:  # meets its own misses, as in use
            own = torch.rand(len(x), 1, 1, generator=generator) < 0.7
            near = torch.where(own, model.find(model.look(F.avg_pool2d(x, 2))).view(-1, 3, 2).detach(), near)
        curves, lips_read, found = model(x, near)
        error = curves - target[index]
        within = error.view(8, 8, 3)
        within = within - within.mean(1, keepdim=True)
        loss = (
            _huber(error)
            + 2 * _huber(within)
            + 2 * _huber(4 * (lips_read - _inverse(patch_map(near), lips)))
            + 2 * _huber(20 * (found - anchors))
        )
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
        **_score(model, footage.part(held_out=True)),
    }
    save_evaluator(model, out_dir, model.config, card)
    return card


def _huber(error: Tensor) -> Tensor:
    return F.smooth_l1_loss(error, torch.zeros_like(error))


def _score(model: MouthReader, footage: EvaluatorFootage) -> dict[str, Any]:
    sharp = model.read(footage.crops)
    blurred_crops = (
        (codec_blur(to_input(torch.from_numpy(footage.crops))) * 127.5 + 127.5).round().byte().permute(0, 2, 3, 1)
    )
    blurred = model.read(blurred_crops.numpy())
    detail = {
        name: {
            kind: _agreement(read, footage, (footage.kinds == kind) | (kind == "all"))
            for kind in ["all", *sorted(set(footage.kinds.tolist()))]
        }
        for name, read in {"sharp": sharp, "blurred": blurred}.items()
    }
    scores = {f"{curve}_correlation": detail["sharp"]["all"][curve]["correlation"] for curve in CURVES}
    scores |= {f"{curve}_correlation_blurred": detail["blurred"]["all"][curve]["correlation"] for curve in CURVES}
    scores |= {f"{curve}_mean_error": detail["sharp"]["all"][curve]["mean_error"] for curve in CURVES}
    return {"scores": scores, "detail": detail}


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
