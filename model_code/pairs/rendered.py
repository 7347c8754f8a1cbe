"""Rendered pairs: exact companions of heads that are not in the corpus (paper: 10 h beside 400 h generated).

Same avatar, head motion and light; only the coefficients that speech moves are another utterance's. Both
directions of a rendering are pairs: each video is the other's companion.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model_code.avatars.clipspec import ClipSpec, draw_spec, other_speech, render_spec
from model_code.avatars.render import Rendered
from model_code.avatars.seeds import RANGE, head_seed
from model_code.config import MediaConfig, PairsConfig
from model_code.faces.crop import crop, to_crop
from model_code.faces.track import crop_boxes
from model_code.media.sample import ClipSample
from model_code.pairs.pair import Pair
from model_code.seeding import seed_for
from model_code.speech.espeak import Utterance

FRAME_SHARE = 2
"""Side of the rendered frame over the crop's, as with the procedural corpus: a crop is not scaled up."""


def draw_rendered(shard: str, index: int, config: PairsConfig) -> ClipSpec:
    """The spec of a shard's `index`-th rendering; its head is in nobody else's range of seeds."""
    place = seed_for("rendered", config.seed, shard, index) % RANGE
    seconds = (config.rendered_seconds, config.rendered_seconds)
    return draw_spec(head_seed("RENDERED", place), 0, seconds=seconds, seed=config.seed)


def render_pairs(spec: ClipSpec, shard: str, media: MediaConfig) -> list[Pair]:
    """Renders a spec with its own and with other words: two pairs."""
    side = FRAME_SHARE * media.crop_size
    videos = [render_spec(spec, side), render_spec(spec, side, other_speech(spec, shard))]
    boxes = crop_boxes(videos[0][0].landmarks, media.crop_scale)
    samples = [
        sample_from_render(spec, name, rendered, speech, boxes, media)
        for name, (rendered, speech) in zip(("a", "b"), videos, strict=True)
    ]
    pairs = []
    for target, companion in (samples, samples[::-1]):
        pair_id = f"rendered-{target.clip_id}"
        row = {
            "pair_id": pair_id,
            "clip_id": target.clip_id,
            "shard": shard,
            "variant": "rendered",
            "speaker_id": spec.speaker_id,
            "driving_clip_id": companion.clip_id,
            "seed": spec.seed,
            "generator_version": "renderer",
            "n_frames": len(target.frames),
            "occluded": target.occluder is not None,
        }
        pairs.append(Pair(pair_id, target, companion.frames, companion.landmarks, row))
    return pairs


def sample_from_render(
    spec: ClipSpec,
    name: str,
    rendered: Rendered,
    speech: Utterance,
    boxes: NDArray[np.float32],
    media: MediaConfig,
) -> ClipSample:
    """A rendering as ingest would give it, with the renderer's landmarks."""
    size = media.crop_size
    occluder = None
    if rendered.occluder.any():
        grey = np.repeat(rendered.occluder[..., None].astype(np.uint8) * 255, 3, -1)
        occluder = crop(grey, boxes, size)[..., 0] > 127
    clip_id = f"{spec.name}-{name}"
    row = {"clip_id": clip_id, "speaker_id": spec.speaker_id, "fps": media.fps, "sample_rate": media.sample_rate}
    return ClipSample(
        clip_id,
        row,
        crop(rendered.frames, boxes, size),
        to_crop(rendered.landmarks, boxes, size),
        np.ones(len(rendered.frames), np.float32),
        speech.samples,
        boxes,
        occluder,
    )
