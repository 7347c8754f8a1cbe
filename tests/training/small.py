"""A transformer and invented clips so small that a training step takes milliseconds."""

from pathlib import Path

import torch

from model_code.backbones.transformer import DubbingTransformer
from model_code.config import FlowConfig, PhaseConfig, TransformerConfig
from model_code.training.data import EncodedClip, LatentTrack, TrainingSet
from model_code.training.loop import Trainer, Validate
from model_code.training.phases import Phase, make_phase

SHAPE = TransformerConfig(
    dim=24, num_layers=1, num_heads=2, ffn_dim=32, freq_dim=16, in_channels=6, out_channels=6, context_channels=6,
    audio_dim=8, audio_inner_dim=16, audio_heads=2, audio_layers=1, residual=False, patch_size=(1, 2, 2), positions=0,
        audio_modulation=False, refiner_width=8, refiner_layers=1,
)  # fmt: skip


def clips(count: int = 4, scale: float = 1.0) -> list[EncodedClip]:
    made = []
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        tracks = {
            name: LatentTrack(
                (0.5 + scale * torch.randn(channels, 10, 4, 4, generator=generator)).half(),
                (0.5 + scale * torch.randn(channels, 9, 4, 4, generator=generator)).half(),
            )
            for name, channels in (("target", 6), ("masked", 6), ("face", 1), ("lip", 1))
        }
        made.append(EncodedClip(f"c{number}", "s", tracks, torch.randn(74, 8, generator=generator).half()))
    return made


def trainer(
    folder: Path | None,
    scale: float = 1.0,
    data: TrainingSet | None = None,
    phase: type[Phase] | None = None,
    validate: Validate | None = None,
    **changes: object,
) -> Trainer:
    """A generator's trainer of six steps; `data` and `phase` put others in the place of its own."""
    config = PhaseConfig(
        phase="generator", pixel_weighting=False, steps=6, batch_size=2, warmup_steps=2, checkpoint_every=2
    ).model_copy(update=changes)
    torch.manual_seed(0)
    model = DubbingTransformer.build(SHAPE)
    strategy = phase(config, FlowConfig()) if phase else make_phase(config, FlowConfig())
    data = data or TrainingSet(clips(scale=scale), 25, 16)
    return Trainer(model, strategy, data, config, folder, validate=validate)
