"""From phonemes to the mouth: ARKit coefficients with co-articulation.

Every phone has a target for a few articulators and a dominance, which falls off exponentially before and after it;
the mouth at any moment is the dominance-weighted mean of the targets (the idea of Cohen & Massaro, "Modeling
coarticulation in synthetic visual speech", 1993). Rounding and spreading reach further, and further ahead, than the
jaw. Closures (p, b, m and, in part, f, v) are laid over the blend, so that the lips always meet.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from model_code.avatars.avatar import ARKIT_NAMES
from model_code.speech.espeak import SAMPLE_RATE, SILENCE, Phoneme, Utterance

Floats = NDArray[np.float32]

#: The ARKit coefficients that speech moves; all others stay 0.
SPEECH_COEFFICIENTS: tuple[str, ...] = (
    "jawForward", "jawOpen", "mouthClose", "mouthFunnel", "mouthPucker", "mouthSmileLeft", "mouthSmileRight",
    "mouthDimpleLeft", "mouthDimpleRight", "mouthStretchLeft", "mouthStretchRight", "mouthRollLower", "mouthRollUpper",
    "mouthShrugLower", "mouthShrugUpper", "mouthPressLeft", "mouthPressRight", "mouthLowerDownLeft",
    "mouthLowerDownRight", "mouthUpperUpLeft", "mouthUpperUpRight", "tongueOut",
)  # fmt: skip

_GRID = 200  # articulation is computed at this rate, in Hz
_JAW_TIME = 0.040  # seconds in which dominance over the jaw falls to 1/e
_SHAPE_TIME_BEFORE, _SHAPE_TIME_AFTER = 0.080, 0.055  # the same for the lips' shape, ahead of and after the phone
_LONG_PAUSE = 0.12  # pauses shorter than this, in seconds, do not bring the mouth to rest


@dataclass(frozen=True)
class Articulation:
    """Targets in [0, 1] of one phone, and how strongly it insists on them.

    Attributes:
        group: The viseme class; the audio encoder learns to name it.
        jaw: Opening.
        wide: Corners apart.
        pucker: Lips forward and small.
        funnel: Lips forward and flared.
        teeth: Lips drawn from the teeth.
        tongue: Tongue between the teeth.
        close: Lips pressed together.
        dental: Lower lip under the upper teeth.
        hold_jaw: Dominance over the jaw.
        hold_shape: Dominance over the lips' shape.
    """

    group: str
    jaw: float
    wide: float = 0.0
    pucker: float = 0.0
    funnel: float = 0.0
    teeth: float = 0.0
    tongue: float = 0.0
    close: float = 0.0
    dental: float = 0.0
    hold_jaw: float = 1.0
    hold_shape: float = 1.0


def _vowel(group: str, jaw: float, wide: float = 0.0, pucker: float = 0.0, funnel: float = 0.0) -> Articulation:
    return Articulation(group, jaw, wide, pucker, funnel, teeth=0.25 * wide)


_REST = Articulation("rest", 0.0, hold_shape=0.7)
_LIPS = Articulation("m", 0.06, close=1.0, hold_jaw=0.8, hold_shape=0.08)
_LIPS_SOFT = Articulation("m", 0.12, close=0.8, hold_jaw=0.6, hold_shape=0.10)
_LABIODENTAL = Articulation("f", 0.12, wide=0.15, teeth=0.2, dental=1.0, hold_jaw=0.8, hold_shape=0.35)
_TONGUE_TIP = Articulation("t", 0.16, wide=0.25, teeth=0.3, hold_jaw=0.5, hold_shape=0.12)
_LATERAL = Articulation("l", 0.26, wide=0.25, teeth=0.2, tongue=0.15, hold_jaw=0.5, hold_shape=0.15)
_TRILL = Articulation("r", 0.22, wide=0.15, teeth=0.2, hold_jaw=0.4, hold_shape=0.12)
_HISS = Articulation("s", 0.07, wide=0.75, teeth=0.8, hold_jaw=0.9, hold_shape=0.6)
_HUSH = Articulation("ʃ", 0.12, pucker=0.30, funnel=0.90, teeth=0.5, hold_jaw=0.9, hold_shape=1.1)
_HUSH_SPREAD = Articulation("ɕ", 0.09, wide=0.55, funnel=0.15, teeth=0.8, hold_jaw=0.9, hold_shape=0.6)
_INTERDENTAL = Articulation("θ", 0.20, wide=0.20, teeth=0.4, tongue=0.8, hold_jaw=0.7, hold_shape=0.3)
_PALATAL = Articulation("j", 0.13, wide=0.85, teeth=0.3, hold_jaw=0.6, hold_shape=0.6)
_VELAR = Articulation("k", 0.26, wide=0.10, hold_jaw=0.3, hold_shape=0.06)
_THROAT = Articulation("h", 0.34, hold_jaw=0.15, hold_shape=0.03)
_GLIDE_ROUND = Articulation("w", 0.08, pucker=1.0, funnel=0.15, hold_jaw=0.8, hold_shape=1.1)
_FLARED_R = Articulation("ɹ", 0.20, pucker=0.40, funnel=0.55, hold_jaw=0.5, hold_shape=0.7)

#: What the mouth does for every IPA letter that the ten voices speak.
ARTICULATIONS: dict[str, Articulation] = {
    SILENCE: _REST,
    **dict.fromkeys("pbm", _LIPS),
    **dict.fromkeys("βɸ", _LIPS_SOFT),
    **dict.fromkeys("fvʋ", _LABIODENTAL),
    **dict.fromkeys("tdnɗʈɖɳ", _TONGUE_TIP),
    **dict.fromkeys("lɭʎɫ", _LATERAL),
    **dict.fromkeys("rɾɽ", _TRILL),
    **dict.fromkeys("sz", _HISS),
    **dict.fromkeys("ʃʒʂʐ", _HUSH),
    **dict.fromkeys("ɕʑç", _HUSH_SPREAD),
    **dict.fromkeys("θð", _INTERDENTAL),
    **dict.fromkeys("jʝʲɲcɟ", _PALATAL),
    **dict.fromkeys("kgɡxɣŋ", _VELAR),
    **dict.fromkeys("hɦχʁɴʔ", _THROAT),
    **dict.fromkeys("wɥʷ", _GLIDE_ROUND),
    "ɹ": _FLARED_R,
    "i": _vowel("i", 0.14, wide=1.0),
    "ɪ": _vowel("i", 0.24, wide=0.70),
    "ɨ": _vowel("i", 0.18, wide=0.60),
    "ᵻ": _vowel("i", 0.22, wide=0.55),
    "e": _vowel("e", 0.36, wide=0.80),
    "ɛ": _vowel("e", 0.50, wide=0.60),
    "æ": _vowel("æ", 0.66, wide=0.60),
    "a": _vowel("a", 0.85, wide=0.25),
    "ä": _vowel("a", 0.82, wide=0.20),
    "ɑ": _vowel("a", 0.88, wide=0.05, funnel=0.10),
    "ɐ": _vowel("a", 0.62, wide=0.20),
    "ʌ": _vowel("ə", 0.52, wide=0.12),
    "ə": _vowel("ə", 0.32, wide=0.15),
    "ɜ": _vowel("ə", 0.40, wide=0.05, funnel=0.20),
    "ɚ": _vowel("ɹ", 0.28, pucker=0.30, funnel=0.45),
    "ɝ": _vowel("ɹ", 0.30, pucker=0.30, funnel=0.45),
    "ɒ": _vowel("ɔ", 0.66, pucker=0.15, funnel=0.50),
    "ɔ": _vowel("ɔ", 0.58, pucker=0.35, funnel=0.70),
    "o": _vowel("o", 0.40, pucker=0.75, funnel=0.50),
    "ɤ": _vowel("ə", 0.36, wide=0.20),
    "ɵ": _vowel("œ", 0.32, pucker=0.60, funnel=0.35),
    "œ": _vowel("œ", 0.46, pucker=0.50, funnel=0.55),
    "ø": _vowel("y", 0.30, pucker=0.80, funnel=0.35),
    "y": _vowel("y", 0.12, pucker=1.0, funnel=0.20),
    "ʏ": _vowel("y", 0.20, pucker=0.85, funnel=0.25),
    "u": _vowel("u", 0.14, pucker=1.0, funnel=0.15),
    "ʊ": _vowel("u", 0.24, pucker=0.75, funnel=0.25),
    "ɯ": _vowel("ɯ", 0.20, wide=0.10, pucker=0.35),
}

#: Viseme classes in a fixed order.
GROUPS: tuple[str, ...] = tuple(dict.fromkeys(articulation.group for articulation in ARTICULATIONS.values()))

_MODIFIERS = frozenset("ːˑʰᵝ̩̯̞̪̃̈̊̆")
_STOPS = frozenset("ptksʂɕʃ")


@cache
def phones(symbol: str) -> tuple[str, ...]:
    """The letters of `ARTICULATIONS` of which a phoneme symbol consists, e.g. "aɪɚ" or "tʃʲ".

    Raises:
        KeyError: The symbol has a letter without articulation.
    """
    known = (letter if letter in ARTICULATIONS else unicodedata.normalize("NFD", letter) for letter in symbol)
    letters = [letter for letter in "".join(known) if letter not in _MODIFIERS]
    if len(letters) > 1:  # palatalisation and aspiration colour a phone, alone they are one
        letters = [
            letter
            for before, letter in zip(["", *letters], letters, strict=False)
            if letter != "ʲ" and not (letter == "h" and before in _STOPS)
        ]
    for letter in letters:
        if letter not in ARTICULATIONS:
            raise KeyError(f"no articulation for {letter!r} (U+{ord(letter):04X}) of phoneme {symbol!r}")
    return tuple(letters)


def split_phones(phonemes: tuple[Phoneme, ...]) -> list[tuple[str, float, float, int]]:
    """(letter, start, end, stress) of every phone; a phoneme of several letters shares its time evenly."""
    result = []
    for phoneme in phonemes:
        letters = phones(phoneme.symbol)
        step = (phoneme.end - phoneme.start) / max(1, len(letters))
        for i, letter in enumerate(letters):
            result.append((letter, phoneme.start + i * step, phoneme.start + (i + 1) * step, phoneme.stress))
    return result


def phone_groups(phonemes: tuple[Phoneme, ...], n_frames: int, rate: float) -> NDArray[np.int64]:
    """Index into `GROUPS` of what is spoken at the middle of each of `n_frames` frames; rest after the end."""
    result = np.full(n_frames, GROUPS.index(_REST.group), np.int64)
    middles = (np.arange(n_frames) + 0.5) / rate
    for letter, start, end, _ in split_phones(phonemes):
        result[(middles >= start) & (middles < end)] = GROUPS.index(ARTICULATIONS[letter].group)
    return result


def mouth_coefficients(speech: Utterance | tuple[Phoneme, ...], n_frames: int, fps: float = 25.0) -> Floats:
    """The mouth that speaks `speech`.

    Args:
        speech: An utterance (its loudness then shades the movement a little), or phonemes alone.
        n_frames: Frames wanted; after the speech the mouth is at rest.
        fps: Frames per second; frame k shows the mouth at (k + 0.5) / fps seconds.

    Returns:
        (n_frames, 52) in the order of `ARKIT_NAMES`; only `SPEECH_COEFFICIENTS` differ from 0.
    """
    phonemes = speech.phonemes if isinstance(speech, Utterance) else speech
    samples = speech.samples if isinstance(speech, Utterance) else None
    spoken = split_phones(phonemes)
    per_frame = _GRID / fps
    times = (np.arange(int(np.ceil(n_frames * per_frame))) + 0.5) / _GRID
    blend = _blend(spoken, times, samples)
    closing = _closures(spoken, times)
    moments = (np.arange(n_frames)[:, None] + np.linspace(0.1, 0.9, 8)) * per_frame
    frames = np.minimum(moments.astype(int), len(times) - 1)
    mean = blend[frames].mean(1)
    closed = closing[frames].max(1)  # a closure of half a frame must still be seen
    return _to_arkit(mean, closed)


_SHAPES = ("jaw", "wide", "pucker", "funnel", "teeth", "tongue")


def _blend(
    spoken: list[tuple[str, float, float, int]], times: NDArray[np.float64], samples: NDArray[np.float32] | None
) -> NDArray[np.float64]:
    """(times, 6) dominance-weighted mean of the targets in `_SHAPES`."""
    level = _loudness(spoken, samples)
    end = spoken[-1][2] if spoken else 0.0
    segments = [*spoken, (SILENCE, end, max(end, float(times[-1]) if len(times) else 0.0) + 1.0, 0)]
    segments.insert(0, (SILENCE, -1.0, 0.0, 0))
    level = np.concatenate([[1.0], level, [1.0]])
    targets = np.zeros((len(segments), len(_SHAPES)))
    holds = np.zeros((len(segments), 2))
    spans = np.zeros((len(segments), 2))
    for i, (letter, start, stop, stress) in enumerate(segments):
        articulation = ARTICULATIONS[letter]
        effort = level[i] * (0.90, 1.0, 1.12)[stress]
        targets[i] = [getattr(articulation, name) for name in _SHAPES]
        targets[i, :4] = np.minimum(targets[i, :4] * effort, 1.0)
        holds[i] = articulation.hold_jaw, articulation.hold_shape
        if letter == SILENCE and stop - start < _LONG_PAUSE:
            holds[i] = 0.12, 0.02
        inset = 0.2 * (stop - start) if letter != SILENCE else min(0.03, 0.3 * (stop - start))
        spans[i] = start + inset, stop - inset
    before = np.maximum(spans[:, 0] - times[:, None], 0.0)
    after = np.maximum(times[:, None] - spans[:, 1], 0.0)
    jaw = holds[:, 0] * np.exp(-(before + after) / _JAW_TIME)
    shape = holds[:, 1] * np.exp(-before / _SHAPE_TIME_BEFORE - after / _SHAPE_TIME_AFTER)
    jaw_track = jaw @ targets[:, :1] / (jaw.sum(1, keepdims=True) + 1e-9)
    shape_track = shape @ targets[:, 1:4] / (shape.sum(1, keepdims=True) + 1e-9)
    fine_track = jaw @ targets[:, 4:] / (jaw.sum(1, keepdims=True) + 1e-9)
    return np.concatenate([jaw_track, shape_track, fine_track], axis=1)


def _loudness(spoken: list[tuple[str, float, float, int]], samples: NDArray[np.float32] | None) -> NDArray[np.float64]:
    """Effort of each phone, 0.85 to 1.15, from its loudness against the others'."""
    if samples is None or not spoken:
        return np.ones(len(spoken))
    energy = np.concatenate([[0.0], np.cumsum(samples.astype(np.float64) ** 2)])
    bounds = np.clip((np.array([span[1:3] for span in spoken]) * SAMPLE_RATE).astype(int), 0, len(samples))
    power = (energy[bounds[:, 1]] - energy[bounds[:, 0]]) / np.maximum(bounds[:, 1] - bounds[:, 0], 1)
    decibel = 10 * np.log10(power + 1e-7)
    voiced = decibel[[span[0] != SILENCE for span in spoken]]
    middle = float(np.median(voiced)) if len(voiced) else 0.0
    return 1.0 + 0.15 * np.clip((decibel - middle) / 10, -1, 1)


