"""Convolutions after the transformer, where its tokens are too coarse for edges."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_code.backbones.attention import in_float32, modulate


class RefinerLayer(nn.Module):
    """A residual pair of 3x3 convolutions, modulated per latent frame by the time (and sound) embedding."""

    def __init__(self, width: int, time_dim: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(time_dim, 2 * width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        """x (N,width,h,w) in channels_last, embedded (N,time_dim) after its activation -> like x."""
        shift, scale = in_float32([self.modulation], embedded)[:, None, None].chunk(2, -1)
        # Norm over channels alone: windows and whole crops must be normalised alike.
        hidden = modulate(x.permute(0, 2, 3, 1), shift, scale).permute(0, 3, 1, 2)
        return x + self.second(F.silu(self.first(hidden)))


class LocalRefiner(nn.Module):
    """Adds to the transformer's output what its patches of 2x2 latent cells place badly.

    Args:
        in_channels: Of the transformer's input.
        out_channels: Of the latents.
        width: Of the trunk.
        layers: Residual layers.
        time_dim: Width of the embedding that modulates them.
    """

    def __init__(self, in_channels: int, out_channels: int, width: int, layers: int, time_dim: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(in_channels + out_channels, width, 1)
        self.layers = nn.ModuleList(RefinerLayer(width, time_dim) for _ in range(layers))
        self.leave = nn.Conv2d(width, out_channels, 1)

    def start_closed(self) -> None:
        """Starts as zero, with no modulation: a transformer that gets a refiner says what it said before."""
        fresh = [self.leave, *(cast(RefinerLayer, layer).modulation for layer in self.layers)]
        for parameter in (value for layer in fresh for value in layer.parameters()):
            nn.init.zeros_(parameter)

    def forward(self, latents: Tensor, output: Tensor, embedded: Tensor) -> Tensor:
        """latents (B,in_channels,F,h,w), output (B,out_channels,F,h,w), embedded (B,F,time_dim) -> like output."""
        batch, _, frames = latents.shape[:3]
        hidden = (
            torch.cat([latents, output], dim=1)
            .transpose(1, 2)
            .flatten(0, 1)
            .contiguous(memory_format=torch.channels_last)
        )
        hidden = self.enter(hidden)
        activated = F.silu(embedded).flatten(0, 1)
        for layer in self.layers:
            hidden = layer(hidden, activated)
        return self.leave(hidden).unflatten(0, (batch, frames)).transpose(1, 2)
