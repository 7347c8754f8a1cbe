"""Two processes dub as one does, can be stopped in the middle, and know when they lost step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from model_code import team
from model_code.backbones.audio import AudioEncoder, AudioEncoderConfig
from model_code.backbones.codec import BlockCodec, BlockCodecConfig
from model_code.config import FlowConfig
from model_code.dubbing.crew import sampling_crew
from model_code.dubbing.model import DubberConfig, DubbingPipelineModel
from model_code.dubbing.strand import DubItem
from model_code.errors import InputError
from tests.dubbing.test_model import SIZE, clip, transformer

FLOW = FlowConfig(sampling_steps=6, audio_guidance=1.5, guidance_from=0.0, step_reuse=0.05)
EXPERTS = ("lip", "texture")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An editor with experts."""
    torch.manual_seed(0)
    codec = BlockCodec(BlockCodecConfig(channels=12, refiner_width=8, refiner_blocks=1))
    codec.fit(0.3 * torch.randn(3000, 768, generator=torch.Generator().manual_seed(0)))
    audio_encoder = AudioEncoder(AudioEncoderConfig(width=16, features=8))
    config = DubberConfig(mode="editor", flow=FLOW, crop_size=SIZE, noise_retries=0, experts=EXPERTS)
    path = tmp_path_factory.mktemp("dubber")
    DubbingPipelineModel(config, codec.eval(), audio_encoder.eval(), transformer(0, EXPERTS)).save_pretrained(path)
    return path


class StopError(Exception):
    """Raised to end a dub."""


def dubbed(model: DubbingPipelineModel, item: DubItem) -> np.ndarray:
    return model.dub_crops(item.frames, item.samples, item.seed).astype(int)


def test_two_processes_dub_as_one_does(folder: Path) -> None:
    alone, item = DubbingPipelineModel.from_pretrained(folder), clip(0, 40)
    expected, plain = dubbed(alone, item), dubbed(alone.with_flow(FLOW.model_copy(update={"step_reuse": 0.0})), item)
    with sampling_crew(2, "cpu") as crew:
        assert crew is not None
        model = DubbingPipelineModel.from_pretrained(folder)
        model.sample_with(crew, folder)
        for _ in range(2):
            made = dubbed(model, item)
            assert np.abs(made - expected).max() <= 1
            assert (made != expected).mean() < 1e-3, "rounding alone"
            beats: list[int] = []

            def beat(beats: list[int] = beats) -> None:
                beats.append(1)
                if len(beats) == 9:
                    raise StopError

            with pytest.raises(StopError):  # in the second window; the next dub is as if nothing had happened
                list(model.dub_stream(iter(item.frames), len(item.frames), item.samples, item.seed, beat))
            assert not crew.broken
        other = model.with_flow(FLOW.model_copy(update={"step_reuse": 0.0}))
        assert np.abs(dubbed(other, item) - plain).max() <= 1
        second = DubbingPipelineModel.from_pretrained(folder)
        second.sample_with(crew, folder)
        assert np.abs(dubbed(second, item) - expected).max() <= 1
        with pytest.raises(RuntimeError, match="hold another model"):
            dubbed(model, item)


def test_a_failure_within_a_run_is_known(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team, "PARTING", 0.5)
    item = clip(0, 10)
    with sampling_crew(2, "cpu") as crew:
        assert crew is not None
        model = DubbingPipelineModel.from_pretrained(folder)
        model.sample_with(crew, folder)
        failing = model.transformer.blocks[0].ffn.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            dubbed(model, item)
        assert crew.broken
        failing.remove()
        with pytest.raises(RuntimeError, match="lost step"):
            dubbed(model, item)


def test_one_process_needs_no_others_and_some_devices_are_refused() -> None:
    with sampling_crew(1, "cuda:1") as crew:
        assert crew is None
    refused = sampling_crew(2, "cuda:1")
    with pytest.raises(InputError, match="device cuda:1 for 2 sampling processes"), refused:
        pass
