"""Processes that share out a sequence compute what one computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model_code.backbones.split import Split
from model_code.backbones.transformer import DubbingTransformer
from model_code.config import TransformerConfig
from model_code.diffusion.guidance import Guidance
from model_code.diffusion.sampler import sample
from model_code.diffusion.schedule import sigmas
from model_code.errors import InputError
from model_code.team import Member, started
from tests.tiny import random_transformer

SMALL = TransformerConfig(
    dim=24, num_layers=2, num_heads=6, ffn_dim=48, freq_dim=16, in_channels=4, out_channels=4, audio_dim=6,
    audio_window=3, audio_inner_dim=8, audio_heads=2, audio_layers=1, residual=False, text_dim=5,
    positions=3, audio_modulation=True, refiner_width=8, refiner_layers=1, precondition=0.0,
)  # fmt: skip
FORMS: tuple[dict[str, Any], ...] = (
    {},
    {"spatial_attention": True},
    {"reference_attention": "own"},
    {"reference_attention": "own", "spatial_attention": True},
)
RUNS: tuple[dict[str, Any], ...] = ({}, {"remember": True}, {"step_reuse": 0.3})
GRIDS = ((4, 10), (6, 10))
"""Latent cells; 10 tokens a frame are 4, 3 and 3 of three processes, 15 are 8 and 7 of two."""


def build(form: dict[str, Any]) -> DubbingTransformer:
    return random_transformer(SMALL.model_copy(update=form), std=0.15)


def given(grid: tuple[int, int]) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "noise": drawn(2, 4, 3, *grid), "reference": drawn(2, 4, 3, *grid), "audio": drawn(2, 3, 3, 6),
        "text": drawn(2, 7, 5), "negative": drawn(2, 7, 5), "motion": drawn(2, 4, 1, *grid), "times": sigmas(6, 5.0),
        "guidance": Guidance.release(), "prediction": "v", "border": True,
    }  # fmt: skip


@torch.no_grad()
def outputs(nothing: None, own: Member) -> list[Tensor]:
    """What each of the processes does: a step and whole runs of every form."""
    made = []
    for number, form in enumerate(FORMS):
        model, values = build(form), given(GRIDS[number % 2])
        model.sample_with(own)
        seen: list[int] = []
        model.blocks[-1].ffn.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0].shape[2]))
        times = torch.tensor([[0.0, 0.7, 0.7], [0.0, 0.4, 0.4]])
        inputs = [values[name] for name in ("reference", "audio", "text")]
        made.append(model(values["noise"], times, *inputs))
        made.append(model(values["noise"], times, None, *inputs[1:]))
        for run in RUNS:
            if own.rank and run.get("step_reuse"):
                run = {"step_reuse": 1e9}  # this one alone would not run them again: the leading one decides
            made.append(sample(model, **run, **values))
        tokens = values["noise"].shape[3] * values["noise"].shape[4] // 4
        assert set(seen) == {Split(own, tokens).counts[own.rank]}, "every layer sees this process's part alone"
    for output in made:
        torch.testing.assert_close(output, own.leaders(output.clone()), atol=1e-5, rtol=1e-5)
    return made


@pytest.fixture(scope="module")
def alone() -> list[Tensor]:
    return outputs(None, Member())


@pytest.mark.parametrize("size", [2, 3])
def test_several_processes_compute_what_one_does(size: int, alone: list[Tensor], tmp_path: Path) -> None:
    members = [Member(rank, size) for rank in range(size)]
    with started(members, "sampling", "cpu", outputs, None, tmp_path / "team") as own:
        together = outputs(None, own)
    assert len(together) == len(alone) == len(FORMS) * (2 + len(RUNS))
    for output, expected in zip(together, alone, strict=True):
        assert expected.abs().mean() > 0.01
        torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)


def test_what_cannot_be_shared_out_is_refused() -> None:
    model = build({})
    with pytest.raises(InputError, match="6 heads for 4 sampling processes"):
        model.sample_with(Member(0, 4))
    with pytest.raises(InputError, match="2 tokens a frame for 3 sampling processes"):
        Split(Member(0, 3), 2)
    model.sample_with(Member(0, 2))
    values = given(GRIDS[0])
    with pytest.raises(RuntimeError, match="cannot be trained"):
        model(values["noise"], torch.ones(2, 3), values["reference"], values["audio"], values["text"])
