"""Inference schedules: noise levels of the steps, and which expert acts on which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from model_code.config import FlowConfig
from model_code.diffusion.flow import shift
from model_code.errors import InputError

Windows = Mapping[str, tuple[float, float]]


def sigmas(steps: int, a: float) -> Tensor:
    """(steps+1,) times from 1 to 0, both exact: `shift` of a uniform grid (release: 30 steps, a = 5)."""
    times = shift(torch.linspace(1, 0, steps + 1), a)
    times[0] = 1  # in single precision a / (1 + (a - 1)) may lie beside it; 0 stays 0
    return times


def sampling_times(flow: FlowConfig) -> Tensor:
    """`sigmas` of the settings without the steps above `start_from`."""
    times = sigmas(flow.sampling_steps, flow.sampling_shift)
    return times[times <= flow.start_from]


def expert_windows(flow: FlowConfig) -> Windows:
    """Times in which each expert acts."""
    return {"lip": flow.lip_window, "texture": flow.texture_window}


def estimate_times(phase: str, flow: FlowConfig) -> list[float]:
    """Times of the steps whose estimate a phase's model is shown: the first one; all before an expert's window."""
    _, last = expert_windows(flow).get(phase, (0.0, 1.0))
    first, *later = sigmas(flow.sampling_steps, flow.sampling_shift).tolist()
    return [first, *(t for t in later if t > last)]


def experts_by_step(times: Tensor | Sequence[float], windows: Windows) -> list[tuple[str, ...]]:
    """The experts of each step of `times` (as from `sigmas`): those whose closed window holds the step's start."""
    starts = [float(t) for t in times][:-1]
    return [tuple(name for name, (low, high) in windows.items() if low <= t <= high) for t in starts]


def check_experts(times: Tensor | Sequence[float], windows: Windows, least: int = 2) -> None:
    """Raises `InputError` if an expert acts on fewer than `least` steps."""
    acting = experts_by_step(times, windows)
    for name, window in windows.items():
        steps = sum(name in experts for experts in acting)
        if steps < least:
            raise InputError(
                f"the {name} expert with window {window} acts on {steps} of {len(acting)} steps",
                f"it needs {least}: raise sampling_steps, or change sampling_shift or start_from",
            )
