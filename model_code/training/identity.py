"""Training of the identity encoder with an additive-margin softmax over the corpus's speakers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from model_code.errors import InputError
from model_code.faces.identity import IdentityEncoder
from model_code.seeding import rng_for, seed_for

_LOG = logging.getLogger(__name__)
_MARGIN = 0.25
_SCALE = 20.0
_HELD_EVERY = 4  # of every fourth speaker with three clips or more, the last clip is kept for scores
_SCORED_FRAMES = 8
_SCORED_SPEAKERS = 64
_SCORED_CLIPS = 16


class SpeakerClip(Protocol):
    """What the identity encoder needs of a clip (`SmallClip` has it)."""

    @property
    def frames(self) -> NDArray[np.uint8]:
        """(T, S, S, 3) face crops."""

    @property
    def row(self) -> dict[str, Any]:
        """Has "speaker_id"."""


def train_identity(
    train: Sequence[SpeakerClip],
    heldout: Sequence[SpeakerClip],
    steps: int = 200,
    seed: int = 0,
    batch_size: int = 48,
    progress: Callable[[int, float], None] | None = None,
) -> tuple[IdentityEncoder, dict[str, Any]]:
    """Trains an `IdentityEncoder`.

    Args:
        train: Clips of at least two speakers.
        heldout: Clips of speakers that are not in `train`, for scores.
        steps: Optimiser steps.
        seed: Decides everything random.
        batch_size: Pictures a step.
        progress: Called with step and loss.

    Returns:
        The encoder, in evaluation mode, and its report: accuracy_same_speakers (verification of kept-back clips
        against the training clips), accuracy_heldout_speakers, speakers, losses, seconds. An accuracy for which
        there are no clips is left out; many clips are scored by some of every so-manieth speaker.

    Raises:
        InputError: There are fewer than two speakers.
    """
    started = time.monotonic()
    speakers = sorted({_speaker(clip) for clip in train})
    if len(speakers) < 2:
        raise InputError(
            f"footage of {len(speakers)} speaker", "the identity encoder learns from several: add another person's"
        )
    of_speaker: dict[str, list[SpeakerClip]] = {speaker: [] for speaker in speakers}
    for clip in train:
        of_speaker[_speaker(clip)].append(clip)
    clips, kept = _keep_back(of_speaker)
    torch.manual_seed(seed_for("identity", seed) % 2**32)
    encoder = IdentityEncoder()
    centres = torch.nn.Parameter(torch.randn(len(speakers), encoder.config.embedding) * 0.1)
    optimizer = torch.optim.AdamW([*encoder.parameters(), centres], lr=2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps + 1, pct_start=0.15)
    number_of = {speaker: number for number, speaker in enumerate(speakers)}
    numbers = np.array([number_of[_speaker(clip)] for clip in clips])
    losses: list[float] = []
    for step in range(steps):
        rng = rng_for("identity", seed, step)
        chosen = rng.integers(0, len(clips), batch_size)
        looks = (clips[i].frames for i in chosen)
        pictures = np.stack([frames[rng.integers(len(frames))] for frames in looks])
        vectors = encoder(_varied(torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1, rng))
        labels = torch.from_numpy(numbers[chosen])
        cosine = vectors @ F.normalize(centres, dim=1).T
        loss = F.cross_entropy(_SCALE * (cosine - _MARGIN * F.one_hot(labels, len(speakers))), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if progress is not None:
            progress(step, losses[-1])
    encoder.eval().requires_grad_(False)
    asked, known, others = _scored(kept, speakers), _scored(clips, speakers), _scored(heldout)
    accuracies = {
        "accuracy_same_speakers": verification_accuracy(encoder, [*asked, *known], queries=len(asked)),
        "accuracy_heldout_speakers": verification_accuracy(encoder, others),
    }
    _LOG.info("identity encoder: verification %s", accuracies)
    report = {
        **{name: value for name, value in accuracies.items() if value is not None},
        "speakers": len(speakers),
        "losses": losses,
        "seconds": time.monotonic() - started,
    }
    return encoder, report


def verification_accuracy(
    encoder: IdentityEncoder, clips: Sequence[SpeakerClip], queries: int | None = None
) -> float | None:
    """Balanced accuracy of "same speaker?" over pairs of different clips, at the best threshold of the cosine.

    Args:
        encoder: What embeds.
        clips: Clips of several speakers.
        queries: Only pairs whose first clip is among the first so many; None: all pairs.

    Returns:
        0.5 to 1; None if there is no pair of each kind.
    """
    if not clips or queries == 0:
        return None
    vectors = np.stack([_clip_vector(encoder, clip) for clip in clips])
    speakers = np.array([_speaker(clip) for clip in clips])
    first, second = np.triu_indices(len(clips), 1)
    wanted = first < (len(clips) if queries is None else queries)
    cosine = (vectors @ vectors.T)[first[wanted], second[wanted]]
    same = speakers[first[wanted]] == speakers[second[wanted]]
    if same.all() or not same.any():
        return None
    return best_accuracy(cosine[same], cosine[~same])


def best_accuracy(same: NDArray[np.floating], others: NDArray[np.floating]) -> float:
    """Mean of the shares of `same` at or above a threshold and of `others` below it, at the best threshold.

    Args:
        same: Cosines (N,) of pairs of one speaker, at least one.
        others: Cosines (M,) of pairs of two speakers, at least one.
    """
    thresholds = np.union1d(same, others)
    hits = (len(same) - np.searchsorted(np.sort(same), thresholds)) / len(same)
    rejects = np.searchsorted(np.sort(others), thresholds) / len(others)
    return float(((hits + rejects) / 2).max())


def _clip_vector(encoder: IdentityEncoder, clip: SpeakerClip) -> NDArray[np.float32]:
    frames = clip.frames[np.linspace(0, len(clip.frames) - 1, min(_SCORED_FRAMES, len(clip.frames))).astype(int)]
    mean = encoder.embed(frames).mean(0)
    return mean / np.float32(np.linalg.norm(mean) + 1e-9)


def _speaker(clip: SpeakerClip) -> str:
    return str(clip.row["speaker_id"])


def _scored(clips: Sequence[SpeakerClip], speakers: Sequence[str] | None = None) -> list[SpeakerClip]:
    """Clips in their order, at most `_SCORED_CLIPS` of each of at most `_SCORED_SPEAKERS` of the (sorted) speakers."""
    speakers = sorted({_speaker(clip) for clip in clips}) if speakers is None else speakers
    left = dict.fromkeys(speakers[:: -(-len(speakers) // _SCORED_SPEAKERS) or 1], _SCORED_CLIPS)
    found = []
    for clip in clips:
        if left.get(_speaker(clip), 0):
            left[_speaker(clip)] -= 1
            found.append(clip)
    return found


def _keep_back(of_speaker: Mapping[str, list[SpeakerClip]]) -> tuple[list[SpeakerClip], list[SpeakerClip]]:
    clips, kept = [], []
    for number, own in enumerate(of_speaker.values()):
        back = 1 if number % _HELD_EVERY == 0 and len(own) >= 3 else 0
        clips += own[: len(own) - back]
        kept += own[len(own) - back :]
    return clips, kept


def _varied(pictures: Tensor, rng: np.random.Generator) -> Tensor:
    """Another place, light and mouth: geometry, colour, a light from one side, and patches over mouth or anywhere."""
    count, _, height, width = pictures.shape

    def draw(low: float, high: float, *shape: int) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (count, *shape))).float()

    angle, scale = draw(-0.15, 0.15), draw(0.88, 1.12)
    mirror = torch.where(draw(0, 1) < 0.5, -1.0, 1.0)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    shift = draw(-0.08, 0.08, 2)
    rows = [torch.stack([cos * mirror, -sin, shift[:, 0]], 1), torch.stack([sin * mirror, cos, shift[:, 1]], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), [count, 3, height, width], align_corners=False)
    moved = F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
    across, down = torch.linspace(-1, 1, width), torch.linspace(-1, 1, height)[:, None]
    slope = draw(-0.35, 0.35, 2, 1, 1)
    light = 1 + slope[:, :1] * across + slope[:, 1:] * down
    moved = (moved + 1) * light * draw(0.65, 1.3, 1, 1, 1) * draw(0.88, 1.12, 3, 1, 1) - 1
    for i in range(count):
        for low, high, chance in ((0.6, 0.8, 0.5), (0.1, 0.9, 0.3)):  # the mouth; anywhere
            if rng.random() < chance:
                y, x = rng.uniform(low, high) * height, rng.uniform(0.35, 0.65) * width
                tall, wide = rng.uniform(0.05, 0.13) * height, rng.uniform(0.08, 0.22) * width
                box = (slice(max(0, int(y - tall)), int(y + tall)), slice(max(0, int(x - wide)), int(x + wide)))
                moved[i, :, box[0], box[1]] = torch.from_numpy(rng.uniform(-1, 1, (3, 1, 1))).float()
    return moved.clamp(-1, 1)
