"""Procedural footage for pretraining: heads that neither the demo nor the benchmark nor the evaluators ever see.

Each head is rendered twice, the second time saying something else with all else the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from model_code.avatars.clipspec import draw_spec, other_speech, render_spec
from model_code.avatars.seeds import head_seed
from model_code.config import PretrainConfig
from model_code.faces.crop import crop, to_crop
from model_code.faces.track import crop_boxes
from model_code.files import unfinished
from model_code.lifetime import process_pool
from model_code.media.sample import ClipSample
from model_code.seeding import rng_for, seed_for

RAW_EVERY = 6
"""Every so many raw frames one is kept, for the landmarker."""


@dataclass(frozen=True)
class Footage:
    """One head.

    Attributes:
        sample: A clip as ingest would give it, with true landmarks.
        other: The same clip, crop boxes included, with another utterance and its mouth.
        mouth: (T, 3) float32 true opening, width and pucker.
        raw: (N, S, S, 3) uint8 whole frames, and their (N, 68, 2) landmarks.
        attributes: kind, condition and language.
    """

    sample: ClipSample
    other: ClipSample
    mouth: NDArray[np.float32]
    raw: NDArray[np.uint8]
    raw_landmarks: NDArray[np.float32]
    attributes: dict[str, str]


def render_footage(folder: Path, config: PretrainConfig, progress: Callable[[int, int], None] | None = None) -> None:
    """Renders the clips of each head into `folder`, one file each; what was made of the same settings is kept."""
    missing = [index for index in range(config.heads) if not _path(folder, config, index).is_file()]
    done = config.heads - len(missing)
    with process_pool(config.processes) as pool:
        for future in as_completed([pool.submit(_render_head, folder, config, index) for index in missing]):
            future.result()
            done += 1
            if progress is not None:
                progress(done, config.heads)


def load_footage(folder: Path, config: PretrainConfig, heads: Iterable[int]) -> Iterator[Footage]:
    """Reads the clips of these heads, one after another: together they fill gigabytes.

    Raises:
        FileNotFoundError: when it comes to one that has not been rendered.
    """
    return (_load(_path(folder, config, index)) for index in heads)


def _path(folder: Path, config: PretrainConfig, index: int) -> Path:
    made_of = seed_for(config.seed, config.seconds, config.frame_size, config.crop_size, RAW_EVERY)
    return folder / f"{made_of:x}" / f"pair_{index:05d}.safetensors"


def _render_head(folder: Path, config: PretrainConfig, index: int) -> None:
    rng = rng_for("pretrain footage", config.seed, index)
    spec = draw_spec(
        head_seed("PRETRAIN", index), 0, seconds=(config.seconds, config.seconds), jumble=True, seed=config.seed
    )
    rendered, speech = render_spec(spec, config.frame_size)
    other, other_words = render_spec(spec, config.frame_size, other_speech(spec, "pretraining"))
    boxes = jittered(crop_boxes(rendered.landmarks), rng)
    tensors: dict[str, NDArray[Any]] = {
        "frames": crop(rendered.frames, boxes, config.crop_size),
        "landmarks": to_crop(rendered.landmarks, boxes, config.crop_size),
        "mouth": rendered.mouth.astype(np.float32),
        "audio": speech.samples.astype(np.float32),
        "other_frames": crop(other.frames, boxes, config.crop_size),
        "other_landmarks": to_crop(other.landmarks, boxes, config.crop_size),
        "other_audio": other_words.samples.astype(np.float32),
        "boxes": boxes,
        "raw": np.ascontiguousarray(rendered.frames[::RAW_EVERY]),
        "raw_landmarks": np.ascontiguousarray(rendered.landmarks[::RAW_EVERY].astype(np.float32)),
    }
    if rendered.occluder.any():
        covered = crop(np.repeat(rendered.occluder[..., None].astype(np.uint8) * 255, 3, -1), boxes, config.crop_size)
        tensors["occluder"] = np.packbits(covered[..., 0] > 127, axis=-1)
    row = {
        "speaker_id": spec.speaker_id,
        "kind": spec.kind,
        "condition": spec.condition,
        "language": spec.language,
        "clip_id": spec.name,
    }
    path = _path(folder, config, index)
    path.parent.mkdir(parents=True, exist_ok=True)
    with unfinished(path) as partial:
        save_file(tensors, partial, metadata={"row": json.dumps(row)})


def jittered(boxes: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """The boxes of a clip moved and scaled a little, as an imperfect landmarker would."""
    side = (boxes[:, 2:3] - boxes[:, :1]) * rng.uniform(0.95, 1.06)
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2 + side * rng.normal(0, 0.015, 2)
    return np.concatenate([centre - side / 2, centre + side / 2], 1).astype(np.float32)


def _load(path: Path) -> Footage:
    with safe_open(path, framework="np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        row = json.loads(file.metadata()["row"])
    occluder = None
    if "occluder" in tensors:
        occluder = np.unpackbits(tensors["occluder"], axis=-1, count=tensors["frames"].shape[2]).astype(bool)
    sample, other = (
        ClipSample(
            row["clip_id"] + prefix,
            {**row, "clip_id": row["clip_id"] + prefix},
            tensors[f"{prefix}frames"],
            tensors[f"{prefix}landmarks"],
            np.ones(len(tensors["frames"]), np.float32),
            tensors[f"{prefix}audio"],
            tensors["boxes"],
            occluder,
        )
        for prefix in ("", "other_")
    )
    attributes = {name: row[name] for name in ("kind", "condition", "language")}
    return Footage(sample, other, tensors["mouth"], tensors["raw"], tensors["raw_landmarks"], attributes)
