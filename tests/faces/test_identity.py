"""The identity encoder tells synthetic faces apart, whatever mouth and light do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model_code.errors import InputError
from model_code.faces.identity import IdentityEncoder, identity_cosine
from model_code.training.identity import best_accuracy, train_identity, verification_accuracy


@dataclass
class Clip:
    frames: np.ndarray
    row: dict[str, Any]


def clip(speaker: int, take: int) -> Clip:
    """A face of ellipses: shape and colours of the speaker, mouth and light of the take."""
    who, how = np.random.default_rng(speaker), np.random.default_rng((speaker, take))
    skin, hair = who.uniform(90, 220, 3), who.uniform(10, 120, 3)
    radii, eyes, nose = who.uniform(24, 40, 2), who.uniform(10, 18), who.uniform(3, 9)
    y, x = np.mgrid[:96, :96]
    frames = []
    for _ in range(4):
        picture = np.broadcast_to(how.uniform(0, 255, 3), (96, 96, 3)).copy()
        cx, cy = 48 + how.normal(0, 1.5, 2)
        face = ((x - cx) / radii[0]) ** 2 + ((y - cy) / radii[1]) ** 2 < 1
        picture[face] = skin
        picture[face & (y < cy - radii[1] * 0.55)] = hair
        for side in (-eyes, eyes):
            picture[(x - cx - side) ** 2 + (y - cy + 8) ** 2 < 12] = 20
        picture[(abs(x - cx) < nose) & (abs(y - cy - 2) < 5)] = 0.7 * skin
        picture[((x - cx) / 9) ** 2 + ((y - cy - 18) / how.uniform(1, 7)) ** 2 < 1] = 60
        frames.append(np.clip(picture * how.uniform(0.7, 1.2) + how.normal(0, 3, picture.shape), 0, 255))
    return Clip(np.stack(frames).astype(np.uint8), {"speaker_id": f"s{speaker:02d}"})


@pytest.fixture(scope="module")
def trained() -> tuple[IdentityEncoder, dict[str, Any]]:
    train = [clip(speaker, take) for speaker in range(12) for take in range(3)]
    heldout = [clip(speaker, take) for speaker in range(50, 55) for take in range(2)]
    return train_identity(train, heldout, steps=60, batch_size=24)


def test_verifies_speakers(trained: tuple[IdentityEncoder, dict[str, Any]]) -> None:
    assert trained[1]["accuracy_same_speakers"] > 0.9
    assert trained[1]["accuracy_heldout_speakers"] > 0.75
    assert trained[1]["speakers"] == 12


def test_vectors_and_loss(trained: tuple[IdentityEncoder, dict[str, Any]], tmp_path: Path) -> None:
    encoder = trained[0]
    vectors = encoder.embed(clip(0, 0).frames)
    assert vectors.shape == (4, 128)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert identity_cosine(vectors, vectors) == pytest.approx(1)
    assert identity_cosine(vectors, encoder.embed(clip(1, 0).frames)) < 0.7
    video = torch.rand(2, 3, 5, 64, 64, requires_grad=True)
    distance = encoder.distance(video, torch.rand(2, 3, 5, 64, 64))
    assert distance.shape == (2,)
    distance.sum().backward()
    assert video.grad is not None
    assert float(video.grad.abs().max()) > 0
    encoder.save_pretrained(tmp_path)
    again = IdentityEncoder.from_pretrained(tmp_path).embed(clip(0, 0).frames)
    assert float((again * vectors).sum(1).min()) > 0.999


@pytest.mark.parametrize("seed", range(20))
def test_the_best_accuracy_is_that_of_every_threshold_tried(seed: int) -> None:
    rng = np.random.default_rng(seed)
    same, others = rng.normal(0.6, 0.3, rng.integers(1, 80)), rng.normal(0.3, 0.3, rng.integers(1, 80))
    if seed % 2:  # many of one value
        same, others = same.round(1), others.round(1)
    same, others = same.astype(np.float32), others.astype(np.float32)
    thresholds = np.concatenate([same, others])[:, None]
    expected = (((same >= thresholds).mean(1) + (others < thresholds).mean(1)) / 2).max()
    assert best_accuracy(same, others) == expected


def test_the_best_accuracy_of_many_pairs_takes_no_table_of_them() -> None:
    """Of every threshold against every pair it would be 2e11 cells."""
    same, others = (np.random.default_rng(0).normal(mean, 1, 300_000) for mean in (1, -1))
    assert best_accuracy(same, others) == pytest.approx(0.8413, abs=0.005)


def test_verification_measures_the_best_threshold(trained: tuple[IdentityEncoder, dict[str, Any]]) -> None:
    twice = [clip(7, 0), clip(7, 0), clip(8, 0), clip(8, 0)]
    assert verification_accuracy(trained[0], twice) == 1
    assert verification_accuracy(trained[0], twice[:2]) is None


def test_one_speaker_is_too_few() -> None:
    with pytest.raises(InputError, match="learns from several"):
        train_identity([clip(0, 0)], [])
