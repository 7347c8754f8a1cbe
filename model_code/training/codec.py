"""Training of the embedded profile's `BlockCodec`."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from model_code.backbones.codec import BlockCodec, BlockCodecConfig
from model_code.seeding import rng_for, seed_for

logger = logging.getLogger(__name__)

Clips = Sequence[NDArray[np.uint8]]
Landmarks = Sequence[NDArray[np.float32]]
LIPS = slice(48, 68)


class CodecTrainingConfig(BaseModel):
    """Knobs of `train_codec`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    codec: BlockCodecConfig = BlockCodecConfig()
    pca_blocks: int = Field(200_000, description="Pixel blocks that the linear transform is fitted to.")
    pca_lip_share: float = Field(0.5, description="Share of those blocks that lie on the lips.")
    batch_size: int = 16
    window: int = Field(64, description="Side of the training windows in pixels; half of them lie over the lips.")
    latent_frames: int = Field(3, description="Latent frames of a training window (9 pixel frames).")
    learning_rate: float = 2e-3
    lip_weight: float = Field(1.0, description="Weight of the lips' log error beside the whole window's.")
    gradient_weight: float = Field(0.2, description="Weight of the L1 loss on image gradients.")
    ema_decay: float = 0.995


def lip_box(landmarks: NDArray[np.float32], size: int, margin: float = 0.25) -> tuple[int, int, int, int]:
    """Box (x0, y0, x1, y1) around the lips of all frames, widened by `margin` of its sides, inside the frame."""
    lips = landmarks[:, LIPS]
    low, high = lips.min((0, 1)), lips.max((0, 1))
    pad = (high - low) * margin
    x0, y0 = np.floor(np.clip(low - pad, 0, size - 2)).astype(int)
    x1, y1 = np.ceil(np.clip(high + pad, 1, size)).astype(int)
    return int(x0), int(y0), int(max(x1, x0 + 1)), int(max(y1, y0 + 1))


class WindowSampler:
    """Draws training windows: random clip, time, place and mirror image."""

    def __init__(self, crops: Clips, landmarks: Landmarks, rng: np.random.Generator) -> None:
        self.crops, self.landmarks, self.rng = crops, landmarks, rng

    def draw(self, n: int, frames: int, side: int, lip_share: float) -> tuple[Tensor, Tensor]:
        """Windows (n,3,frames,side,side) in [-1,1] and lip masks (n,1,1,side,side) in {0,1}."""
        rng = self.rng
        windows = np.empty((n, frames, side, side, 3), np.uint8)
        masks = np.zeros((n, 1, 1, side, side), np.float32)
        for i in range(n):
            clip = int(rng.integers(len(self.crops)))
            crop = self.crops[clip]
            size = crop.shape[1]
            start = int(rng.integers(len(crop) - frames + 1))
            x0, y0, x1, y1 = lip_box(self.landmarks[clip][start : start + frames], size)
            if rng.random() < lip_share:
                centre_x, centre_y = rng.uniform(x0, x1), rng.uniform(y0, y1)
                left = int(np.clip(round(centre_x - side / 2), 0, size - side))
                top = int(np.clip(round(centre_y - side / 2), 0, size - side))
            else:
                left, top = (int(rng.integers(size - side + 1)) for _ in range(2))
            window = crop[start : start + frames, top : top + side, left : left + side]
            mask = masks[i, 0, 0]
            mask[max(y0 - top, 0) : max(y1 - top, 0), max(x0 - left, 0) : max(x1 - left, 0)] = 1.0
            if rng.random() < 0.5:
                window, mask[:] = window[:, :, ::-1], mask[:, ::-1].copy()
            windows[i] = window
        return torch.from_numpy(windows).permute(0, 4, 1, 2, 3).float().div_(127.5).sub_(1.0), torch.from_numpy(masks)


def codec_loss(output: Tensor, target: Tensor, lips: Tensor, config: CodecTrainingConfig) -> Tensor:
    """Mean log squared error (decibels, so that no clip dominates) of window and lips, and L1 of gradients."""
    squared = (output - target).square()
    whole = (squared.mean((1, 2, 3, 4)) + 1e-5).log().mean()
    area = lips.sum((1, 2, 3, 4))
    seen = area > 64
    error = output - target
    gradient = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    loss = whole + config.gradient_weight * gradient * 10
    if bool(seen.any()):
        lip_error = (squared * lips).sum((1, 2, 3, 4))[seen] / (area[seen] * 3 * target.shape[2])
        loss = loss + config.lip_weight * (lip_error + 1e-5).log().mean()
    return loss


