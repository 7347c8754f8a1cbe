"""Clips of several shards, for workers that train."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from model_code.errors import InputError
from model_code.media.sample import StoredClip
from model_code.media.shards import Shard


def training_clips(folders: Iterable[Path]) -> list[StoredClip]:
    """The clips of the shards whose split is not `heldout`.

    Raises:
        InputError: There is none.
    """
    shards = [Shard(folder) for folder in folders]
    clips = [StoredClip(shard, row) for shard in shards for row in shard.rows if row.get("split") != "heldout"]
    if not clips:
        raise InputError(f"no clip to train on in {len(shards)} shards", "take in footage whose split is not heldout")
    return clips
