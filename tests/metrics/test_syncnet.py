"""SyncNet on lips that truly follow the sound, and on lips that do not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model_code.metrics.syncnet import SyncNet, fit_features, sync_scores
from model_code.training.syncnet import sync_accuracy, train_syncnet
from tests.tiny import SyncExample


def talking_patch(seed: int, n_frames: int = 60) -> SyncExample:
    """A dark ellipse on noise whose height is the first audio feature and whose width is the second."""
    rng = np.random.default_rng(seed)
    tracks = np.stack([np.convolve(rng.normal(size=n_frames + 8), np.ones(3) / 3, "same")[4:-4] for _ in range(2)], 1)
    frames = np.empty((n_frames, 96, 96, 3), np.uint8)
    y, x = np.mgrid[:96, :96]
    for frame, (tall, wide) in zip(frames, 6 + 4 * np.tanh(2 * tracks), strict=True):
        frame[:] = rng.integers(120, 140, (96, 96, 3))
        frame[((y - 72) / tall) ** 2 + ((x - 48) / (wide + 8)) ** 2 < 1] = 30
    features = rng.normal(0, 0.3, (2 * n_frames, 64)).astype(np.float32)
    features[:, :2] += 3 * np.repeat(tracks, 2, axis=0)
    return SyncExample(frames, features)


@pytest.fixture(scope="module")
def trained() -> tuple[SyncNet, dict[str, object], list[SyncExample]]:
    heldout = [talking_patch(1000 + i) for i in range(4)]
    model, report = train_syncnet([talking_patch(i) for i in range(12)], heldout, steps=50, batch_size=6)
    return model, report, heldout


def test_learns_and_repeats(trained: tuple[SyncNet, dict[str, object], list[SyncExample]]) -> None:
    _, report, heldout = trained
    assert float(str(report["accuracy"])) > 0.9
    short = [train_syncnet(heldout, [], steps=2, batch_size=2, seed=3)[1]["losses"] for _ in range(2)]
    assert short[0] == short[1]


@pytest.mark.parametrize("late", [-6, 0, 5])
def test_finds_the_offset(trained: tuple[SyncNet, dict[str, object], list[SyncExample]], late: int) -> None:
    model, _, heldout = trained
    for example in heldout[:2]:
        features = np.roll(example.features, 2 * late, axis=0)  # sound that comes `late` frames after the lips
        scores = sync_scores(model, example.frames, features)
        assert scores.offset == late
        assert scores.sync_c > 0.1
        assert scores.sync_d == pytest.approx(float(scores.curve.min()))
        assert len(scores.curve) == 31


def test_distance_is_small_in_sync_and_pulls_the_picture(
    trained: tuple[SyncNet, dict[str, object], list[SyncExample]],
) -> None:
    model, _, (first, second, *_) = trained
    video = torch.from_numpy(first.frames[:13]).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    video.requires_grad_()
    right = model.distance(video, torch.from_numpy(first.features[:26])[None])
    wrong = model.distance(video, torch.from_numpy(second.features[:26])[None])
    assert right.shape == (1,)
    assert right.item() < wrong.item()
    wrong.sum().backward()
    gradient = video.grad
    assert gradient is not None
    assert float(gradient[..., 48:, :].abs().max()) > 0
    assert float(gradient[..., :48, :].abs().max()) == 0


def test_cosines_lie_between_zero_and_one() -> None:
    model = SyncNet().eval()
    vectors = model.embed_audio(torch.randn(2, 40, 64))
    assert vectors.shape == (2, 13, 128)
    assert torch.allclose(vectors.norm(dim=-1), torch.ones(2, 13))
    assert float(vectors.min()) >= 0


def test_short_clips_and_features() -> None:
    features = np.arange(6, dtype=np.float32).reshape(3, 2)
    assert fit_features(features, 3)[:, 0].tolist() == [0, 2, 4, 4, 4, 4]
    with pytest.raises(ValueError, match="at least 12"):
        sync_scores(SyncNet().eval(), np.zeros((9, 96, 96, 3), np.uint8), np.zeros((18, 64), np.float32))
    with pytest.raises(ValueError, match="at least 21 frames"):
        train_syncnet([], [])
    assert sync_accuracy(SyncNet().eval(), []) == 0
