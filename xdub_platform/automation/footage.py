"""What the sensor `new_footage` counts: shards nobody has made yet, and pairs no editor has learnt from yet."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from assets.gates import verdict
from assets.produce import INPUTS
from assets.shards import manifest
from xdub_platform.platform import Platform


def unmade_shards(platform: Platform) -> list[str]:
    """Shards of the ledger without clips."""
    return [shard for shard in platform.ledger.shards() if platform.store.get(f"clips/{shard}") is None]


def highest(shards: Sequence[str]) -> dict[str, int]:
    """The highest index of each kind of shard: shards are numbered in the order in which they arrive."""
    found: dict[str, int] = {}
    for shard in shards:
        kind, _, index = shard.rpartition("-")
        found[kind] = max(found.get(kind, -1), int(index))
    return found


@dataclass(frozen=True)
class NewPairs:
    """Accepted pairs that the present editor was not trained on.

    Attributes:
        hours: Their length.
        key: Names exactly these pairs and this editor.
    """

    hours: float
    key: str


def new_pairs(platform: Platform) -> NewPairs:
    """Accepted pairs since the last editor."""
    store, settings = platform.store, platform.settings
    editor = store.get("editor")
    known = (store.recorded("editor", INPUTS) or {}).get("datasets", {})
    frames, fresh = 0, []
    for name in store.names("companion_pairs"):
        dataset = store.get(name)
        wanted = name.split("/")[-1] in settings.variants
        if dataset is None or not wanted or known.get(name) == dataset.version or verdict(store, name):
            continue
        frames += sum(row["n_frames"] for row in manifest(dataset.path) if row["accepted"])
        fresh.append((name, dataset.version))
    told = json.dumps([editor.version if editor else None, fresh])
    return NewPairs(frames / settings.media.fps / 3600, hashlib.sha256(told.encode()).hexdigest()[:16])
