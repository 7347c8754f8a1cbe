"""Companions that a clip lends itself."""

import numpy as np
import pytest

from model_code.avatars.clipspec import draw_spec, render_spec
from model_code.avatars.seeds import head_seed
from model_code.config import MediaConfig
from model_code.faces.masks import face_mask, paste_mask
from model_code.faces.track import crop_boxes
from model_code.media.sample import ClipSample
from model_code.pairs.rendered import sample_from_render
from model_code.pairs.shifted import MIN_SHIFT, shifted_companion


@pytest.fixture(scope="module")
def clip() -> ClipSample:
    spec = draw_spec(head_seed("FRESH", 3), 0, seconds=(1.6, 1.6), seed=1)
    rendered, speech = render_spec(spec, 128)
    media = MediaConfig()
    return sample_from_render(spec, "a", rendered, speech, crop_boxes(rendered.landmarks, media.crop_scale), media)


def test_only_the_face_changes_and_its_mouth_is_another_moments(clip: ClipSample) -> None:
    made = shifted_companion(clip, np.random.default_rng(0))
    size = clip.frames.shape[1]
    outside = paste_mask(clip.landmarks, size, clip.occluder) == 0
    assert np.array_equal(made[outside], clip.frames[outside])
    inside = face_mask(clip.landmarks, size)
    difference = np.abs(made.astype(int) - clip.frames.astype(int)).mean(-1)
    assert difference[inside].mean() > 3 * max(difference[~inside].mean(), 0.1)


def test_a_still_clip_is_its_own_companion(clip: ClipSample) -> None:
    count = 2 * MIN_SHIFT + 4
    still = ClipSample(
        clip.clip_id,
        clip.row,
        np.repeat(clip.frames[:1], count, 0),
        np.repeat(clip.landmarks[:1], count, 0),
        clip.confidence[:count],
        clip.audio,
        clip.boxes[:count],
        None,
    )
    made = shifted_companion(still, np.random.default_rng(0))
    assert np.abs(made.astype(int) - still.frames.astype(int)).max() <= 1