@torch.no_grad()
def codec_scores(codec: BlockCodec, crops: Clips, landmarks: Landmarks, *, refine: bool = True) -> dict[str, float]:
    """Decibels through the codec, as the mean over clips of each clip's PSNR: lips (box) and whole frame."""
    lips, whole = [], []
    for crop, points in zip(crops, landmarks, strict=True):
        frames = (len(crop) - 1) // 4 * 4 + 1
        video = torch.from_numpy(np.array(crop[:frames])).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        output = codec.decode(codec.encode(video), refine=refine).clamp(-1, 1)
        pixels = ((output + 1) * 127.5).round()
        squared = (pixels - (video + 1) * 127.5).square()[0]
        lip_sum, lip_count = 0.0, 0
        for t in range(frames):
            x0, y0, x1, y1 = lip_box(points[t : t + 1], crop.shape[1])
            part = squared[:, t, y0:y1, x0:x1]
            lip_sum, lip_count = lip_sum + float(part.sum()), lip_count + part.numel()
        lips.append(10 * np.log10(255**2 / max(lip_sum / lip_count, 1e-3)))
        whole.append(10 * np.log10(255**2 / max(float(squared.mean()), 1e-3)))
    return {"lips_db": round(float(np.mean(lips)), 2), "whole_db": round(float(np.mean(whole)), 2)}


@torch.no_grad()
def codec_speed(codec: BlockCodec, size: int = 96, frames: int = 77) -> dict[str, float]:
    """Frames per second of encode and decode at `size` pixels with this process's threads."""
    video = torch.rand(1, 3, frames, size, size) * 2 - 1
    latents = codec.encode(video)
    speeds = {}
    for name, function, value in (("encode_fps", codec.encode, video), ("decode_fps", codec.decode, latents)):
        function(value)
        start = time.perf_counter()
        for _ in range(3):
            function(value)
        speeds[name] = round(3 * frames / (time.perf_counter() - start), 1)
    return speeds


def train_codec(
    crops: Clips,
    landmarks: Landmarks,
    out_dir: Path | str,
    steps: int,
    seed: int,
    *,
    heldout_crops: Clips,
    heldout_landmarks: Landmarks,
    config: CodecTrainingConfig | None = None,
) -> dict[str, object]:
    """Fits the block transform, trains the refiner and writes the codec with its card.

    Args:
        crops: Face crops, each (T,S,S,3) uint8, T >= 9 (arrays or slices of a memory map).
        landmarks: (T,68,2) float32 in crop pixels, one for each of `crops`.
        out_dir: Where config.json, model.safetensors (half precision) and card.json go.
        steps: Training steps of the refiner.
        seed: Seed of sampling and initial weights.
        heldout_crops: Crops of other heads, for the scores.
        heldout_landmarks: Their landmarks.
        config: Knobs.

    Returns:
        The card: scores on the held-out heads in dB (linear and refined), speed, parameters, seconds, seed.
    """
    config = config or CodecTrainingConfig()
    began = time.perf_counter()
    torch.manual_seed(seed_for("codec", seed))
    sampler = WindowSampler(crops, landmarks, rng_for("codec", seed, "windows"))
    codec = BlockCodec(config.codec)
    codec.fit(_sample_blocks(sampler, config))
    linear = codec_scores(codec, heldout_crops, heldout_landmarks, refine=False)
    logger.info("block transform alone on held-out heads: %s", linear)

    parameters = list(codec.refiner.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=steps + 1, pct_start=0.08
    )
    average = [p.detach().clone() for p in parameters]
    frames = 4 * config.latent_frames - 3
    codec.train()
    running = 0.0
    for step in range(steps):
        video, lips = sampler.draw(config.batch_size, frames, config.window, 0.5)
        loss = codec_loss(codec.decode(codec.encode(video)), video, lips, config)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        decay = min(config.ema_decay, (step + 1) / (step + 10))
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - decay)
        value = float(loss.detach())
        running = value if step == 0 else 0.95 * running + 0.05 * value
        if step % 100 == 0:
            logger.info("codec step %d/%d: loss %.4f, %.0f s", step, steps, running, time.perf_counter() - began)
    with torch.no_grad():
        for parameter, mean in zip(parameters, average, strict=True):
            parameter.copy_(mean)

    codec.save_pretrained(out_dir)
    codec = BlockCodec.from_pretrained(out_dir)
    card: dict[str, object] = {
        "network": "latent codec: 4x8x8 block transform and convolutional refiner",
        **codec_scores(codec, heldout_crops, heldout_landmarks),
        "linear_lips_db": linear["lips_db"],
        "linear_whole_db": linear["whole_db"],
        **codec_speed(codec),
        "threads": torch.get_num_threads(),
        "parameters": sum(p.numel() for p in codec.refiner.parameters()),
        "steps": steps,
        "seed": seed,
        "training_clips": len(crops),
        "heldout_clips": len(heldout_crops),
        "seconds": round(time.perf_counter() - began, 1),
    }
    (Path(out_dir) / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    return card


def _sample_blocks(sampler: WindowSampler, config: CodecTrainingConfig) -> Tensor:
    """(N,768) blocks for the transform: 9-frame windows of one block's neighbourhood, lips over-weighted."""
    side, per_window = 16, 2 * 2 * 3
    n = max(config.pca_blocks // per_window, 1)
    video, _ = sampler.draw(n, 9, side, config.pca_lip_share)
    return BlockCodec.to_blocks(video).flatten(0, 3)
