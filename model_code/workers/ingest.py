"""Worker: one shard of raw footage in, one shard of clips out, bad files in quarantine with their reasons."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pydantic import Field

from model_code import base
from model_code.backbones.audio import AudioEncoder
from model_code.config import MediaConfig
from model_code.media.ingest import OCCLUDER_SUFFIX, VIDEO_SUFFIXES, Quarantined, ingest_file, shift_audio
from model_code.media.insync import CERTAIN, MAX_OFFSET, find_offset
from model_code.media.sample import ClipSample
from model_code.media.shards import ShardWriter
from model_code.workers.run import Progress, WorkerConfig, main


class IngestConfig(WorkerConfig):
    """One shard's footage."""

    files: Path = Field(description="Folder of videos with their sidecars.")
    shard: str
    media: MediaConfig = MediaConfig()


def work(config: IngestConfig, progress: Progress) -> dict[str, Any]:
    """Ingests every video of the folder."""
    landmarker, audio_encoder = base.load("landmarker"), base.load("audio_encoder")
    videos = sorted(
        path
        for path in config.files.iterdir()
        if path.suffix.lower() in VIDEO_SUFFIXES and not path.stem.endswith(OCCLUDER_SUFFIX)
    )
    rows: list[dict[str, Any]] = []
    quarantine: list[Quarantined] = []
    known: set[str] = set()
    with ShardWriter(config.output) as writer:
        for index, video in enumerate(videos):
            clips, refused = ingest_file(video, config.media, landmarker, shard=config.shard, known=known)
            quarantine += refused
            for clip in clips:
                known.add(clip.row["sha256"])
                kept = in_step(clip, audio_encoder)
                if isinstance(kept, Quarantined):
                    quarantine.append(kept)
                else:
                    writer.add(kept.clip_id, kept.to_members())
                    rows.append(kept.row)
            progress("ingest", index + 1, len(videos), {"clips": len(rows), "quarantine": len(quarantine)})
        writer.commit(rows)
    return {
        "metrics": {"files": len(videos), "clips": len(rows), "quarantined": len(quarantine)},
        "quarantine": [asdict(each) for each in quarantine],
    }


def in_step(clip: ClipSample, audio_encoder: AudioEncoder) -> ClipSample | Quarantined:
    """The clip with its sound in step with its lips, or why it cannot be brought there."""
    offset = find_offset(clip.audio, clip.landmarks, audio_encoder)
    certain = offset.correlation >= CERTAIN and offset.correlation > offset.unshifted + 0.1
    if certain and abs(offset.frames) > MAX_OFFSET:
        detail = f"the sound is {offset.frames} frames late (correlation {offset.correlation:.2f}): correct the file"
        return Quarantined(str(clip.row["source_uri"]), "out of sync", detail, int(clip.row["start_frame"]))
    if certain and abs(offset.frames) > 1:
        clip = shift_audio(clip, offset.frames)
    return replace(clip, row={**clip.row, "sync_confidence": round(offset.correlation, 4)})


if __name__ == "__main__":
    sys.exit(main(IngestConfig, work))
