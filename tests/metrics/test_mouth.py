"""Mouth measures on constructed curves with known answers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_code.metrics.mouth import (
    bootstrap,
    correlation,
    partial_correlation,
    ratio,
    silence_share,
    sum_moments,
    wrong_audio_moments,
)


def _signals(count: int, length: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((length, 3)) for _ in range(count)]


def mouth_correlation(outputs: list[np.ndarray], references: list[np.ndarray]) -> np.ndarray:
    """(3,) of outputs with references, clips pooled."""
    return correlation(sum_moments(outputs, references).sum(0))


def leak(outputs: list[np.ndarray], inputs: list[np.ndarray], references: list[np.ndarray]) -> np.ndarray:
    """(3,) of outputs with inputs, given the references."""
    return partial_correlation(sum_moments(outputs, inputs, references).sum(0))


def test_identical_curves_correlate_fully_and_negated_ones_against() -> None:
    references = _signals(3, 50)
    np.testing.assert_allclose(mouth_correlation(references, references), 1)
    np.testing.assert_allclose(mouth_correlation([-r for r in references], references), -1)


def test_a_heads_resting_mouth_does_not_count() -> None:
    references = _signals(4, 40)
    shifted = [reference + 10 * i for i, reference in enumerate(references)]
    np.testing.assert_allclose(mouth_correlation(shifted, references), 1)


def test_pooled_correlation_is_that_of_the_concatenated_centred_curves() -> None:
    references, outputs = _signals(3, 60, 1), _signals(3, 60, 2)
    a = np.concatenate([c - c.mean(0) for c in references])
    b = np.concatenate([c - c.mean(0) for c in outputs])
    expected = [np.corrcoef(a[:, k], b[:, k])[0, 1] for k in range(3)]
    np.testing.assert_allclose(mouth_correlation(outputs, references), expected)


@given(st.floats(0.05, 3), st.floats(0.05, 3))
def test_known_mixture_has_known_correlation(signal: float, noise: float) -> None:
    t = np.arange(400) * 2 * np.pi / 100
    reference, other = np.tile(np.sin(t)[:, None], 3), np.tile(np.sin(2 * t)[:, None], 3)
    value = mouth_correlation([signal * reference + noise * other], [reference])
    np.testing.assert_allclose(value, signal / np.hypot(signal, noise), rtol=1e-9)


def test_leak_is_zero_for_a_faithful_dub_and_one_for_a_copy() -> None:
    references, inputs, noise = _signals(20, 400, 3), _signals(20, 400, 4), _signals(20, 400, 5)
    faithful = [reference + 0.5 * n for reference, n in zip(references, noise, strict=True)]
    assert np.abs(leak(faithful, inputs, references)).max() < 0.05
    np.testing.assert_allclose(leak(inputs, inputs, references), 1)


def test_leak_of_a_known_mixture() -> None:
    t = np.arange(500) * 2 * np.pi / 100
    reference, source, noise = (np.tile(np.sin(k * t)[:, None], 3) for k in (1, 2, 3))
    # given the reference only 0.3 source + 0.4 noise is left: partial correlation 0.3 / 0.5
    output = reference + 0.3 * source + 0.4 * noise
    np.testing.assert_allclose(leak([output], [source], [reference]), 0.6, rtol=1e-9)


def test_leak_does_not_blame_an_input_that_says_the_same() -> None:
    rng = np.random.default_rng(6)
    reference = rng.standard_normal((20000, 3))
    source = 0.8 * reference + 0.6 * rng.standard_normal(reference.shape)
    output = reference + 0.5 * rng.standard_normal(reference.shape)
    assert mouth_correlation([output], [source]).min() > 0.6
    assert np.abs(leak([output], [source], [reference])).max() < 0.03


def test_wrong_audio_control_is_near_zero_and_sees_a_constant_tune() -> None:
    references, texts = _signals(10, 200, 7), [str(i) for i in range(10)]
    assert np.abs(correlation(wrong_audio_moments(references, references, texts).sum((0, 1)))).max() < 0.05
    same = [references[0]] * 4
    np.testing.assert_allclose(correlation(wrong_audio_moments(same, same, texts[:4]).sum((0, 1))), 1)
    with pytest.raises(ValueError, match="two different sentences"):
        wrong_audio_moments(references[:2], references[:2], ["a", "a"])


def test_the_same_sentence_twice_is_no_wrong_audio() -> None:
    references = _signals(10, 200, 7)
    doubled, texts = references * 2, [str(i) for i in range(10)] * 2
    assert np.abs(correlation(wrong_audio_moments(doubled, doubled, texts).sum((0, 1)))).max() < 0.05


def test_lengths_are_cut_to_the_shortest() -> None:
    reference = _signals(1, 80)[0]
    np.testing.assert_allclose(mouth_correlation([reference[:60]], [reference]), 1)


def test_bootstrap_interval_of_a_mean_matches_the_normal_one() -> None:
    values = np.random.default_rng(8).normal(3.0, 2.0, 400)
    columns = np.stack([values, np.ones_like(values)], 1)
    estimate = bootstrap(columns, ratio, rng=np.random.default_rng(0), draws=4000)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.03)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.03)


def test_bootstrap_repeats_and_does_not_move_for_equal_clips() -> None:
    references, outputs = _signals(6, 50, 9), _signals(6, 50, 10)
    per_clip = sum_moments(outputs, references)

    def opening(sums: np.ndarray) -> np.ndarray:
        return correlation(sums)[:, 0]

    first = bootstrap(per_clip, opening, rng=np.random.default_rng(1))
    assert first == bootstrap(per_clip, opening, rng=np.random.default_rng(1))
    assert first.low is not None
    assert first.high is not None
    assert first.low <= first.value <= first.high
    equal = bootstrap(np.repeat(per_clip[:1], 5, 0), opening, rng=np.random.default_rng(1))
    assert equal.low == pytest.approx(equal.high)


@pytest.mark.parametrize("of_pairs", [False, True])
@pytest.mark.parametrize(("clips", "told"), [(1, False), (4, False), (5, True)])
def test_few_clips_give_no_interval(clips: int, told: bool, of_pairs: bool) -> None:
    values = np.random.default_rng(12).uniform(1, 2, (clips, clips, 2) if of_pairs else (clips, 2))
    found = bootstrap(values, ratio, rng=np.random.default_rng(0), of_pairs=of_pairs)
    assert np.isfinite(found.value)
    assert (found.low is not None, found.high is not None) == (told, told)


@pytest.mark.parametrize(("known", "told"), [(1, False), (2, False), (6, True), (8, True)])
def test_few_clips_that_count_give_no_interval(known: int, told: bool) -> None:
    """Draws without any of them have no value: neither the mean of nothing nor the correlation of still mouths."""
    counts = (np.arange(8) < known).astype(float)
    mean = bootstrap(np.stack([3 * counts, counts], 1), ratio, rng=np.random.default_rng(0))
    outputs = [curves * moves for curves, moves in zip(_signals(8, 50, 13), counts, strict=True)]
    per_clip = sum_moments(outputs, _signals(8, 50, 14))
    moving = bootstrap(per_clip, lambda sums: correlation(sums)[:, 0], rng=np.random.default_rng(0))
    assert mean.value == 3
    for found in (mean, moving):
        assert (found.low is not None, found.high is not None) == (told, told)


def test_silence_share() -> None:
    full = np.linspace(0.1, 0.6, 30)
    assert silence_share(np.full(10, 0.15), np.full(10, 0.10), full) == pytest.approx(0.1)
    assert silence_share(np.full(10, 0.10), np.full(10, 0.10), full) == pytest.approx(0.0)


def test_drawing_a_clip_draws_its_pairs_with_the_others() -> None:
    """Against the sums spelled out, clip by drawn clip."""
    pairs = np.random.default_rng(11).uniform(1, 2, (5, 5, 2))
    found = bootstrap(pairs, ratio, rng=np.random.default_rng(3), draws=200, of_pairs=True)
    counts = np.random.default_rng(3).multinomial(5, np.full(5, 1 / 5), size=200)
    values = []
    for drawn in (np.repeat(np.arange(5), count) for count in counts):
        total = sum(pairs[i, j] for i in drawn for j in drawn)
        values.append(total[0] / total[1])
    assert found.value == pytest.approx(pairs[..., 0].sum() / pairs[..., 1].sum())
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])))
