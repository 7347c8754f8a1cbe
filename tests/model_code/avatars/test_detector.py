"""A face detector that saw only photographs of people finds the faces of our people."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from model_code.avatars.avatar import Avatar
from model_code.avatars.clipspec import ClipSpec, avatar_for, speech_of
from model_code.avatars.corpus import corpus_specs
from model_code.avatars.identity import draw_natural
from model_code.avatars.performance import Performance, draw_performance
from model_code.avatars.render import render
from model_code.avatars.scene import draw_scene
from model_code.avatars.seeds import head_seed
from model_code.config import CorpusConfig
from model_code.seeding import rng_for
from model_code.speech.visemes import mouth_coefficients

FRONTAL = np.radians(15)
EVERY = 16


def _frontal_frames(spec: ClipSpec, avatar: Avatar, size: int) -> np.ndarray:
    """Every so many frames of a clip without occluder, where the head looks ahead."""
    mouth = mouth_coefficients(speech_of(spec), spec.n_frames)
    motion = draw_performance(rng_for("performance", spec.seed), mouth, motion=spec.motion)
    scene = draw_scene(rng_for("scene", spec.seed), spec.n_frames, spec.condition)
    at = np.arange(0, spec.n_frames, EVERY)
    at = at[np.abs(motion.rotation[at, 0]) <= FRONTAL]
    if not len(at):
        return np.zeros((0, size, size, 3), np.uint8)
    motion = Performance(motion.coefficients[at], motion.rotation[at], motion.translation[at], motion.expression[at])
    lights = ("light_directions", "light_colors", "sky", "ground", "background_gain")
    scene = replace(scene, **{name: getattr(scene, name)[at] for name in lights})
    return np.asarray(render(avatar, motion, scene, size).frames)


@pytest.mark.slow
def test_the_frontal_cascade_finds_exactly_one_face_in_natural_heads() -> None:
    config = CorpusConfig()
    cascade = cv2.CascadeClassifier(str(Path(cv2.__file__).parent / "data" / "haarcascade_frontalface_alt2.xml"))
    seen, found = Counter[str](), Counter[str]()
    for spec in corpus_specs(config):
        if spec.kind == "natural" and spec.condition in ("plain", "changing_light"):
            for frame in _frontal_frames(spec, avatar_for(spec.head_seed, spec.kind), config.frame_size):
                grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
                faces = cascade.detectMultiScale(grey, scaleFactor=1.1, minNeighbors=4, minSize=(20, 20))
                seen[spec.speaker_id] += 1
                found[spec.speaker_id] += len(faces) == 1
    missed = {speaker: f"{found[speaker]}/{count}" for speaker, count in seen.items() if found[speaker] < count}
    assert len(seen) == 26
    assert seen.total() > 200
    assert found.total() >= 0.95 * seen.total(), missed


def test_brows_are_darker_than_skin_and_dark_heads_stay_in_the_draw() -> None:
    heads = [draw_natural(seed, rng_for("head", seed)) for seed in (head_seed("CORPUS", i) for i in range(300))]
    weights = np.array([0.2126, 0.7152, 0.0722])
    skin, brow, hair = (
        np.array([getattr(head, name) for head in heads]) @ weights for name in ("skin", "brow_color", "hair_color")
    )
    assert (brow <= 0.6 * skin + 1e-9).all()
    assert (skin < 0.1).mean() > 0.2
    assert ((skin < 0.1) & (hair > 0.2)).any()
