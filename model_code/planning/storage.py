"""Bytes of a corpus and what is made of it, and how many shards and partitions that is."""

from __future__ import annotations

import math

from pydantic import Field

from model_code.backbones.codec import TEMPORAL_FACTOR
from model_code.config import Config, MediaConfig, TransformerConfig

LANDMARKS = 68
HALF = 2
"""Bytes of a cached latent or feature."""
FEATURE_RATE = 50
MAX_PARTITIONS = 100_000
"""Partitions of one asset beyond which Dagster's UI and queries get slow."""


def crop_bits(side: int) -> float:
    """Bits a pixel of a stored crop (x264 crf 10, 4:4:4): 0.36 to 0.44 measured at 512 px, 0.75 to 0.93 at 96 px."""
    return 0.4 * math.sqrt(512 / side)


def clip_bytes(media: MediaConfig, seconds: float) -> float:
    """A clip's members: crop, sound, landmarks, confidence, boxes."""
    picture = media.crop_size**2 * crop_bits(media.crop_size) / 8
    return seconds * (media.fps * (picture + 4 * (2 * LANDMARKS + 1 + 4)) + 2 * media.sample_rate)


def pair_bytes(media: MediaConfig, seconds: float) -> float:
    """A pair's members: both crops, sound, both videos' landmarks, boxes."""
    picture = media.crop_size**2 * crop_bits(media.crop_size) / 8
    return seconds * (media.fps * (2 * picture + 4 * (4 * LANDMARKS + 4)) + 2 * media.sample_rate)


def latent_bytes(media: MediaConfig, transformer: TransformerConfig, spatial: int, seconds: float) -> float:
    """Cached latents of a clip or pair: two videos and two masks, each at once as singles and as blocks; sound."""
    cells = (media.crop_size // spatial) ** 2
    each = 2 * cells * (2 * transformer.out_channels + 2)
    return HALF * seconds * (media.fps / TEMPORAL_FACTOR * each + FEATURE_RATE * transformer.audio_dim)


class Partitions(Config):
    """Shards of a corpus and the partitions of the assets made of it."""

    files: int = Field(description="Files of footage.")
    shards: int
    per_asset: dict[str, int] = Field(description="Partitions of `raw_corpus`, `clips` and `companion_pairs`.")

    @property
    def total(self) -> int:
        return sum(self.per_asset.values())

    @property
    def within_limit(self) -> bool:
        return max(self.per_asset.values()) <= MAX_PARTITIONS


def partitions(hours: float, file_seconds: float, clips_per_shard: int, variants: int) -> Partitions:
    """Of so many hours of footage in files of one length."""
    files = math.ceil(hours * 3600 / file_seconds)
    shards = math.ceil(files / clips_per_shard)
    return Partitions(
        files=files,
        shards=shards,
        per_asset={"raw_corpus": shards, "clips": shards, "companion_pairs": shards * variants},
    )
