"""A generator that starts from what was trained for something else: Wan, X-Dub's editor, an older generator."""

from __future__ import annotations

from pathlib import Path

import torch

from model_code.backbones.transformer import READS_CONTEXT, DubbingTransformer
from model_code.config import TransformerConfig
from model_code.dubbing.model import load_transformer
from model_code.errors import InputError
from model_code.files import read_json

OURS = frozenset({"context_channels", "context_fill", "reference_tokens", "reference_attention"})
"""Fields in which weights may differ from the transformer that is wanted: training settles them."""


def warm_start(folder: Path, wanted: TransformerConfig, name: str) -> DubbingTransformer:
    """The wanted transformer with the weights in a folder, in single precision.

    Context channels that they lack are new, and zero: at first the generator sees the masked video no more than an
    editor does, and makes of noise, reference and sound what the weights make of them. (So are the additional
    channels of inpainting models started; the paper does not say how its own are.)

    Args:
        folder: What `DubbingTransformer.save_pretrained` wrote.
        wanted: Shape of the generator.
        name: What errors call the weights.

    Raises:
        InputError: They are of another shape.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise InputError(f"{name} holds no transformer", "import X-Dub's or Wan's weights with `xdub weights import`")
    given = read_json(file)
    told = [
        f"{field} {given[field]} instead of {value}"
        for field, value in wanted.model_dump(mode="json").items()
        if field in given and field not in OURS and given[field] != value
    ]
    context = given.get("context_channels", 0)
    if context not in (0, wanted.context_channels):
        told.append(f"context_channels {context} instead of {wanted.context_channels}")
    if told:
        raise InputError(
            f"{name} has {', '.join(told)}",
            "set XDUB_TRANSFORMER__* as it is, or import weights of this shape with `xdub weights import`",
        )
    state = load_transformer(folder).state_dict()
    for key in READS_CONTEXT & state.keys():
        new = state[key].new_zeros(state[key].shape[0], wanted.context_channels - context, *state[key].shape[2:])
        state[key] = torch.cat([new, state[key]], dim=1)
    with torch.device("meta"):
        model = DubbingTransformer.build(wanted)
    model.load_state_dict(state, assign=True)
    return model
