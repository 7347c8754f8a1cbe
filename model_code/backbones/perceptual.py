"""The perceptual encoder that stands in CLIP's place at the embedded scale.

CLIP's image tower serves the paper in two ways: as the texture expert's loss and as the score CLIPS. This
small convolutional net has the same two uses: `distance` compares feature maps of two pictures, `embed`
gives one normalised vector a picture.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from model_code.backbones.saved import SavedModule


class PerceptualConfig(BaseModel):
    """Shape of a `PerceptualEncoder`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    widths: tuple[int, ...] = Field((24, 48, 80, 112), description="Channels of the stages; each halves the picture.")
    embedding: int = Field(96, description="Width of `embed`'s vector.")
    attributes: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="Names and classes of the attribute heads it was trained with."
    )


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around an identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, hidden: Tensor) -> Tensor:
        """(N, width, h, w) to the same shape."""
        return hidden + self.second(F.silu(self.first(F.silu(self.norm(hidden)))))


class PerceptualEncoder(SavedModule[PerceptualConfig]):
    """Convolutional picture encoder, below 0.7 M parameters.

    Args:
        config: Shape of the net.
    """

    config_type = PerceptualConfig

    def __init__(self, config: PerceptualConfig | None = None) -> None:
        super().__init__(config or PerceptualConfig())
        widths = self.config.widths
        self.reduce = nn.ModuleList(
            nn.Conv2d(before, after, 4, stride=2, padding=1)
            for before, after in zip((3, *widths[:-1]), widths, strict=True)
        )
        self.mix = nn.ModuleList(ResidualBlock(width) for width in widths)
        self.project = nn.Linear(2 * widths[-1], self.config.embedding)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(self.config.embedding, len(classes)) for name, classes in self.config.attributes.items()}
        )

    def features(self, pictures: Tensor) -> list[Tensor]:
        """Maps (N, 3, H, W) in [-1, 1] to one map a stage, at a half, a quarter, ... of the size."""
        hidden, maps = pictures, []
        for reduce, mix in zip(self.reduce, self.mix, strict=True):
            hidden = mix(reduce(hidden))
            maps.append(hidden)
        return maps

    def embed(self, pictures: Tensor) -> Tensor:
        """Maps (N, 3, H, W) in [-1, 1] to unit vectors (N, embedding)."""
        last = self.features(pictures)[-1]
        pooled = torch.cat([last.mean((2, 3)), last.amax((2, 3))], dim=1)
        return F.normalize(self.project(pooled), dim=1)

    def distance(self, first: Tensor, second: Tensor) -> Tensor:
        """Mean squared distance of channel-normalised feature maps, per picture: (N, 3, H, W) twice -> (N,)."""
        total = torch.zeros(len(first), device=first.device)
        for a, b in zip(self.features(first), self.features(second), strict=True):
            total = total + (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).mean((1, 2))
        return total / len(self.reduce)
