"""What a model in training is looked at with."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig
from torch import nn

from model_code.backbones.codec import BlockCodec, BlockCodecConfig
from model_code.backbones.transformer import DubbingTransformer
from model_code.config import FlowConfig, PhaseConfig
from model_code.diffusion.schedule import expert_windows, sigmas
from model_code.training.data import TrainingSet
from model_code.training.phases import Critics, GeneratorPhase
from model_code.workers.validation import samples
from tests.training.small import SHAPE, clips


@pytest.mark.parametrize("expert", ["lip", "texture"])
def test_an_expert_is_shown_acting_in_its_window_alone(expert: str) -> None:
    torch.manual_seed(0)
    model = DubbingTransformer.build(SHAPE).eval()
    model.add_adapter(LoraConfig(r=2, target_modules=["q", "v"]), adapter_name=expert)
    flow = FlowConfig()
    codec = BlockCodec(BlockCodecConfig(channels=6, refiner_width=8, refiner_blocks=1))
    codec.fit(torch.randn(100, 768))
    phase = GeneratorPhase(PhaseConfig(phase=expert), flow, Critics(codec))
    adapter = next(module for name, module in model.named_modules() if name.endswith("lora_A") and len(module))
    times: list[float] = []
    acted: list[float] = []
    model.register_forward_pre_hook(lambda _, given: times.append(float(given[1].max())))
    assert isinstance(adapter, nn.ModuleDict)
    adapter[expert].register_forward_hook(lambda *_: acted.append(times[-1]))
    samples(model, phase, TrainingSet(clips(), 25, 16).batch(0, 0, 2))
    low, high = expert_windows(flow)[expert]
    steps = sigmas(flow.sampling_steps, flow.sampling_shift).tolist()[:-1]
    assert times == pytest.approx(steps)
    assert acted == pytest.approx([time for time in steps if low <= time <= high])
    acted.clear()
    model(torch.zeros(1, 12, 1, 4, 4), torch.ones(1, 1), None, None)
    assert acted, "training goes on with the expert"
