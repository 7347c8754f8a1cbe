"""Worker: trains the chain's identity encoder on the speakers of accepted clips."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pydantic import Field

from model_code.faces.identity import IdentityConfig
from model_code.media.sample import SmallClip
from model_code.training.identity import train_identity
from model_code.workers.clips import training_clips
from model_code.workers.run import Progress, WorkerConfig, main

HELD_OUT_EVERY = 6


class IdentityWorkerConfig(WorkerConfig):
    """Budget, and where the clips lie."""

    shards: tuple[Path, ...] = Field(min_length=1)
    seed: int = 0
    steps: int = 200


def work(config: IdentityWorkerConfig, progress: Progress) -> dict[str, Any]:
    """Trains on all speakers but every sixth, which are kept for the scores."""
    clips = [SmallClip(clip, IdentityConfig().crop_size) for clip in training_clips(config.shards)]
    speakers = sorted({str(clip.row["speaker_id"]) for clip in clips})
    held = set(speakers[::HELD_OUT_EVERY]) if len(speakers) >= 2 * HELD_OUT_EVERY else set()
    train = [clip for clip in clips if str(clip.row["speaker_id"]) not in held]
    heldout = [clip for clip in clips if str(clip.row["speaker_id"]) in held]
    model, report = train_identity(
        train,
        heldout,
        config.steps,
        config.seed,
        progress=lambda step, loss: progress("identity", step + 1, config.steps, {"loss": loss}),
    )
    model.save_pretrained(config.output)
    losses = report.pop("losses")
    report.pop("seconds")
    return {
        "metrics": {**report, "clips": len(train), "heldout_clips": len(heldout)},
        "curves": [{"step": step + 1, "loss": loss} for step, loss in enumerate(losses) if step % 5 == 4],
    }


if __name__ == "__main__":
    sys.exit(main(IdentityWorkerConfig, work))
