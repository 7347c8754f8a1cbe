"""Clips as a training run wants them: latents, audio features and masks, encoded once.

A clip's video is kept as two latent tracks, from which a window at any fourth frame is put together
without encoding again: `singles` (frames 0, 4, 8, ... each encoded alone, as a causal codec encodes the
first frame of a video) and `blocks` (the groups of four frames that follow frame 0). A window at block k
is singles[k] followed by blocks[k], blocks[k+1], ... Of a codec that remembers earlier frames, such as Wan's, that
is not the encoding of the window alone: docs/numerics.md says how far apart they are.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from model_code.backbones.audio import SpeechEncoder, audio_windows
from model_code.backbones.codec import TEMPORAL_FACTOR, LatentCodec
from model_code.backbones.saved import fingerprint, write_tensors
from model_code.config import ContextFill
from model_code.faces.carry import carried_faces
from model_code.faces.masks import face_loss_mask, inpaint_mask, lip_mask
from model_code.media.sample import ClipSample
from model_code.seeding import rng_for

logger = logging.getLogger(__name__)

CACHE_VERSION = 4
NAME_BYTES = 16
SINGLES_AT_ONCE = 32
"""Single frames that are encoded in one batch, so that a clip's length does not decide the memory that it takes."""


def to_network(frames: np.ndarray) -> Tensor:
    """uint8 (T, H, W, 3) to float (3, T, H, W) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(3, 0, 1, 2).float().div_(127.5).sub_(1.0)


def to_frames(video: Tensor) -> np.ndarray:
    """Float (3, T, H, W) in [-1, 1] to uint8 (T, H, W, 3)."""
    pixels = video.detach().float().clamp(-1, 1).add(1.0).mul(127.5).round().to(torch.uint8)
    return pixels.permute(1, 2, 3, 0).contiguous().cpu().numpy()


def latent_length(n_frames: int) -> int:
    """Latent frames of a causal window of `n_frames` pixel frames."""
    if (n_frames - 1) % TEMPORAL_FACTOR:
        raise ValueError(f"a window has 4n+1 frames, not {n_frames}")
    return 1 + (n_frames - 1) // TEMPORAL_FACTOR


@dataclass(frozen=True)
class LatentTrack:
    """A clip on the latent time grid: singles (C, K+1, h, w) and blocks (C, K, h, w)."""

    singles: Tensor
    blocks: Tensor

    @property
    def n_blocks(self) -> int:
        return int(self.blocks.shape[1])

    def window(self, start: int, length: int) -> Tensor:
        """(C, length, h, w) of the window that begins with frame 4 * start, in single precision."""
        parts = self.singles[:, start : start + 1], self.blocks[:, start : start + length - 1]
        return torch.cat([part.float() for part in parts], dim=1)


@torch.no_grad()
def encode_track(frames: np.ndarray, codec: LatentCodec, device: torch.device | None = None) -> LatentTrack:
    """Encodes a clip (T, H, W, 3) to a `LatentTrack` in half precision; frames beyond 4K+1 are dropped."""
    n_blocks = (len(frames) - 1) // TEMPORAL_FACTOR
    video = to_network(frames[: 1 + TEMPORAL_FACTOR * n_blocks]).to(device)
    blocks = codec.encode(video[None])[0, :, 1:]
    alone = video[:, ::TEMPORAL_FACTOR].permute(1, 0, 2, 3)[:, :, None]
    singles = torch.cat([codec.encode(some) for some in alone.split(SINGLES_AT_ONCE)])[:, :, 0].permute(1, 0, 2, 3)
    return LatentTrack(singles.half().cpu().contiguous(), blocks.half().cpu().contiguous())


def mask_track(mask: np.ndarray, grid: tuple[int, int]) -> LatentTrack:
    """Averages a pixel mask (T, H, W) in [0, 1] over the cells of the latent grid; one channel."""
    n_blocks = (len(mask) - 1) // TEMPORAL_FACTOR
    values = torch.from_numpy(mask[: 1 + TEMPORAL_FACTOR * n_blocks].astype(np.float32))
    pooled = nn.functional.adaptive_avg_pool2d(values[:, None], grid)[:, 0]
    blocks = pooled[1:].reshape(n_blocks, TEMPORAL_FACTOR, *grid).mean(1)
    return LatentTrack(pooled[::TEMPORAL_FACTOR][None].half().contiguous(), blocks[None].half().contiguous())


def masked_frames(frames: np.ndarray, keep: np.ndarray, fill: np.ndarray | None = None) -> np.ndarray:
    """Frames (T, H, W, 3) with `fill`, or mid-grey (zero for the network), where `keep` (T, H, W) is False."""
    return np.where(keep[..., None], frames, np.uint8(128) if fill is None else fill)


def masked_context(
    frames: np.ndarray, landmarks: np.ndarray, occluder: np.ndarray | None, fill: ContextFill, source: int
) -> np.ndarray:
    """The generator's masked video (T, S, S, 3); `source` is the frame whose face a `reference` fill shows."""
    face = carried_faces(frames, landmarks, [source] * len(frames)) if fill == "reference" else None
    return masked_frames(frames, inpaint_mask(landmarks, frames.shape[1], occluder), face)


