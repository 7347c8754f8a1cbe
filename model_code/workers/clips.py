"""Reading clips of several shards, for workers that train."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from model_code.errors import InputError
from model_code.media.sample import ClipSample, read_sample
from model_code.media.shards import Shard


def training_clips(shards: Iterable[Path]) -> list[ClipSample]:
    """The clips of the shards whose split is not `heldout`.

    Raises:
        InputError: There is none.
    """
    folders = list(shards)
    clips = list(_clips(folders))
    if not clips:
        raise InputError(f"no clip to train on in {len(folders)} shards", "take in footage whose split is not heldout")
    return clips


def _clips(folders: Iterable[Path]) -> Iterator[ClipSample]:
    for folder in folders:
        shard = Shard(folder)
        for row in shard.rows:
            if row.get("split") != "heldout":
                yield read_sample(shard, row["clip_id"])
