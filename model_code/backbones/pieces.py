"""Decoding a long video's latents piece by piece: what comes out, joined, is what `decode` gives of the whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor


class PieceDecoder(Protocol):
    """Decodes one video."""

    def push(self, latents: Tensor, last: bool) -> Tensor:
        """Takes the next latents (1,C,f,h,w); returns the frames (1,3,t,H,W) that are certain now, t may be 0."""


class NearPieces:
    """For a codec whose latent frames look at few neighbours: pieces overlap by as many.

    Args:
        decode: Latents (1,C,F,h,w) -> video (1,3,4F-3,H,W).
        reach: Latent frames on either side that a latent frame's pixels depend on.
    """

    def __init__(self, decode: Callable[[Tensor], Tensor], reach: int) -> None:
        self._decode, self._reach = decode, reach
        self._held: Tensor | None = None
        self._done = 0  # of the held latent frames

    def push(self, latents: Tensor, last: bool) -> Tensor:
        """See `PieceDecoder`."""
        held = latents if self._held is None else torch.cat([self._held, latents], dim=2)
        ready = max(self._done, held.shape[2] - (0 if last else self._reach))
        video = self._decode(held)[:, :, _pixels(self._done) : _pixels(ready)]
        # What is held begins far enough before the next frames for them not to see that something is missing.
        first = max(0, ready - self._reach)
        self._held, self._done = held[:, :, first:], ready - first
        return video


class CausalPieces:
    """For Wan's causal autoencoder: each latent frame is decoded once, what its convolutions remember is kept.

    A latent frame depends on tens of frames before it, so overlapping pieces would double the work. This is the loop of
    diffusers' `AutoencoderKLWan.decode`, with a memory of its own, because encoding in between clears the model's.

    Args:
        vae: The autoencoder.
        raw: Makes of latents (1,C,F,h,w) those that it takes.
    """

    def __init__(self, vae: Any, raw: Callable[[Tensor], Tensor]) -> None:
        self._vae, self._raw = vae, raw
        self._memory: list[Tensor | str | None] = [None] * vae._cached_conv_counts["decoder"]
        self._first = True

    def push(self, latents: Tensor, last: bool) -> Tensor:
        """See `PieceDecoder`."""
        from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

        hidden = self._vae.post_quant_conv(self._raw(latents))
        parts = []
        for index in range(hidden.shape[2]):
            frame = hidden[:, :, index : index + 1]
            parts.append(self._vae.decoder(frame, feat_cache=self._memory, feat_idx=[0], first_chunk=self._first))
            self._first = False
        video = torch.cat(parts, dim=2)
        if self._vae.config.patch_size is not None:
            video = unpatchify(video, patch_size=self._vae.config.patch_size)
        return video.clamp(-1, 1)


def _pixels(latent_frames: int) -> int:
    """Frames that so many latent frames from a video's beginning stand for: 1, 5, 9, ..."""
    return max(0, 4 * latent_frames - 3)