@dataclass(frozen=True)
class EncodedClip:
    """One clip, encoded: tracks by name (`target`, `masked`, `face`, `lip`, `companion`) and 50 Hz audio features.

    `fill` is the frame whose face fills the masked track's hole, None without such a face.
    """

    clip_id: str
    speaker_id: str
    tracks: dict[str, LatentTrack]
    audio: Tensor
    fill: int | None = None

    @property
    def n_blocks(self) -> int:
        return min(track.n_blocks for track in self.tracks.values())


@dataclass(frozen=True)
class CachedClip:
    """An encoded clip on disk: a training set of hours does not fit into memory.

    Attributes:
        clip_id, speaker_id: As of `EncodedClip`.
        path: Its tensors.
    """

    clip_id: str
    speaker_id: str
    path: Path

    @cached_property
    def n_blocks(self) -> int:
        """As of `EncodedClip`."""
        return self.load().n_blocks

    def load(self) -> EncodedClip:
        """The clip; the file is mapped, so that only what is used of it is read."""
        tensors = load_file(self.path)
        names = sorted({name.split(".")[0] for name in tensors if "." in name})
        tracks = {name: LatentTrack(tensors[f"{name}.singles"], tensors[f"{name}.blocks"]) for name in names}
        fill = int(tensors["fill"]) if "fill" in tensors else None
        return EncodedClip(self.clip_id, self.speaker_id, tracks, tensors["audio"], fill)


