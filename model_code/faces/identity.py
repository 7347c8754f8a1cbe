"""The chain's identity encoder, in ArcFace's place: who is it, whatever the mouth and the light do?

It is trained on the corpus's own speakers, filters companion pairs and serves the texture expert's loss. It never
judges: the benchmark's identity score comes from another network (``metrics.evaluators.identity_judge``).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from model_code.backbones.saved import SavedModule


class IdentityConfig(BaseModel):
    """Shape of an `IdentityEncoder`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    crop_size: int = Field(default=96, description="Side in pixels to which crops are brought.")
    widths: tuple[int, ...] = Field(default=(16, 32, 64, 96), description="Channels of the stages, each halves.")
    embedding: int = Field(default=128, description="Width of the identity vector.")


class IdentityEncoder(SavedModule[IdentityConfig]):
    """Convolutional net from a face crop to a unit vector."""

    config_type = IdentityConfig

    def __init__(self, config: IdentityConfig | None = None) -> None:
        super().__init__(config or IdentityConfig())
        layers: list[nn.Module] = []
        before, side = 3, self.config.crop_size
        for width in self.config.widths:
            layers += [nn.Conv2d(before, width, 3, stride=2, padding=1), nn.GroupNorm(8, width), nn.SiLU()]
            before, side = width, (side + 1) // 2
        self.stages = nn.Sequential(*layers)
        self.project = nn.Sequential(nn.Dropout(0.2), nn.Linear(before * side * side, self.config.embedding))
        self.oval: Tensor
        self.register_buffer("oval", _oval(self.config.crop_size), persistent=False)

    def forward(self, pictures: Tensor) -> Tensor:
        """Unit vectors (N, embedding), differentiable, from crops (N, 3, H, W) in [-1, 1]."""
        size = self.config.crop_size
        if pictures.shape[-2:] != (size, size):
            pictures = F.interpolate(pictures, (size, size), mode="bilinear", antialias=True, align_corners=False)
        # The face alone, by its own mean and spread: without the background and most of the light.
        share = self.oval / self.oval.sum()
        centred = pictures - (pictures * share).sum((2, 3), keepdim=True)
        spread = ((centred**2 * share).sum((2, 3), keepdim=True).mean(1, keepdim=True) + 1e-4).sqrt()
        hidden = self.stages(self.oval * centred / (spread + 0.05))
        return F.normalize(self.project(hidden.flatten(1)), dim=-1)

    def distance(self, first: Tensor, second: Tensor) -> Tensor:
        """The texture expert's loss, (B,): 1 - cosine of two videos (B, 3, T, H, W), averaged over frames."""
        batch, _, length = first.shape[:3]
        vectors = [self(video.transpose(1, 2).flatten(0, 1)).view(batch, length, -1) for video in (first, second)]
        return 1 - (vectors[0] * vectors[1]).sum(-1).mean(1)

    @torch.no_grad()
    def embed(self, frames: NDArray[np.uint8], chunk: int = 64) -> NDArray[np.float32]:
        """Unit vectors (N, embedding) of face crops (N, H, W, 3)."""
        parts = []
        for start in range(0, len(frames), chunk):
            pictures = torch.from_numpy(np.ascontiguousarray(frames[start : start + chunk])).permute(0, 3, 1, 2)
            parts.append(self(pictures.float() / 127.5 - 1).numpy())
        return np.concatenate(parts) if parts else np.zeros((0, self.config.embedding), np.float32)


def _oval(size: int) -> Tensor:
    """(size, size) soft mask of where a face lies in a crop."""
    places = (torch.arange(size) + 0.5) / size - 0.5
    radius = ((places / 0.38) ** 2 + ((places[:, None] - 0.02) / 0.45) ** 2).sqrt()
    return torch.sigmoid((1 - radius) / 0.05)


def identity_cosine(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """Mean cosine between two clips' frame vectors (N, D) and (M, D), frame by frame where N = M, else of the means."""
    if len(first) == len(second):
        return float((first * second).sum(1).mean())
    means = [vectors.mean(0) for vectors in (first, second)]
    return float(means[0] @ means[1] / (np.linalg.norm(means[0]) * np.linalg.norm(means[1]) + 1e-9))
