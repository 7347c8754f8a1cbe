"""A clip in a few numbers: who, how, where and what is said. Rendering it twice gives the same bytes."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TypeVar

import numpy as np
from pydantic import Field

from model_code.avatars.avatar import Avatar, Kind
from model_code.avatars.head import build_head, draw_head
from model_code.avatars.performance import FPS, Motion, draw_performance, replace_speech
from model_code.avatars.render import Rendered, render
from model_code.avatars.scene import Condition, draw_scene
from model_code.avatars.seeds import FRESH, RANGE
from model_code.config import Config
from model_code.seeding import rng_for, seed_for
from model_code.speech.espeak import VOICES, Utterance, draw_voice, synthesize
from model_code.speech.sentences import Split, draw_sentence, random_sentence, sentences
from model_code.speech.visemes import mouth_coefficients

SAMPLES_PER_FRAME = 640
_DRAWS = 100  # of other words, until they share no sentence with the clip's
Key = TypeVar("Key", bound=str)
KIND_SHARES: dict[Kind, float] = {"natural": 0.65, "stylised": 0.2, "nonhuman": 0.15}
CONDITION_SHARES: dict[Condition, float] = {"plain": 0.6, "occluded": 0.14, "changing_light": 0.13, "profile": 0.13}


class ClipSpec(Config):
    """Everything that determines one procedural clip."""

    name: str = Field(description="File stem of the clip.")
    speaker_id: str
    head_seed: int
    kind: Kind
    condition: Condition
    motion: Motion
    language: str
    text: str = Field(description="What is said, in the language's own script.")
    voice: int
    rate: float = 1.0
    pitch: float = 1.0
    seed: int = Field(description="Seed of performance and scene.")
    n_frames: int
    split: Split = "train"


def spread(shares: dict[Key, float], n: int, seed: int) -> list[Key]:
    """``n`` keys in proportions as near to ``shares`` as whole numbers allow, in an order drawn from ``seed``."""
    exact = {key: share * n / sum(shares.values()) for key, share in shares.items()}
    counts = {key: int(amount) for key, amount in exact.items()}
    rest = sorted(exact, key=lambda key: counts[key] - exact[key])
    for key in rest[: n - sum(counts.values())]:
        counts[key] += 1
    keys = [key for key, count in counts.items() for _ in range(count)]
    return [keys[int(i)] for i in rng_for("spread", seed, n).permutation(n)]


@lru_cache(maxsize=8)
def avatar_for(head_seed: int, kind: Kind) -> Avatar:
    """The head of a seed."""
    return build_head(draw_head(head_seed, kind))


def _say(
    rng: np.random.Generator, language: str, voice: int, seconds: tuple[float, float], split: Split, jumble: bool
) -> tuple[str, int]:
    """A text that fills the shortest time wanted, and the number of frames it is shown for."""
    count = 1
    while True:
        text = random_sentence(rng, language, 6 + 3 * count) if jumble else draw_sentence(rng, language, split, count)
        length = synthesize(text, language, voice=voice).seconds
        if length >= seconds[0] or count >= 6:
            wanted = np.clip(length + rng.uniform(0.0, 0.3), *seconds)
            return text, round(float(wanted) * FPS)
        count += 1


def draw_spec(
    head_seed: int,
    clip_index: int,
    *,
    kind: Kind | None = None,
    condition: Condition | None = None,
    language: str | None = None,
    split: Split = "train",
    seconds: tuple[float, float] = (3.0, 4.0),
    jumble: bool = False,
    speaker_id: str | None = None,
    seed: int = 0,
) -> ClipSpec:
    """Draws one clip of a head. The speaker's kind, language and voice depend on the head alone.

    Args:
        head_seed: see `model_code.avatars.seeds`.
        clip_index: which clip of that head.
        kind, condition, language: drawn where None.
        split: "heldout" takes voices and sentences that no training clip has.
        seconds: shortest and longest length.
        jumble: words without sense instead of the bank's sentences (for pretraining).
        speaker_id: a name; by default made from the head's seed.
        seed: another draw of everything but the head's shape.
    """
    speaker = rng_for("speaker", seed, head_seed, split)
    drawn_kind = list(KIND_SHARES)[int(speaker.choice(len(KIND_SHARES), p=list(KIND_SHARES.values())))]
    drawn_language = list(VOICES)[int(speaker.integers(len(VOICES)))]
    voice = draw_voice(speaker, split)
    kind, language = kind or drawn_kind, language or drawn_language
    rng = rng_for("clip", seed, head_seed, split, clip_index)
    drawn_condition = list(CONDITION_SHARES)[int(rng.choice(len(CONDITION_SHARES), p=list(CONDITION_SHARES.values())))]
    condition = condition or drawn_condition
    motion: Motion = "profile" if condition == "profile" else ("lively" if rng.random() < 0.5 else "calm")
    text, n_frames = _say(rng, language, voice, seconds, split, jumble)
    speaker_id = speaker_id or f"head{head_seed}"
    return ClipSpec(
        name=f"{speaker_id}_{clip_index:03d}",
        speaker_id=speaker_id,
        head_seed=head_seed,
        kind=kind,
        condition=condition,
        motion=motion,
        language=language,
        text=text,
        voice=voice,
        seed=int(rng.integers(2**62)),
        n_frames=n_frames,
        split=split,
    )


def fresh_specs(heads_seed: int, n: int, *, seconds: tuple[float, float] = (3.0, 3.0)) -> list[ClipSpec]:
    """``n`` clips of ``n`` heads that nobody has seen, with held-out voices and sentences: a benchmark's inputs.

    Kinds and conditions have the corpus's proportions; languages go round.
    """
    block = 1000
    if not 0 < n <= block:
        raise ValueError(f"n must be within 1..{block}, not {n}")
    start = FRESH + block * (seed_for("fresh", heads_seed) % (RANGE // block))
    kinds = spread(KIND_SHARES, n, seed_for("kinds", heads_seed))
    conditions = spread(CONDITION_SHARES, n, seed_for("conditions", heads_seed))
    languages = list(VOICES)
    return [
        draw_spec(
            start + i,
            0,
            kind=kinds[i],
            condition=conditions[i],
            language=languages[(heads_seed + i) % len(languages)],
            split="heldout",
            seconds=seconds,
            speaker_id=f"fresh{heads_seed}_{i:03d}",
        )
        for i in range(n)
    ]


def speech_of(spec: ClipSpec) -> Utterance:
    """What a clip's speaker says."""
    return synthesize(spec.text, spec.language, voice=spec.voice, rate=spec.rate, pitch=spec.pitch)


