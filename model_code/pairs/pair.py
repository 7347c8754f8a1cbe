"""A companion pair: V' and V, the same clip with other lips, and how it is stored."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from model_code.media.sample import CROP_CRF, ClipSample, Stored, wav_bytes, wav_samples
from model_code.media.shards import Shard
from model_code.media.video import from_mp4_bytes, to_mp4_bytes
from model_code.pairs.aspects import ASPECTS

SCHEMA = pa.schema(
    [
        ("pair_id", pa.string()),
        ("clip_id", pa.string()),
        ("shard", pa.string()),
        ("variant", pa.string()),
        ("speaker_id", pa.string()),
        ("driving_clip_id", pa.string()),
        ("seed", pa.int64()),
        ("generator_version", pa.string()),
        ("n_frames", pa.int64()),
        ("identity_cosine", pa.float64()),
        ("mouth_distance", pa.float64()),
        *((name, pa.float64()) for name in ASPECTS),
        ("aspect_mean", pa.float64()),
        ("occluded", pa.bool_()),
        ("accepted", pa.bool_()),
        ("reasons", pa.string()),
    ]
)


@dataclass(frozen=True)
class Pair:
    """One pair before or after storage.

    Attributes:
        pair_id: Unique; the sample's key in its shard.
        target: V with its own sound and landmarks.
        companion: (T, S, S, 3) uint8, V'.
        companion_landmarks: (T, 68, 2) of V'.
        row: The pair row; `filters.judge` completes it.
    """

    pair_id: str
    target: ClipSample
    companion: NDArray[np.uint8]
    companion_landmarks: NDArray[np.float32]
    row: dict[str, Any] = field(default_factory=dict)

    def to_members(self) -> dict[str, bytes]:
        """Bytes by extension, for `ShardWriter.add`."""
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            landmarks=self.target.landmarks.astype(np.float32),
            companion_landmarks=self.companion_landmarks.astype(np.float32),
            boxes=self.target.boxes.astype(np.float32),
        )
        return {
            "companion.mp4": _video(self.companion),
            "target.mp4": _video(self.target.frames),
            "wav": wav_bytes(self.target.audio),
            "npz": buffer.getvalue(),
        }

    @classmethod
    def from_members(cls, row: Mapping[str, Any], members: Mapping[str, bytes]) -> Pair:
        """The inverse of `to_members`, frames as x264 left them."""
        target = from_mp4_bytes(members["target.mp4"])
        with np.load(io.BytesIO(members["npz"]), allow_pickle=False) as arrays:
            landmarks, companion_landmarks = arrays["landmarks"], arrays["companion_landmarks"]
            boxes = arrays["boxes"]
        sample = ClipSample(
            str(row["clip_id"]),
            {"speaker_id": row["speaker_id"]},
            target,
            landmarks,
            np.ones(len(target), np.float32),
            wav_samples(members["wav"]),
            boxes,
        )
        return cls(
            str(row["pair_id"]), sample, from_mp4_bytes(members["companion.mp4"]), companion_landmarks, dict(row)
        )


class StoredPair(Stored):
    """A pair; its clip is the target."""

    @property
    def key(self) -> str:
        """Its name in the shard."""
        return str(self.row["pair_id"])

    def read(self) -> Pair:
        """Decodes it."""
        return Pair.from_members(self.row, self.shard.read(self.key))


def accepted_pairs(shards: Sequence[Shard]) -> list[StoredPair]:
    """What the filters accepted of several shards, in the manifests' order."""
    return [StoredPair(shard, row) for shard in shards for row in shard.rows if row["accepted"]]


def _video(frames: NDArray[np.uint8]) -> bytes:
    return to_mp4_bytes(frames, 25, crf=CROP_CRF, pix_fmt="yuv444p", preset="fast")
