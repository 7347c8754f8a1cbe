"""The smallest transformer that a whole chain still trains, and random ones: what several tests share."""

import torch

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
