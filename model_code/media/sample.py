"""One clip of the `clips` asset: what training sees of a user's footage."""

from __future__ import annotations

import hashlib
import io
import json
import wave
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_code.faces.crop import scaled
from model_code.media.shards import Shard
from model_code.media.video import from_mp4_bytes, to_mp4_bytes

#: x264 rate of stored crops: high, in full colour resolution, because they are trained on.
CROP_CRF = 10
KEPT = 256
"""Clips that stay in memory at the size of a network of small input: at 96 px and ten seconds 7 MB each."""


@dataclass(frozen=True)
class ClipSample:
    """A tracked, cropped, normalised clip.

    Attributes:
        clip_id: Unique, the sample's key in its shard.
        row: The clip row of the manifest (JSON types only).
        frames: (T, S, S, 3) uint8 face crops.
        landmarks: (T, 68, 2) float32 in pixels of the crop.
        confidence: (T,) float32 0..1, the landmarker's.
        audio: (N,) float32 mono; sample 0 is the start of frame 0, about T / fps seconds long.
        boxes: (T, 4) float32 x0, y0, x1, y1 of the crop in pixels of the raw frame.
        occluder: (T, S, S) bool, True where something stands before the face; None if nothing was given.
    """

    clip_id: str
    row: dict[str, Any]
    frames: NDArray[np.uint8]
    landmarks: NDArray[np.float32]
    confidence: NDArray[np.float32]
    audio: NDArray[np.float32]
    boxes: NDArray[np.float32]
    occluder: NDArray[np.bool_] | None = None

    def to_members(self) -> dict[str, bytes]:
        """Bytes by extension, for `ShardWriter.add`."""
        members = {
            "crop.mp4": to_mp4_bytes(self.frames, int(self.row.get("fps", 25)), crf=CROP_CRF, pix_fmt="yuv444p"),
            "audio.wav": wav_bytes(self.audio, int(self.row.get("sample_rate", 16_000))),
            "landmarks.npy": _npy(self.landmarks.astype(np.float32)),
            "confidence.npy": _npy(self.confidence.astype(np.float32)),
            "boxes.npy": _npy(self.boxes.astype(np.float32)),
            "row.json": json.dumps(self.row, sort_keys=True, ensure_ascii=False).encode(),
        }
        if self.occluder is not None:
            members["occluder.npy"] = _npy(np.packbits(self.occluder, axis=-1))
        return members

    @classmethod
    def from_members(cls, clip_id: str, members: Mapping[str, bytes]) -> ClipSample:
        """The inverse of `to_members` (frames as x264 left them)."""
        frames = from_mp4_bytes(members["crop.mp4"])
        occluder = None
        if "occluder.npy" in members:
            occluder = np.unpackbits(_load(members["occluder.npy"]), axis=-1, count=frames.shape[2]).astype(bool)
        return cls(
            clip_id,
            json.loads(members["row.json"]),
            frames,
            _load(members["landmarks.npy"]),
            _load(members["confidence.npy"]),
            wav_samples(members["audio.wav"]),
            _load(members["boxes.npy"]),
            occluder,
        )


@dataclass(frozen=True)
class Stored:
    """A sample where it lies: a shard's footage takes more memory than there is, its rows do not.

    Attributes:
        shard: Holds it.
        row: Its row of the shard's manifest.
    """

    shard: Shard
    row: dict[str, Any]

    @property
    def clip_id(self) -> str:
        """The clip that it is, or is to become."""
        return str(self.row["clip_id"])

    @property
    def key(self) -> str:
        """Its name in the shard."""
        return self.clip_id

    def content(self) -> str:
        """Hash of the bytes that it is decoded from; what its row says is not among them."""
        digest = hashlib.sha256()
        for extension, data in sorted(self.shard.read(self.key).items()):
            if extension != "row.json":
                digest.update(f"{extension} {len(data)} ".encode())
                digest.update(data)
        return digest.hexdigest()


class StoredClip(Stored):
    """A clip, which is its shard's sample of its own name."""

    def sound(self) -> NDArray[np.float32]:
        """Its sound alone."""
        return wav_samples(self.shard.read(self.clip_id, ["audio.wav"])["audio.wav"])

    def read(self) -> ClipSample:
        """Decodes it."""
        return ClipSample.from_members(self.clip_id, self.shard.read(self.key))


@dataclass(frozen=True, eq=False)
class SmallClip:
    """A clip as a network of small input sees it, decoded when it is looked at: a corpus does not fit into memory.

    The last `KEPT` that were looked at stay decoded, so that a small corpus is decoded once.

    Attributes:
        stored: Where it lies.
        side: No picture is larger, in pixels a side.
    """

    stored: StoredClip
    side: int

    @property
    def row(self) -> dict[str, Any]:
        """The clip row of the manifest."""
        return self.stored.row

    @property
    def frames(self) -> NDArray[np.uint8]:
        """(T, S, S, 3) face crops."""
        return _small_frames(self)

    @property
    def audio(self) -> NDArray[np.float32]:
        """As of `ClipSample`."""
        return self.stored.sound()


@lru_cache(KEPT)
def _small_frames(clip: SmallClip) -> NDArray[np.uint8]:
    frames = from_mp4_bytes(clip.stored.shard.read(clip.stored.key, ["crop.mp4"])["crop.mp4"])
    return scaled(frames, min(clip.side, frames.shape[1]))


def wav_bytes(samples: NDArray[np.float32], sample_rate: int = 16_000) -> bytes:
    """Mono float samples in [-1, 1] as a 16-bit wav."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(np.rint(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


def wav_samples(data: bytes) -> NDArray[np.float32]:
    """The inverse of `wav_bytes`."""
    with wave.open(io.BytesIO(data)) as file:
        return (np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32767).astype(np.float32)


def _npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _load(data: bytes) -> NDArray[Any]:
    return np.load(io.BytesIO(data), allow_pickle=False)
