"""Partitions of the chain and how arriving files become shards.

A shard (never a clip) is the partition. Shards of held-out identities are named ``heldout-*``: they are
ingested like all footage and never reach pairs or training.
"""

from __future__ import annotations

import warnings
from typing import get_args

import dagster as dg

from model_code.config import Variant

VARIANTS: tuple[Variant, ...] = get_args(Variant)
HELDOUT_PREFIX = "heldout-"
SHARDS_NAME = "shard"

shards = dg.DynamicPartitionsDefinition(name=SHARDS_NAME)
pair_partitions = dg.MultiPartitionsDefinition({"shard": shards, "variant": dg.StaticPartitionsDefinition(VARIANTS)})


def same_shard(asset: dg.AssetsDefinition) -> dg.AssetDep:
    """Dependency of a shard's pairs on the same shard of `asset`."""
    with warnings.catch_warnings():
        # Dagster calls this mapping beta; it is what a partition of two dimensions needs.
        warnings.simplefilter("ignore", dg.BetaWarning)
        mapping = dg.MultiToSingleDimensionPartitionMapping("shard")
    return dg.AssetDep(asset, partition_mapping=mapping)


def is_heldout(shard: str) -> bool:
    """Whether a shard holds identities that no training may see."""
    return shard.startswith(HELDOUT_PREFIX)


def pair_key(shard: str, variant: str) -> dg.MultiPartitionKey:
    """The partition key of one shard's companions of one variant."""
    return dg.MultiPartitionKey({"shard": shard, "variant": variant})


def split_pair_key(partition: str) -> tuple[str, str]:
    """Shard and variant of a `companion_pairs` partition key (dimensions sort by name)."""
    shard, variant = partition.split("|")
    return shard, variant


def shard_of(partition: str) -> str:
    """The shard of a partition of clips or pairs."""
    return partition.split("|")[0]


def folder_of(partition: str | None) -> str | None:
    """The folder of a partition's data: shard, or shard/variant."""
    return partition.replace("|", "/") if partition else None
