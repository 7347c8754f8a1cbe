"""Who speaks in a video? The face whose lips fit its own sound best, by the chain's SyncNet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from model_code.backbones.audio import SpeechEncoder
from model_code.config import MediaConfig
from model_code.errors import InputError
from model_code.faces.crop import crop_yuv
from model_code.faces.follow import Track
from model_code.media.spool import spooled_sound
from model_code.media.video import stream_audio
from model_code.media.yuv import YuvFrame
from model_code.metrics.syncnet import WINDOW, SyncNet, compare_windows, fit_features

F32 = NDArray[np.float32]
LEAST = 12
"""Frames that a comparison needs."""
_CHUNK = 128


class Listener:
    """Compares faces with the sound that they were recorded with.

    Args:
        syncnet: The chain's.
        encoder: Whose features it was trained with.

    Raises:
        InputError: The encoder's features are of another width.
    """

    def __init__(self, syncnet: SyncNet, encoder: SpeechEncoder) -> None:
        width = syncnet.config.audio_features
        if encoder.feature_dim != width:
            raise InputError(
                f"a SyncNet for {width} audio features and an encoder that gives {encoder.feature_dim}",
                "train the asset `syncnet` with the dubber's backbones, or name the speaker by number",
            )
        self._syncnet, self._encoder = syncnet, encoder

    def hear(self, video: str | Path, frames: int, config: MediaConfig) -> F32:
        """Features (2 frames, D) of the video's own sound, followed by silence where it ends before.

        Raises:
            InputError: It has none.
        """
        with spooled_sound(stream_audio(video, config)) as sound:
            return self._encoder.encode(sound, frames * config.sample_rate // config.fps)

    def confidences(self, tracks: Sequence[Track], frames: Iterable[YuvFrame], features: F32) -> list[float]:
        """Sync-C of every face of a shot, over the windows in which it is seen; 0 where these are too few.

        Args:
            tracks: Of the shot.
            frames: Its T frames; a few seconds of the crops are held at a time.
            features: (2T, D) of its sound.
        """
        meters = [_Meter(self._syncnet) for _ in tracks]
        for index, frame in enumerate(frames):
            for track, meter in zip(tracks, meters, strict=True):
                meter.add(crop_yuv(frame, track.boxes[index], self._syncnet.config.crop_size))
        return [self._confidence(meter, track, features) for meter, track in zip(meters, tracks, strict=True)]

    @torch.no_grad()
    def _confidence(self, meter: _Meter, track: Track, features: F32) -> float:
        count = len(track.found)
        if count < LEAST:
            return 0.0
        heard = self._syncnet.embed_audio(torch.from_numpy(fit_features(features, count))[None])[0]
        spans = np.lib.stride_tricks.sliding_window_view(track.found, WINDOW)
        seen: NDArray[np.bool_] = np.asarray(spans.all(axis=1), np.bool_)
        if seen.sum() < LEAST:
            return 0.0
        return compare_windows(meter.vectors(), heard, seen).sync_c


class _Meter:
    """Embeds the windows of one face while its crops come."""

    def __init__(self, syncnet: SyncNet) -> None:
        self._syncnet = syncnet
        self._held: list[NDArray[np.uint8]] = []
        self._vectors: list[torch.Tensor] = []

    def add(self, crop: NDArray[np.uint8]) -> None:
        self._held.append(crop)
        if len(self._held) == _CHUNK + WINDOW - 1:
            self._embed()

    def vectors(self) -> torch.Tensor:
        """(T - 7, D)."""
        if len(self._held) >= WINDOW:
            self._embed()
        return torch.cat(self._vectors)

    @torch.no_grad()
    def _embed(self) -> None:
        video = torch.from_numpy(np.stack(self._held)).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        self._vectors.append(self._syncnet.embed_video(video)[0])
        self._held = self._held[1 - WINDOW :]
