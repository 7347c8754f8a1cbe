"""The audio encoder: locality, chunks, windows, and the shipped one's skill."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from model_code import base
from model_code.backbones.audio import AudioEncoder, audio_windows, window_indices
from model_code.errors import InputError
from model_code.media.audio import log_mel


@pytest.fixture(scope="module")
def encoder() -> AudioEncoder:
    torch.manual_seed(0)
    return AudioEncoder().eval()


def noise(seconds: float) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, int(seconds * 16_000)).astype(np.float32)


def test_long_sound_in_chunks_equals_the_whole(encoder: AudioEncoder) -> None:
    samples = noise(47.013)
    mel = log_mel(samples)
    with torch.no_grad():
        whole = encoder(torch.from_numpy(mel[: len(mel) // 2 * 2])[None])[0].numpy()
    chunked = encoder.encode(samples)
    assert chunked.shape == (-(-len(samples) // 320), 64)
    assert np.abs(chunked[: len(whole) - encoder.reach] - whole[: -encoder.reach]).max() < 1e-4
    assert np.array_equal(encoder.encode(samples[:321_000], 400_000), encoder.encode(_silent_after(samples, 321_000)))
    assert np.array_equal(encoder.encode(samples, 30_000), encoder.encode(samples[:30_000]))


def _silent_after(samples: np.ndarray, count: int) -> np.ndarray:
    return np.pad(samples[:count], (0, 400_000 - count))


def test_a_change_of_sound_reaches_half_a_second(encoder: AudioEncoder) -> None:
    samples = noise(4)
    changed = samples.copy()
    changed[32_000:32_320] = 0
    moved = np.flatnonzero(np.abs(encoder.encode(changed) - encoder.encode(samples)).max(1) > 1e-6)
    assert 100 - encoder.reach <= moved[0] < 100 - encoder.reach + 8
    assert 100 + encoder.reach - 8 < moved[-1] <= 100 + encoder.reach
    assert encoder.reach == 26


@pytest.mark.parametrize("count", [0, 1, 319, 321, 640])
def test_short_sound(encoder: AudioEncoder, count: int) -> None:
    assert encoder.encode(np.zeros(count, np.float32)).shape == (-(-count // 320), 64)


def test_saved_in_half_precision_and_loaded(encoder: AudioEncoder, tmp_path: Path) -> None:
    encoder.save_pretrained(tmp_path)
    again = AudioEncoder.from_pretrained(tmp_path)
    assert again.config == encoder.config
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}
    assert np.abs(again.encode(noise(1)) - encoder.encode(noise(1))).max() < 0.02
    with pytest.raises(InputError, match="AudioEncoder"):
        AudioEncoder.from_pretrained(tmp_path / "none")


def test_windows_are_those_of_the_release(golden_dir: Path) -> None:
    golden = json.loads((golden_dir / "schedules.json").read_text())
    for start in (0, 8):
        expected = golden[f"audio_window_indices_start{start}_13frames"]
        count = max(max(row) for row in expected) + 1
        assert window_indices(count, len(expected), len(expected[0]), start).tolist() == expected


def test_a_wider_window_grows_evenly() -> None:
    narrow, wide = window_indices(200, 4, 8, 40), window_indices(200, 4, 16, 40)
    assert (wide[:, 4:12] == narrow).all()
    assert (np.diff(wide, axis=1) == 1).all()


def test_windows_of_arrays_and_tensors_agree() -> None:
    features = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    windows = audio_windows(features, 7, 16, 3)
    assert windows.shape == (7, 16, 6)
    assert np.array_equal(audio_windows(torch.from_numpy(features), 7, 16, 3).numpy(), windows)


def test_shipped_encoder_is_as_good_as_its_card_says() -> None:
    folder = base.FOLDER / "audio_encoder"
    if not (folder / "card.json").is_file():
        pytest.skip(f"no trained audio encoder in {folder}; restore it from git")
    from model_code.training.audio_encoder import heldout_scores

    card = json.loads((folder / "card.json").read_text())
    scores = heldout_scores(AudioEncoder.from_pretrained(folder))
    assert scores == pytest.approx(card["scores"], abs=0.005)
    assert scores["viseme_accuracy"] > 0.6
    assert scores["coefficient_r2"] > 0.5
