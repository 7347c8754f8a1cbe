"""Parameters and costs of networks that are built on the meta device: real classes, no memory."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from model_code.backbones.codec import TEMPORAL_FACTOR, BlockCodec
from model_code.backbones.perceptual import PerceptualEncoder
from model_code.backbones.transformer import DubbingTransformer
from model_code.config import Config, LoraConfig, PhaseName, TransformerConfig
from model_code.errors import InputError
from model_code.faces.identity import IdentityEncoder
from model_code.metrics.syncnet import SyncNet
from model_code.planning.flops import adapts
from model_code.planning.memory import Weights
from model_code.training.losses import video_distance

WAN22_VAE: dict[str, Any] = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "latents_mean": [0.0] * 48,
    "latents_std": [1.0] * 48,
}
"""Shape of Wan2.2-TI2V-5B's autoencoder, as its diffusers folder says; Wan2.1's is the class's own default."""


def parameters_by_part(config: TransformerConfig) -> dict[str, int]:
    """Parameters of the transformer by part, blocks by kind of layer; counted on a real module."""
    counts: Counter[str] = Counter()
    for name, value in _transformer(config).named_parameters():
        parts = name.split(".")
        in_block = parts[0] == "blocks"
        counts[f"blocks: {_KINDS.get(parts[2], 'modulation and norms')}" if in_block else parts[0]] += value.numel()
    return dict(counts)


_KINDS = {
    "self_attn": "self-attention",
    "cross_attn": "text attention",
    "audio_attn": "audio attention",
    "ffn": "feed-forward",
}


def weights(config: TransformerConfig, lora: LoraConfig | None) -> Weights:
    """Parameters of a phase's model; with `lora` only its adapters learn."""
    model = _transformer(config)
    every = sum(value.numel() for value in model.parameters())
    block = sum(value.numel() for value in model.blocks[0].parameters())
    adapters = 0
    if lora is not None:
        layers = [module for name, module in model.named_modules() if adapts(name, lora.targets)]
        linear = [module for module in layers if isinstance(module, nn.Linear)]
        adapters = sum(lora.rank * (module.in_features + module.out_features) for module in linear)
    return Weights(
        every=every + adapters,
        trained=adapters if lora is not None else every,
        block=block + adapters // config.num_layers,
        outside=every - config.num_layers * block,
    )


@lru_cache(maxsize=4)
def _transformer(config: TransformerConfig) -> DubbingTransformer:
    with torch.device("meta"):
        return DubbingTransformer.build(config)


class CodecCost(Config):
    """What a latent codec costs at one crop size; further latent frames all cost alike."""

    name: str
    spatial: int = Field(description="Pixels of a latent cell's side.")
    channels: int
    parameters: int
    encode: tuple[int, int] = Field(description="FLOPs of the first latent frame and of each further one.")
    decode: tuple[int, int] = Field(description="FLOPs of the first latent frame and of each further one.")
    decode_kept: tuple[int, int] = Field(description="Bytes in fp32 that the backward pass of `decode` needs.")

    def encoding(self, latent_frames: int) -> int:
        """FLOPs of encoding a window."""
        return self.encode[0] + self.encode[1] * (latent_frames - 1)

    def decoding(self, latent_frames: int) -> int:
        """FLOPs of decoding one."""
        return self.decode[0] + self.decode[1] * (latent_frames - 1)

    def kept(self, latent_frames: int) -> int:
        """Bytes for the backward pass of `decoding`, in fp32."""
        return self.decode_kept[0] + self.decode_kept[1] * (latent_frames - 1)


@lru_cache(maxsize=4)
def codec_cost(channels: int, crop_size: int) -> CodecCost:
    """The codec of so many latent channels: 48 Wan2.2's, 16 Wan2.1's, else a `BlockCodec`.

    Raises:
        InputError: Its latent cells do not divide the crop.
    """
    name, codec, spatial = _codec(channels)
    if crop_size % spatial:
        raise InputError(f"crop_size {crop_size} with {name}", f"a multiple of {spatial}")
    side = crop_size // spatial
    counts, kept = [], []
    for latent_frames in (1, 2):
        video = torch.empty(1, 3, TEMPORAL_FACTOR * (latent_frames - 1) + 1, crop_size, crop_size, device="meta")
        latents = torch.empty(1, channels, latent_frames, side, side, device="meta")
        with torch.no_grad(), FlopCounterMode(display=False) as encoding:
            codec.encode(video)
        with FlopCounterMode(display=False) as decoding:
            kept.append(kept_bytes(codec, latents.requires_grad_()))
        counts.append((encoding.get_total_flops(), decoding.get_total_flops()))
    (encode, decode), (encode_two, decode_two) = counts
    return CodecCost(
        name=name,
        spatial=spatial,
        channels=channels,
        parameters=sum(value.numel() for value in codec.parameters()),
        encode=(encode, encode_two - encode),
        decode=(decode, decode_two - decode),
        decode_kept=(kept[0], kept[1] - kept[0]),
    )


def kept_bytes(codec: Any, latents: Tensor) -> int:
    """Bytes that autograd keeps of a decoding, its weights left out."""
    own = {id(value) for value in codec.parameters()} | {id(value) for value in codec.buffers()}
    storages: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        if id(tensor) not in own:
            storage = tensor.untyped_storage()
            storages[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        codec.decode(latents)
    return sum(storage.nbytes() for storage in storages.values())


def critic_flops(phase: PhaseName, crop_size: int, frames: int, judged: int) -> int:
    """FLOPs of the pixel losses' critics on one sample, the decoded frames' gradients included.

    Args:
        phase: `lip` has the SyncNet, `texture` identity and perceptual encoder, the others none.
        crop_size: Side of the crops.
        frames: Decoded frames, all of which the SyncNet sees.
        judged: Frames that the texture phase's critics see.
    """
    if phase not in ("lip", "texture"):
        return 0
    seen = frames if phase == "lip" else judged
    with torch.device("meta"):
        target = torch.empty(1, 3, seen, crop_size, crop_size)
        decoded = torch.empty_like(target, requires_grad=True)
        if phase == "lip":
            syncnet = SyncNet().requires_grad_(False)
            sound = torch.empty(1, 2 * seen, syncnet.config.audio_features)
        else:
            identity, perceptual = IdentityEncoder(), PerceptualEncoder()
            critics = (
                identity.requires_grad_(False).distance,
                video_distance(perceptual.requires_grad_(False)),
            )
        with FlopCounterMode(display=False) as counter:
            if phase == "lip":
                syncnet.distance(decoded, sound).sum().backward()
            else:
                torch.stack([critic(decoded, target).sum() for critic in critics]).sum().backward()
    return int(counter.get_total_flops())


def _codec(channels: int) -> tuple[str, Any, int]:
    from diffusers import AutoencoderKLWan

    with torch.device("meta"):
        if channels in (16, 48):
            vae: Any = AutoencoderKLWan(**(WAN22_VAE if channels == 48 else {}))
            vae.requires_grad_(False)
            return f"Wan2.{2 if channels == 48 else 1} VAE", vae, int(vae.config.scale_factor_spatial)
        codec = BlockCodec().requires_grad_(False)
    if channels != codec.latent_channels:
        raise InputError(f"{channels} latent channels", f"16 (Wan2.1), 48 (Wan2.2) or {codec.latent_channels} (ours)")
    return "BlockCodec", codec, codec.spatial_factor
