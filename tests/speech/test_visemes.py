"""Phonemes move the mouth as people's do."""

from __future__ import annotations

import numpy as np
import pytest

from model_code.avatars.avatar import ARKIT_NAMES
from model_code.seeding import rng_for
from model_code.speech.espeak import VOICES, Phoneme, synthesize
from model_code.speech.sentences import random_sentence, sentences
from model_code.speech.visemes import GROUPS, SPEECH_COEFFICIENTS, mouth_coefficients, phone_groups, phones


def column(coefficients: np.ndarray, name: str) -> np.ndarray:
    return coefficients[:, ARKIT_NAMES.index(name)]


def say(*symbols: str, each: float = 0.24) -> np.ndarray:
    """The mouth at the middle of each of `symbols`, spoken one after another."""
    sequence = tuple(Phoneme(symbol, i * each, (i + 1) * each) for i, symbol in enumerate(symbols))
    coefficients = mouth_coefficients(sequence, int(len(symbols) * each * 100), fps=100)
    return coefficients[[int((i + 0.5) * each * 100) for i in range(len(symbols))]]


@pytest.mark.parametrize("language", VOICES)
def test_every_phoneme_is_known(language: str) -> None:
    jumbles = [random_sentence(rng_for("viseme test", language, i), language) for i in range(10)]
    for i, text in enumerate([*sentences(language, "train"), *sentences(language, "heldout"), *jumbles]):
        for phoneme in synthesize(text, language, voice=i).phonemes:
            assert phones(phoneme.symbol), phoneme


def test_unknown_phoneme_is_an_error() -> None:
    with pytest.raises(KeyError, match=r"U\+0021"):
        phones("!")


def test_symbols_of_several_letters() -> None:
    assert phones("aɪɚ") == ("a", "ɪ", "ɚ")
    assert phones("tʃʲ") == ("t", "ʃ")
    assert phones("kh") == ("k",)
    assert phones("ũ") == ("u",)
    assert phones("ç") == ("ç",)
    assert phones("ʲ") == ("ʲ",)


def test_shapes_of_single_sounds() -> None:
    sounds = say("a", "m", "a", "i", "a", "u", "a", "f", "a", "ʃ", "_")
    a, m, i, u, f, sh, rest = sounds[[0, 1, 3, 5, 7, 9, 10]]
    value = {name: {key: float(row[ARKIT_NAMES.index(name)]) for key, row in
                    zip("amiufʃ_", (a, m, i, u, f, sh, rest), strict=True)}
             for name in SPEECH_COEFFICIENTS}  # fmt: skip
    assert value["jawOpen"]["a"] > 0.5 > 0.25 > value["jawOpen"]["i"]
    assert value["jawOpen"]["m"] - value["mouthClose"]["m"] < 0.02
    assert value["mouthPressLeft"]["m"] > 0.5
    assert value["mouthLowerDownLeft"]["m"] == value["mouthUpperUpLeft"]["m"] == 0
    assert value["mouthStretchLeft"]["i"] > 0.5
    assert value["mouthPucker"]["u"] > 0.7
    assert value["mouthPucker"]["i"] < 0.1
    assert value["mouthFunnel"]["ʃ"] > 0.5
    assert value["mouthRollLower"]["f"] > 0.5
    assert value["mouthUpperUpLeft"]["f"] > 0.2
    assert max(values["_"] for values in value.values()) < 0.1


def test_rounding_comes_early() -> None:
    """In "stu" the lips are rounded during s and t, in "sti" they are not."""
    assert column(say("s", "t", "u", each=0.08), "mouthPucker")[1] > 0.3
    assert column(say("s", "t", "i", each=0.08), "mouthPucker")[1] < 0.05


def test_lips_close_at_every_bilabial_even_at_25_fps() -> None:
    utterance = synthesize("Please put the paper cups back on the upper shelf.", "en", voice=2)
    coefficients = mouth_coefficients(utterance, int(utterance.seconds * 25) + 1)
    pressed = column(coefficients, "mouthPressLeft")
    for phoneme in utterance.phonemes:
        if phoneme.symbol in ("p", "b", "m"):
            first, last = int((phoneme.start - 0.04) * 25), int(phoneme.end * 25)
            assert pressed[max(0, first) : last + 1].max() > 0.45, phoneme


def test_silence_is_rest_and_other_coefficients_stay_zero() -> None:
    coefficients = mouth_coefficients(synthesize("Hello there.", "en"), 100)
    assert coefficients.shape == (100, 52)
    assert coefficients.dtype == np.float32
    assert coefficients[-20:].max() < 0.01
    still = [i for i, name in enumerate(ARKIT_NAMES) if name not in SPEECH_COEFFICIENTS]
    assert coefficients[:, still].max() == 0
    assert mouth_coefficients((), 10).max() == 0


def test_width_and_pucker_vary_apart_from_opening() -> None:
    tracks = []
    for language in VOICES:
        utterance = synthesize(" ".join(sentences(language, "train")[:3]), language, voice=1)
        tracks.append(mouth_coefficients(utterance, int(utterance.seconds * 25)))
    coefficients = np.concatenate(tracks)
    jaw, pucker, stretch = (column(coefficients, name) for name in ("jawOpen", "mouthPucker", "mouthStretchLeft"))
    assert jaw.std() > 0.12
    assert pucker.std() > 0.18
    assert stretch.std() > 0.12
    assert abs(np.corrcoef(jaw, pucker)[0, 1]) < 0.4
    assert abs(np.corrcoef(jaw, stretch)[0, 1]) < 0.4


def test_groups_follow_the_phonemes() -> None:
    groups = phone_groups((Phoneme("a", 0.0, 0.1), Phoneme("m", 0.1, 0.2)), 12, 50)
    assert [GROUPS[int(index)] for index in groups] == ["a"] * 5 + ["m"] * 5 + ["rest"] * 2