class ClipEncoder:
    """Encodes clips with a codec and an audio encoder, into a cache on disk.

    Args:
        codec: The latent codec; `encode` is called without gradients.
        audio_encoder: Gives 50 Hz features (N, D).
        context_fill: What the generator's masked video holds in the hole, as in `TransformerConfig`.
        cache: Folder of safetensors named by a hash of all that decides them: the clip's content and name, from
            which the frame that fills a hole is drawn, and both networks' weights.
    """

    def __init__(
        self,
        codec: LatentCodec,
        audio_encoder: SpeechEncoder,
        context_fill: ContextFill,
        cache: Path,
        device: torch.device | None = None,
    ) -> None:
        self.codec, self.audio_encoder, self.cache, self.device = codec, audio_encoder, cache, device
        self.context_fill = context_fill
        self._networks = ""
        if isinstance(codec, nn.Module) and isinstance(audio_encoder, nn.Module):
            self._networks = fingerprint(codec) + fingerprint(audio_encoder)

    def encode(self, clip: ClipSample, companion: np.ndarray | None = None) -> CachedClip:
        """As `write`, of a clip that lies nowhere: it is known by its pixels, landmarks and sound."""
        digest = hashlib.sha256()
        for array in (clip.frames, clip.landmarks, clip.audio, clip.occluder, companion):
            digest.update(b"-" if array is None else np.ascontiguousarray(array).tobytes())
        name = self.name(clip.clip_id, digest.hexdigest())
        if not self.path(name).is_file():
            self.write(name, clip, companion)
        return CachedClip(clip.clip_id, str(clip.row["speaker_id"]), self.path(name))

    def name(self, clip_id: str, content: str, *, masked: bool = True) -> str:
        """What the tensors are called, `NAME_BYTES` in hexadecimal, of a clip or pair whose content has this hash."""
        decisive = f"{CACHE_VERSION} {self._networks} {masked and self.context_fill} {clip_id} {content}"
        return hashlib.sha256(decisive.encode()).hexdigest()[: 2 * NAME_BYTES]

    def path(self, name: str) -> Path:
        """Where tensors of this name lie, or are to lie."""
        return self.cache / f"{name}.safetensors"

    def write(self, name: str, clip: ClipSample, companion: np.ndarray | None = None, *, masked: bool = True) -> None:
        """Encodes `clip`; `companion` (T, H, W, 3) adds the track of V', `masked` that of the inpainting context."""
        write_tensors(self.path(name), self._tensors(clip, companion, masked))

    def _tensors(self, clip: ClipSample, companion: np.ndarray | None, masked: bool) -> dict[str, Tensor]:
        size = clip.frames.shape[1]
        tracks = {"target": encode_track(clip.frames, self.codec, self.device)}
        if masked:
            source = int(rng_for("fill", clip.clip_id).integers(len(clip.frames)))
            context = masked_context(clip.frames, clip.landmarks, clip.occluder, self.context_fill, source)
            tracks["masked"] = encode_track(context, self.codec, self.device)
        if companion is not None:
            tracks["companion"] = encode_track(companion, self.codec, self.device)
        height, width = tracks["target"].singles.shape[-2:]
        tracks["face"] = mask_track(face_loss_mask(clip.landmarks, size), (int(height), int(width)))
        tracks["lip"] = mask_track(lip_mask(clip.landmarks, size), (int(height), int(width)))
        tensors = {"audio": torch.as_tensor(np.asarray(self.audio_encoder.encode(clip.audio))).half().contiguous()}
        if masked and self.context_fill == "reference":
            tensors["fill"] = torch.tensor(source)
        for name, track in tracks.items():
            tensors[f"{name}.singles"], tensors[f"{name}.blocks"] = track.singles, track.blocks
        return tensors


