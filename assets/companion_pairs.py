"""A companion V' for every V, with the gate that decides what the editor may learn from."""

import re
from typing import Any

import dagster as dg

from assets.clips import clips
from assets.gates import accepted, committed
from assets.generator import REGISTERED, generator
from assets.identity_encoder import identity_encoder
from assets.produce import Gate, Metadata, Product, produce
from assets.shards import manifest, manifest_table
from xdub_platform import pictures
from xdub_platform.base import base_digest
from xdub_platform.partitions import is_heldout, pair_partitions, same_shard, split_pair_key
from xdub_platform.platform import Platform
from xdub_platform.resources.quality import GateResult, pair_suite
from xdub_platform.resources.store import Dataset
from xdub_platform.settings import Settings

VERSION = "4"
CHECK = "pair_gate"


def config(settings: Settings) -> dict[str, Any]:
    """What decides the pairs besides clips and generator."""
    return {
        "pairs": settings.pairs.model_copy(update={"seed": settings.seed + settings.pairs.seed}).model_dump(
            mode="json"
        ),
        "media": settings.media.model_dump(mode="json"),
        "flow": settings.flow.model_dump(mode="json"),
        "phase": settings.phases.generator.window.model_dump(mode="json"),
        "backbones": settings.backbones.model_dump(mode="json"),
        "base": base_digest("codec", "audio_encoder", "landmarker"),
    }


@dg.asset(
    partitions_def=pair_partitions,
    deps=[
        same_shard(clips),
        generator,
        identity_encoder,
    ],
    group_name="pairs",
    kinds={"dvc", "parquet", "webdataset"},
    owners=["team:pairs"],
    tags={"xdub/stage": "5"},
    check_specs=[
        dg.AssetCheckSpec(
            CHECK,
            asset="companion_pairs",
            blocking=True,
            description="Accepted pairs: same person, different mouth, good picture; enough of them.",
        )
    ],
)
def companion_pairs(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult:
    """Pairs of one shard and one variant.

    `generated` (the generator redubs the clip), `relit` (both under one new light), `rendered` (exact
    pairs of other, rendered heads).
    """
    shard, variant = split_pair_key(context.partition_key)
    if is_heldout(shard):
        raise dg.Failure(f"{shard} is held out: it makes no pairs", allow_retries=False)
    clip_shard = accepted(platform.store, f"clips/{shard}")
    models = {
        "generator": committed(platform.store, "generator"),
        "identity": committed(platform.store, "identity_encoder"),
    }
    return produce(
        context,
        platform,
        "pairs",
        {
            **config(platform.settings),
            "variant": variant,
            "shard": shard,
            "clips": str(clip_shard.path),
            **{name: str(model.path) for name, model in models.items()},
            "generator_version": models["generator"].version,
            "device": platform.settings.processes.device,
        },
        inputs=[clip_shard, *models.values()],
        gate=gate,
        describe=lambda product: {
            **describe(product, platform.settings),
            "made_with": "renderer" if variant == "rendered" else registered_as(platform, models["generator"]),
        },
    )


def registered_as(platform: Platform, model: Dataset) -> str:
    """The registered version of the generator that pairs are made with; their rows hold its hash."""
    versions = platform.mlflow.versions(REGISTERED)
    same = [number for number, tags in versions.items() if tags.get("dvc.version") == model.version]
    return f"{REGISTERED} version {max(same)}" if same else model.version


def judge(platform: Platform, product: Product) -> GateResult:
    """The pair gate: every accepted row meets the filters, and enough rows are accepted."""
    settings = platform.settings
    table = manifest_table(product.dataset.path)
    chosen = table[table["accepted"].astype(bool)]
    result = platform.quality.check(product.dataset.name, chosen, pair_suite(settings.pairs.filters))
    share = len(chosen) / len(table) if len(table) else 1.0
    return result.also(
        f"at least {settings.gates.min_accepted:.0%} of the pairs accepted",
        share >= settings.gates.min_accepted,
        f"found {share:.0%}",
    )


gate = Gate(CHECK, judge, lambda settings: settings.gates.model_dump(include={"min_accepted"}))


def describe(product: Product, settings: Settings) -> Metadata:
    """Counts, reasons, histograms against the thresholds."""
    rows, filters = manifest(product.dataset.path), settings.pairs.filters
    told = "; ".join(str(row.get("reasons") or "") for row in rows)
    reasons = [re.split(r" -?\d", reason)[0] for reason in told.split("; ") if reason]
    metadata: Metadata = {
        "pairs": len(rows),
        "accepted": sum(bool(row["accepted"]) for row in rows),
        "refused_because": pictures.table(
            [{"reason": reason, "pairs": reasons.count(reason)} for reason in sorted(set(reasons))]
        ),
    }
    for name in ("identity_cosine", "mouth_distance", "aspect_mean"):
        values = [row[name] for row in rows if row.get(name) is not None]
        if values:
            metadata[f"{name}_histogram"] = pictures.inline(
                pictures.histogram(values, getattr(filters, name), name), name
            )
    return metadata
