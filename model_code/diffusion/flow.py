"""Flow matching: z_t = (1-t) z0 + t eps, velocity v = eps - z0 (X-Dub, sections 3.3 and 3.4).

Times are floats in [0,1]: one for each sample (B,) or for each latent frame (B,F). Latents are (B,C,F,h,w).
"""

from __future__ import annotations

import torch
from torch import Tensor

from model_code.config import Prediction


def shift(t: Tensor, a: float) -> Tensor:
    """Timestep shift t' = a t / (1 + (a-1) t); a > 1 moves time towards noise."""
    return a * t / (1 + (a - 1) * t)


def sample_timesteps(
    count: int, a: float, generator: torch.Generator | None = None, *, uniform: bool = False
) -> Tensor:
    """(count,) times, logit-normal (mean 0, std 1) or uniform, shifted by `a`."""
    if uniform:
        return shift(torch.rand(count, generator=generator), a)
    return shift(torch.sigmoid(torch.randn(count, generator=generator)), a)


def expand_time(t: Tensor, latents: Tensor) -> Tensor:
    """(B,) or (B,F) times, shaped to broadcast over (B,C,F,h,w) latents."""
    return t[:, None, None, None, None] if t.ndim == 1 else t[:, None, :, None, None]


def add_noise(z0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """z_t; frames with t = 0 stay clean."""
    time = expand_time(t, z0).to(z0.dtype)
    return (1 - time) * z0 + time * noise


def velocity_target(z0: Tensor, noise: Tensor) -> Tensor:
    """v = eps - z0."""
    return noise - z0


def to_velocity(prediction: Tensor, z_t: Tensor, t: Tensor, kind: Prediction) -> Tensor:
    """The velocity that a raw prediction means: v itself, or (z_t - x) / t of clean latents x.

    For kind "x" times below 1e-3 (clean motion frames have 0) are taken as 1e-3.
    """
    if kind == "v":
        return prediction
    return (z_t - prediction) / expand_time(t, z_t).to(z_t.dtype).clamp_min(1e-3)


def clipped_estimate(z0: Tensor, velocity: Tensor, predicted: Tensor, t: Tensor, t_max: float = 0.6) -> Tensor:
    """What pixel losses decode: z0 + (v - v^) min(t, t_max) (Eq. 3); only the loss is clipped, never the model's t."""
    return z0 + (velocity - predicted) * expand_time(t, z0).to(z0.dtype).clamp_max(t_max)
