"""Sound: resampling and log-mel spectrogram.

Everything is float32 mono at 16 kHz unless it says otherwise. Spectra have 100 frames a second; frame i looks at
25 ms around the middle of its 10 ms.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.fft import rfft

Floats = NDArray[np.float32]


class Sound(Protocol):
    """Samples (N,) that are read slice by slice: an array, or a file as long as you like."""

    def __len__(self) -> int:
        """Samples in all."""

    def __getitem__(self, span: slice, /) -> Floats:
        """The samples of a span without step."""


class Excerpt:
    """The samples [first, last) of a sound as far as there are any, read when they are asked for."""

    def __init__(self, sound: Sound, first: int, last: int) -> None:
        self._sound = sound
        self._first, self._last, _ = slice(first, last).indices(len(sound))

    def __len__(self) -> int:
        return max(0, self._last - self._first)

    def __getitem__(self, span: slice, /) -> Floats:
        first, last, _ = span.indices(len(self))
        return self._sound[self._first + first : self._first + last]


def samples_of(sound: Sound, length: int | None = None) -> Floats:
    """(N,) all samples of a sound in memory; cut, or followed by silence, to `length` if that is given."""
    length = len(sound) if length is None else length
    samples = np.asarray(sound[:length], np.float32)
    return np.pad(samples, (0, length - len(samples)))


SAMPLE_RATE = 16_000
HOP = 160
_WINDOW = 400
_FFT = 512
_FLOOR = 1e-7  # power; near the rounding noise of 16-bit sound


def resample(samples: NDArray[np.floating], rate: int, target: int = SAMPLE_RATE) -> Floats:
    """`samples` (N,) at `rate` Hz, brought to `target` Hz by a polyphase filter."""
    if rate == target or len(samples) == 0:
        return np.asarray(samples, np.float32)
    from scipy.signal import resample_poly  # half a second to import, and most sound has the rate already

    divisor = math.gcd(rate, target)
    return resample_poly(samples.astype(np.float64), target // divisor, rate // divisor).astype(np.float32)


@cache
def _mel_filters(bands: int) -> Floats:
    """(bands, bins) triangular filters, evenly spaced in mel from 40 to 7,800 Hz, each of unit sum."""
    low, high = (2595 * np.log10(1 + hertz / 700) for hertz in (40.0, 7800.0))
    mel = np.linspace(low, high, bands + 2)
    edges = 700 * (10 ** (mel / 2595) - 1)
    bins = np.arange(_FFT // 2 + 1) * SAMPLE_RATE / _FFT
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    # The lowest bands are narrower than a bin: widen them so that none is empty.
    filters = np.maximum(np.minimum(rising, falling), 0)
    nearest = np.abs(bins - edges[1:-1, None]).argmin(1)
    filters[np.arange(bands), nearest] = np.maximum(filters[np.arange(bands), nearest], 0.1)
    return (filters / filters.sum(1, keepdims=True)).astype(np.float32)


def mel_power(samples: Floats, bands: int = 80) -> Floats:
    """Power in mel bands, (ceil(N / 160), bands); 1.0 is a full-scale sine spread over one bin."""
    count = -(-len(samples) // HOP)
    left = (_WINDOW - HOP) // 2
    padded = np.zeros((max(count, 1) - 1) * HOP + _WINDOW, np.float32)
    padded[left : left + len(samples)] = samples[: len(padded) - left]
    frames = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::HOP][:count]
    window = np.hanning(_WINDOW + 1)[:-1].astype(np.float32)
    result = np.empty((count, bands), np.float32)
    for start in range(0, count, 4096):  # bounds the memory of an hour of sound
        spectrum = rfft(frames[start : start + 4096] * window, _FFT)
        power = (spectrum.real**2 + spectrum.imag**2) * np.float32(4.0 / window.sum() ** 2)
        result[start : start + 4096] = power @ _mel_filters(bands).T
    return result


def log_mel(samples: Floats, bands: int = 80) -> Floats:
    """Log-mel spectrogram (ceil(N / 160), bands), scaled so that silence is -1 and loud speech is near 1."""
    return normalise_mel(mel_power(samples, bands))


def log_mel_rows(sound: Sound, length: int, first: int, last: int, bands: int = 80) -> Floats:
    """Rows [first, last) of `log_mel` of the whole sound, cut or followed by silence to `length` samples.

    Only the samples around these rows are read.
    """
    begin = max(0, first - 1)  # a row looks 120 samples beyond its own 160
    end = min((last + 1) * HOP, length)
    part = sound[begin * HOP : end]
    silence = np.zeros(end - begin * HOP - len(part), np.float32)
    return log_mel(np.concatenate([part, silence]), bands)[first - begin : last - begin]


def normalise_mel(power: Floats) -> Floats:
    """The scaling of `log_mel` for power in mel bands."""
    return (np.log10(np.maximum(power, _FLOOR)) / 2.5 + 1.8).astype(np.float32)
