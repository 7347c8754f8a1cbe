"""Worker: trains the chain's SyncNet on accepted clips."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pydantic import Field

from model_code.backbones.load import load_audio
from model_code.training.syncnet import sync_examples, train_syncnet
from model_code.workers.clips import training_clips
from model_code.workers.run import Progress, WorkerConfig, main

HELD_OUT_EVERY = 6


class SyncNetWorkerConfig(WorkerConfig):
    """Budget, and where the clips lie."""

    shards: tuple[Path, ...] = Field(min_length=1)
    seed: int = 0
    steps: int = 150


def work(config: SyncNetWorkerConfig, progress: Progress) -> dict[str, Any]:
    """Trains on all speakers but every sixth, which are kept for the accuracy."""
    clips = [clip.read() for clip in training_clips(config.shards)]
    speakers = sorted({str(clip.row["speaker_id"]) for clip in clips})
    held = set(speakers[::HELD_OUT_EVERY]) if len(speakers) >= HELD_OUT_EVERY else set()
    examples = sync_examples(clips, load_audio(config.backbones, config.features).to(config.device))
    chosen = [str(clip.row["speaker_id"]) in held for clip in clips if len(clip.frames) >= 21]
    train = [example for example, out in zip(examples, chosen, strict=True) if not out]
    heldout = [example for example, out in zip(examples, chosen, strict=True) if out]
    model, report = train_syncnet(
        train,
        heldout or train[:8],
        config.steps,
        config.seed,
        progress=lambda step, loss: progress("syncnet", step + 1, config.steps, {"loss": loss}),
    )
    model.save_pretrained(config.output)
    losses = report.pop("losses")
    report.pop("seconds")
    return {
        "metrics": {**report, "clips": len(train), "heldout_clips": len(heldout)},
        "curves": [{"step": step + 1, "loss": loss} for step, loss in enumerate(losses) if step % 5 == 4],
    }


if __name__ == "__main__":
    sys.exit(main(SyncNetWorkerConfig, work))
