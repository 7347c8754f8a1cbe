"""What the steps of a sampling run share: remembered conditions, a late start, reused additions of the blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor

from model_code.backbones.reuse import StepReuse
from model_code.backbones.transformer import DubbingTransformer
from model_code.config import FlowConfig, TransformerConfig
from model_code.diffusion.guidance import Guidance
from model_code.diffusion.sampler import sample
from model_code.diffusion.schedule import experts_by_step, sampling_times, sigmas
from model_code.errors import InputError
from tests.tiny import random_transformer

SMALL = TransformerConfig(
    dim=24, num_layers=2, num_heads=2, ffn_dim=48, freq_dim=16, in_channels=4, out_channels=4, audio_dim=6,
    audio_window=3, audio_inner_dim=8, audio_heads=2, audio_layers=1, residual=False, text_dim=5,
    positions=0, audio_modulation=True, refiner_width=8, refiner_layers=1, precondition=0.0,
)  # fmt: skip


def build(**changes: object) -> DubbingTransformer:
    return random_transformer(SMALL.model_copy(update=changes), std=0.15)


def given(batch: int = 2) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    latents = (batch, 4, 3, 4, 6)
    return {
        "noise": torch.randn(latents, generator=generator),
        "reference": torch.randn(latents, generator=generator),
        "audio": torch.randn(batch, 3, 3, 6, generator=generator),
        "text": torch.randn(batch, 7, 5, generator=generator),
        "negative": torch.randn(batch, 7, 5, generator=generator),
        "motion": torch.randn(batch, 4, 1, 4, 6, generator=generator),
        "times": sigmas(6, 5.0),
        "guidance": Guidance.release(),
        "prediction": "v",
        "border": True,
    }


class Counting:
    """How often the blocks of a model run, in samples."""

    def __init__(self, model: DubbingTransformer) -> None:
        self.samples = 0
        model.blocks[0].register_forward_pre_hook(self._count)

    def _count(self, module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.samples += len(inputs[0])


@pytest.mark.parametrize("mode", ["full", "own"])
@torch.no_grad()
def test_a_run_that_remembers_is_the_run_that_does_not(mode: str) -> None:
    model = build(reference_attention=mode)
    torch.testing.assert_close(sample(model, remember=True, **given()), sample(model, **given()), atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_an_expert_forgets_what_was_remembered_before_it() -> None:
    model = build(reference_attention="own")
    model.add_adapter(LoraConfig(r=2, target_modules=["k", "v"]), adapter_name="lip")
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    acting = experts_by_step(given()["times"], {"lip": (0.4, 0.85)})
    assert {(), ("lip",)} == set(acting)

    def use(step: int, _: float) -> tuple[str, ...]:
        (model.enable_adapters if acting[step] else model.disable_adapters)()
        return acting[step]

    plain = sample(model, before_step=use, **given())
    torch.testing.assert_close(sample(model, before_step=use, remember=True, **given()), plain, atol=5e-6, rtol=1e-5)
    model.disable_adapters()
    assert (sample(model, **given()) - plain).abs().max() > 1e-3


def test_reference_and_sound_go_through_once_a_run() -> None:
    model = build(reference_attention="own")
    heard: list[int] = []
    model.audio_embedding.register_forward_pre_hook(lambda module, inputs: heard.append(len(inputs[0])))
    counting = Counting(model)
    sample(model, remember=True, **given())
    assert heard == [6, 6], "with and without sound: two windows of three frames each"
    steps, branches, clips = 6, 3, 2
    assert counting.samples == steps * branches * clips + clips + 1, "one reference each, one empty for all"


def test_a_late_start_is_the_noised_reference() -> None:
    flow = FlowConfig(sampling_steps=30, sampling_shift=5.0, start_from=0.91)
    times = sampling_times(flow)
    assert (len(times), float(times[0])) == (21, pytest.approx(0.909, abs=1e-3)), "10 of 30 steps fewer"
    assert torch.equal(times, sigmas(30, 5.0)[10:])
    assert torch.equal(sampling_times(flow.model_copy(update={"start_from": 1.0})), sigmas(30, 5.0))
    seen: list[Tensor] = []

    def model(latents: Tensor, *_: object) -> Tensor:
        seen.append(latents)
        return torch.zeros_like(latents)

    values = {**given(), "times": times, "guidance": Guidance.constant(), "motion": None, "border": False}
    sample(model, noise_scale=0.5, **values)
    t = float(times[0])
    torch.testing.assert_close(seen[0], (1 - t) * values["reference"] + t * 0.5 * values["noise"])
    assert len(seen) == 20
    with pytest.raises(InputError, match=r"a start at 0\.91 with 1 reference"):
        sample(model, **{**values, "reference": values["reference"][:, :, :1]})


@pytest.mark.parametrize("steps", [1, 5, 30])
def test_all_steps_are_taken_from_exactly_one_to_exactly_zero(steps: int) -> None:
    for a in [number / 20 for number in range(1, 201)]:
        times = sampling_times(FlowConfig(sampling_steps=steps, sampling_shift=a))
        assert (len(times), times[0], times[-1]) == (steps + 1, 1, 0), a


@torch.no_grad()
def test_reused_steps_are_fewer_and_near() -> None:
    model = build()
    counting = Counting(model)
    values = {**given(), "times": sigmas(12, 3.0)}
    plain = sample(model, **values)
    every, counting.samples = counting.samples, 0
    torch.testing.assert_close(sample(model, step_reuse=1e-9, **values), plain, atol=1e-6, rtol=1e-6)
    assert counting.samples == every
    errors, ran = [], []
    for threshold in (0.1, 0.4, 1e9):
        counting.samples = 0
        errors.append(float((sample(model, step_reuse=threshold, **values) - plain).abs().mean()))
        ran.append(counting.samples)
    assert every > ran[0] > ran[1] > ran[2]
    assert ran[2] == 2 * 3 * 2, "first and last step of three branches and two clips"
    assert 0 < errors[0] < errors[1] < errors[2]


@torch.no_grad()
def test_company_does_not_decide_what_is_reused() -> None:
    model = build(reference_attention="own")
    values = given()
    values |= {"times": sigmas(12, 3.0), "step_reuse": 0.4}
    values["noise"][1] *= 3  # changes by other amounts than its company
    together = sample(model, **values)
    for clip in (0, 1):
        alone = {name: value[clip : clip + 1] for name, value in values.items() if name in given() and name != "times"
                 and isinstance(value, Tensor)}  # fmt: skip
        torch.testing.assert_close(sample(model, **{**values, **alone})[0], together[clip], atol=1e-5, rtol=1e-5)


def test_each_sample_decides_for_itself() -> None:
    steps, ran = StepReuse(0.25), []

    def blocks(rows: Tensor | None) -> Tensor:
        ran.append([0, 1] if rows is None else rows.tolist())
        return x[rows] + len(ran) if rows is not None else x + len(ran)

    x = torch.zeros(2, 3)
    outputs = [
        steps.add(torch.tensor([[first], [second]]), x, blocks)[:, 0].tolist()
        for first, second in ((1.0, 1.0), (1.1, 1.5), (1.3, 1.5), (1.3, 1.5))
    ]
    assert ran == [[0, 1], [1], [0]], "0.1 and 0.18 add up to more than 0.25; 0.5 alone does"
    assert outputs == [[1, 1], [1, 2], [3, 2], [3, 2]]
    assert (steps.ran, steps.asked) == (4, 8)
    steps.expire()
    steps.add(torch.tensor([[1.3], [1.5]]), x, blocks)
    assert ran[-1] == [0, 1]
