"""Latent codecs: video to latents and back, behind one interface.

`WanCodec` wraps diffusers' causal `AutoencoderKLWan` (the paper's kind of VAE). `BlockCodec` is the lean one
of the `embedded` profile: a fixed linear transform of 4x8x8 pixel blocks, and a small convolutional refiner
after its inverse. Both map the first pixel frame alone to the first latent frame, then four frames to one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from model_code.backbones.pieces import CausalPieces, NearPieces, PieceDecoder
from model_code.backbones.saved import SavedModule
from model_code.backbones.sources import config_of, load_whole, local_folder
from model_code.errors import InputError

TEMPORAL_FACTOR = 4


@runtime_checkable
class LatentCodec(Protocol):
    """What the chain asks of a latent codec."""

    spatial_factor: int
    temporal_factor: int
    latent_channels: int

    @property
    def pixel_weights(self) -> Tensor:
        """(C,) what a squared error in each latent channel weighs in pixels; the error of unit latents adds up to C."""

    def encode(self, video: Tensor) -> Tensor:
        """Maps (B,3,T,H,W) in [-1,1], T = 1+4n, to latents (B,C,1+n,h,w) of about unit variance."""

    def decode(self, latents: Tensor) -> Tensor:
        """Maps latents (B,C,F,h,w) to video (B,3,4(F-1)+1,H,W) in [-1,1]; differentiable."""

    def in_pieces(self) -> PieceDecoder:
        """A decoder of one long video's latents that come piece by piece."""

    def save_pretrained(self, folder: Path | str) -> None:
        """Writes the codec into `folder`."""


def check_video(video: Tensor, spatial_factor: int) -> None:
    """Raises `InputError` unless `video` is (B,3,1+4n,H,W) with sides that `spatial_factor` divides."""
    if video.ndim != 5 or video.shape[1] != 3:
        raise InputError(f"video has shape {tuple(video.shape)}", "expected (batch, 3, frames, height, width)")
    frames, height, width = video.shape[2:]
    if frames % TEMPORAL_FACTOR != 1:
        raise InputError(f"video has {frames} frames", "a causal codec takes 1, 5, 9, 13, ... frames")
    if height % spatial_factor or width % spatial_factor:
        raise InputError(f"video is {width}x{height}", f"sides must be multiples of {spatial_factor}")


class BlockCodecConfig(BaseModel):
    """Shape of a `BlockCodec`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    channels: int = Field(160, description="Principal components kept of the 768 numbers of a 4x8x8 RGB block.")
    whitening: float = Field(0.5, description="Channels are divided by std**whitening: 0 keeps PCA's, 1 whitens.")
    refiner_width: int = Field(160, description="Channels of the refiner's trunk at latent resolution.")
    refiner_blocks: int = Field(3, description="Residual blocks of the refiner; one temporal mix in the middle.")


class BlockRefiner(nn.Module):
    """Predicts what the linear inverse lost, from a latent's neighbours in space and time."""

    def __init__(self, channels: int, width: int, blocks: int, block_size: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3 * channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1))
            for _ in range(blocks)
        )
        self.temporal = nn.Conv2d(3 * width, width, 1)
        self.conv_out = nn.Conv2d(width, block_size, 1)
        self.temporal_at = blocks // 2
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(cast(Tensor, self.conv_out.bias))
        for block in self.blocks:
            last = block[2]  # type: ignore[index]
            last.weight.data.mul_(0.1)

    @staticmethod
    def _with_neighbours(hidden: Tensor, frames: int) -> Tensor:
        """(B*F,C,h,w) -> (B*F,3C,h,w): previous, same and next latent frame, zeros beyond the ends."""
        clips = hidden.unflatten(0, (-1, frames))
        padded = F.pad(clips, (0, 0, 0, 0, 0, 0, 1, 1))
        return torch.cat([padded[:, :-2], clips, padded[:, 2:]], dim=2).flatten(0, 1)

    def forward(self, latents: Tensor) -> Tensor:
        """Maps (B,F,C,h,w) to residual blocks (B,F,768,h,w)."""
        frames = latents.shape[1]
        hidden = self._with_neighbours(latents.flatten(0, 1), frames)
        hidden = self.conv_in(hidden.contiguous(memory_format=torch.channels_last))
        for index, block in enumerate(self.blocks):
            if index == self.temporal_at:
                hidden = hidden + self.temporal(F.silu(self._with_neighbours(hidden, frames)))
            hidden = hidden + block(F.silu(hidden))
        return self.conv_out(F.silu(hidden)).unflatten(0, (-1, frames))


