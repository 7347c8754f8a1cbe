"""What both evaluators share: a small residual conv trunk, its training augmentation and its folder on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from model_code.errors import InputError

CROP = 96


class Residual(nn.Module):
    """Two 3x3 convolutions with batch norm about a skip; halves the side when `stride` is 2."""

    def __init__(self, width_in: int, width_out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width_in, width_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width_out)
        self.second = nn.Conv2d(width_out, width_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width_out)
        self.skip = nn.Conv2d(width_in, width_out, 1, bias=False) if width_in != width_out else nn.Identity()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(B,Cin,H,W) -> (B,Cout,H/stride,W/stride)."""
        y = self.norm2(self.second(F.relu(self.norm1(self.first(x)))))
        pooled = F.avg_pool2d(x, 2) if self.stride == 2 else x
        return F.relu(y + self.skip(pooled))


class Trunk(nn.Sequential):
    """(B,3,96,96) in [-1,1] -> (B,widths[-1],6,6)."""

    def __init__(self, widths: tuple[int, int, int, int]) -> None:
        a, b, c, d = widths
        super().__init__(
            nn.Conv2d(3, a, 5, 2, 2, bias=False),
            nn.BatchNorm2d(a),
            nn.ReLU(),
            Residual(a, b, 2),
            Residual(b, c, 2),
            Residual(c, d, 2),
            Residual(d, d, 1),
        )


def to_input(frames: Tensor) -> Tensor:
    """uint8 (N,H,W,3) -> float (N,3,96,96) in [-1,1], channels last in memory."""
    x = frames.permute(0, 3, 1, 2).float() / 127.5 - 1
    if x.shape[-1] != CROP:
        x = F.interpolate(x, (CROP, CROP), mode="bilinear", antialias=True, align_corners=False)
    return x.contiguous(memory_format=torch.channels_last)


def degrade(x: Tensor, generator: torch.Generator) -> Tensor:
    """What light, a codec and a camera do to a picture: gain, tint, blur, blocks, noise.

    Args:
        x: (N,3,H,W) in [-1,1], sides multiples of 4.
        generator: Source of all randomness.
    """
    n, _, height, width = x.shape

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=generator) * (high - low) + low

    x = x * uniform(0.75, 1.25, n, 1, 1, 1) * uniform(0.9, 1.1, n, 3, 1, 1) + uniform(-0.15, 0.15, n, 1, 1, 1)
    soft = uniform(-0.8, 1.0, n, 1, 1, 1).clamp(min=0)
    x = x + (_blur(x, float(uniform(0.4, 1.2, 1))) - x) * soft
    blocks = F.interpolate(F.avg_pool2d(x, 4), scale_factor=4.0)
    x = x + (blocks - x) * uniform(-0.5, 0.25, n, 1, 1, 1).clamp(min=0)
    coarse = torch.randn((n, 3, height // 4, width // 4), generator=generator)
    noise = torch.randn(x.shape, generator=generator) + F.interpolate(coarse, scale_factor=4.0)
    return (x + noise * uniform(-0.02, 0.03, n, 1, 1, 1).clamp(min=0)).clamp(-1, 1)


def move(x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mirrors, turns, scales and shifts pictures a little.

    Args:
        x: (N,3,H,W).
        generator: Source of all randomness.

    Returns:
        The pictures, and (N,2,3) the affine maps from points of the result to points of `x`, both in [-1,1].
    """
    n = len(x)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=generator) * (high - low) + low

    angle, scale = uniform(-0.12, 0.12, n), uniform(0.92, 1.08, n)
    mirror = torch.where(uniform(0, 1, n) < 0.5, -1.0, 1.0)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = mirror * scale * angle.cos(), -scale * angle.sin()
    theta[:, 1, 0], theta[:, 1, 1] = mirror * scale * angle.sin(), scale * angle.cos()
    theta[:, :, 2] = uniform(-0.06, 0.06, n, 2)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False), theta


def _blur(x: Tensor, sigma: float) -> Tensor:
    offsets = torch.arange(-4, 5).float()
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).repeat(3, 1)
    x = F.conv2d(F.pad(x, (4, 4, 0, 0), mode="replicate"), kernel[:, None, None, :], groups=3)
    return F.conv2d(F.pad(x, (0, 0, 4, 4), mode="replicate"), kernel[:, None, :, None], groups=3)


def codec_blur(x: Tensor) -> Tensor:
    """The fixed degradation under which cards repeat their scores: what a 34 dB codec leaves of a crop."""
    return _blur(x, 1.0)


def save_evaluator(module: nn.Module, folder: Path, config: dict[str, Any], card: dict[str, Any]) -> None:
    """Writes half-precision ``model.safetensors``, ``config.json`` and ``card.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    half = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in module.state_dict().items()
    }
    save_file(half, folder / "model.safetensors")
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def read_evaluator(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Reads (config, float32 state) of a folder written by `save_evaluator`.

    Raises:
        InputError: The folder holds no evaluator.
    """
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} holds no evaluator: config.json is missing", "train it with `make pretrain`")
    state = load_file(folder / "model.safetensors")
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config, {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
