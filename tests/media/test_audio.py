"""Spectra and resampling, against known sounds."""

from __future__ import annotations

import numpy as np
import pytest

from model_code.media.audio import SAMPLE_RATE, log_mel, mel_power, resample


def tone(hertz: float, seconds: float = 0.5, rate: int = SAMPLE_RATE) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize("count", [0, 1, 159, 160, 161, 16_000])
def test_a_hundred_frames_a_second(count: int) -> None:
    samples = np.zeros(count, np.float32)
    assert log_mel(samples).shape == (-(-count // 160), 80)
    assert np.allclose(log_mel(samples), -1.0, atol=1e-5)


def test_a_tone_lies_in_its_band() -> None:
    bands = [int(mel_power(tone(hertz))[20].argmax()) for hertz in (200, 1000, 3000, 6000)]
    edges = 2595 * np.log10(1 + np.array([40.0, 7800.0]) / 700)
    expected = [(2595 * np.log10(1 + hertz / 700) - edges[0]) / (edges[1] - edges[0]) * 81 - 1
                for hertz in (200, 1000, 3000, 6000)]  # fmt: skip
    assert np.abs(np.array(bands) - expected).max() < 1


def test_frame_looks_at_its_own_time() -> None:
    samples = np.zeros(16_000, np.float32)
    samples[8000:8160] = tone(1000, 0.01)
    assert int(mel_power(samples).sum(1).argmax()) == 50


def test_golden_values() -> None:
    sweep = (0.3 * np.sin(2 * np.pi * 4000 * (np.arange(16_000) / 16_000) ** 2 / 2)).astype(np.float32)
    spectrum = log_mel(sweep)
    assert spectrum[[10, 50, 90], [14, 40, 62]] == pytest.approx([1.1684, -0.1496, -1.0], abs=1e-3)


def test_ten_times_louder_is_a_constant_more() -> None:
    noise = np.random.default_rng(0).normal(0, 0.05, 4000).astype(np.float32)
    assert np.allclose(log_mel(noise * 10) - log_mel(noise), 2 / 2.5, atol=1e-4)


@pytest.mark.parametrize("rate", [8000, 22_050, 44_100, 48_000])
def test_resampling_keeps_a_tone(rate: int) -> None:
    result = resample(tone(440, rate=rate), rate)
    assert result.dtype == np.float32
    assert len(result) == 8000
    assert np.abs(result[500:-500] - tone(440)[500:-500]).max() < 0.01