class BlockCodec(SavedModule[BlockCodecConfig]):
    """A fixed linear block transform with a convolutional refiner after its inverse.

    The first latent frame is the transform of the first pixel frame repeated four times, so that all latent
    frames share one basis and a single frame is a clip too.

    Args:
        config: Shape of the codec.
    """

    config_type = BlockCodecConfig
    spatial_factor = 8
    temporal_factor = TEMPORAL_FACTOR
    block_size = 3 * TEMPORAL_FACTOR * 8 * 8

    mean: Tensor
    basis: Tensor
    deviation: Tensor
    gain: Tensor

    def __init__(self, config: BlockCodecConfig | None = None) -> None:
        super().__init__(config or BlockCodecConfig())
        self.latent_channels = channels = self.config.channels
        self.register_buffer("mean", torch.zeros(self.block_size))
        self.register_buffer("basis", torch.eye(self.block_size, channels))
        self.register_buffer("deviation", torch.ones(channels))
        self.register_buffer("gain", torch.ones(()))
        self.refiner = BlockRefiner(channels, self.config.refiner_width, self.config.refiner_blocks, self.block_size)
        self.refiner.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def scale(self) -> Tensor:
        """(C,) what principal components are divided by to give latents of unit overall variance."""
        return self.deviation**self.config.whitening * self.gain

    @property
    def pixel_weights(self) -> Tensor:
        """(C,) squares of `scale`: the basis is orthonormal; their mean over the latents' own variance is 1."""
        energy = self.scale.square()
        variance = (self.deviation / self.scale).square()
        return energy * (variance.mean() / (energy * variance).mean())

    @torch.no_grad()
    def fit(self, blocks: Tensor) -> None:
        """Fits the linear transform.

        Args:
            blocks: (N,768) sampled pixel blocks in [-1,1], in `to_blocks`'s order; sample what matters more often.
        """
        blocks = blocks.double()
        mean = blocks.mean(0)
        centred = blocks - mean
        values, vectors = torch.linalg.eigh(centred.T @ centred / len(blocks))
        basis = vectors.flip(1)[:, : self.latent_channels]
        basis = basis * torch.where(basis.sum(0) < 0, -1.0, 1.0)  # eigenvectors have no sign of their own
        deviation = values.flip(0)[: self.latent_channels].clamp_min(1e-8).sqrt()
        self.mean.copy_(mean)
        self.basis.copy_(basis)
        self.deviation.copy_(deviation)
        self.gain.copy_((deviation ** (2 * (1 - self.config.whitening))).mean().sqrt())

    @staticmethod
    def to_blocks(video: Tensor) -> Tensor:
        """(B,3,T,H,W), T = 1+4n -> (B,1+n,h,w,768), the first frame repeated four times."""
        batch, _, frames, height, width = video.shape
        video = torch.cat([video[:, :, :1].expand(-1, -1, 3, -1, -1), video], dim=2)
        video = video.reshape(batch, 3, (frames + 3) // 4, 4, height // 8, 8, width // 8, 8)
        return video.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)

    @staticmethod
    def from_blocks(blocks: Tensor) -> Tensor:
        """The inverse of `to_blocks`; the first frame is the mean of its four copies."""
        batch, latent_frames, height, width, _ = blocks.shape
        video = blocks.reshape(batch, latent_frames, height, width, 3, 4, 8, 8).permute(0, 4, 1, 5, 2, 6, 3, 7)
        video = video.reshape(batch, 3, latent_frames * 4, height * 8, width * 8)
        return torch.cat([video[:, :, :4].mean(2, keepdim=True), video[:, :, 4:]], dim=2)

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """Maps (B,3,T,H,W) in [-1,1], T = 1+4n, to latents (B,C,1+n,H/8,W/8)."""
        check_video(video, self.spatial_factor)
        analysis = self.basis / self.scale
        latents = torch.addmm(-(self.mean @ analysis), self.to_blocks(video).flatten(0, 3), analysis)
        batch, _, frames, height, width = video.shape
        latents = latents.reshape(batch, (frames + 3) // 4, height // 8, width // 8, -1)
        return latents.permute(0, 4, 1, 2, 3).contiguous()

    def decode(self, latents: Tensor, *, refine: bool = True) -> Tensor:
        """Maps latents (B,C,F,h,w) to video (B,3,4F-3,8h,8w), about in [-1,1] (not clamped: losses need gradients).

        Args:
            latents: As `encode` gives them.
            refine: False leaves the linear inverse alone.
        """
        components = latents.permute(0, 2, 3, 4, 1) * self.scale
        blocks = components @ self.basis.T + self.mean
        if refine:
            whitened = (components / self.deviation).permute(0, 1, 4, 2, 3)
            blocks = blocks + self.refiner(whitened).permute(0, 1, 3, 4, 2)
        return self.from_blocks(blocks)

    def in_pieces(self) -> PieceDecoder:
        """`decode` piece by piece; the refiner looks at its neighbours twice, so two latent frames decide exactly."""
        return NearPieces(self.decode, reach=2)


class WanCodec(nn.Module):
    """diffusers' `AutoencoderKLWan` behind the codec interface; latents are the posterior's normalised mode.

    Args:
        vae: The autoencoder, from a local folder or hub id, or a random one in tests.
    """

    temporal_factor = TEMPORAL_FACTOR

    vae: Any
    mean: Tensor
    deviation: Tensor

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae
        self.config = vae.config
        self.latent_channels = int(vae.config.z_dim)
        self.spatial_factor = int(vae.config.scale_factor_spatial or 8)
        shape = (1, -1, 1, 1, 1)
        self.register_buffer("mean", torch.tensor(vae.config.latents_mean).reshape(shape), persistent=False)
        self.register_buffer("deviation", torch.tensor(vae.config.latents_std).reshape(shape), persistent=False)

    @property
    def pixel_weights(self) -> Tensor:
        """(C,) ones: a learned autoencoder's normalised channels count alike."""
        return torch.ones(self.latent_channels, device=self.mean.device)

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """Maps (B,3,T,H,W) in [-1,1] to normalised latents."""
        check_video(video, self.spatial_factor)
        latents = self.vae.encode(video).latent_dist.mode()
        return (latents - self.mean) / self.deviation

    def decode(self, latents: Tensor) -> Tensor:
        """Maps normalised latents to video in [-1,1]."""
        return self.vae.decode(self._raw(latents)).sample

    def in_pieces(self) -> PieceDecoder:
        """`decode` piece by piece."""
        return CausalPieces(self.vae, self._raw)

    def _raw(self, latents: Tensor) -> Tensor:
        """Normalised latents as the autoencoder takes them."""
        return latents * self.deviation + self.mean

    def save_pretrained(self, folder: Path | str) -> None:
        """Writes the autoencoder as diffusers does."""
        self.vae.save_pretrained(folder)

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> WanCodec:
        """Reads a diffusers `AutoencoderKLWan`: its folder, that of a whole Wan pipeline, or such a pipeline's hub id.

        Raises:
            InputError: It is not there, not whole, or something else.
        """
        from diffusers import AutoencoderKLWan

        found = local_folder(str(folder), "vae")
        config_of(found, "_class_name", "AutoencoderKLWan")
        return cls(load_whole(AutoencoderKLWan, found)).eval()
