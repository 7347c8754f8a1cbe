"""Trains the shipped face landmarker on rendered heads with true landmarks."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from model_code.faces.align import interocular
from model_code.faces.landmarker import Landmarker
from model_code.faces.track import face_box
from model_code.seeding import rng_for, seed_for

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
log = logging.getLogger(__name__)

#: Landmark i of a mirrored face is landmark MIRROR[i] of the face.
MIRROR = np.array(
    [
        *range(16, -1, -1),
        *range(26, 16, -1),
        *range(27, 31),
        *range(35, 30, -1),
        *(45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40),
        *range(54, 47, -1),
        *range(59, 54, -1),
        *range(64, 59, -1),
        *(67, 66, 65),
    ]
)


@dataclass(frozen=True)
class LandmarkerTraining:
    """Numbers of the landmarker's training.

    Attributes:
        batch: Crops a step.
        learning_rate: Peak, warmed up and then lowered along a cosine.
        negatives: Share of crops without a (whole) face.
        scale: Standard deviation of the logarithm of the crop's scale.
        shift: Largest shift of the crop as a share of its side.
        turn: Standard deviation of the crop's rotation in degrees.
        heat_weight: Of the heat maps' own cross-entropy, which finds the points long before their mean does.
    """

    batch: int = 64
    learning_rate: float = 3e-3
    negatives: float = 0.25
    scale: float = 0.16
    shift: float = 0.18
    turn: float = 11.0
    heat_weight: float = 0.03


def train_landmarker(
    frames: U8,
    landmarks: F32,
    out_dir: str | Path,
    steps: int = 1300,
    seed: int = 0,
    *,
    heldout_frames: U8,
    heldout_landmarks: F32,
    device: str = "cpu",
    training: LandmarkerTraining | None = None,
) -> dict[str, Any]:
    """Trains a `Landmarker` and writes config.json, model.safetensors and card.json.

    Args:
        frames: (N, S, S, 3) uint8 raw frames, one face each (may be a memory map).
        landmarks: (N, 68, 2) true landmarks in pixels.
        out_dir: Folder of the weights.
        steps: Optimiser steps.
        seed: Of weights, order and augmentation.
        heldout_frames: Frames of other heads, for the scores.
        heldout_landmarks: Their landmarks.
        device: Where to train.
        training: Other numbers.

    Returns:
        The card: errors on held-out heads as shares of the interocular distance, and the face confidence's ROC.
    """
    training = training or LandmarkerTraining()
    began = time.monotonic()
    torch.manual_seed(seed_for("landmarker", seed))
    rng = rng_for("landmarker crops", seed)
    model = Landmarker().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(model.parameters(), lr=training.learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, training.learning_rate, total_steps=steps, pct_start=0.1)
    weight = torch.ones(68, device=device)
    weight[48:60], weight[60:] = 2.0, 3.0
    for step in range(steps):
        model.train()
        chosen = np.sort(rng.choice(len(frames), training.batch))
        crops, places, face = draw_crops(frames[chosen], landmarks[chosen], model.size, rng, training, device)
        crops = _augment(crops, rng)
        predicted, heat, logits = model.look(crops)
        distance = torch.linalg.vector_norm(places[:, 36:42].mean(1) - places[:, 42:48].mean(1), dim=-1).clamp(min=0.05)
        error = functional.smooth_l1_loss(predicted, places, beta=0.01, reduction="none").sum(-1) / distance[:, None]
        loss = (
            (error * weight)[face].mean()
            + training.heat_weight * (_heat_loss(heat[face], places[face]) * weight).mean()
            + 0.1 * functional.binary_cross_entropy_with_logits(logits, face.float())
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            log.info("landmarker step %d of %d: loss %.4f", step, steps, loss.item())
    model.save_pretrained(out_dir)
    card = {
        "name": "landmarker",
        "what": "face crop to 68 landmarks and face confidence",
        "data": {
            "frames": len(frames),
            "held_out_frames": len(heldout_frames),
            "frame_size": int(frames.shape[1]),
        },
        "steps": steps,
        "seed": seed,
        "training": asdict(training),
        "parameters": sum(p.numel() for p in model.parameters()),
        "scores": score_landmarker(Landmarker.from_pretrained(out_dir), heldout_frames, heldout_landmarks),
        "seconds": round(time.monotonic() - began, 1),
        "device": device,
    }
    (Path(out_dir) / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    return card


def score_landmarker(
    model: Landmarker, frames: U8, landmarks: F32, seed: int = 0, limit: int = 600
) -> dict[str, float]:
    """Errors on frames with known landmarks, from boxes that are off by up to a tenth, as tracking leaves them.

    Returns:
        nme, nme_lips: mean distance over interocular distance; nme_refined, nme_lips_refined: the same after one more
        look from the box of the first answer; failures: share of frames with nme_refined over 0.1; auc: area under the
        ROC of the face confidence against crops without a face; recall_at_1_percent: faces found at 1 % false alarms.
    """
    rng = rng_for("landmarker scores", seed)
    chosen = np.sort(rng.permutation(len(frames))[:limit])
    frames, truth = frames[chosen], landmarks[chosen]
    boxes = face_box(truth)
    side = boxes[:, 2:3] - boxes[:, :1]
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2 + rng.uniform(-0.1, 0.1, (len(boxes), 2)) * side
    half = side / 2 * np.exp(rng.normal(0, 0.08, (len(boxes), 1)))
    loose = np.concatenate([centre - half, centre + half], 1).astype(np.float32)
    first, faces = model.predict(frames, loose)
    second, _ = model.predict(frames, face_box(first))
    nothing = LandmarkerTraining(negatives=1.0)
    crops, _, _ = draw_crops(frames, truth, model.size, rng, nothing, "cpu")
    empty = torch.clamp((crops + 1) * 127.5, 0, 255).round().byte().permute(0, 2, 3, 1).numpy()
    _, none = model.predict_crops(empty)
    distance = interocular(truth)[:, None]
    error = [np.linalg.norm(found - truth, axis=-1) / distance for found in (first, second)]
    order = np.sort(none)
    threshold = float(order[int(0.99 * (len(order) - 1))])
    scores = {
        "nme": error[0].mean(),
        "nme_lips": error[0][:, 48:].mean(),
        "nme_refined": error[1].mean(),
        "nme_lips_refined": error[1][:, 48:].mean(),
        "failures": (error[1].mean(1) > 0.1).mean(),
        "auc": (np.searchsorted(order, faces) / len(order)).mean(),
        "recall_at_1_percent": (faces > threshold).mean(),
        "threshold_at_1_percent": threshold,
    }
    return {name: round(float(value), 5) for name, value in scores.items()}


def draw_crops(
    frames: U8, landmarks: F32, size: int, rng: np.random.Generator, training: LandmarkerTraining, device: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Jittered crops of faces and of what is no face.

    Returns:
        Crops (B, 3, size, size) in [-1, 1], landmarks (B, 68, 2) as shares of the side, and where a face is (B,).
    """
    count, side = len(frames), float(frames.shape[1])
    boxes = face_box(landmarks)
    face_side = boxes[:, 2] - boxes[:, 0]
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    face = rng.random(count) >= training.negatives
    scale = np.exp(np.clip(rng.normal(0, training.scale, count), -0.5, 0.5))
    crop_side = face_side * scale
    at = centre + rng.uniform(-training.shift, training.shift, (count, 2)) * crop_side[:, None]
    for index in np.flatnonzero(~face):
        at[index], crop_side[index] = _nothing(rng, side, centre[index], face_side[index])
    angle = np.radians(np.clip(rng.normal(0, training.turn, count), -45, 45))
    mirror = rng.random(count) < 0.5
    cosine, sine = np.cos(angle) * crop_side / 2, np.sin(angle) * crop_side / 2
    flip = np.where(mirror, -1.0, 1.0)
    matrix = np.stack(
        [np.stack([cosine * flip, -sine], -1), np.stack([sine * flip, cosine], -1)], 1
    )  # crop [-1,1] -> pixels
    theta = np.concatenate([matrix * 2 / side, (at * 2 / side - 1)[..., None]], -1)
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).to(device).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
    grid = functional.affine_grid(
        torch.from_numpy(theta).float().to(device), [count, 3, size, size], align_corners=False
    )
    crops = functional.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    inverse = np.linalg.inv(matrix)
    places = ((landmarks - at[:, None]) @ np.swapaxes(inverse, 1, 2) + 1) / 2
    places[mirror] = places[mirror][:, MIRROR]
    for index in np.flatnonzero(~face & (rng.random(count) < 0.2)):
        crops[index] = _shuffled(crops[index], rng)
    return crops, torch.from_numpy(places).float().to(device), torch.from_numpy(face).to(device)


