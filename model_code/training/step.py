"""What goes into a training step, and what comes out of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class ModelInputs:
    """One forward pass.

    Attributes:
        latents: (B, [context +] C, F, h, w) what the transformer sees.
        timestep: (B, F) 0 on clean motion frames, t elsewhere.
        reference: (B, C, R, h, w).
        audio: (B, F, window, D), or None with the audio cross-attention off.
        noisy, noise: (B, C, F, h, w) z_t and eps, of the flow's `noise_scale`.
        t: (B,).
        learned: (B, F) 1 where the loss counts.
        own: (B,) samples that are noised from the model's own estimate.
    """

    latents: Tensor
    timestep: Tensor
    reference: Tensor
    audio: Tensor | None
    noisy: Tensor
    noise: Tensor
    t: Tensor
    learned: Tensor
    own: Tensor

    def part(self, which: slice) -> ModelInputs:
        """Some of the samples."""
        values: dict[str, Any] = {name: None if value is None else value[which] for name, value in vars(self).items()}
        return ModelInputs(**values)


@dataclass
class StepResult:
    """What a step gives back: the loss to descend, its parts, and each sample's t and flow loss."""

    loss: Tensor
    parts: dict[str, Tensor]
    t: Tensor
    per_sample: Tensor

    def detached(self) -> StepResult:
        """The same numbers, nothing to descend: what the backward pass needed is free."""
        parts = {name: value.detach() for name, value in self.parts.items()}
        return StepResult(self.loss.detach(), parts, self.t, self.per_sample.detach())

    @classmethod
    def of_passes(cls, passes: Sequence[StepResult]) -> StepResult:
        """A step's result from those of its passes, whose samples take turns in the batch."""
        return cls(
            torch.stack([result.loss for result in passes]).mean(),
            {name: torch.stack([result.parts[name] for result in passes]).mean() for name in passes[0].parts},
            torch.stack([result.t for result in passes], 1).flatten(),
            torch.stack([result.per_sample for result in passes], 1).flatten(),
        )
