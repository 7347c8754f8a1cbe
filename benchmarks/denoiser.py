"""``python -m benchmarks.denoiser``: one editor step against the machine's own matrix multiplication.

The limit is a square float32 `torch.mm` timed in the same run on the same threads; operations are counted by
PyTorch's flop counter.
"""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import race
from model_code.backbones.transformer import DubbingTransformer
from model_code.config import TransformerConfig

BATCH, LATENT_FRAMES, SIDE, MATRIX = 4, 7, 12, 1024


def main() -> None:
    """Prints the share of the limit."""
    torch.manual_seed(0)
    config = TransformerConfig()
    model = DubbingTransformer(**config.model_dump()).eval()
    latents = torch.randn(BATCH, config.in_channels, LATENT_FRAMES, SIDE, SIDE)
    times = torch.full((BATCH, LATENT_FRAMES), 0.5)
    audio = torch.randn(BATCH, LATENT_FRAMES, config.audio_window, config.audio_dim)
    left, right = torch.randn(2, MATRIX, MATRIX)
    with torch.inference_mode():
        counter = FlopCounterMode(display=False)
        with counter:
            model(latents, times, latents, audio)
        flops = counter.get_total_flops()
        products = max(1, round(flops / (2 * MATRIX**3)))  # as much work as a step, so that both meet the same load

        def multiply() -> None:
            for _ in range(products):
                torch.mm(left, right)

        best = race({"step": lambda: model(latents, times, latents, audio), "mm": multiply})
    step, limit = flops / best["step"] / 1e9, 2 * MATRIX**3 * products / best["mm"] / 1e9
    print(
        f"denoiser step, batch {BATCH} of 25 frames: {best['step'] * 1e3:.1f} ms, {step:.1f} GFLOP/s; "
        f"torch.mm {MATRIX}: {limit:.1f} GFLOP/s; ratio {step / limit:.2f} ({torch.get_num_threads()} threads)"
    )


if __name__ == "__main__":
    main()
