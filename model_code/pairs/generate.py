"""Generated pairs: the generator dubs a clip with other speech of the same speaker (paper, pair construction).

25-frame segments bridged by 5 motion frames make the whole clip; the reference frame comes from inside the
segment. A speaker with a single clip in the shard says what it says at another moment. The new face is composited
back on the original through a blurred face mask that leaves occluders out, so that V' and V differ in nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from model_code.config import PairsConfig
from model_code.dubbing.model import DubbingPipelineModel, DubItem
from model_code.faces.landmarker import Landmarker
from model_code.faces.masks import paste_mask
from model_code.media.sample import ClipSample, StoredClip
from model_code.pairs.pair import Pair
from model_code.pairs.relight import draw_relighting, is_uniformly_lit, relight
from model_code.seeding import rng_for, seed_for


def composite(
    generated: NDArray[np.uint8],
    original: NDArray[np.uint8],
    landmarks: NDArray[np.float32],
    occluder: NDArray[np.bool_] | None,
) -> NDArray[np.uint8]:
    """Puts the generated face on the original through the blurred face mask, occluders left out."""
    weight = paste_mask(landmarks, original.shape[1], occluder)[..., None]
    mixed = generated.astype(np.float32) * weight + original.astype(np.float32) * (1 - weight)
    return np.rint(mixed).astype(np.uint8)


def driving_clip(clip: StoredClip, clips: Sequence[StoredClip], rng: np.random.Generator) -> StoredClip:
    """Another clip of the same speaker; the clip itself where there is none."""
    speaker = clip.row["speaker_id"]
    others = [other for other in clips if other.row["speaker_id"] == speaker and other.clip_id != clip.clip_id]
    return others[int(rng.integers(len(others)))] if others else clip


def driving_sound(clip: StoredClip, driver: StoredClip) -> NDArray[np.float32]:
    """The driver's sound (N,); that of the clip itself with its halves exchanged, so that no moment keeps its words."""
    sound = driver.sound()
    return np.roll(sound, len(sound) // 2) if driver.clip_id == clip.clip_id else sound


def generate_pairs(
    clips: Sequence[StoredClip],
    generator: DubbingPipelineModel,
    landmarker: Landmarker,
    shard: str,
    config: PairsConfig,
    generator_version: str,
    variant: str = "generated",
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Pair]:
    """Companions for a share of a shard's clips, `batch_size` clips in memory at once.

    Args:
        clips: The shard's clips.
        generator: An inpainting model.
        landmarker: Finds the landmarks of V'.
        shard: The shard's name; with variant and clip it makes the seeds.
        config: How many, how well.
        generator_version: Written into every row.
        variant: `generated`, or `relit` (then both videos are relit alike).
        progress: Told (clips done, clips in all).
    """
    fraction = config.clip_fraction if variant == "generated" else config.relit_fraction
    chosen = choose_clips(clips, fraction, config.pairs_per_clip, shard, variant, config.seed)
    jobs = []
    for stored, copy in chosen:
        seed = seed_for("pair", config.seed, shard, variant, stored.clip_id, copy)
        jobs.append((stored, copy, seed, driving_clip(stored, clips, rng_for("driving", seed))))
    flow = generator.config.flow.model_copy(
        update={"sampling_steps": config.sampling_steps, "audio_guidance": config.audio_guidance}
    )
    generator = generator.with_flow(flow)
    for begin in range(0, len(jobs), config.batch_size):
        part = jobs[begin : begin + config.batch_size]
        targets = [stored.read() for stored, *_ in part]
        items = [
            DubItem(clip.frames, driving_sound(stored, driver), seed, clip.landmarks, clip.occluder)
            for clip, (stored, _, seed, driver) in zip(targets, part, strict=True)
        ]
        dubs = generator.dub_many(items, config.batch_size)
        for clip, dubbed, (_, copy, seed, driver) in zip(targets, dubs, part, strict=True):
            companion = composite(dubbed, clip.frames, clip.landmarks, clip.occluder)
            landmarks, _ = landmarker.predict_crops(companion)
            target = clip
            if variant == "relit":
                light = draw_relighting(rng_for("relight", seed), len(clip.frames))
                target = relit_clip(clip, relight(clip.frames, light))
                companion = relight(companion, light)
            pair_id = f"{variant}-{clip.clip_id}-{copy}"
            row = {
                "pair_id": pair_id,
                "clip_id": clip.clip_id,
                "shard": shard,
                "variant": variant,
                "speaker_id": clip.row["speaker_id"],
                "driving_clip_id": driver.clip_id,
                "seed": seed,
                "generator_version": generator_version,
                "n_frames": len(clip.frames),
                "occluded": clip.occluder is not None and bool(clip.occluder.any()),
            }
            yield Pair(pair_id, target, companion, landmarks, row)
        if progress is not None:
            progress(begin + len(part), len(jobs))


def choose_clips(
    clips: Sequence[StoredClip], fraction: float, copies: int, shard: str, variant: str, seed: int
) -> list[tuple[StoredClip, int]]:
    """A share of the clips (at least one), drawn by the shard's name; relighting takes uniformly lit ones only."""
    usable = [clip for clip in clips if variant != "relit" or _has_one_light(clip.read())]
    if not usable:
        return []
    count = max(1, round(fraction * len(clips)))
    order = rng_for("choose", seed, shard, variant).permutation(len(usable))[:count]
    return [(usable[int(index)], copy) for index in sorted(order) for copy in range(copies)]


def _has_one_light(clip: ClipSample) -> bool:
    return is_uniformly_lit(clip.frames, clip.landmarks)


def relit_clip(clip: ClipSample, frames: NDArray[np.uint8]) -> ClipSample:
    """The clip with other frames."""
    return ClipSample(
        clip.clip_id, clip.row, frames, clip.landmarks, clip.confidence, clip.audio, clip.boxes, clip.occluder
    )