def _heat_loss(heat: Tensor, places: Tensor) -> Tensor:
    """Cross-entropy (B, 68) of each heat map against a peak at its landmark, shared by the four nearest cells."""
    side = heat.shape[-1]
    at = (places.clamp(0, 1) * side - 0.5).clamp(0, side - 1)
    axis = torch.arange(side, device=heat.device, dtype=heat.dtype)
    near_x = (1 - (axis - at[..., :1]).abs()).clamp(min=0)
    near_y = (1 - (axis - at[..., 1:]).abs()).clamp(min=0)
    target = near_y[..., :, None] * near_x[..., None, :]
    return -(target.flatten(2) * heat.flatten(2).log_softmax(-1)).sum(-1)


def _nothing(rng: np.random.Generator, side: float, face: F32, face_side: float) -> tuple[F32, float]:
    """Centre and side of a square that holds no face, only a part of one, or a far too small one."""
    for _ in range(50):
        crop_side = float(side * np.exp(rng.uniform(np.log(0.12), np.log(1.4))))
        at = rng.uniform(0, side, 2).astype(np.float32)
        away = float(np.abs(at - face).max()) > 0.55 * max(crop_side, 0.8 * face_side)
        if away or crop_side < 0.4 * face_side or crop_side > 2.6 * face_side:
            return at, crop_side
    return np.zeros(2, np.float32), 0.3 * face_side


