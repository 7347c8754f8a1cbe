"""Worker: companion pairs of one shard and one variant, filtered.

Output: a shard of pairs (the manifest is their rows, refused ones too), `calibration.json` and
`calibration.png` (where the filters bite on graded bad pairs), `pairs.png`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from model_code import base
from model_code.config import FlowConfig, MediaConfig, PairsConfig, Variant, WindowConfig
from model_code.dubbing.assemble import without_experts
from model_code.faces.identity import IdentityEncoder
from model_code.media.shards import ShardWriter
from model_code.pairs.calibrate import calibrate, write_calibration
from model_code.pairs.filters import judge
from model_code.pairs.generate import generate_pairs
from model_code.pairs.pair import SCHEMA, Pair
from model_code.pairs.rendered import draw_rendered, render_pairs
from model_code.workers.clips import training_clips
from model_code.workers.pictures import contact_sheet
from model_code.workers.run import Progress, WorkerConfig, main

logger = logging.getLogger(__name__)
CALIBRATED_ON = 12
"""Pairs that the calibration looks at."""


class PairsWorkerConfig(WorkerConfig):
    """One partition of `companion_pairs`."""

    variant: Variant
    shard: str
    clips: Path
    generator: Path
    identity: Path
    generator_version: str = ""
    pairs: PairsConfig = PairsConfig()
    media: MediaConfig = MediaConfig()
    flow: FlowConfig = FlowConfig()
    phase: WindowConfig = WindowConfig()


def work(config: PairsWorkerConfig, progress: Progress) -> dict[str, Any]:
    """Makes the pairs, judges them and writes the shard."""
    identity = IdentityEncoder.from_pretrained(config.identity)
    rows: list[dict[str, Any]] = []
    first: list[Pair] = []
    with ShardWriter(config.output) as writer:
        for pair in make(config, progress):
            row = judge(pair, identity, config.pairs.filters)
            rows.append({name: row.get(name) for name in SCHEMA.names})
            writer.add(pair.pair_id, pair.to_members())
            if len(first) < CALIBRATED_ON:
                first.append(pair)
        writer.commit(rows, SCHEMA)
    accepted = [bool(row["accepted"]) for row in rows]
    result: dict[str, Any] = {
        "metrics": {"pairs": len(rows), "accepted": sum(accepted), **means(rows)},
        "pictures": [],
    }
    if first:
        shown = [[pair.companion, pair.target.frames] for pair in first[:4]]
        contact_sheet(shown, config.output / "pairs.png")
        result["pictures"].append("pairs.png")
    if len({str(pair.row["speaker_id"]) for pair in first}) > 1:
        curves = calibrate(first, identity, config.pairs.seed)
        result["calibration"] = write_calibration(curves, config.pairs.filters, config.output)
        result["pictures"].append("calibration.png")
    return result


def make(config: PairsWorkerConfig, progress: Progress) -> Iterator[Pair]:
    """The pairs of the partition, one after another, not yet judged."""
    if config.variant == "rendered":
        count = max(1, config.pairs.rendered_per_shard // 2)
        for index in range(count):
            yield from render_pairs(draw_rendered(config.shard, index, config.pairs), config.shard, config.media)
            progress("render", index + 1, count, {})
        return
    generator = without_experts(
        "generator",
        config.generator / "transformer",
        config.backbones,
        config.flow,
        config.media,
        config.phase,
        config.features,
    )
    yield from generate_pairs(
        training_clips([config.clips]),
        generator.to(config.device),
        base.load("landmarker"),
        config.shard,
        config.pairs,
        config.generator_version,
        config.variant,
        lambda done, total: progress("generate", done, total, {}),
    )


def means(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Mean filter scores."""
    names = ("identity_cosine", "mouth_distance", "aspect_mean")
    return {f"mean_{name}": float(np.mean([row[name] for row in rows])) for name in names} if rows else {}


if __name__ == "__main__":
    sys.exit(main(PairsWorkerConfig, work))
