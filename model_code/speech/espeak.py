"""Speech from espeak-ng, with the time of every phoneme.

The library (wheel ``espeakng-loader``) keeps its voice, pitch phase, flutter and random state in process-global
variables that no call resets. It is therefore loaded afresh for each utterance and unloaded afterwards (5 ms
together), which makes `synthesize` a pure function: same arguments, same bytes, in any order and any process.
"""

from __future__ import annotations

import _ctypes
import ctypes
import math
import threading
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import espeakng_loader
import numpy as np

from model_code.errors import InputError
from model_code.seeding import rng_for

SAMPLE_RATE = 16_000
SILENCE = "_"

#: Our language codes and espeak-ng's voices for them. Japanese text must be kana.
VOICES = {
    "en": "en-us",
    "es": "es",
    "fr": "fr",
    "de": "de",
    "it": "it",
    "ru": "ru",
    "el": "el",
    "zh": "cmn",
    "yue": "yue",
    "ja": "ja",
}

#: Where espeak-ng's own spelling differs from IPA; longer ones first.
_RESPELL = {
    "ru": (("y", "ɨ"),),
    "zh": (("ts.", "tʂ"), ("s.", "ʂ"), ("i.", "ɨ"), ("i̪", "ɨ"), ("nɡ", "ŋ")),
    "yue": (("nɡ", "ŋ"), ("oe", "œ"), ("eo", "ɵ"), ("yu", "y"), ("aa", "aː"), ("c", "tsʰ")),
}
_MARKS = str.maketrans("", "", 'ˈˌ-."^')

#: Voice variants that sound like people (no whispers, robots or echoes).
VARIANTS = (
    "m1", "f1", "Andy", "Alicia", "m2", "f2", "adam", "belinda", "m3", "f3", "benjamin", "linda", "m4", "f4",
    "boris", "steph", "m5", "f5", "edward", "Annie", "m6", "announcer", "david", "aunty", "m7", "grandma",
    "Mike", "shelby", "m8", "Andrea", "Michael", "anika", "Gene", "steph2", "travis", "Lee", "klatt4", "Mario",
    "quincy", "miguel",
)  # fmt: skip
#: Every eighth variant speaks only in held-out speech.
HELDOUT_VARIANTS = frozenset(range(7, len(VARIANTS), 8))

_OUTPUT_SYNCHRONOUS = 2
_PHONEME_EVENTS_IPA = 0x0001 | 0x0002
_DONT_EXIT = 0x8000
_CHARS_UTF8 = 1
_POSITION_CHARACTER = 1
_EVENT_LIST_TERMINATED = 0
_EVENT_PHONEME = 7
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_OK = 0
_LEVEL = 0.09
_PEAK = 0.95


@dataclass(frozen=True)
class Phoneme:
    """One phoneme: IPA `symbol` ("_" is silence), `start` and `end` in seconds, `stress` 0, 1 or 2 (primary)."""

    symbol: str
    start: float
    end: float
    stress: int = 0


@dataclass(frozen=True, eq=False)
class Utterance:
    """Speech: `samples` float32 (N,) at 16 kHz in [-1, 1], and its `phonemes` in order, without gaps."""

    samples: np.ndarray
    phonemes: tuple[Phoneme, ...]
    text: str = ""
    language: str = ""
    voice: int = 0

    @property
    def seconds(self) -> float:
        """Length of the sound in seconds."""
        return len(self.samples) / SAMPLE_RATE


class _Identifier(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Identifier),
    ]


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))
_lock = threading.Lock()


class _Library:
    """A freshly loaded libespeak-ng; collects the samples and phoneme events of what it speaks."""

    def __enter__(self) -> _Library:
        _lock.acquire()
        try:
            self._open()
        except BaseException:
            _lock.release()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            self._lib.espeak_Terminate()
            _ctypes.dlclose(self._lib._handle)
        finally:
            _lock.release()

    def _open(self) -> None:
        data = str(espeakng_loader.get_data_path())
        lib = ctypes.CDLL(str(espeakng_loader.get_library_path()))
        lib.espeak_Initialize.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
        lib.espeak_Initialize.restype = ctypes.c_int
        lib.espeak_SetSynthCallback.argtypes = [_Callback]
        lib.espeak_SetSynthCallback.restype = None
        lib.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
        lib.espeak_ng_SetRandSeed.restype = None
        lib.espeak_SetVoiceByName.argtypes = [ctypes.c_char_p]
        lib.espeak_SetVoiceByName.restype = ctypes.c_int
        lib.espeak_SetParameter.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int]
        lib.espeak_SetParameter.restype = ctypes.c_int
        lib.espeak_Synth.argtypes = [
            ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int,
            ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p,
        ]  # fmt: skip
        lib.espeak_Synth.restype = ctypes.c_int
        lib.espeak_Terminate.argtypes = []
        lib.espeak_Terminate.restype = ctypes.c_int
        self.rate = int(lib.espeak_Initialize(_OUTPUT_SYNCHRONOUS, 0, data.encode(), _PHONEME_EVENTS_IPA | _DONT_EXIT))
        if self.rate <= 0:
            raise RuntimeError(f"espeak-ng cannot read its data in {data}: install into a shorter path (<= 160 bytes)")
        self._lib = lib
        self.chunks: list[np.ndarray] = []
        self.events: list[tuple[int, str]] = []
        self._callback = _Callback(self._collect)
        lib.espeak_SetSynthCallback(self._callback)
        lib.espeak_ng_SetRandSeed(1)

    def _collect(self, wave: Any, count: int, events: Any) -> int:
        if wave and count > 0:
            self.chunks.append(np.ctypeslib.as_array(wave, (count,)).copy())
        i = 0
        while events[i].type != _EVENT_LIST_TERMINATED:
            if events[i].type == _EVENT_PHONEME:
                name = bytes(events[i].id.string).split(b"\0")[0].decode("utf-8", "ignore")
                self.events.append((int(events[i].audio_position), name))
            i += 1
        return 0

    def check(self, status: int, what: str) -> None:
        """Raises RuntimeError for a status that is not EE_OK; espeak otherwise goes on with the last voice."""
        if status != _OK:
            raise RuntimeError(f"espeak-ng: {what} failed with status {status}")

    def speak(self, text: str, voice: str, *, rate: int, pitch: int, pitch_range: int) -> None:
        lib = self._lib
        self.check(lib.espeak_SetVoiceByName(voice.encode()), f"voice {voice!r}")
        for parameter, value in ((_RATE, rate), (_VOLUME, 60), (_PITCH, pitch), (_RANGE, pitch_range)):
            self.check(lib.espeak_SetParameter(parameter, value, 0), f"parameter {parameter} = {value}")
        data = text.encode()
        status = lib.espeak_Synth(data, len(data) + 1, 0, _POSITION_CHARACTER, 0, _CHARS_UTF8, None, None)
        self.check(status, f"speaking {text!r}")


