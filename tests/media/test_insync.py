"""The offset between sound and lips, with the shipped audio encoder on real renderings."""

import numpy as np
import pytest

from model_code import base
from model_code.avatars.clipspec import ClipSpec, draw_spec, render_spec
from model_code.avatars.render import Rendered
from model_code.avatars.seeds import head_seed
from model_code.backbones.audio import AudioEncoder
from model_code.media.insync import find_offset, heard_opening, mouth_opening


@pytest.fixture(scope="module")
def encoder() -> AudioEncoder:
    if not (base.FOLDER / "audio_encoder" / "config.json").is_file():
        pytest.skip("needs the shipped audio encoder: run `make pretrain`")
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
    offset = find_offset(np.zeros_like(samples), rendered.landmarks, encoder)
    assert offset.correlation < 0.9
    short = find_offset(samples[: 12 * 640], rendered.landmarks[:12], encoder)
    assert abs(short.frames) <= 1
