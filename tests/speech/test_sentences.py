"""The sentence bank."""

from __future__ import annotations

import numpy as np
import pytest

from model_code.errors import InputError
from model_code.speech.espeak import VOICES, synthesize
from model_code.speech.sentences import HELDOUT, TRAINING, draw_sentence, random_sentence, sentences


@pytest.mark.parametrize("language", VOICES)
def test_bank_is_large_enough_and_splits_are_disjoint(language: str) -> None:
    train, heldout = sentences(language, "train"), sentences(language, "heldout")
    assert len(set(train)) == len(train) >= 14
    assert len(set(heldout)) == len(heldout) >= 6
    assert not set(train) & set(heldout)
    for text in (*train, *heldout):
        assert 1.5 < synthesize(text, language).seconds < 5.5


def test_draws_repeat_and_stay_in_their_split() -> None:
    assert TRAINING.keys() == HELDOUT.keys() == VOICES.keys()
    for language in VOICES:
        text = draw_sentence(np.random.default_rng(4), language, "heldout", 2)
        assert text == draw_sentence(np.random.default_rng(4), language, "heldout", 2)
        assert sum(sentence in text for sentence in sentences(language, "heldout")) == 2
        jumble = random_sentence(np.random.default_rng(4), language)
        assert jumble == random_sentence(np.random.default_rng(4), language)
        assert jumble not in sentences(language, "heldout")


def test_unknown_language() -> None:
    with pytest.raises(InputError, match="xx"):
        draw_sentence(np.random.default_rng(0), "xx", "train")
