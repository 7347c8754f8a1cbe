"""What several tests share: the smallest transformer that a whole chain still trains, random ones, clips in memory."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from model_code.backbones.transformer import DubbingTransformer
from model_code.config import TransformerConfig

TINY_TRANSFORMER = {
    "dim": 48,
    "num_layers": 1,
    "num_heads": 2,
    "ffn_dim": 48,
    "audio_inner_dim": 24,
    "audio_heads": 2,
    "refiner_width": 16,
    "refiner_layers": 1,
}


def random_transformer(config: TransformerConfig, std: float) -> DubbingTransformer:
    """A model with every weight random, the zero-initialised too."""
    torch.manual_seed(0)
    model = DubbingTransformer.build(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return model.eval()


@dataclass(frozen=True)
class SyncExample:
    """What SyncNet learns from, in memory: face crops (T, S, S, 3) and the features (2T, D) of their sound."""

    frames: NDArray[np.uint8]
    features: NDArray[np.float32]
