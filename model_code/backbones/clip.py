"""CLIP's image tower through transformers: the texture expert's perceptual loss at full strength."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_code.backbones.sources import config_of, load_whole
from model_code.files import read_json

MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the pictures that CLIP was trained on; a folder with a preprocessor_config.json says its own."""


class ClipVision(nn.Module):
    """CLIP's picture vectors, with gradients.

    Args:
        network: transformers' `CLIPVisionModelWithProjection`.
        mean: Of each colour, of what the network was trained on, in [0, 1].
        deviation: Likewise.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, network: Any, mean: tuple[float, ...] = MEAN, deviation: tuple[float, ...] = DEVIATION) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).reshape(1, 3, 1, 1))
        self.register_buffer("deviation", torch.tensor(deviation).reshape(1, 3, 1, 1))

    def embed(self, pictures: Tensor) -> Tensor:
        """Unit vectors (N, D) of square pictures (N, 3, S, S) in [-1, 1]."""
        side = self.network.config.image_size
        if pictures.shape[-1] != side:
            pictures = F.interpolate(pictures, (side, side), mode="bicubic", antialias=True, align_corners=False)
        seen = ((pictures + 1) / 2 - self.mean) / self.deviation
        return F.normalize(self.network(pixel_values=seen).image_embeds, dim=-1)

    def distance(self, first: Tensor, second: Tensor) -> Tensor:
        """1 - cosine of each two pictures: (N, 3, S, S) twice -> (N,)."""
        return 1 - (self.embed(first) * self.embed(second)).sum(-1)

    @classmethod
    def from_pretrained(cls, folder: Path) -> ClipVision:
        """Reads the image tower of a CLIP folder, of a whole CLIP or of the tower alone.

        Raises:
            InputError: It holds something else, or not all of it.
        """
        from transformers import CLIPVisionModelWithProjection

        config_of(folder, "model_type", "clip", "clip_vision_model")
        beside = folder / "preprocessor_config.json"
        given = read_json(beside) if beside.is_file() else {}
        network = load_whole(CLIPVisionModelWithProjection, folder)
        return cls(network, given.get("image_mean", MEAN), given.get("image_std", DEVIATION)).eval()
