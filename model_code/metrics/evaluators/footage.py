"""Footage for the evaluators: single frames of heads from their own seed range, cropped by true landmarks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model_code.avatars.avatar import ARKIT_NAMES
from model_code.avatars.head import build_head, draw_head
from model_code.avatars.performance import Motion, Performance, draw_performance
from model_code.avatars.render import render
from model_code.avatars.scene import CONDITIONS, Scene, draw_scene
from model_code.avatars.seeds import head_seed
from model_code.faces.crop import crop, to_crop
from model_code.faces.track import CROP_SCALE, face_box
from model_code.files import unfinished
from model_code.lifetime import process_pool
from model_code.metrics.evaluators.trunk import CROP
from model_code.seeding import rng_for, seed_for
from model_code.speech.espeak import VOICES, synthesize
from model_code.speech.sentences import random_sentence
from model_code.speech.visemes import mouth_coefficients


@dataclass(frozen=True)
class EvaluatorFootage:
    """Face crops with the renderer's truth.

    Attributes:
        crops: uint8 (N,96,96,3).
        curves: float32 (N,3): opening, width, pucker.
        landmarks: float32 (N,68,2) in pixels of the crop.
        heads: int64 (N,): head seed of each frame.
        kinds: (N,) "natural" | "stylised" | "nonhuman".
        held_out: Seeds of the heads kept for scoring.
    """

    crops: np.ndarray
    curves: np.ndarray
    landmarks: np.ndarray
    heads: np.ndarray
    kinds: np.ndarray
    held_out: np.ndarray

    def part(self, *, held_out: bool) -> EvaluatorFootage:
        """The frames of the held-out heads, or of the others."""
        rows = np.isin(self.heads, self.held_out) == held_out
        varying = {name: getattr(self, name)[rows] for name in ("crops", "curves", "landmarks", "heads", "kinds")}
        return EvaluatorFootage(**varying, held_out=self.held_out)

    def batch(self, generator: torch.Generator, *, heads: int, frames: int) -> np.ndarray:
        """Row numbers (heads*frames,): `frames` rows of each of `heads` random heads, head after head."""
        unique = np.unique(self.heads)
        chosen = unique[torch.randperm(len(unique), generator=generator)[:heads].numpy()]
        rows = []
        for head in chosen:
            own = np.flatnonzero(self.heads == head)
            rows.append(own[torch.randint(len(own), (frames,), generator=generator).numpy()])
        return np.concatenate(rows)

    def describe(self) -> dict[str, Any]:
        """Counts for the card."""
        return {
            "frames": len(self.crops),
            "heads": len(np.unique(self.heads)),
            "held_out_heads": len(self.held_out),
            "head_seeds": [int(self.heads.min()), int(self.heads.max())],
        }

    def save(self, path: Path) -> None:
        """Writes one ``.npz``, whole or not at all."""
        with unfinished(path) as partial, partial.open("wb") as file:
            np.savez(file, **vars(self))

    @classmethod
    def load(cls, path: Path) -> EvaluatorFootage:
        """Reads what `save` wrote."""
        with np.load(path, allow_pickle=False) as data:
            return cls(**{name: data[name] for name in data.files})


def random_mouth(rng: np.random.Generator, n_frames: int) -> np.ndarray:
    """Unrelated mouths, strong and independent in every direction: ARKit coefficients (T,52).

    Speech alone ties width and pucker to opening; a reader trained on it would guess one from the other.
    """
    values = {name: np.zeros(n_frames) for name in ARKIT_NAMES}

    def some(share: float, low: float, high: float) -> np.ndarray:
        return np.where(rng.random(n_frames) < share, rng.uniform(low, high, n_frames), 0.0)

    values["jawOpen"] = some(0.8, 0.0, 0.85) * rng.uniform(0.3, 1.0, n_frames)
    values["mouthClose"] = values["jawOpen"] * some(0.25, 0.2, 1.0)
    values["mouthPucker"], values["mouthFunnel"] = some(0.35, 0.1, 1.0), some(0.35, 0.1, 0.9)
    values["tongueOut"] = some(0.05, 0.1, 0.6)
    values["jawLeft"], values["jawRight"] = some(0.08, 0.0, 0.3), some(0.08, 0.0, 0.3)
    for stem, share, high in (
        ("mouthStretch", 0.3, 0.9), ("mouthSmile", 0.3, 0.8), ("mouthFrown", 0.15, 0.6), ("mouthDimple", 0.15, 0.6),
        ("mouthPress", 0.12, 0.7), ("mouthLowerDown", 0.3, 0.7), ("mouthUpperUp", 0.3, 0.6),
    ):  # fmt: skip
        strength = some(share, 0.05, high)
        for side in ("Left", "Right"):
            values[stem + side] = strength * rng.uniform(0.8, 1.0, n_frames)
    for name in ("mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper"):
        values[name] = some(0.12, 0.05, 0.6)
    return np.stack([values[name] for name in ARKIT_NAMES], 1).astype(np.float32)


def render_head(
    seed: int, *, frames: int, scenes: int = 4, size: int = 192
) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
    """Single frames of one head in several scenes, cropped with jitter.

    Every scene is a long performance of which every tenth frame is kept, so that pose, gaze and light differ between
    frames; its mouths are half random, half speech.

    Args:
        seed: Head seed of the evaluator range.
        frames: Frames altogether.
        scenes: Scenes that they come from; conditions change from one to the next.
        size: Side of the raw frames in pixels.

    Returns:
        (crops uint8 (N,96,96,3), curves (N,3), landmarks (N,68,2), kind).
    """
    avatar = build_head(draw_head(seed))
    crops, curves, landmarks = [], [], []
    for number in range(scenes):
        rng = rng_for("evaluator footage", seed, number)
        count = frames // scenes
        condition = CONDITIONS[(seed + number) % len(CONDITIONS)]
        keep = np.arange(count) * 10 + rng.integers(0, 10, count)
        language = str(rng.choice(list(VOICES)))
        speech = synthesize(random_sentence(rng, language, 30), language, voice=int(rng.integers(0, 1 << 20)))
        spoken = mouth_coefficients(speech, 10 * count)
        motion: Motion = "profile" if condition == "profile" else "lively" if rng.random() < 0.5 else "calm"
        performance = draw_performance(rng, spoken, motion=motion)
        said = spoken[keep % max(1, min(10 * count, int(speech.seconds * 25)))]
        mouth = np.where(rng.random((count, 1)) < 0.5, random_mouth(rng, count), said)
        expression = performance.expression[keep]
        coefficients = np.clip(expression + mouth, 0, 1).astype(np.float32)
        chosen = Performance(coefficients, performance.rotation[keep], performance.translation[keep], expression)
        rendered = render(avatar, chosen, _take(draw_scene(rng, 10 * count, condition), keep), size)
        boxes = _jittered_boxes(rng, rendered.landmarks)
        crops.append(crop(rendered.frames, boxes, CROP))
        curves.append(rendered.mouth)
        landmarks.append(to_crop(rendered.landmarks, boxes, CROP))
    return np.concatenate(crops), np.concatenate(curves), np.concatenate(landmarks), avatar.kind


def footage_in(
    folder: Path, heads: int = 360, frames: int = 36, held_out: int = 36, *, scenes: int = 3, processes: int = 1
) -> EvaluatorFootage:
    """What `render_footage` makes, from `folder` where an earlier run of the same settings left it."""
    path = folder / f"evaluators_{seed_for(heads, frames, held_out, scenes):x}.npz"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        render_footage(heads, frames, held_out, scenes=scenes, processes=processes).save(path)
    return EvaluatorFootage.load(path)


def render_footage(heads: int, frames: int, held_out: int, *, scenes: int, processes: int) -> EvaluatorFootage:
    """Renders heads of the evaluator range; the last `held_out` of them are kept for scoring."""
    seeds = [head_seed("EVALUATOR", index) for index in range(heads)]
    draw = partial(render_head, frames=frames, scenes=scenes)
    if processes == 1:
        parts = [draw(seed) for seed in seeds]
    else:
        with process_pool(processes) as pool:
            parts = list(pool.map(draw, seeds, chunksize=4))
    crops, curves, landmarks, kinds = zip(*parts, strict=True)
    counts = [len(part) for part in crops]
    return EvaluatorFootage(
        np.concatenate(crops),
        np.concatenate(curves).astype(np.float32),
        np.concatenate(landmarks).astype(np.float32),
        np.repeat(np.array(seeds, np.int64), counts),
        np.repeat(np.array(kinds), counts),
        np.array(seeds[heads - held_out :], np.int64),
    )


def _take(scene: Scene, keep: np.ndarray) -> Scene:
    varying = {
        name: getattr(scene, name)[keep]
        for name in ("light_directions", "light_colors", "sky", "ground", "background_gain")
    }
    thing = scene.occluder
    if thing is not None:
        thing = replace(thing, path=thing.path[keep], rotation=thing.rotation[keep])
    return replace(scene, **varying, occluder=thing)


def _jittered_boxes(rng: np.random.Generator, landmarks: np.ndarray) -> np.ndarray:
    """Square boxes (T,4) as the chain crops (they follow the head, not the mouth), each moved and scaled a little."""
    boxes = face_box(landmarks, CROP_SCALE)
    sides = boxes[:, 2] - boxes[:, 0]
    anchor = landmarks[:, [36, 39, 42, 45, 27, 30]].mean(1)
    offset = np.median(((boxes[:, :2] + boxes[:, 2:]) / 2 - anchor) / sides[:, None], axis=0)
    side = np.median(sides) * rng.uniform(0.92, 1.1, (len(boxes), 1))
    centre = anchor + offset * side + side * rng.normal(0, 0.02, (len(boxes), 2))
    return np.concatenate([centre - side / 2, centre + side / 2], 1).astype(np.float32)