@dataclass
class Batch:
    """Windows of several clips.

    Shapes: target, masked, companion (B, C, F, h, w); reference (B, C, R, h, w); face, lip
    (B, 1, F, h, w); audio (B, F, window, D); features (B, 2T, D), the 50 Hz features of the window's T frames.
    place is (top, left, rows, columns) in the whole crop's grid of latent cells, None for whole crops.
    """

    clip_ids: tuple[str, ...]
    target: Tensor
    audio: Tensor
    face: Tensor
    lip: Tensor
    reference: Tensor
    features: Tensor
    masked: Tensor | None = None
    companion: Tensor | None = None
    place: tuple[int, int, int, int] | None = None

    def cut(self, side: int, rng: np.random.Generator) -> Batch:
        """The same batch with `side` x `side` latent cells of the crops' lower part, where faces have mouths."""
        rows, columns = self.target.shape[-2:]
        top = int(rng.integers((rows - side) // 3, rows - side + 1))
        left = int(rng.integers(0, columns - side + 1))
        spatial = ("target", "masked", "companion", "reference", "face", "lip")
        values = dict(vars(self))
        for name in spatial:
            if values[name] is not None:
                values[name] = values[name][..., top : top + side, left : left + side]
        return Batch(**{**values, "place": (top, left, rows, columns)})

    def part(self, which: slice) -> Batch:
        """Some of the windows."""
        values = dict(vars(self))
        for name, value in values.items():
            if name != "place" and value is not None:
                values[name] = value[which]
        return Batch(**values)

    def to(self, device: torch.device) -> Batch:
        """The same batch with every tensor on `device`."""
        moved: dict[str, Any] = {
            name: value.to(device) if isinstance(value, Tensor) else value for name, value in vars(self).items()
        }
        return Batch(**moved)


class TrainingSet:
    """Random windows of encoded clips; which ones depends on (seed, step) alone, so a resumed run repeats.

    Args:
        clips: Encoded clips, or where they lie; those shorter than a window are left out.
        window_frames: Pixel frames of a window (4n+1).
        audio_window: 50 Hz features that one latent frame sees.
    """

    def __init__(self, clips: Sequence[EncodedClip | CachedClip], window_frames: int, audio_window: int) -> None:
        self.length = latent_length(window_frames)
        self.window_frames, self.audio_window = window_frames, audio_window
        self.clips = [clip for clip in clips if clip.n_blocks >= self.length - 1]
        if not self.clips:
            raise ValueError(f"no clip has {window_frames} frames: shorten clip_frames or add longer footage")
        if len(self.clips) < len(clips):
            logger.info("%d of %d clips are shorter than a window", len(clips) - len(self.clips), len(clips))
        self._last: tuple[tuple[int, int], np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.clips)

    def batch(self, seed: int, step: int, size: int, reference_frames: int = 1, frames: int | None = None) -> Batch:
        """The batch of one step.

        Clips come in epochs, each a permutation of the whole set. The reference is `reference_frames`
        latent frames of another segment of the same clip (first one a single frame); `frames` asks for windows
        shorter than the set's.
        """
        rng = rng_for("batch", seed, step)
        count = frames or self.window_frames
        windows = []
        for position in range(step * size, (step + 1) * size):
            epoch, place = divmod(position, len(self.clips))
            chosen = self.clips[int(self._order(seed, epoch)[place])]
            windows.append(self._window(chosen, rng, reference_frames, count))
        return self._collate(windows)

    def _order(self, seed: int, epoch: int) -> np.ndarray:
        """The clips' order in an epoch; the last one is kept, as it serves many batches."""
        last = self._last  # read once: batches are made in several threads
        if last is None or last[0] != (seed, epoch):
            last = self._last = (seed, epoch), rng_for("epoch", seed, epoch).permutation(len(self.clips))
        return last[1]

    def _window(
        self, chosen: EncodedClip | CachedClip, rng: np.random.Generator, reference_frames: int, frames: int
    ) -> dict[str, Tensor]:
        clip = chosen.load() if isinstance(chosen, CachedClip) else chosen
        length = latent_length(frames)
        starts = list(range(clip.n_blocks - length + 2))
        if clip.fill is not None:  # at its own place it shows the mouth that is to be found
            clear = [k for k in starts if not 0 <= clip.fill - TEMPORAL_FACTOR * k <= TEMPORAL_FACTOR * (length - 1)]
            starts = clear or starts
        start = starts[int(rng.integers(len(starts)))]
        values = {name: track.window(start, length) for name, track in clip.tracks.items()}
        values["audio"] = audio_windows(
            clip.audio.float(), length, self.audio_window, start_frame=TEMPORAL_FACTOR * start
        ).float()
        last = clip.n_blocks - reference_frames + 1
        outside = [k for k in range(last + 1) if k + reference_frames <= start or k >= start + length]
        choices = outside or list(range(last + 1))
        values["reference"] = clip.tracks["target"].window(int(rng.choice(choices)), reference_frames)
        first, count = 2 * TEMPORAL_FACTOR * start, 2 * frames
        places = torch.arange(first, first + count).clamp_max(len(clip.audio) - 1)
        values["features"] = clip.audio[places].float()
        values["_id"] = clip.clip_id  # type: ignore[assignment]
        return values

    def _collate(self, windows: list[dict[str, Tensor]]) -> Batch:
        names = [name for name in windows[0] if name != "_id" and all(name in window for window in windows)]
        tensors: dict[str, Any] = {name: torch.stack([window[name] for window in windows]) for name in names}
        return Batch(clip_ids=tuple(str(window["_id"]) for window in windows), **tensors)
