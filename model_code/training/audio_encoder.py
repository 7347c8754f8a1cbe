"""Training of the audio encoder on espeak-ng speech in ten languages and many voices.

Every 50 Hz frame is asked which viseme class is spoken and where the mouth's coefficients are. The pool of speech is
jumbled from the words of the training sentences; sound is varied by voice, pace, pitch, level, colour, noise, echo.
Held out for the card: the held-out sentences, and the voice variants in ``speech.espeak.HELDOUT_VARIANTS``.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from model_code.avatars.avatar import ARKIT_NAMES
from model_code.backbones.audio import FEATURE_RATE, AudioEncoder
from model_code.media.audio import mel_power, normalise_mel
from model_code.seeding import rng_for, seed_for
from model_code.speech.espeak import VOICES, Utterance, draw_voice, synthesize
from model_code.speech.sentences import draw_sentence, random_sentence, sentences
from model_code.speech.visemes import GROUPS, SPEECH_COEFFICIENTS, mouth_coefficients, phone_groups

_LOG = logging.getLogger(__name__)
_COLUMNS = [ARKIT_NAMES.index(name) for name in SPEECH_COEFFICIENTS]
_WINDOW = 100  # features in a training window: two seconds


@dataclass(frozen=True)
class _Speech:
    """Mel power (2N, 80), viseme class (N,) and coefficients (N, 22) of one utterance in silence."""

    power: NDArray[np.float32]
    groups: NDArray[np.int64]
    coefficients: NDArray[np.float32]


def train_audio_encoder(
    out_dir: Path | str, steps: int = 4000, seed: int = 0, pool: int = 8000, batch_size: int = 24
) -> dict[str, Any]:
    """Trains an `AudioEncoder` and saves it with its card.

    Args:
        out_dir: Receives config.json, model.safetensors and card.json.
        steps: Optimiser steps.
        seed: Decides everything random.
        pool: Utterances that are spoken once and drawn from in varied forms.
        batch_size: Windows of two seconds a step.

    Returns:
        The card: data, seed, seconds and scores on held-out sentences and voices.
    """
    started = time.monotonic()
    speech = [_draw_training_speech(seed, index) for index in range(pool)]
    _LOG.info("spoke %d utterances in %.0f s", pool, time.monotonic() - started)
    deviation = torch.from_numpy(np.concatenate([item.coefficients for item in speech]).std(0) + 1e-3)[:, None]
    torch.manual_seed(seed_for("audio encoder", seed) % 2**32)
    encoder = AudioEncoder()
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps + 1, pct_start=0.1)
    for step in range(steps):
        mel, groups, coefficients = _batch(speech, batch_size, rng_for("audio encoder", seed, step))
        logits, mouth = encoder.heads(encoder.hidden(mel))
        named = F.cross_entropy(logits, groups, label_smoothing=0.05)
        moved = ((mouth - coefficients) / deviation).square().mean()
        loss = named + 2.0 * moved
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            _LOG.info("step %d: visemes %.3f, coefficients %.3f", step, named.item(), moved.item())
    encoder.eval()
    _measure_statistics(encoder, speech)
    encoder.save_pretrained(out_dir)
    card = {
        "name": "audio_encoder",
        "made_for": "the embedded profile: speech features in the place of Whisper's encoder",
        "command": "python -m model_code.pretrain audio_encoder",
        "data": f"{pool} espeak-ng utterances of jumbled training words, {len(VOICES)} languages, "
        "35 voice variants; held out: 60 sentences, 5 voice variants",
        "seed": seed,
        "steps": steps,
        "seconds": round(time.monotonic() - started, 1),
        "parameters": encoder.parameter_count,
        "scores": heldout_scores(AudioEncoder.from_pretrained(out_dir)),
    }
    (Path(out_dir) / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    return card


@torch.no_grad()
def heldout_scores(encoder: AudioEncoder) -> dict[str, float]:
    """Accuracy over frames and R2 of the main coefficients for held-out sentences in held-out voices."""
    hits: list[NDArray[np.bool_]] = []
    truth: list[NDArray[np.float32]] = []
    guess: list[NDArray[np.float32]] = []
    for language in VOICES:
        for text in sentences(language, "heldout"):
            rng = rng_for("audio encoder score", language, text)
            utterance = synthesize(text, language, voice=draw_voice(rng, "heldout"))
            groups, coefficients = _targets(utterance, -(-len(utterance.samples) // 320))
            features = torch.from_numpy(encoder.encode(utterance.samples)).T[None]
            logits, mouth = encoder.heads(features * encoder.scale[:, None] + encoder.mean[:, None])
            hits.append(logits[0].argmax(0).numpy() == groups)
            guess.append(mouth[0].T.numpy())
            truth.append(coefficients)
    true, guessed = np.concatenate(truth), np.concatenate(guess)
    explained = 1 - ((true - guessed) ** 2).mean(0) / true.var(0)
    scores = {"viseme_accuracy": float(np.concatenate(hits).mean()), "coefficient_r2": float(explained.mean())}
    for name in ("jawOpen", "mouthPucker", "mouthFunnel", "mouthStretchLeft", "mouthPressLeft"):
        scores[f"{name}_r2"] = float(explained[SPEECH_COEFFICIENTS.index(name)])
    return {name: round(value, 4) for name, value in scores.items()}


def _targets(utterance: Utterance, count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    coefficients = mouth_coefficients(utterance, count, FEATURE_RATE)[:, _COLUMNS]
    return phone_groups(utterance.phonemes, count, FEATURE_RATE), coefficients


def _draw_training_speech(seed: int, index: int) -> _Speech:
    rng = rng_for("audio encoder speech", seed, index)
    language = list(VOICES)[index % len(VOICES)]
    text = (
        draw_sentence(rng, language, "train", 2)
        if rng.random() < 0.3
        else random_sentence(rng, language, int(rng.integers(8, 15)))
    )
    utterance = synthesize(
        text, language, voice=draw_voice(rng, "train"), rate=rng.uniform(0.85, 1.25), pitch=rng.uniform(0.8, 1.25)
    )
    count = -(-len(utterance.samples) // 320)
    groups, coefficients = _targets(utterance, count)
    power = mel_power(utterance.samples)
    power = np.pad(power, ((0, 2 * count - len(power)), (0, 0)))
    before, after = (int(frames) for frames in rng.integers(5, 40, 2))  # silence before and after, 20 ms a frame
    return _Speech(
        np.pad(power, ((2 * before, 2 * after), (0, 0))),
        np.pad(groups, (before, after), constant_values=GROUPS.index("rest")),
        np.pad(coefficients, ((before, after), (0, 0))),
    )


def _batch(speech: list[_Speech], size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    mels, groups, coefficients = [], [], []
    for _ in range(size):
        item = speech[int(rng.integers(len(speech)))]
        start = int(rng.integers(0, max(1, len(item.groups) - _WINDOW + 1)))
        power = item.power[2 * start : 2 * (start + _WINDOW)]
        missing = _WINDOW - len(power) // 2
        power = np.pad(power, ((0, 2 * missing), (0, 0)))
        mels.append(normalise_mel(_varied(power, rng)))
        window = slice(start, start + _WINDOW)
        groups.append(np.pad(item.groups[window], (0, missing), constant_values=GROUPS.index("rest")))
        coefficients.append(np.pad(item.coefficients[window], ((0, missing), (0, 0))))
    mouth = torch.from_numpy(np.stack(coefficients)).transpose(1, 2)
    return torch.from_numpy(np.stack(mels)), torch.from_numpy(np.stack(groups)), mouth


def _varied(power: NDArray[np.floating], rng: np.random.Generator) -> NDArray[np.float32]:
    """Another room and microphone: level, colour, vocal tract, echo and noise, all on the mel power."""
    bands = power.shape[1]
    places = np.arange(bands)
    if rng.random() < 0.5:  # a longer or shorter vocal tract moves the formants
        source = np.clip((places + 0.5) * rng.uniform(0.93, 1.07) - 0.5, 0, bands - 1)
        low = np.minimum(source.astype(int), bands - 2)
        power = power[:, low] * (low + 1 - source) + power[:, low + 1] * (source - low)
    knots = rng.normal(0, 0.25, 6)  # colour, in units of 10 dB
    colour = np.interp(places, np.linspace(0, bands - 1, 6), knots) + rng.uniform(-1.2, 0.6)
    power = power * 10**colour
    if rng.random() < 0.4:  # a diffuse echo
        decay = np.exp(-np.arange(1, 16) / rng.uniform(1.5, 5.0)) * rng.uniform(0.05, 0.35)
        echoed = power.copy()
        for delay, share in enumerate(decay, start=1):
            echoed[delay:] += share * power[:-delay]
        power = echoed
    if rng.random() < 0.7:  # noise of any colour; the power of noise in a band is exponentially distributed
        level = np.interp(places, np.linspace(0, bands - 1, 5), rng.normal(0, 0.4, 5)) + rng.uniform(-7.0, -4.0)
        power = power + 10**level * rng.exponential(1.0, power.shape)
    return power.astype(np.float32)


@torch.no_grad()
def _measure_statistics(encoder: AudioEncoder, speech: list[_Speech]) -> None:
    """Sets the buffers that bring the features to zero mean and unit variance over the pool."""
    hidden = [encoder.hidden(torch.from_numpy(normalise_mel(item.power))[None])[0] for item in speech[:300]]
    everything = torch.cat(hidden, dim=1)
    encoder.mean.copy_(everything.mean(1))
    encoder.scale.copy_(everything.std(1) + 1e-4)
