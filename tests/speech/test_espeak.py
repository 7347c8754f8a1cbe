"""espeak-ng: real speech, every time the same."""

from __future__ import annotations

import hashlib
import itertools
import subprocess
import sys

import numpy as np
import pytest

from model_code.errors import InputError
from model_code.speech.espeak import HELDOUT_VARIANTS, SILENCE, VARIANTS, VOICES, draw_voice, synthesize
from model_code.speech.sentences import sentences


def digest(text: str, language: str, voice: int) -> str:
    return hashlib.sha256(synthesize(text, language, voice=voice).samples.tobytes()).hexdigest()


@pytest.mark.parametrize("language", VOICES)
def test_speaks_every_language(language: str) -> None:
    utterance = synthesize(sentences(language, "train")[0], language, voice=3)
    assert utterance.samples.dtype == np.float32
    assert np.abs(utterance.samples).max() <= 0.96
    assert 1.5 < utterance.seconds < 6
    phonemes = utterance.phonemes
    assert phonemes[0].start == 0
    assert phonemes[-1].end == pytest.approx(utterance.seconds, abs=0.01)
    assert all(a.end == b.start and a.end > a.start for a, b in itertools.pairwise(phonemes))
    assert sum(phoneme.symbol != SILENCE for phoneme in phonemes) >= 10


def test_same_call_gives_same_bytes_in_any_order_and_process() -> None:
    first = digest("The boat moves.", "en", 5)
    synthesize("Un buen libro.", "es", voice=11)
    assert digest("The boat moves.", "en", 5) == first
    code = (
        "import hashlib; from model_code.speech.espeak import synthesize;"
        "print(hashlib.sha256(synthesize('The boat moves.', 'en', voice=5).samples.tobytes()).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == first


def test_phoneme_times_match_the_sound() -> None:
    utterance = synthesize("Papa. Papa. Mama.", "it", voice=0)
    pauses = [p for p in utterance.phonemes if p.symbol == SILENCE and p.end - p.start > 0.1]
    assert len(pauses) >= 2
    loud = float(np.sqrt((utterance.samples**2).mean()))
    for pause in pauses:
        quiet = utterance.samples[int((pause.start + 0.04) * 16_000) : int((pause.end - 0.02) * 16_000)]
        assert float(np.sqrt((quiet**2).mean())) < 0.1 * loud


def test_voices_differ_and_splits_are_disjoint() -> None:
    assert digest("The boat moves.", "en", 0) != digest("The boat moves.", "en", len(VARIANTS))
    rng = np.random.default_rng(0)
    assert all(draw_voice(rng, "heldout") % len(VARIANTS) in HELDOUT_VARIANTS for _ in range(20))
    assert not any(draw_voice(rng, "train") % len(VARIANTS) in HELDOUT_VARIANTS for _ in range(20))


@pytest.mark.parametrize("variant", range(len(VARIANTS)))
def test_every_variant_exists(variant: int) -> None:
    assert synthesize("Hello.", "en", voice=variant).seconds > 0.2


def test_bad_input_says_what_to_do() -> None:
    with pytest.raises(InputError, match="use one of en"):
        synthesize("hello", "xx")
    with pytest.raises(InputError, match="nothing to say"):
        synthesize("  ", "en")
