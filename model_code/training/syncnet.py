"""Training of SyncNet with InfoNCE: a window of lips has to find its own window of sound among its clip's others."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from model_code.backbones.audio import SpeechEncoder
from model_code.media.sample import KEPT, SmallClip
from model_code.metrics.syncnet import WINDOW, SyncNet, SyncNetConfig, embed_windows, fit_features, sync_scores
from model_code.seeding import rng_for, seed_for

_LOG = logging.getLogger(__name__)
_SEGMENT = 40  # frames of a training segment
_TEMPERATURE = 0.07
_NEAR = 2  # windows shifted by so few frames are neither right nor wrong
_OFF = (5, 15)  # shifts, in frames, that count as off-sync in the accuracy
SHORTEST = 2 * WINDOW + _OFF[0]
"""Frames of a clip that can be shifted against its sound."""
SCORED = 256
"""The most clips that the scores are taken of."""


class Example(Protocol):
    """What SyncNet needs of a clip."""

    @property
    def frames(self) -> NDArray[np.uint8]:
        """(T, S, S, 3) face crops at 25 fps."""

    @property
    def features(self) -> NDArray[np.float32]:
        """(2T, D) audio features of their time."""


@dataclass(frozen=True, eq=False)
class StoredExample:
    """An `Example` where it lies, whose features the encoder makes when they are asked for; the last `KEPT` stay."""

    clip: SmallClip
    encoder: SpeechEncoder

    @property
    def frames(self) -> NDArray[np.uint8]:
        """The clip's."""
        return self.clip.frames

    @property
    def features(self) -> NDArray[np.float32]:
        """Of its sound."""
        return _features(self)


@lru_cache(KEPT)
def _features(example: StoredExample) -> NDArray[np.float32]:
    return fit_features(example.encoder.encode(example.clip.audio), len(example.frames))


def train_syncnet(
    train: Sequence[Example],
    heldout: Sequence[Example],
    steps: int = 100,
    seed: int = 0,
    batch_size: int = 12,
    progress: Callable[[int, float], None] | None = None,
) -> tuple[SyncNet, dict[str, Any]]:
    """Trains a `SyncNet`.

    Args:
        train: Clips of several speakers, in sync.
        heldout: Clips for the scores, best of other speakers; of more than `SCORED` as many, from all over them.
        steps: Optimiser steps.
        seed: Decides everything random.
        batch_size: Segments of 40 frames a step.
        progress: Called with step and loss.

    Returns:
        The network, in evaluation mode, and its report: accuracy (in sync against off, on held-out clips: the gate's
        value), train_accuracy, sync_c, sync_d, offset_zero (share of held-out clips whose offset is within one
        frame of 0), losses, seconds.
    """
    if not train:
        raise ValueError(f"no clip is long enough to train SyncNet: give clips of at least {SHORTEST} frames")
    started = time.monotonic()
    torch.manual_seed(seed_for("syncnet", seed) % 2**32)
    model = SyncNet(SyncNetConfig(audio_features=train[0].features.shape[1]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps + 1, pct_start=0.15)
    losses: list[float] = []
    for step in range(steps):
        video, audio = _batch(train, batch_size, rng_for("syncnet", seed, step))
        loss = _contrast(model.embed_video(video), model.embed_audio(audio))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if progress is not None:
            progress(step, losses[-1])
    model.eval().requires_grad_(False)
    heldout = heldout[:: -(-len(heldout) // SCORED) or 1]
    scores = [sync_scores(model, example.frames, example.features) for example in heldout]
    report = {
        "accuracy": sync_accuracy(model, heldout),
        "train_accuracy": sync_accuracy(model, train[:24]),
        "sync_c": float(np.mean([score.sync_c for score in scores])) if scores else 0.0,
        "sync_d": float(np.mean([score.sync_d for score in scores])) if scores else 0.0,
        "offset_zero": float(np.mean([abs(score.offset) <= 1 for score in scores])) if scores else 0.0,
        "losses": losses,
        "seconds": time.monotonic() - started,
    }
    _LOG.info("SyncNet: accuracy %.3f on %d held-out clips", report["accuracy"], len(heldout))
    return model, report


@torch.no_grad()
def sync_accuracy(model: SyncNet, examples: Sequence[Example]) -> float:
    """Share of pairs of one window of lips, in which its own sound is nearer than sound 5 to 15 frames away."""
    right, total = 0, 0
    for example in examples:
        video = _video(example.frames)[None]
        cosine = embed_windows(model, video)[0] @ model.embed_audio(torch.from_numpy(example.features)[None])[0].T
        places = torch.arange(len(cosine))
        gap = (places[:, None] - places).abs()
        off = (gap >= _OFF[0]) & (gap <= _OFF[1])
        right += int((cosine.diagonal()[:, None] > cosine)[off].sum())
        total += int(off.sum())
    return right / max(total, 1)


def _contrast(seen: Tensor, heard: Tensor) -> Tensor:
    """InfoNCE both ways within each clip, so that face and voice are of no help."""
    logits = seen @ heard.transpose(1, 2) / _TEMPERATURE
    places = torch.arange(logits.shape[1])
    gap = (places[:, None] - places).abs()
    logits = logits.masked_fill((gap > 0) & (gap <= _NEAR), -1e4)
    labels = places.expand(len(logits), -1)
    return 0.5 * (F.cross_entropy(logits.transpose(1, 2), labels) + F.cross_entropy(logits, labels))


def _batch(examples: Sequence[Example], size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    chosen = [examples[int(index)] for index in rng.integers(0, len(examples), size)]
    length = min(_SEGMENT, *(len(example.frames) for example in chosen))
    videos, audios = [], []
    for example in chosen:
        start = int(rng.integers(0, len(example.frames) - length + 1))
        video = _video(example.frames[start : start + length])
        if rng.random() < 0.5:
            video = video.flip(-1)
        shift = tuple(int(value) for value in rng.integers(-4, 5, 2))
        video = torch.roll(video, shift, dims=(-2, -1))
        gain, lift = rng.uniform(0.75, 1.25, (3, 1, 1, 1)), rng.uniform(-0.2, 0.2)
        videos.append((video * torch.from_numpy(gain).float() + lift).clamp(-1, 1))
        audios.append(torch.from_numpy(example.features[2 * start : 2 * (start + length)]))
    return torch.stack(videos), torch.stack(audios)


def _video(frames: NDArray[np.uint8]) -> Tensor:
    """(3, T, S, S) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(3, 0, 1, 2).float() / 127.5 - 1
