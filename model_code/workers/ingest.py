"""Worker: one shard of raw footage in, one shard of clips out, bad files in quarantine with their reasons."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pydantic import Field

from model_code import base
from model_code.backbones.audio import AudioEncoder
from model_code.config import MediaConfig
from model_code.media.ingest import Quarantined, file_digest, ingest_file, shift_audio
from model_code.media.insync import MAX_OFFSET, find_offset
from model_code.media.names import is_video
from model_code.media.sample import ClipSample
from model_code.media.shards import Shard, ShardWriter
from model_code.workers.run import Progress, WorkerConfig, main


class IngestConfig(WorkerConfig):
    """One shard's footage."""

    files: Path = Field(description="Folder of videos with their sidecars.")
    shard: str
    earlier: tuple[Path, ...] = Field((), description="Shards of clips taken in before: what they hold is no news.")
    pending: tuple[Path, ...] = Field((), description="Folders of footage that arrived before, not yet made to clips.")
    media: MediaConfig = MediaConfig()


def work(config: IngestConfig, progress: Progress) -> dict[str, Any]:
    """Ingests every video of the folder."""
    landmarker, audio_encoder = base.load("landmarker"), base.load("audio_encoder")
    videos = videos_in(config.files)
    rows: list[dict[str, Any]] = []
    quarantine: list[Quarantined] = []
    known = taken_in_before(config.earlier, config.pending)
    with ShardWriter(config.output) as writer:
        for index, video in enumerate(videos):
            for each in ingest_file(video, config.media, landmarker, shard=config.shard, known=known):
                if isinstance(each, ClipSample):
                    known.setdefault(str(each.row["sha256"]), f"'{video.name}'")
                    each = in_step(each, audio_encoder)
                if isinstance(each, Quarantined):
                    quarantine.append(each)
                else:
                    writer.add(each.clip_id, each.to_members())
                    rows.append(each.row)
                del each  # the next one is made in its place, not beside it
            progress("ingest", index + 1, len(videos), {"clips": len(rows), "quarantine": len(quarantine)})
        writer.commit(rows)
    return {
        "metrics": {"files": len(videos), "clips": len(rows), "quarantined": len(quarantine)},
        "quarantine": [asdict(each) for each in quarantine],
    }


def videos_in(folder: Path) -> list[Path]:
    """Videos of a folder without occluder masks, sorted."""
    return sorted(path for path in folder.iterdir() if is_video(path))


def taken_in_before(earlier: Sequence[Path], pending: Sequence[Path]) -> dict[str, str]:
    """Files of other shards: SHA-256 -> where, for people.

    What an earlier shard turned away may come again, put right; only what it accepted counts. Of footage that is not
    yet judged everything counts: two shards that are made at once must not both accept a file.
    """
    known: dict[str, str] = {}
    for folder in earlier:
        table = Shard(folder).table
        for row in table.select(["sha256", "source_uri"]).to_pylist() if table.num_rows else ():
            known[row["sha256"]] = f"'{row['source_uri']}' in {folder.name}"
    for folder in pending:
        for video in videos_in(folder):
            known.setdefault(file_digest(video), f"'{video.name}' in {folder.name}")
    return known


def in_step(clip: ClipSample, audio_encoder: AudioEncoder) -> ClipSample | Quarantined:
    """The clip with its sound in step with its lips, or why it cannot be brought there."""
    offset = find_offset(clip.audio, clip.landmarks, audio_encoder)
    if offset.certain and abs(offset.frames) > MAX_OFFSET:
        detail = f"the sound is {offset.frames} frames late (correlation {offset.correlation:.2f}): correct the file"
        return Quarantined(str(clip.row["source_uri"]), "out of sync", detail, int(clip.row["start_frame"]))
    if offset.certain and abs(offset.frames) > 1:
        clip = shift_audio(clip, offset.frames)
    return replace(clip, row={**clip.row, "sync_confidence": round(offset.correlation, 4)})


if __name__ == "__main__":
    sys.exit(main(IngestConfig, work))
