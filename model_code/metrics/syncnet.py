"""SyncNet: do the lips move as the sound says?

Two towers embed windows of 8 frames, one from the lower half of the face crop, one from the audio encoder's features
of the same 0.32 s. Both end in ReLU and L2 normalisation, so the cosine lies in [0, 1]. The chain
trains it, measures offsets with it and teaches the lip expert with it; a score of it on such a model is therefore
circular, and has the mouth's curves beside it wherever it is shown.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from model_code.backbones.saved import SavedModule

WINDOW = 8
MAX_SHIFT = 15
FARTHEST = 2**0.5
"""Distance of vectors that have nothing in common."""


class SyncNetConfig(BaseModel):
    """Shape of a `SyncNet`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    crop_size: int = Field(default=96, description="Side of the face crop in pixels.")
    audio_features: int = Field(default=64, description="Width of the audio encoder's features.")
    widths: tuple[int, ...] = Field(default=(24, 48, 64), description="Channels of the visual stages, each halves.")
    frame_width: int = Field(default=96, description="Width of one frame's vector.")
    embedding: int = Field(default=128, description="Width of both towers' vectors.")


class SyncNet(SavedModule[SyncNetConfig]):
    """Visual and audio tower over windows of `WINDOW` frames at 25 fps."""

    config_type = SyncNetConfig

    def __init__(self, config: SyncNetConfig | None = None) -> None:
        super().__init__(config or SyncNetConfig())
        layers: list[nn.Module] = []
        before, rows, columns = 3, self.config.crop_size // 4, self.config.crop_size // 2
        for width in self.config.widths:
            layers += [nn.Conv2d(before, width, 3, stride=2, padding=1), nn.GroupNorm(8, width), nn.SiLU()]
            before, rows, columns = width, (rows + 1) // 2, (columns + 1) // 2
        self.frame = nn.Sequential(*layers, nn.Flatten(), nn.Linear(before * rows * columns, self.config.frame_width))
        self.visual = _tower(self.config.frame_width, self.config.embedding)
        self.audio = _tower(2 * self.config.audio_features, self.config.embedding)

    def embed_video(self, frames: Tensor) -> Tensor:
        """Unit vectors (B, T - 7, D) of the windows of face crops (B, 3, T, H, W) in [-1, 1]."""
        batch, _, length, height, width = frames.shape
        lower = frames.transpose(1, 2).reshape(batch * length, 3, height, width)[:, :, height // 2 :]
        size = (self.config.crop_size // 4, self.config.crop_size // 2)
        vectors = self.frame(F.adaptive_avg_pool2d(lower, size))
        return _unit(self.visual(vectors.view(batch, length, -1).transpose(1, 2)))

    def embed_audio(self, features: Tensor) -> Tensor:
        """Unit vectors (B, T - 7, D) of the windows of 50 Hz audio features (B, 2T, audio_features)."""
        batch, count, width = features.shape
        frames = features.reshape(batch, count // 2, 2 * width)
        return _unit(self.audio(frames.transpose(1, 2)))

    def distance(self, frames: Tensor, features: Tensor) -> Tensor:
        """The lip expert's loss, (B,): 1 - cosine, averaged over windows; differentiable in `frames`.

        The paper prints plus cosine; it has to be minimised as a distance.

        Args:
            frames: (B, 3, T, H, W) decoded crops in [-1, 1], T >= 8.
            features: (B, 2T, audio_features) of the same time.
        """
        return 1 - (self.embed_video(frames) * self.embed_audio(features)).sum(-1).mean(1)


def _tower(inner: int, outer: int) -> nn.Sequential:
    """Two convolutions over time that see `WINDOW` frames together; only whole windows come out."""
    return nn.Sequential(
        nn.Conv1d(inner, 128, 4), nn.GroupNorm(8, 128), nn.SiLU(), nn.Conv1d(128, 128, WINDOW - 3), nn.SiLU(),
        nn.Conv1d(128, outer, 1),
    )  # fmt: skip


def _unit(vectors: Tensor) -> Tensor:
    return F.normalize(F.relu(vectors.transpose(1, 2)) + 1e-4, dim=-1)


@dataclass(frozen=True)
class SyncScores:
    """Sync of one clip.

    Attributes:
        sync_c: Confidence: median minus minimum of the mean distances over the shifts.
        sync_d: The smallest mean distance, 0 to sqrt(2) (the field's SyncNet is not normalised: other numbers).
        offset: Frames by which the sound comes after the lips; move the sound ahead by offset / 25 seconds.
        curve: (2 * shifts + 1,) mean distance for each shift of the sound, -shifts first.
    """

    sync_c: float
    sync_d: float
    offset: int
    curve: NDArray[np.float32]


@torch.no_grad()
def sync_scores(
    model: SyncNet, frames: NDArray[np.uint8], features: NDArray[np.float32], max_shift: int = MAX_SHIFT
) -> SyncScores:
    """Sync-C, Sync-D and offset by the convention of Chung & Zisserman.

    Args:
        model: A trained `SyncNet`.
        frames: (T, H, W, 3) face crops, T >= 12.
        features: (N, audio_features) of the clip's sound at 50 Hz (`AudioEncoder.encode`).
        max_shift: Largest shift in frames; less for clips too short to be shifted so far.
    """
    video = torch.from_numpy(np.ascontiguousarray(frames)).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    audio = torch.from_numpy(fit_features(features, len(frames)))[None]
    return compare_windows(embed_windows(model, video)[0], model.embed_audio(audio)[0], max_shift=max_shift)


def compare_windows(
    seen: Tensor, heard: Tensor, usable: NDArray[np.bool_] | None = None, max_shift: int = MAX_SHIFT
) -> SyncScores:
    """`sync_scores` of embedded windows.

    Args:
        seen: (N, D) of the lips.
        heard: (N, D) of the sound.
        usable: (N,) which windows of the lips count; None: all.
        max_shift: Largest shift in frames; less where there are too few windows.
    """
    counts = torch.ones(len(seen), dtype=torch.bool) if usable is None else torch.from_numpy(usable)
    shifts = min(max_shift, (len(seen) - 2) // 2)
    if shifts < 1:
        raise ValueError(f"a clip of {len(seen) + WINDOW - 1} frames is too short to be shifted: give at least 12")
    curve = []
    for shift in range(-shifts, shifts + 1):
        here = slice(max(0, -shift), len(seen) - max(0, shift))
        second = heard[max(0, shift) : len(heard) - max(0, -shift)]
        apart = (seen[here] - second).norm(dim=-1)[counts[here]]
        curve.append(float(apart.mean()) if len(apart) else FARTHEST)
    distances = np.array(curve, np.float32)
    best = int(distances.argmin())
    return SyncScores(float(np.median(distances) - distances[best]), float(distances[best]), best - shifts, distances)


def embed_windows(model: SyncNet, video: Tensor, chunk: int = 128) -> Tensor:
    """`SyncNet.embed_video` of a long clip (1, 3, T, H, W) in bounded memory."""
    count = video.shape[2] - WINDOW + 1
    return torch.cat(
        [model.embed_video(video[:, :, i : min(i + chunk, count) + WINDOW - 1]) for i in range(0, count, chunk)], dim=1
    )


def fit_features(features: NDArray[np.float32], n_frames: int) -> NDArray[np.float32]:
    """Two 50 Hz features a frame: cut, or the last one repeated, to (2 * n_frames, D)."""
    wanted = np.minimum(np.arange(2 * n_frames), len(features) - 1)
    return np.ascontiguousarray(features[wanted], np.float32)
