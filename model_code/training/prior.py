"""Pretraining of the video prior: the stand-in for the paper's ready-made video backbone.

A deviation: the paper's backbone knows no audio; ours learns to listen here, or the demo's minutes would not
do. Its own scores stand first in the report, so that nobody takes its skill for the chain's.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from model_code.backbones.audio import AudioEncoder
from model_code.backbones.codec import LatentCodec
from model_code.backbones.saved import fingerprint
from model_code.backbones.transformer import DubbingTransformer
from model_code.config import FlowConfig, PhaseConfig, TransformerConfig
from model_code.files import write_json
from model_code.media.sample import ClipSample
from model_code.seeding import seed_for
from model_code.training.data import CachedClip, ClipEncoder, TrainingSet
from model_code.training.loop import Progress, Trainer
from model_code.training.phases import Critics, Phase, make_phase

logger = logging.getLogger(__name__)

SCORING_BATCHES = 8


def train_prior(
    footage: Iterable[tuple[ClipSample, ClipSample]],
    codec: LatentCodec,
    audio_encoder: AudioEncoder,
    out_dir: Path | str,
    phase: PhaseConfig,
    transformer: TransformerConfig | None = None,
    flow: FlowConfig | None = None,
    *,
    heldout: Iterable[tuple[ClipSample, ClipSample]],
    work_dir: Path,
    init: Path | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Trains the base transformer (with the generator's extra input channels) and saves it with its card.

    Args:
        footage: Procedural clips, each with the same clip saying something else: both are targets, and companions.
        codec: Trained latent codec.
        audio_encoder: Trained audio encoder.
        out_dir: Receives the transformer's folder in half precision and card.json.
        phase: Budget; its `phase` is `base`.
        transformer: Shape; `context_channels` is set to the codec's channels.
        flow: Parameterisation.
        heldout: The same of other heads, for the card's scores.
        work_dir: Latent cache and checkpoints; a killed run goes on from there.
        init: An earlier prior: parts of the same name and shape start from it, others fresh.
        device: Where to train.
        progress: As `Trainer`'s.

    Returns:
        The card.
    """
    started = time.monotonic()
    flow, transformer = flow or FlowConfig(), transformer or TransformerConfig()
    shape = transformer.model_copy(update={"context_channels": codec.latent_channels})
    torch.manual_seed(seed_for("prior", phase.seed) % 2**32)
    model = DubbingTransformer.build(shape)
    if init is not None:
        start_from(model, init)
    model.to(device)
    target = torch.device(device)
    codec.to(target)  # type: ignore[attr-defined]
    encoder = ClipEncoder(codec, audio_encoder, shape.context_fill, work_dir / "latents", target)
    groups: tuple[list[CachedClip], list[CachedClip]] = ([], [])
    frames = 0
    for group, pairs in zip(groups, (footage, heldout), strict=True):
        for pair in pairs:
            for clip, companion in (pair, pair[::-1]):
                group.append(encoder.encode(clip, companion.frames))
                frames += len(clip.frames)
    train, held = (TrainingSet(group, phase.clip_frames, shape.audio_window) for group in groups)
    strategy = make_phase(phase, flow, Critics(codec))
    # Another budget, start or footage is another run: its checkpoints are not this one's.
    networks = (fingerprint(cast(nn.Module, each)) for each in (model, codec, audio_encoder))
    content = (clip.path.stem for clip in groups[0])
    run = seed_for(phase.model_dump_json(), flow.model_dump_json(), *content, *networks)
    folder = work_dir / "checkpoints" / f"{run:x}"
    curves = Trainer(model, strategy, train, phase, folder, progress).run()
    scores = {
        "training_loss": curves.rows[-1]["flow"],
        "held_out_loss": held_out_loss(model, strategy, held),
        "held_out_loss_without_sound": held_out_loss(model, strategy, held, silent=True),
    }
    out = Path(out_dir)
    model.cpu().half().save_pretrained(out)
    card = {
        "name": "prior",
        "parameters": sum(value.numel() for value in model.parameters()),
        "data": {
            "clips": len(train) + len(held),
            "held_out_clips": len(held),
            "frames": frames,
        },
        "phase": phase.model_dump(mode="json"),
        "flow": flow.model_dump(mode="json"),
        "init": None if init is None else json.loads((init / "card.json").read_text()),
        "seed": phase.seed,
        "seconds": round(time.monotonic() - started, 1),
        "device": device,
        "skipped_updates": len(curves.skipped),
        "scores": scores,
    }
    write_json(out / "curves.json", curves.rows)
    write_json(out / "card.json", card)
    return card


def start_from(model: DubbingTransformer, folder: Path) -> None:
    """Copies the weights of an earlier transformer where names and shapes agree."""
    earlier = DubbingTransformer.from_pretrained(folder, torch_dtype=torch.float32).state_dict()
    state = model.state_dict()
    same = {name: value for name, value in earlier.items() if name in state and state[name].shape == value.shape}
    model.load_state_dict({**state, **same})
    logger.info("%d of %d tensors start from %s", len(same), len(state), folder)


@torch.no_grad()
def held_out_loss(model: torch.nn.Module, phase: Phase, data: TrainingSet, *, silent: bool = False) -> float:
    """Mean flow loss on fixed batches of clips that were not trained on; `silent` zeroes the sound."""
    device = next(model.parameters()).device
    model.eval()
    phase = replace(phase, config=phase.config.model_copy(update={"own_estimates": 0.0}))
    losses = []
    for step in range(SCORING_BATCHES):
        generator = torch.Generator().manual_seed(seed_for("held out", step))
        batch = phase.draw(data, step).to(device)
        if silent:
            batch.audio = torch.zeros_like(batch.audio)
        losses.append(float(phase.training_step(model, batch, generator).per_sample.mean()))
    return sum(losses) / len(losses)
