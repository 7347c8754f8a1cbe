"""What the training worker looks at beside its losses: held-out clips, one of them as a video with its sound."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from model_code.diffusion.guidance import Guidance
from model_code.diffusion.sampler import sample
from model_code.diffusion.schedule import expert_windows, experts_by_step, sigmas
from model_code.media.video import write_video
from model_code.metrics.syncnet import SyncNet, sync_scores
from model_code.seeding import seed_for
from model_code.training.data import Batch, TrainingSet, to_frames
from model_code.training.phases import Phase, switch_adapters, takes_context
from model_code.training.validation import losses_by_time
from model_code.workers.pictures import contact_sheet

FOLDER = "validation"


@torch.no_grad()
def samples(model: nn.Module, phase: Phase, batch: Batch) -> list[list[NDArray[np.uint8]]]:
    """Of each window the frames (T, S, S, 3) that the model sees, should make, and makes (an expert in its window)."""
    codec = phase.critics.codec
    assert codec is not None
    generator = torch.Generator().manual_seed(seed_for("samples", phase.config.phase))
    noise = torch.randn(batch.target.shape, generator=generator).to(batch.target.device)
    context = phase.context(batch, generator) if takes_context(model) else None
    times, expert = sigmas(phase.flow.sampling_steps, phase.flow.sampling_shift), phase.config.phase
    acting = experts_by_step(times, expert_windows(phase.flow))

    def before_step(index: int, _: float) -> None:
        switch_adapters(model, on=expert in acting[index])

    try:
        made = sample(
            model,
            noise,
            reference=phase.reference(batch),
            audio=batch.audio,
            times=times,
            guidance=Guidance.constant(),
            prediction=phase.flow.prediction,
            text=phase.words(noise),
            context=context,
            noise_scale=phase.flow.sampling_noise,
            before_step=before_step,
        )
    finally:
        switch_adapters(model, on=True)
    seen = context if context is not None else phase.reference(batch)
    videos = [[to_frames(video) for video in codec.decode(latents)] for latents in (seen, batch.target, made)]
    return [list(columns) for columns in zip(*videos, strict=True)]


@dataclass(frozen=True)
class Validation:
    """Looks at a model in training; every process asks it, the leading one writes.

    Attributes:
        phase: What the model is trained for.
        held: Clips held out of training.
        shown: One of them, cut to the window that becomes the video.
        sound: That window's samples at 16 kHz.
        device: Where the model is.
        syncnet: The chain's SyncNet, where the phase has one at hand.
        folder: Receives step_N.mp4 (what the model sees, should make, and makes, side by side) and step_N.png; None
            writes nothing.
    """

    phase: Phase
    held: TrainingSet
    shown: TrainingSet
    sound: NDArray[np.float32]
    device: torch.device
    syncnet: SyncNet | None
    folder: Path | None

    def __call__(self, model: nn.Module, step: int) -> dict[str, Any]:
        """The losses by time, and Sync-C of the sample where a SyncNet is at hand."""
        found = losses_by_time(model, self.phase, self.held, self.device)
        batch = self.shown.batch(0, 0, 1).to(self.device)
        [videos] = samples(model, self.phase, batch)
        if self.syncnet is not None:
            features = batch.features[0].cpu().numpy()
            found["validation_sync_c"] = sync_scores(self.syncnet, videos[-1], features).sync_c
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_video(self.folder / f"step_{step:06d}.mp4", np.concatenate(videos, axis=2), audio=self.sound)
            contact_sheet([videos], self.folder / f"step_{step:06d}.png")
        return found