def other_speech(spec: ClipSpec, key: object, split: Split | None = None) -> Utterance:
    """Other words by the same voice in the same language, about as long: what a clip can be dubbed to.

    It shares no sentence with the clip: one that begins as the clip does is no dub for as long as that lasts.
    Where the bank is too small for that, the draw that shares the fewest is taken.
    """
    split = split or spec.split
    rng = rng_for("other speech", spec.name, spec.seed, key)
    seconds = spec.n_frames / FPS
    said = {sentence for sentence in sentences(spec.language, split) if sentence in spec.text}
    best, fewest = "", len(said) + 1
    for _ in range(_DRAWS):
        text, _ = _say(rng, spec.language, spec.voice, (0.85 * seconds, seconds), split, False)
        shared = sum(sentence in text for sentence in said)
        if shared < fewest:
            best, fewest = text, shared
        if not fewest:
            break
    return synthesize(best, spec.language, voice=spec.voice)


def fit_utterance(utterance: Utterance, n_frames: int) -> Utterance:
    """The utterance with exactly the sound of ``n_frames`` frames: cut, or followed by silence."""
    wanted = n_frames * SAMPLES_PER_FRAME
    samples = np.zeros(wanted, np.float32)
    kept = min(wanted, len(utterance.samples))
    samples[:kept] = utterance.samples[:kept]
    if kept < len(utterance.samples):  # a short fade hides the cut
        fade = min(160, kept)
        samples[kept - fade : kept] *= np.linspace(1.0, 0.0, fade, dtype=np.float32)
    return replace(utterance, samples=samples)


def render_spec(
    spec: ClipSpec, size: int, speech: Utterance | None = None, first: int | None = None
) -> tuple[Rendered, Utterance]:
    """Renders a clip, or its exact reference dub to another speech.

    Args:
        spec: the clip.
        size: side of the frames in pixels.
        speech: another utterance; head, light, head motion, blinks and mood stay bit for bit, the mouth follows this
            one. A shorter speech is followed by silence and a mouth at rest, a longer one is cut.
        first: only so many frames are rendered, as they are in the whole clip; None renders all.

    Returns:
        The rendered clip of ``spec.n_frames`` or `first` frames and the utterance that it speaks, of the whole length.
    """
    own = speech_of(spec)
    mouth = mouth_coefficients(own, spec.n_frames)
    performance = draw_performance(rng_for("performance", spec.seed), mouth, motion=spec.motion)
    if speech is not None:
        performance = replace_speech(performance, mouth_coefficients(speech, spec.n_frames))
    scene = draw_scene(rng_for("scene", spec.seed), spec.n_frames, spec.condition)
    rendered = render(avatar_for(spec.head_seed, spec.kind), performance, scene, size, first)
    return rendered, fit_utterance(own if speech is None else speech, spec.n_frames)
