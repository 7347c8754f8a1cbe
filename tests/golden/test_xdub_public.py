"""The released model's numbers, on a tiny random configuration: XDUB_GOLDEN_DIR, any folder of that form."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from model_code.backbones.audio import window_indices
from model_code.backbones.transformer import DubbingTransformer
from model_code.config import TransformerConfig
from model_code.diffusion.guidance import Guidance, release_audio_scale, release_reference_scale
from model_code.diffusion.sampler import sample
from model_code.diffusion.schedule import sigmas
from model_code.dubbing.color import match_color

FOLDER = Path(
    os.environ.get("XDUB_GOLDEN_DIR", Path(__file__).resolve().parents[2].parent / "shared" / "golden" / "xdub_public")
)
pytestmark = pytest.mark.skipif(
    not (FOLDER / "config.json").is_file(),
    reason=f"no golden tensors in {FOLDER}: set XDUB_GOLDEN_DIR to the folder that holds them",
)


def tensors(name: str) -> dict[str, Tensor]:
    return load_file(FOLDER / f"{name}.safetensors")


@pytest.fixture(scope="module")
def model() -> DubbingTransformer:
    given = json.loads((FOLDER / "config.json").read_text())
    audio = given["audio"]
    shared = ("dim", "num_layers", "num_heads", "ffn_dim", "freq_dim", "in_channels", "out_channels", "text_dim")
    config = TransformerConfig(
        **{name: given[name] for name in shared},
        patch_size=tuple(given["patch_size"]),
        audio_dim=sum(audio["feature_channels"]),
        audio_window=tensors("tiny_io")["audio_feats"].shape[2],
        audio_inner_dim=audio["inner_dim"],
        audio_heads=audio["num_heads"],
        audio_layers=audio["num_layers"],
        positions=0,
        audio_modulation=False,
        residual=False,
        refiner_layers=0,
    )
    transformer = DubbingTransformer.build(config).eval()
    transformer.load_state_dict(tensors("tiny_model"))
    return transformer


@torch.no_grad()
def test_velocity(model: DubbingTransformer) -> None:
    io = tensors("tiny_io")
    latents, reference, audio, text = io["latents"], io["ref_latents"], io["audio_feats"], io["context"]
    times = io["timestep"][:, None].expand(-1, latents.shape[2]) / 1000
    motion_times = times.clone()
    motion_times[0, 0] = 0
    for name, output in {
        "velocity": model(latents, times, reference, audio, text),
        "velocity_motion": model(latents, motion_times, reference, audio, text),
        "velocity_no_ref_no_audio": model(latents, times, reference * 0, audio * 0, text),
    }.items():
        torch.testing.assert_close(output, io[name], atol=1e-4, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("motion", [False, True])
def test_whole_sampling_run(model: DubbingTransformer, motion: bool) -> None:
    given = tensors("tiny_denoise")
    result = sample(
        model,
        given["noise"],
        reference=given["ref_latents"],
        audio=given["audio_feats"],
        text=given["context"],
        times=sigmas(6, 5.0),
        guidance=Guidance.release(),
        prediction="v",
        motion=given["motion_latents"] if motion else None,
        border=True,
    )
    torch.testing.assert_close(result, given["denoised_with_motion" if motion else "denoised"], atol=1e-3, rtol=0)


def test_schedules() -> None:
    given = json.loads((FOLDER / "schedules.json").read_text())
    grid = given["t"]
    assert [release_reference_scale(t) for t in grid] == pytest.approx(given["ref_scale_init_2.5"], abs=2e-6)
    assert [release_audio_scale(t) for t in grid] == pytest.approx(given["audio_scale_init_10"], abs=2e-6)
    assert sigmas(30, 5.0)[:-1].tolist() == given["sigmas_30_steps_shift_5"]


@pytest.mark.parametrize("start", [0, 8])
def test_audio_windows(start: int) -> None:
    expected = json.loads((FOLDER / "schedules.json").read_text())[f"audio_window_indices_start{start}_13frames"]
    assert window_indices(10_000, len(expected), len(expected[0]), start).tolist() == expected


def test_color_correction() -> None:
    given = np.load(FOLDER / "color_correction.npz")
    np.testing.assert_array_equal(match_color(given["generated"], given["source"]), given["corrected"])