def _shuffled(crop: Tensor, rng: np.random.Generator) -> Tensor:
    """A crop whose 4 x 4 tiles stand in random order: parts of a face that make none."""
    size = crop.shape[-1] // 4
    tiles = crop.unfold(1, size, size).unfold(2, size, size).reshape(3, 16, size, size)
    tiles = tiles[:, torch.from_numpy(rng.permutation(16)).to(crop.device)].reshape(3, 4, 4, size, size)
    return tiles.permute(0, 1, 3, 2, 4).reshape(3, 4 * size, 4 * size)


def _augment(crops: Tensor, rng: np.random.Generator) -> Tensor:
    """Colour, things in front, blur, blocks of strong compression, noise: each on a part of the crops."""
    count, _, size, _ = crops.shape
    device = crops.device

    def draw(low: float, high: float, *shape: int) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, shape).astype(np.float32)).to(device)

    x = (crops + 1) / 2
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * draw(0.0, 1.6, count, 1, 1, 1)
    x = x.clamp(1e-3, 1) ** torch.exp(draw(-0.5, 0.5, count, 1, 1, 1))
    x = x * draw(0.65, 1.35, count, 1, 1, 1) * draw(0.85, 1.15, count, 3, 1, 1) + draw(-0.12, 0.12, count, 1, 1, 1)
    axis = (torch.arange(size, device=device) + 0.5) / size
    for _ in range(2):  # ellipses before the face
        dx, dy = axis[None, None] - draw(0, 1, count, 1, 1), axis[None, :, None] - draw(0, 1, count, 1, 1)
        angle = draw(0, np.pi, count, 1, 1)
        along, across = dx * angle.cos() + dy * angle.sin(), dy * angle.cos() - dx * angle.sin()
        inside = (along / draw(0.04, 0.4, count, 1, 1)) ** 2 + (across / draw(0.03, 0.15, count, 1, 1)) ** 2 < 1
        inside &= (draw(0, 1, count, 1, 1) < 0.2).expand_as(inside)
        x = torch.where(inside[:, None], draw(0, 1, count, 3, 1, 1), x)
    small = int(rng.integers(24, 72))
    part = torch.from_numpy(np.flatnonzero(rng.random(count) < 0.35)).to(device)
    if len(part):
        low = functional.interpolate(x[part], size=(small, small), mode="bilinear", antialias=True)
        x[part] = functional.interpolate(low, size=(size, size), mode="bilinear")
    part = torch.from_numpy(np.flatnonzero(rng.random(count) < 0.25)).to(device)
    if len(part):
        x[part] = _blocky(x[part], float(rng.uniform(0.05, 0.5)))
    noise = torch.from_numpy(rng.standard_normal(x.shape, dtype=np.float32)).to(device)
    x = x + noise * draw(0.0, 0.04, count, 1, 1, 1)
    return (x.clamp(0, 1) * 2 - 1).contiguous(memory_format=torch.channels_last)


def _blocky(x: Tensor, step: float) -> Tensor:
    """Quantises the cosine transform of 8 x 8 blocks, coarser at high frequencies, as strong compression does."""
    place = torch.arange(8, device=x.device, dtype=x.dtype)
    basis = torch.cos(torch.pi * place[:, None] * (place[None] + 0.5) / 8) / 2
    basis[0] /= 2**0.5
    blocks = x.unfold(2, 8, 8).unfold(3, 8, 8)
    coefficients = basis @ blocks @ basis.T
    quantum = step * (1 + place[:, None] + place[None]) / 4
    blocks = basis.T @ (torch.round(coefficients / quantum) * quantum) @ basis
    return blocks.permute(0, 1, 2, 4, 3, 5).reshape(x.shape)
