"""Latent codecs: shapes, causality, inversion, storage."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from model_code.backbones.codec import BlockCodec, BlockCodecConfig, LatentCodec, WanCodec
from model_code.errors import InputError
from model_code.training.codec import CodecTrainingConfig, train_codec


def random_video(frames: int = 9, size: int = 32) -> torch.Tensor:
    return torch.rand(2, 3, frames, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def full_codec() -> BlockCodec:
    """All 768 components: the linear transform loses nothing."""
    torch.manual_seed(0)
    codec = BlockCodec(BlockCodecConfig(channels=768, refiner_width=8, refiner_blocks=1))
    codec.fit(torch.randn(3000, 768))
    return codec


def tiny_wan() -> WanCodec:
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    vae = AutoencoderKLWan(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1] * 4,
        latents_std=[0.5] * 4,
    )
    return WanCodec(vae).eval()


def test_block_transform_is_inverted(full_codec: BlockCodec) -> None:
    video = random_video()
    torch.testing.assert_close(full_codec.decode(full_codec.encode(video)), video, atol=2e-4, rtol=0)


def test_block_codec_latents_have_unit_variance_and_scaled_channels() -> None:
    blocks = torch.randn(4_000, 768, generator=torch.Generator().manual_seed(0)) * torch.linspace(3, 0.1, 768)
    for whitening in (0.0, 0.5):
        codec = BlockCodec(BlockCodecConfig(whitening=whitening))
        codec.fit(blocks)
        latents = (blocks - codec.mean) @ codec.basis / codec.scale
        assert float(latents.square().mean()) == pytest.approx(1.0, abs=0.1)
        spread = latents.std(0)
        expected = (codec.deviation[0] / codec.deviation[-1]) ** (1 - whitening)
        assert float(spread[0] / spread[-1]) == pytest.approx(float(expected), rel=0.05)


@pytest.mark.parametrize("make", [lambda: BlockCodec(BlockCodecConfig(refiner_width=16)), tiny_wan])
def test_codec_interface(make, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    codec = make()
    assert isinstance(codec, LatentCodec)
    video = random_video()
    latents = codec.encode(video)
    assert latents.shape == (2, codec.latent_channels, 3, 32 // codec.spatial_factor, 32 // codec.spatial_factor)
    torch.testing.assert_close(codec.encode(video[:, :, :1]), latents[:, :, :1], atol=1e-4, rtol=1e-4)
    latents.requires_grad_(True)
    output = codec.decode(latents)
    assert output.shape == video.shape
    (gradient,) = torch.autograd.grad(output.square().mean(), latents)
    assert gradient.abs().sum() > 0
    codec.save_pretrained(tmp_path)
    again = type(codec).from_pretrained(tmp_path)
    torch.testing.assert_close(again.encode(video), latents.detach(), atol=2e-2, rtol=2e-2)
    with pytest.raises(InputError, match="10 frames"):
        codec.encode(random_video(frames=10))
    with pytest.raises(InputError, match="36x36"):
        codec.encode(random_video(size=36))


def wan_22() -> WanCodec:
    """In the form of Wan2.2's: 2x2 pixels enter and leave as channels, residual blocks."""
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    vae = AutoencoderKLWan(
        base_dim=8, decoder_base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
        temperal_downsample=[False, True, True], latents_mean=[0.1] * 4, latents_std=[0.5] * 4,
        is_residual=True, in_channels=12, out_channels=12, patch_size=2, scale_factor_spatial=16,
    )  # fmt: skip
    return WanCodec(vae).eval()


@pytest.mark.parametrize("make", [lambda: shaken(BlockCodec(BlockCodecConfig(refiner_width=16))), tiny_wan, wan_22])
@pytest.mark.parametrize("pieces", [(12,), (1, 1, 1, 9), (5, 7), (4, 4, 3, 1)])
def test_pieces_are_the_whole(make: Callable[[], LatentCodec], pieces: tuple[int, ...]) -> None:
    """Also while others encode and decode in between."""
    codec = make()
    latents = torch.randn(1, codec.latent_channels, 12, 2, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole, decoder, parts = codec.decode(latents), codec.in_pieces(), []
        for index, piece in enumerate(latents.split(pieces, dim=2)):
            parts.append(decoder.push(piece, last=index + 1 == len(pieces)))
            codec.decode(codec.encode(torch.zeros(1, 3, 5, 32, 32)))
    torch.testing.assert_close(torch.cat(parts, dim=2), whole, atol=1e-5, rtol=0)


def shaken(codec: BlockCodec) -> BlockCodec:
    """With a refiner that says something: it starts as zero."""
    torch.manual_seed(0)
    torch.nn.init.normal_(codec.refiner.conv_out.weight, std=0.1)
    return codec


def test_block_codec_refuses_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no"):
        BlockCodec.from_pretrained(tmp_path)


def moving_faces(count: int, seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Smooth colour fields with a moving dark ellipse for a mouth, and landmarks around it."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:96, :96] + 0.5
    crops, landmarks = [], []
    for _ in range(count):
        tint, slope = rng.uniform(80, 200, 3), rng.uniform(-0.5, 0.5, (2, 3))
        frames, points = [], []
        for t in range(17):
            image = tint + (x[..., None] - 48) * slope[0] + (y[..., None] - 48) * slope[1]
            opening = 4 + 3 * np.sin(0.9 * t)
            inside = ((x - 48) / 12) ** 2 + ((y - 66) / opening) ** 2
            image = image * np.clip(inside[..., None] - 0.5, 0.2, 1)
            frames.append(np.clip(image, 0, 255).astype(np.uint8))
            lips = np.full((68, 2), 48, np.float32)
            angle = np.linspace(0, 2 * np.pi, 20)
            lips[48:] = np.stack([48 + 12 * np.cos(angle), 66 + opening * np.sin(angle)], 1)
            points.append(lips)
        crops.append(np.stack(frames))
        landmarks.append(np.stack(points))
    return crops, landmarks


def test_training_improves_on_the_linear_inverse_and_repeats(tmp_path: Path) -> None:
    crops, landmarks = moving_faces(6, 0)
    heldout_crops, heldout_landmarks = moving_faces(2, 1)
    config = CodecTrainingConfig(
        codec=BlockCodecConfig(channels=8, refiner_width=24, refiner_blocks=1), pca_blocks=6000, batch_size=4
    )
    cards = [
        train_codec(
            crops, landmarks, tmp_path / name, 40, 3,
            heldout_crops=heldout_crops, heldout_landmarks=heldout_landmarks, config=config,
        )
        for name in ("a", "b")
    ]  # fmt: skip
    assert float(cards[0]["lips_db"]) > float(cards[0]["linear_lips_db"]) + 0.3  # type: ignore[arg-type]
    assert json.loads((tmp_path / "a" / "card.json").read_text())["lips_db"] == cards[0]["lips_db"]
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
