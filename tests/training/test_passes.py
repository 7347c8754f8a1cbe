"""Less memory, the same update: passes over parts of a batch, and blocks that are computed twice."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig as PeftLora
from torch.profiler import ProfilerActivity, profile

from model_code.backbones.transformer import DubbingTransformer
from model_code.config import FlowConfig, PhaseConfig
from model_code.training.data import TrainingSet
from model_code.training.loop import Trainer
from model_code.training.phases import Critics, make_phase
from tests.training.small import SHAPE, trainer
from tests.training.test_parallel import clip
from tests.training.test_phases import CHANGES, Decoder

BATCH = 8


def of_phase(name: str, **changes: object) -> Trainer:
    """A trainer of any phase, its weights drawn so that every part has a say."""
    numbers: dict[str, Any] = {**CHANGES.get(name, {}), "own_estimates": 0.4, "batch_size": BATCH, **changes}
    config = PhaseConfig(phase=name, pixel_weighting=False, steps=6, warmup_steps=2).model_copy(update=numbers)  # type: ignore[arg-type]
    distance = lambda a, b: (a.flatten(1).mean(1) - b.flatten(1).mean(1)).square()  # noqa: E731
    critics = Critics(Decoder(), sync=distance, identity=distance, perceptual=distance)  # type: ignore[arg-type]
    model = DubbingTransformer.build(SHAPE.model_copy(update={"num_layers": 3}))
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, value in sorted(model.named_parameters()):
            value.copy_(0.2 * torch.randn(value.shape, generator=draw))
    if config.lora is not None:
        model.requires_grad_(False)
        torch.manual_seed(0)
        lora = PeftLora(r=2, lora_alpha=2, target_modules=["q", "v", "ffn.0"], init_lora_weights=False)
        model.add_adapter(lora, adapter_name=name)
    data = TrainingSet([clip(number) for number in range(4)], 25, 16)
    run = Trainer(model, make_phase(config, FlowConfig(), critics), data, config)
    run.model.train()
    return run


def gradients(run: Trainer) -> tuple[dict[str, torch.Tensor], float]:
    """Of the first step; and its loss."""
    batch, generator = run.phase.draw(run.data, 0), torch.Generator().manual_seed(7)
    result = run._backward(batch, run.phase.inputs(batch, generator, with_context=True))
    found = {name: value.grad.clone() for name, value in run.parameters.items() if value.grad is not None}
    return found, float(result.loss)


@pytest.mark.parametrize("passes", [2, 4, 8])
@pytest.mark.parametrize("name", ["base", "generator", "editor", "lip", "texture"])
def test_passes_add_up_to_the_whole_batch(name: str, passes: int) -> None:
    whole, loss = gradients(of_phase(name))
    parts, again = gradients(of_phase(name, accumulate=passes))
    assert again == pytest.approx(loss, rel=1e-6)
    assert parts.keys() == whole.keys()
    scale = max(float(value.abs().max()) for value in whole.values())
    assert scale > 0
    for key, value in whole.items():
        assert torch.allclose(value, parts[key], rtol=0, atol=1e-6 * scale), key


def test_accumulated_training_records_the_same_and_resumes_to_the_same_bits(tmp_path: Path) -> None:
    one, two = trainer(None, batch_size=4), trainer(None, batch_size=4, accumulate=2)
    for row, other in zip(one.run().rows, two.run().rows, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert row["bins"] == [value if value is None else pytest.approx(value, rel=1e-5) for value in other["bins"]]
    trainer(tmp_path, batch_size=4, accumulate=2).run(until=3)
    resumed = trainer(tmp_path, batch_size=4, accumulate=2)
    assert resumed.run() == two.curves
    for name, value in two.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


@pytest.mark.parametrize("name", ["generator", "lip", "texture"])
def test_computing_blocks_twice_changes_no_gradient(name: str) -> None:
    plain, loss = gradients(of_phase(name))
    twice, again = gradients(of_phase(name, gradient_checkpointing=True))
    assert again == loss
    assert all(torch.equal(value, twice[key]) for key, value in plain.items())
    assert plain.keys() == twice.keys()


def peak(run: Trainer) -> int:
    """Bytes by which a step's tensors rise over what was there before."""
    gradients(run)  # gradients stay; their memory is no activation's
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as told:
        gradients(run)
    found = told.profiler
    assert found is not None
    results = found.kineto_results
    assert results is not None
    changes = sorted((event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]")
    now = highest = 0
    for _, change in changes:
        now += change
        highest = max(highest, now)
    return highest


def test_passes_and_computing_twice_save_memory() -> None:
    whole, passes = peak(of_phase("editor")), peak(of_phase("editor", accumulate=4))
    twice = peak(of_phase("editor", gradient_checkpointing=True))
    assert passes < 0.6 * whole
    assert twice < 0.8 * whole
