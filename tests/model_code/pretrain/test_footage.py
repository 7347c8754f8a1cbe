"""Footage of the base: each head twice, and what the prior learns from it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model_code.backbones.audio import AudioEncoder
from model_code.backbones.codec import BlockCodec, BlockCodecConfig
from model_code.config import PhaseConfig, PretrainConfig, TransformerConfig
from model_code.faces.masks import face_mask
from model_code.media.sample import ClipSample
from model_code.pretrain.footage import Footage, load_footage, render_footage
from model_code.training.prior import train_prior

CONFIG = PretrainConfig(heads=1, seconds=1.2, frame_size=96, crop_size=48, processes=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("footage")
    told: list[tuple[int, int]] = []
    render_footage(folder, CONFIG, lambda done, total: told.append((done, total)))
    assert told == [(1, 1)]
    render_footage(folder, CONFIG, lambda done, total: pytest.fail("is there already"))
    return folder


@pytest.fixture(scope="module")
def head(folder: Path) -> Footage:
    [loaded] = load_footage(folder, CONFIG, [0])
    return loaded


def test_the_other_clip_differs_where_speech_moves_the_face(head: Footage) -> None:
    clip, other = head.sample, head.other
    assert clip.clip_id != other.clip_id
    assert clip.frames.shape == other.frames.shape
    assert np.array_equal(clip.boxes, other.boxes)
    assert not np.array_equal(clip.audio, other.audio)
    size = clip.frames.shape[1]
    face = face_mask(clip.landmarks, size) | face_mask(other.landmarks, size)
    difference = np.abs(clip.frames.astype(int) - other.frames.astype(int)).mean(-1)
    assert difference[face].mean() > 5 * difference[~face].mean()
    np.testing.assert_allclose(clip.landmarks[:, 36:48], other.landmarks[:, 36:48], atol=0.6)  # eyes


def test_a_head_that_was_not_rendered_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="pair_00000"):
        list(load_footage(tmp_path, CONFIG, [0]))


@pytest.mark.parametrize("other", [{"seed": 1}, {"seconds": 1.1}, {"frame_size": 64}, {"crop_size": 32}])
def test_footage_of_other_settings_is_not_taken_for_these(other: dict[str, float], folder: Path) -> None:
    assert len(list(load_footage(folder, CONFIG.model_copy(update={"codec_steps": 1}), [0]))) == 1
    with pytest.raises(FileNotFoundError, match="pair_00000"):
        list(load_footage(folder, CONFIG.model_copy(update=other), [0]))


def named(head: Footage, number: int) -> tuple[ClipSample, ClipSample]:
    first, second = (replace(clip, clip_id=f"{number}-{clip.clip_id}") for clip in (head.sample, head.other))
    return first, second


def prior(footage: list[tuple[ClipSample, ClipSample]], out: Path, work: Path) -> dict[str, Any]:
    """Trained for two steps on a random codec's latents, without the last head."""
    torch.manual_seed(0)
    codec, encoder = BlockCodec(BlockCodecConfig(channels=8, refiner_width=8, refiner_blocks=1)), AudioEncoder()
    shape = TransformerConfig(
        dim=24, num_layers=1, num_heads=2, ffn_dim=24, freq_dim=16, in_channels=8, out_channels=8, audio_inner_dim=16,
        audio_heads=2, audio_layers=1, refiner_width=8, refiner_layers=1,
    )  # fmt: skip
    phase = PhaseConfig(phase="base", steps=2, batch_size=2, cells=4, own_estimates=0.5)
    learned, heldout = iter(footage[:-1]), iter(footage[-1:])
    return train_prior(learned, codec, encoder, out, phase, shape, heldout=heldout, work_dir=work)


def test_both_clips_of_a_head_are_learned_or_held_out(head: Footage, tmp_path: Path) -> None:
    footage = [named(head, number) for number in range(4)]
    cards = [prior(footage, tmp_path / out, tmp_path / "work") for out in ("first", "resumed")]
    assert cards[0]["data"]["clips"] == 2 * len(footage)
    assert cards[0]["data"]["held_out_clips"] == 2
    assert json.loads((tmp_path / "first" / "card.json").read_text(encoding="utf-8")) == cards[0]
    assert np.isfinite(list(cards[0]["scores"].values())).all()
    assert cards[1]["scores"] == cards[0]["scores"]
    assert len(list((tmp_path / "work" / "checkpoints").iterdir())) == 1


def test_as_many_frames_of_other_footage_are_another_run(head: Footage, tmp_path: Path) -> None:
    mirrored = replace(
        head,
        sample=replace(head.sample, frames=head.sample.frames[:, :, ::-1]),
        other=replace(head.other, frames=head.other.frames[:, :, ::-1]),
    )
    for name, learned in (("first", head), ("other", mirrored)):
        prior([named(learned, 0), named(head, 1)], tmp_path / name, tmp_path / "work")
    assert len(list((tmp_path / "work" / "checkpoints").iterdir())) == 2
