from __future__ import annotations

import numpy as np
import pytest

from model_code.avatars.avatar import ARKIT_NAMES
from model_code.avatars.performance import MOTIONS, Motion, draw_performance, replace_speech
from model_code.seeding import rng_for
from model_code.speech.visemes import SPEECH_COEFFICIENTS

FRAMES = 100
SPOKEN = np.isin(ARKIT_NAMES, SPEECH_COEFFICIENTS)


def speech(phase: float) -> np.ndarray:
    mouth = np.zeros((FRAMES, 52), np.float32)
    mouth[:, ARKIT_NAMES.index("jawOpen")] = 0.3 + 0.3 * np.sin(np.arange(FRAMES) / 3 + phase)
    return mouth


@pytest.mark.parametrize("motion", MOTIONS)
def test_shapes_ranges_and_repetition(motion: Motion) -> None:
    first = draw_performance(rng_for("p", 1), speech(0), motion=motion)
    again = draw_performance(rng_for("p", 1), speech(0), motion=motion)
    assert first.coefficients.shape == (FRAMES, 52)
    assert first.rotation.shape == first.translation.shape == (FRAMES, 3)
    assert first.coefficients.min() >= 0
    assert first.coefficients.max() <= 1
    for name in ("coefficients", "rotation", "translation", "expression"):
        assert getattr(first, name).tobytes() == getattr(again, name).tobytes()
    assert np.abs(np.diff(first.rotation, axis=0)).max() < np.radians(6)


def test_profile_turns_35_to_60_degrees() -> None:
    for seed in range(6):
        yaw = np.degrees(np.abs(draw_performance(rng_for("q", seed), speech(0), motion="profile").rotation[:, 0]))
        assert yaw.min() >= 34.9
        assert yaw.max() <= 60.1


def test_heads_blink_every_few_seconds() -> None:
    counts = []
    for seed in range(12):
        lids = draw_performance(rng_for("b", seed), speech(0), motion="calm").coefficients[:, 0]
        closed = lids > 0.7
        counts.append(int((closed[1:] & ~closed[:-1]).sum() + closed[0]))
    assert 0.5 <= np.mean(counts) <= 3  # clips of 4 s


def test_another_speech_changes_the_mouth_alone_and_back_again_exactly() -> None:
    first = draw_performance(rng_for("s", 3), speech(0), motion="lively")
    other = replace_speech(first, speech(1.5))
    assert np.array_equal(other.rotation, first.rotation)
    assert np.array_equal(other.coefficients[:, ~SPOKEN], first.coefficients[:, ~SPOKEN])
    assert not np.array_equal(other.coefficients, first.coefficients)
    assert replace_speech(other, speech(0)).coefficients.tobytes() == first.coefficients.tobytes()


def test_a_mood_survives_silence() -> None:
    smiles = []
    for seed in range(8):
        silent = replace_speech(
            draw_performance(rng_for("m", seed), speech(0), motion="calm"), np.zeros((FRAMES, 52), np.float32)
        )
        smiles.append(silent.coefficients[:, ARKIT_NAMES.index("mouthSmileLeft")])
    assert max(smile.max() for smile in smiles) > 0.05
    assert all(np.ptp(smile) == 0 for smile in smiles)


def test_wrong_lengths_and_names_are_told() -> None:
    performance = draw_performance(rng_for("s", 3), speech(0), motion="calm")
    with pytest.raises(ValueError, match="shape"):
        replace_speech(performance, speech(0)[:-1])
    with pytest.raises(ValueError, match="motion"):
        draw_performance(rng_for("s", 3), speech(0), motion="frantic")  # type: ignore[arg-type]
