"""Normalised, tracked, cropped clips, with a gate."""

from typing import Any

import dagster as dg

from assets.gates import committed, refusal
from assets.produce import Gate, Metadata, Product, produce
from assets.raw_corpus import raw_corpus
from assets.shards import first_frames, manifest, manifest_table
from xdub_platform import pictures
from xdub_platform.base import base_digest
from xdub_platform.partitions import is_heldout, shards
from xdub_platform.platform import Platform
from xdub_platform.resources.quality import GateResult, clip_suite
from xdub_platform.settings import Settings

VERSION = "3"
CHECK = "clip_gate"


def config(settings: Settings) -> dict[str, Any]:
    """What decides the clips besides the footage."""
    return {"media": settings.media.model_dump(mode="json"), "base": base_digest("landmarker", "audio_encoder")}


@dg.asset(
    partitions_def=shards,
    deps=[raw_corpus],
    group_name="footage",
    kinds={"dvc", "parquet", "webdataset"},
    owners=["team:footage"],
    tags={"xdub/stage": "2"},
    check_specs=[
        dg.AssetCheckSpec(
            CHECK,
            asset="clips",
            blocking=True,
            description="Every clip may be trained on: licence, consent, rates, lengths, no doubles.",
        )
    ],
)
def clips(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult:
    """One shard of clips.

    25 fps, 16 kHz, cut at shots, one tracked face, cropped and scored; what fails goes to quarantine
    with its reason.
    """
    raw = committed(platform.store, f"raw_corpus/{context.partition_key}")
    return produce(
        context,
        platform,
        "ingest",
        {
            **config(platform.settings),
            "files": str(raw.path),
            "shard": context.partition_key,
            **arrived_before(platform, context.partition_key),
        },
        inputs=[raw],
        gate=gate,
        describe=describe,
    )


def arrived_before(platform: Platform, shard: str) -> dict[str, list[str]]:
    """Where a duplicate of one of the shard's files may already be: clips where they are made, else footage.

    What a shard holds that the gate refused is nowhere else: it may come again.
    """
    store, found = platform.store, {"earlier": list[str](), "pending": list[str]()}
    for other in platform.ledger.before(shard):
        clips_of, raw = store.get(f"clips/{other}"), store.get(f"raw_corpus/{other}")
        if clips_of:
            if not refusal(store, f"clips/{other}"):
                found["earlier"].append(str(clips_of.path))
        elif raw:
            found["pending"].append(str(raw.path))
    return found


def judge(platform: Platform, product: Product) -> GateResult:
    """The clip gate: every clip may be trained on, and not too much of the shard was turned away."""
    settings, rows = platform.settings, manifest(product.dataset.path)
    split = "heldout" if is_heldout(product.dataset.path.name) else "train"
    suite = clip_suite(settings.media, settings.gates.min_clips, split)
    result = platform.quality.check(product.dataset.name, manifest_table(product.dataset.path), suite)
    turned_away = len(product.result.get("quarantine", []))
    share = turned_away / max(1, turned_away + len(rows))
    allowed = settings.gates.max_quarantined
    return result.also(f"at most {allowed:.0%} turned away", share <= allowed, f"found {share:.0%}")


gate = Gate(CHECK, judge, lambda settings: settings.gates.model_dump(include={"min_clips", "max_quarantined"}))


def describe(product: Product) -> Metadata:
    """Counts, a sheet of faces and the quarantine."""
    rows = manifest(product.dataset.path)
    metadata: Metadata = {
        "clips": len(rows),
        "speakers": len({row["speaker_id"] for row in rows}),
        "minutes": round(sum(row["n_frames"] / row["fps"] for row in rows) / 60, 2),
        "quarantine": pictures.table(product.result.get("quarantine", [])),
        "rows": pictures.table(
            [{key: row.get(key) for key in ("clip_id", "speaker_id", "language", "split", "n_frames")} for row in rows]
        ),
    }
    if rows:
        metadata["faces"] = pictures.inline(pictures.frame_grid(first_frames(product.dataset.path, 16)), "faces")
    return metadata
