"""Noise is noticed, made again, and told; a dub is not taken for it."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model_code import base
from model_code.avatars.clipspec import draw_spec, render_spec
from model_code.avatars.seeds import head_seed
from model_code.config import FlowConfig
from model_code.dubbing.model import DubberConfig, DubbingPipelineModel, load_transformer
from model_code.dubbing.noise import noisiness
from model_code.dubbing.strand import DubbedPart
from model_code.faces.crop import crop
from model_code.faces.track import crop_boxes
from model_code.training.data import to_frames, to_network

U8 = NDArray[np.uint8]


@pytest.fixture(scope="module")
def crops() -> U8:
    spec = draw_spec(head_seed("FRESH", 913), 0, kind="natural", condition="plain", seconds=(1.8, 1.9))
    rendered, _ = render_spec(spec, 192, first=45)
    return crop(rendered.frames, crop_boxes(rendered.landmarks.astype(np.float32)), 96)


@pytest.fixture(scope="module")
def editor() -> DubbingPipelineModel:
    return DubbingPipelineModel(
        DubberConfig(mode="editor", flow=FlowConfig(companion_share=1.0)),
        base.load("codec"),
        base.load("audio_encoder"),
        load_transformer(base.FOLDER / "prior"),
    )


def _noised(editor: DubbingPipelineModel, crops: U8, t: float) -> U8:
    """What a sampler that stopped at time t leaves."""
    with torch.no_grad():
        clean = editor.codec.encode(to_network(crops[:25])[None])
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
        return to_frames(editor.codec.decode((1 - t) * clean + t * noise)[0])


def test_half_a_sampled_window_is_noise_and_softness_is_not(editor: DubbingPipelineModel, crops: U8) -> None:
    levels = [noisiness(_noised(editor, crops, t), crops[:25]) for t in (0.0, 0.5, 1.0)]
    assert levels[0] < 0.75
    assert levels[1] > 1.3
    assert levels[2] > 1.5 * levels[1]
    soft = np.stack([np.full_like(frame, frame.mean((0, 1))) for frame in crops])
    assert noisiness(crops, crops) == pytest.approx(0.5)
    mouth = crops.copy()
    mouth[:, 60:85, 30:66] = soft[:, 60:85, 30:66] // 4
    assert noisiness(mouth, crops) < 1, "another mouth is what a dub is for"
    one = crops.copy()
    one[7] = np.random.default_rng(0).integers(0, 256, one[7].shape)
    assert noisiness(one, crops) > 3, "one frame is enough"


class Failing:
    """Puts noise in the place of some samples: which windows, and at how many of their tries."""

    def __init__(self, editor: DubbingPipelineModel, windows: dict[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
        self.tries: list[tuple[int, int]] = []
        window = editor._window

        def sometimes(strands, start: int, retry: int = 0, beat=None) -> torch.Tensor:  # type: ignore[no-untyped-def]
            self.tries.append((start, retry))
            latents = window(strands, start, retry, beat)
            if retry < windows.get(start, 0):
                return torch.randn(latents.shape, generator=torch.Generator().manual_seed(retry))
            return latents

        monkeypatch.setattr(editor, "_window", sometimes)


def _parts(editor: DubbingPipelineModel, crops: U8) -> Iterator[DubbedPart]:
    sound = np.random.default_rng(0).normal(0, 0.05, len(crops) * 640).astype(np.float32)
    return editor.dub_stream(iter(crops), len(crops), sound, seed=3)


def test_a_dub_of_the_shipped_base_is_no_noise(editor: DubbingPipelineModel, crops: U8) -> None:
    parts = list(_parts(editor, crops))
    assert [(part.retries, part.noise) for part in parts] == [(0, False), (0, False)]
    assert noisiness(np.concatenate([part.frames for part in parts]), crops) < 0.8


def test_noise_is_made_again_with_another_seed(
    editor: DubbingPipelineModel, crops: U8, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failing = Failing(editor, {20: 1}, monkeypatch)
    with caplog.at_level(logging.WARNING):
        parts = list(_parts(editor, crops))
    assert failing.tries == [(0, 0), (20, 0), (20, 1)]
    assert [(part.start, part.retries, part.noise) for part in parts] == [(0, 0, False), (20, 1, False)]
    assert noisiness(np.concatenate([part.frames for part in parts]), crops) < 0.8
    assert "window from frame 20" in caplog.text


class CancelledError(Exception):
    """Whoever listens wants the dub to end."""


def test_every_step_of_every_try_is_heard_and_can_end_the_dub(
    editor: DubbingPipelineModel, crops: U8, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = Failing(editor, {0: 9}, monkeypatch)
    heard: list[tuple[int, int]] = []

    def beat() -> None:
        heard.append(failing.tries[-1])
        if len(heard) == 13:
            raise CancelledError

    sound = np.zeros(len(crops) * 640, np.float32)
    with pytest.raises(CancelledError):
        list(editor.dub_stream(iter(crops), len(crops), sound, 3, beat))
    steps = editor.config.flow.sampling_steps
    assert heard == [*[(0, 0)] * steps, *[(0, 1)] * steps, *[(0, 2)] * (13 - 2 * steps)]


def test_the_best_is_kept_where_every_seed_gives_noise(
    editor: DubbingPipelineModel, crops: U8, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = Failing(editor, {0: 9}, monkeypatch)
    levels: list[float] = []

    def level(dubbed: U8, source: U8) -> float:
        levels.append(noisiness(dubbed, source))
        return levels[-1]

    monkeypatch.setattr("model_code.dubbing.model.noisiness", level)
    first = next(_parts(editor, crops))
    assert failing.tries == [(0, 0), (0, 1), (0, 2)]
    assert (first.retries, first.noise) == (2, True)
    assert noisiness(first.frames, crops[:25]) == min(levels)


def test_another_try_has_other_noise_and_the_first_is_as_ever(editor: DubbingPipelineModel) -> None:
    first, again, third = (editor._noise(3, 20, 7, retry) for retry in (0, 1, 2))
    assert not torch.equal(first, again)
    assert not torch.equal(again, third)
