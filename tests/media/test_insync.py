"""The offset between sound and lips, with the shipped audio encoder on real renderings."""

import numpy as np
import pytest

from model_code import base
from model_code.avatars.clipspec import ClipSpec, draw_spec, render_spec
from model_code.avatars.render import Rendered
from model_code.avatars.seeds import head_seed
from model_code.backbones.audio import AudioEncoder
from model_code.media.ingest import Quarantined
from model_code.media.insync import CERTAIN, MAX_OFFSET, Offset, find_offset, heard_opening, mouth_opening
from model_code.media.sample import ClipSample
from model_code.workers.ingest import in_step


@pytest.fixture(scope="module")
def encoder() -> AudioEncoder:
    if not (base.FOLDER / "audio_encoder" / "config.json").is_file():
        pytest.skip("needs the shipped audio encoder: restore it from git")
    loaded: AudioEncoder = base.load("audio_encoder")
    return loaded


@pytest.fixture(scope="module")
def talk() -> tuple[Rendered, np.ndarray]:
    spec: ClipSpec = draw_spec(head_seed("FRESH", 77), 0, kind="natural", condition="plain", seconds=(2.4, 2.4))
    rendered, speech = render_spec(spec, 64)
    return rendered, speech.samples


@pytest.mark.parametrize("late", [-6, -2, 0, 3, 8])
def test_a_shift_of_the_sound_is_found(talk: tuple[Rendered, np.ndarray], encoder: AudioEncoder, late: int) -> None:
    rendered, samples = talk
    offset = find_offset(np.roll(samples, late * 640), rendered.landmarks, encoder)
    assert abs(offset.frames - late) <= 1
    assert offset.correlation > 0.4


def test_the_encoder_hears_how_far_the_mouth_opens(talk: tuple[Rendered, np.ndarray], encoder: AudioEncoder) -> None:
    rendered, samples = talk
    heard = heard_opening(samples, len(rendered.landmarks), encoder)
    assert heard.shape == (len(rendered.landmarks),)
    assert np.corrcoef(heard, mouth_opening(rendered.landmarks))[0, 1] > 0.4


def test_silence_says_nothing(talk: tuple[Rendered, np.ndarray], encoder: AudioEncoder) -> None:
    rendered, samples = talk
    assert find_offset(np.zeros_like(samples), rendered.landmarks, encoder).correlation < CERTAIN


@pytest.mark.parametrize(
    ("correlation", "unshifted", "frames", "certain"),
    [
        (0.45, 0.0, 62, False),
        (0.55, 0.0, 62, True),
        (0.45, 0.0, 100, True),
        (0.3, 0.0, 1000, False),
        (0.6, 0.55, 100, False),
    ],
)
def test_a_peak_must_be_more_than_chance(correlation: float, unshifted: float, frames: int, certain: bool) -> None:
    assert Offset(-10, correlation, unshifted, frames).certain is certain


def clip_of(talk: tuple[Rendered, np.ndarray], late: int) -> ClipSample:
    """A clip whose sound is so many frames late."""
    rendered, samples = talk
    count = len(rendered.frames)
    row = {"source_uri": "a.mp4", "start_frame": 0, "sync_offset": 0}
    sound = np.roll(samples, late * 640)[: count * 640]
    boxes = np.tile(np.array([0, 0, 64, 64], np.float32), (count, 1))
    return ClipSample("a", row, rendered.frames, rendered.landmarks, np.ones(count, np.float32), sound, boxes)


@pytest.mark.parametrize("late", [-3, 3])
def test_ingest_brings_sound_into_step(talk: tuple[Rendered, np.ndarray], encoder: AudioEncoder, late: int) -> None:
    kept = in_step(clip_of(talk, late), encoder)
    assert isinstance(kept, ClipSample)
    assert abs(kept.row["sync_offset"] - late) <= 1
    assert abs(find_offset(kept.audio, kept.landmarks, encoder).frames) <= 1
    assert kept.row["sync_confidence"] >= CERTAIN


def test_ingest_leaves_sound_that_is_in_step(talk: tuple[Rendered, np.ndarray], encoder: AudioEncoder) -> None:
    clip = clip_of(talk, 0)
    kept = in_step(clip, encoder)
    assert isinstance(kept, ClipSample)
    assert kept.row["sync_offset"] == 0
    assert np.array_equal(kept.audio, clip.audio)


@pytest.mark.parametrize("late", [-(MAX_OFFSET + 2), MAX_OFFSET + 2])
def test_ingest_turns_away_what_is_too_far_out_of_step(
    talk: tuple[Rendered, np.ndarray], encoder: AudioEncoder, late: int
) -> None:
    refused = in_step(clip_of(talk, late), encoder)
    assert isinstance(refused, Quarantined)
    assert refused.reason == "out of sync"
    assert any(f"is {frames} frames late" in refused.detail for frames in range(late - 1, late + 2))
