"""Worker: trains the chain's SyncNet on accepted clips."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from model_code.backbones.load import load_audio
from model_code.media.sample import SmallClip
from model_code.metrics.syncnet import SyncNetConfig
from model_code.training.syncnet import SHORTEST, StoredExample, train_syncnet
from model_code.workers.clips import training_clips
from model_code.workers.run import Progress, WorkerConfig, main

HELD_OUT_EVERY = 6


class SyncNetWorkerConfig(WorkerConfig):
    """Budget, and where the clips lie."""

    shards: tuple[Path, ...] = Field(min_length=1)
    seed: int = 0
    steps: int = 150


def work(config: SyncNetWorkerConfig, progress: Progress) -> dict[str, Any]:
    """Trains on all clips but those kept for the accuracy; ``measured_on`` of the result says which these are."""
    clips = [clip for clip in training_clips(config.shards) if clip.row["n_frames"] >= SHORTEST]
    encoder, side = load_audio(config.backbones, config.features).to(config.device), SyncNetConfig().crop_size
    examples = [StoredExample(SmallClip(clip, side), encoder) for clip in clips]
    kept, measured_on = kept_apart([str(clip.row["speaker_id"]) for clip in clips])
    train = [example for index, example in enumerate(examples) if index not in kept] or examples
    heldout = [example for index, example in enumerate(examples) if index in kept]
    model, report = train_syncnet(
        train,
        heldout,
        config.steps,
        config.seed,
        progress=lambda step, loss: progress("syncnet", step + 1, config.steps, {"loss": loss}),
    )
    model.save_pretrained(config.output)
    losses = report.pop("losses")
    report.pop("seconds")
    return {
        "metrics": {**report, "clips": len(train), "heldout_clips": len(heldout)},
        "measured_on": measured_on,
        "curves": [{"step": step + 1, "loss": loss} for step, loss in enumerate(losses) if step % 5 == 4],
    }


def kept_apart(speakers: Sequence[str]) -> tuple[set[int], str]:
    """Which clips the accuracy is measured on, by the speaker of each clip, and what is to be said of them.

    Every sixth speaker; every sixth clip where speakers are too few; the only clip, which is also trained on.
    """
    names = sorted(set(speakers))
    if len(names) >= HELD_OUT_EVERY:
        held = set(names[::HELD_OUT_EVERY])
        return {index for index, name in enumerate(speakers) if name in held}, "speakers it was not trained on"
    told = (
        "other clips of the speakers it was trained on"
        if len(speakers) > 1
        else "the only clip, which it was trained on"
    )
    return set(range(0, len(speakers), HELD_OUT_EVERY)), told


if __name__ == "__main__":
    sys.exit(main(SyncNetWorkerConfig, work))
