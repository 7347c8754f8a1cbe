"""``python -m benchmarks.codec``: the block codec against a tiny AutoencoderKLWan of the same latent size."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLWan

from benchmarks.timing import race, report
from model_code import base
from model_code.backbones.codec import BlockCodec, WanCodec
from model_code.errors import InputError

SIZE, FRAMES = 96, 9


def _shipped() -> BlockCodec:
    try:
        codec: BlockCodec = base.load("codec")
    except InputError:  # speed does not depend on the weights
        codec = BlockCodec().eval()
    return codec


def main() -> None:
    """Prints the ratios."""
    torch.manual_seed(0)
    block = _shipped()
    wan = WanCodec(
        AutoencoderKLWan(base_dim=16, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=1, attn_scales=[]).eval()
    )
    video = torch.rand(1, 3, FRAMES, SIZE, SIZE) * 2 - 1
    with torch.inference_mode():
        latents = {"block codec": block.encode(video), "tiny AutoencoderKLWan": wan.encode(video)}
        encode = race(
            {"block codec": lambda: block.encode(video), "tiny AutoencoderKLWan": lambda: wan.encode(video)}, rounds=3
        )
        decode = race(
            {
                "block codec": lambda: block.decode(latents["block codec"]),
                "tiny AutoencoderKLWan": lambda: wan.decode(latents["tiny AutoencoderKLWan"]),
            },
            rounds=3,
        )
    report(f"encode {SIZE} px", "block codec", "tiny AutoencoderKLWan", encode, "frames/s", FRAMES)
    report(f"decode {SIZE} px", "block codec", "tiny AutoencoderKLWan", decode, "frames/s", FRAMES)


if __name__ == "__main__":
    main()
