"""A registered dubber of random weights, a face and some speech: everything a server needs, in seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from model_code.avatars.clipspec import draw_spec, render_spec
from model_code.avatars.seeds import head_seed
from model_code.backbones.audio import AudioEncoder, AudioEncoderConfig
from model_code.backbones.codec import BlockCodec, BlockCodecConfig
from model_code.backbones.transformer import DubbingTransformer
from model_code.config import FlowConfig, TransformerConfig
from model_code.dubbing.model import DubberConfig, DubbingPipelineModel
from model_code.media.sample import wav_bytes
from model_code.media.video import write_video
from xdub_platform.resources.mlflow import MlflowRuns

NAME = "xdub-dubber"
SIZE = 96
SHAPE = TransformerConfig(
    dim=24,
    num_layers=1,
    num_heads=2,
    ffn_dim=32,
    freq_dim=16,
    in_channels=12,
    out_channels=12,
    audio_dim=8,
    audio_inner_dim=16,
    audio_heads=2,
    audio_layers=1,
    refiner_width=8,
    refiner_layers=1,
)


def write_model(folder: Path, seed: int = 0) -> Path:
    """A whole dubber with random weights."""
    torch.manual_seed(seed)
    codec = BlockCodec(BlockCodecConfig(channels=12, refiner_width=8, refiner_blocks=1))
    codec.fit(0.3 * torch.randn(3000, 768, generator=torch.Generator().manual_seed(seed)))
    flow = FlowConfig(sampling_steps=1, audio_guidance=1.0)
    config = DubberConfig(mode="editor", flow=flow, crop_size=SIZE, noise_retries=0)  # random weights give noise
    audio_encoder = AudioEncoder(AudioEncoderConfig(width=16, features=8))
    DubbingPipelineModel(config, codec.eval(), audio_encoder.eval(), DubbingTransformer.build(SHAPE)).save_pretrained(
        folder
    )
    return folder


def register(runs: MlflowRuns, model: Path, alias: str | None = "champion") -> int:
    """Registers a model as it lies there."""
    with runs.run("dubber") as run:
        run.artifact(model, "model")
        return run.register(NAME, "model", alias=alias)


def write_face(path: Path, frames: int = 6) -> Path:
    """A short clip of a rendered head."""
    spec = draw_spec(head_seed("FRESH", 910), 0, kind="natural", condition="plain", seconds=(1.0, 1.1))
    rendered, _ = render_spec(spec, 192)
    write_video(path, rendered.frames[:frames], crf=12)
    return path


def write_speech(path: Path, seconds: float = 0.24, seed: int = 0) -> Path:
    """Noise that swells."""
    noise = np.random.default_rng(seed).normal(0, 0.1, round(seconds * 16_000))
    path.write_bytes(wav_bytes((noise * (0.5 + 0.5 * np.sin(np.arange(len(noise)) / 1500))).astype(np.float32)))
    return path


def damage(runs: MlflowRuns, version: int) -> None:
    """Changes one byte of a registered model's weights."""
    folder = runs.model_path(NAME, str(version))
    assert folder is not None
    weights = next((folder / "transformer").glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)


def champion(runs: MlflowRuns, version: int) -> None:
    """Points the alias."""
    runs.set_alias(NAME, "champion", version)