def draw_voice(rng: np.random.Generator, split: str) -> int:
    """A voice for `synthesize`; "heldout" voices use variants that no "train" voice has."""
    while True:
        voice = int(rng.integers(0, 1_000_000))
        if (voice % len(VARIANTS) in HELDOUT_VARIANTS) == (split == "heldout"):
            return voice


def synthesize(text: str, language: str, *, voice: int = 0, rate: float = 1.0, pitch: float = 1.0) -> Utterance:
    """Speaks `text`.

    Args:
        text: What to say, in the language's own script (Japanese in kana).
        language: A key of `VOICES`.
        voice: Any non-negative number; picks variant, pitch, pitch range and pace of a speaker.
        rate: Factor on the speaker's pace.
        pitch: Factor on the speaker's pitch setting.

    Returns:
        The utterance at 16 kHz, at an even level.

    Raises:
        InputError: Unknown language, or a text in which there is nothing to say.
    """
    if language not in VOICES:
        raise InputError(f"no voice for language {language!r}", f"use one of {', '.join(VOICES)}")
    speaker = rng_for("voice", voice)
    base_pitch, base_range, base_rate = speaker.uniform(30, 70), speaker.uniform(35, 65), speaker.uniform(125, 155)
    with _Library() as library:
        library.speak(
            text,
            f"{VOICES[language]}+{VARIANTS[voice % len(VARIANTS)]}",
            rate=int(np.clip(base_rate * rate, 80, 400)),
            pitch=int(np.clip(base_pitch * pitch, 0, 99)),
            pitch_range=int(base_range),
        )
        chunks, events, native = library.chunks, library.events, library.rate
    phonemes = _phonemes(events, sum(map(len, chunks)) / native, language)
    if not any(phoneme.symbol != SILENCE for phoneme in phonemes):
        raise InputError(f"nothing to say in {text!r} ({language})", "give a text with words in the language's script")
    from scipy.signal import resample_poly  # half a second to import, and many who import this never speak

    divisor = math.gcd(SAMPLE_RATE, native)
    samples = np.concatenate(chunks).astype(np.float64) / 32768
    samples = resample_poly(samples, SAMPLE_RATE // divisor, native // divisor)
    scale = min(_LEVEL / float(np.sqrt(np.mean(samples**2)) + 1e-9), _PEAK / float(np.abs(samples).max() + 1e-9))
    return Utterance((samples * scale).astype(np.float32), phonemes, text, language, voice)


def _phonemes(events: list[tuple[int, str]], seconds: float, language: str) -> tuple[Phoneme, ...]:
    """Events (ms, IPA) as gapless phonemes: pauses merged, language switches dropped, stress marks split off."""
    spoken = [(ms / 1000, name) for ms, name in events if not name.startswith("(")]
    starts = [start for start, _ in spoken]
    result: list[Phoneme] = []
    if starts and starts[0] > 0:
        result.append(Phoneme(SILENCE, 0.0, starts[0]))
    for (start, name), end in zip(spoken, [*starts[1:], seconds], strict=True):
        if end <= start:
            continue
        stress = 2 if "ˈ" in name else 1 if "ˌ" in name else 0
        for spelling, ipa in _RESPELL.get(language, ()):
            name = name.replace(spelling, ipa)
        symbol = name.translate(_MARKS) or SILENCE
        if result and symbol == SILENCE == result[-1].symbol:
            result[-1] = Phoneme(SILENCE, result[-1].start, end)
        else:
            result.append(Phoneme(symbol, start, end, stress))
    return tuple(result)
