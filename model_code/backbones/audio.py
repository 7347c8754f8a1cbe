"""The audio encoder: speech features at 50 Hz, in the place of Whisper's encoder.

It is trained to name the viseme that is spoken and to predict the mouth (``model_code.training.audio_encoder``);
its features are the layer before those two heads, so they hold what a dubber needs and little of the voice.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from model_code.backbones.saved import SavedModule
from model_code.media.audio import HOP, Sound, log_mel_rows
from model_code.speech.visemes import GROUPS, SPEECH_COEFFICIENTS

Floats = NDArray[np.float32]
Array = TypeVar("Array", NDArray[np.float32], Tensor)

FEATURE_RATE = 50
_CHUNK = 1000  # features per pass


@runtime_checkable
class SpeechEncoder(Protocol):
    """What the chain asks of an audio encoder; they are modules, too."""

    @property
    def feature_dim(self) -> int:
        """Width D of the features."""

    def encode(self, sound: Sound, length: int | None = None) -> Floats:
        """Features (ceil(N / 320), D) at 50 Hz of `sound` (N,) at 16 kHz; N is `length` where that is given."""

    def save_pretrained(self, folder: Path | str) -> None:
        """Writes the encoder into `folder`."""


def spans(count: int, core: int, margin: int) -> Iterator[tuple[int, int, int, int]]:
    """Pieces of `count` features: (first, start, stop, last) hears [first, last) and keeps [start, stop).

    Args:
        count: Features in all.
        core: Features that a piece keeps; the last one keeps what is left.
        margin: Features that it hears besides on either side, where there are any.
    """
    for start in range(0, count, core):
        stop = min(start + core, count)
        yield max(0, start - margin), start, stop, min(count, stop + margin)


class _Norm(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, N): every moment by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class _Block(nn.Module):
    """A residual dilated convolution over time and a pointwise layer."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.norm = _Norm(width)
        self.time = nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation)
        self.point = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.point(F.gelu(self.time(self.norm(x))))


class AudioEncoderConfig(BaseModel):
    """Shape of an `AudioEncoder`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bands: int = Field(default=80, description="Mel bands of the input.")
    width: int = Field(default=192, description="Channels inside.")
    dilations: tuple[int, ...] = Field(
        default=(1, 2, 4, 8, 4, 2, 1), description="One residual block each, in features of 20 ms."
    )
    features: int = Field(default=64, description="Width of the output.")
    groups: int = Field(default=len(GROUPS), description="Viseme classes of the first head.")
    coefficients: int = Field(default=len(SPEECH_COEFFICIENTS), description="Mouth coefficients of the second head.")


class AudioEncoder(SavedModule[AudioEncoderConfig]):
    """Convolutional encoder of log-mel spectra with a receptive field of about +-0.5 s."""

    config_type = AudioEncoderConfig

    def __init__(self, config: AudioEncoderConfig | None = None) -> None:
        super().__init__(config or AudioEncoderConfig())
        width, features = self.config.width, self.config.features
        self.stem = nn.Conv1d(self.config.bands, width, 8, stride=2, padding=3)
        self.blocks = nn.ModuleList(_Block(width, dilation) for dilation in self.config.dilations)
        self.norm = _Norm(width)
        self.features = nn.Conv1d(width, features, 1)
        self.group_head = nn.Conv1d(features, self.config.groups, 1)
        self.coefficient_head = nn.Conv1d(features, self.config.coefficients, 1)
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))

    @property
    def feature_dim(self) -> int:
        """Width of the features."""
        return self.config.features

    @property
    def reach(self) -> int:
        """Features on either side that a feature hears: those of the blocks, and at most four of the stem."""
        return sum(self.config.dilations) + 4

    def hidden(self, mel: Tensor) -> Tensor:
        """Features before normalisation, (B, features, N), from log-mel (B, 2N, bands)."""
        x = self.stem(mel.transpose(1, 2))
        for block in self.blocks:
            x = block(x)
        return self.features(F.gelu(self.norm(x)))

    def heads(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Viseme logits (B, groups, N) and mouth coefficients (B, coefficients, N) from `hidden`."""
        return self.group_head(hidden), self.coefficient_head(hidden)

    def forward(self, mel: Tensor) -> Tensor:
        """Features (B, N, features) of zero mean and unit variance from log-mel (B, 2N, bands)."""
        hidden = self.hidden(mel).transpose(1, 2)
        return (hidden - self.mean) / self.scale

    @torch.no_grad()
    def encode(self, sound: Sound, length: int | None = None) -> Floats:
        """Features (ceil(N / 320), features) of `sound` (N,) at 16 kHz.

        Long sound is read and goes through in chunks that overlap by more than the receptive field: the result is
        that of the whole, in bounded memory.

        Args:
            sound: Samples.
            length: N; cut, or followed by silence, to so many samples. None: all of them.
        """
        length = len(sound) if length is None else length
        rows = -(-length // HOP)
        count = -(-rows // 2)
        features = np.empty((count, self.config.features), np.float32)
        for first, start, stop, last in spans(count, _CHUNK, self.reach):
            mel = log_mel_rows(sound, length, 2 * first, min(2 * last, rows))
            mel = np.pad(mel, ((0, 2 * (last - first) - len(mel)), (0, 0)), constant_values=-1.0)
            chunk = self(torch.from_numpy(mel)[None].to(self.mean.device))[0].float().cpu().numpy()
            features[start:stop] = chunk[start - first : stop - first]
        return features


def window_indices(n_features: int, n_latent_frames: int, window: int, start_frame: int = 0) -> NDArray[np.int64]:
    """Which 50 Hz features each latent frame sees (as in the release, generalised from 8 to any even `window`).

    With 8 features latent frame 0 sees video frames s-3..s and latent frame i > 0 sees s+4(i-1)+1..s+4i, two
    features a frame; a wider window grows evenly on both sides. Indices are clamped to what exists.

    Args:
        n_features: Features at hand.
        n_latent_frames: Latent frames F of the clip.
        window: Features a latent frame sees.
        start_frame: Video frame s of the sound at which the clip starts.

    Returns:
        (F, window) indices.
    """
    first = 2 * (start_frame + 4 * np.arange(n_latent_frames) - 3) - (window - 8) // 2
    return np.clip(first[:, None] + np.arange(window), 0, max(n_features - 1, 0)).astype(np.int64)


def audio_windows(features: Array, n_latent_frames: int, window: int, start_frame: int = 0) -> Array:
    """Features (N, D), array or tensor, gathered for each latent frame by `window_indices`: (F, window, D)."""
    indices = window_indices(len(features), n_latent_frames, window, start_frame)
    if isinstance(features, Tensor):
        return features[torch.from_numpy(indices).to(features.device)]
    return features[indices]
