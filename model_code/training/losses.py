"""Losses of the transformer's phases (paper, section 3 and appendix C)."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from model_code.config import Prediction
from model_code.diffusion.flow import velocity_target


def region_weights(face: Tensor, lip: Tensor, face_weight: float, lip_weight: float) -> Tensor:
    """(1 + w M_face + w_lip M_lip) on the latent grid; masks (B, 1, F, h, w) in [0, 1]."""
    return 1.0 + face_weight * face + lip_weight * lip


def velocity_loss(
    raw: Tensor,
    clean: Tensor,
    noise: Tensor,
    t: Tensor,
    weights: Tensor,
    learned: Tensor,
    prediction: Prediction,
    weight_max: float,
    channel_weights: Tensor | None = None,
) -> Tensor:
    """Weighted squared error of the velocity, per sample.

    Args:
        raw: The network's output (B, C, F, h, w).
        clean, noise: z0 and eps of the same shape.
        t: (B,) flow time of the noisy frames.
        weights: (B, 1, F, h, w) region weights.
        learned: (B, F) 1 for frames that are learned, 0 for clean motion frames.
        prediction: `x` (the output means z0) or `v`.
        weight_max: Cap of the 1/t^2 by which an error of z0 weighs in v.
        channel_weights: (C,) weights of the latent channels; None counts them alike.

    Returns:
        (B,) losses.
    """
    if prediction == "v":
        error = (raw.float() - velocity_target(clean, noise)).square()
    else:
        scale = t.clamp_min(1e-4).pow(-2).clamp_max(weight_max)
        error = (raw.float() - clean).square() * scale[:, None, None, None, None]
    if channel_weights is not None:
        error = error * channel_weights[:, None, None, None]
    mask = learned[:, None, :, None, None]
    total = (error * weights * mask).flatten(1).sum(1)
    return total / (mask.flatten(1).sum(1) * error.shape[1] * error.shape[3] * error.shape[4])


class FrameCritic(Protocol):
    """A frozen network that judges decoded frames; returns one distance per sample."""

    def __call__(self, decoded: Tensor, target: Tensor, /) -> Tensor:
        """(B, 3, T, H, W) in [-1, 1] twice -> (B,)."""


class SyncCritic(Protocol):
    """A frozen network that judges decoded frames against sound; returns one distance per sample."""

    def __call__(self, decoded: Tensor, features: Tensor, /) -> Tensor:
        """(B, 3, T, H, W) in [-1, 1] and (B, 2T, D) audio features of the same time -> (B,)."""


class PictureCritic(Protocol):
    """A frozen network that compares pictures."""

    def distance(self, first: Tensor, second: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] twice -> (N,)."""


def video_distance(encoder: PictureCritic) -> FrameCritic:
    """The perceptual distance of two videos: the mean over their frames."""

    def distance(decoded: Tensor, target: Tensor) -> Tensor:
        count = decoded.shape[2]
        first, second = (video.transpose(1, 2).flatten(0, 1) for video in (decoded, target))
        return encoder.distance(first, second).unflatten(0, (-1, count)).mean(1)

    return distance