def _closures(spoken: list[tuple[str, float, float, int]], times: NDArray[np.float64]) -> NDArray[np.float64]:
    """(times, 2) how far the lips are pressed together, and the lower lip drawn under the teeth."""
    result = np.zeros((len(times), 2))
    for letter, start, stop, _ in spoken:
        articulation = ARTICULATIONS[letter]
        if not articulation.close and not articulation.dental:
            continue
        # The sound of p begins where the lips part: they have met before.
        lead, inset = (0.040, 0.7) if letter == "p" else (0.005, 0.25)
        first, last = start - lead, stop - inset * (stop - start)
        outside = np.maximum(np.maximum(first - times, times - last), 0.0)
        ramp = 0.5 + 0.5 * np.cos(np.pi * np.minimum(outside / 0.028, 1.0))
        result[:, 0] = np.maximum(result[:, 0], articulation.close * ramp)
        result[:, 1] = np.maximum(result[:, 1], articulation.dental * ramp)
    return result


def _to_arkit(blend: NDArray[np.float64], closed: NDArray[np.float64]) -> Floats:
    jaw, wide, pucker, funnel, teeth, tongue = blend.T
    press, dental = closed.T
    free = 1.0 - press
    jaw = jaw * (1.0 - 0.75 * press) * (1.0 - 0.6 * dental)
    narrow = 1.0 - 0.6 * np.maximum(press, dental)
    values = {
        "jawForward": 0.20 * funnel,
        "jawOpen": 0.80 * jaw,
        "mouthClose": 0.80 * jaw * press,
        "mouthFunnel": 0.90 * funnel * free,
        "mouthPucker": pucker * (1.0 - 0.3 * press),
        "mouthSmile": 0.45 * wide * narrow,
        "mouthDimple": 0.30 * wide * narrow,
        "mouthStretch": 0.75 * wide * narrow,
        "mouthRollLower": np.clip(0.35 * press + 0.75 * dental * free, 0, 1),
        "mouthRollUpper": 0.30 * press,
        "mouthShrugLower": 0.15 * pucker * free + 0.20 * dental,
        "mouthShrugUpper": 0.15 * pucker * free,
        "mouthPress": 0.55 * press,
        "mouthLowerDown": (0.30 * jaw + 0.45 * teeth) * free * (1.0 - dental),
        "mouthUpperUp": (0.20 * jaw + 0.30 * teeth) * free + 0.35 * dental * free,
        "tongueOut": 0.35 * tongue * free,
    }
    result = np.zeros((len(blend), len(ARKIT_NAMES)), np.float32)
    for name in SPEECH_COEFFICIENTS:
        both_sides = name.removesuffix("Left").removesuffix("Right")
        result[:, ARKIT_NAMES.index(name)] = values[both_sides]
    return np.clip(result, 0.0, 1.0)
