"""Looks at a model in training on clips that are held out of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import nn

from model_code.errors import InputError
from model_code.seeding import seed_for
from model_code.training.data import Batch, EncodedClip, LatentTrack, TrainingSet, latent_length
from model_code.training.phases import Phase, takes_context
from model_code.training.record import T_BINS

WINDOWS = 8
"""Windows that every bin of t is asked about; fewer clips give fewer."""
PLAIN = {
    "cells": None,
    "motion_drop": 1.0,
    "audio_drop": 0.0,
    "reference_drop": 0.0,
    "silence_probability": 0.0,
    "own_estimates": 0.0,
    "sync_weight": 0.0,
    "identity_weight": 0.0,
    "perceptual_weight": 0.0,
}
"""Whole crops with all that the model can be given and no clean frames; the flow's loss alone."""

T = TypeVar("T")


def hold_out(
    sources: Sequence[T], share: float, clip_of: Callable[[T], str], long_enough: Callable[[T], bool]
) -> tuple[list[T], list[T]]:
    """(What is trained on, what is held out), in their order; all that comes from one clip is on one side.

    Which clips are held out depends on their names alone: more footage moves few of the others.

    Args:
        sources: Clips or pairs.
        share: Of the clips, held out; at least one.
        clip_of: A source's clip.
        long_enough: Whether it fills a window; others stay where they are.

    Raises:
        InputError: Nothing would be left to train on.
    """
    names = sorted({clip_of(source) for source in sources if long_enough(source)}, key=_rank)
    chosen = set(names[: max(1, round(share * len(names)))])
    learned = [source for source in sources if clip_of(source) not in chosen]
    if not any(long_enough(source) for source in learned):
        raise InputError(
            f"{len(names)} clips, of which one is held out for validation",
            "take in more footage, or set validate_every to 0",
        )
    return learned, [source for source in sources if clip_of(source) in chosen]


def _rank(clip_id: str) -> int:
    return seed_for("validation", clip_id)


def opening(clip: EncodedClip, frames: int) -> EncodedClip:
    """A clip cut to its first window of `frames` pixel frames, so that a window of it is that one."""
    length = latent_length(frames)
    tracks = {
        name: LatentTrack(track.singles[:, :length], track.blocks[:, : length - 1])
        for name, track in clip.tracks.items()
    }
    return replace(clip, tracks=tracks)


@torch.no_grad()
def losses_by_time(model: nn.Module, phase: Phase, data: TrainingSet, device: torch.device) -> dict[str, Any]:
    """The flow's loss on held-out clips: the same windows, noise and times every time.

    Args:
        model: The transformer.
        phase: What it is trained for.
        data: Held-out clips.
        device: Where it is.

    Returns:
        validation_bins, the mean loss in each fifth of t, and validation_loss, their mean.
    """
    plain = replace(phase, config=phase.config.model_copy(update=PLAIN))
    count = min(WINDOWS, len(data))
    batch: Batch = data.batch(seed_for("validation"), 0, count).to(device)
    bins = []
    for index in range(T_BINS):
        t = (index + (torch.arange(count) + 0.5) / count) / T_BINS
        generator = torch.Generator().manual_seed(seed_for("validation", index))
        inputs = plain.inputs(batch, generator, with_context=takes_context(model), t=t)
        bins.append(float(plain.losses(model, batch, inputs).per_sample.mean()))
    return {"validation_loss": sum(bins) / len(bins), "validation_bins": bins}
