"""Triple classifier-free guidance on reference and audio (X-Dub's release)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from model_code.config import FlowConfig

Scale = Callable[[float], float]


def release_reference_scale(t: float, initial: float = 2.5) -> float:
    """`initial` times 1.0 for t >= 0.85, 0.6 for 0.45..0.75, 0.3 below 0.35; half-cosine blends between."""

    def blend(low: float, high: float, below: float, above: float) -> float:
        return below + (above - below) * 0.5 * (1 - math.cos(math.pi * (t - low) / (high - low)))

    if t >= 0.85:
        factor = 1.0
    elif t > 0.75:
        factor = blend(0.75, 0.85, 0.6, 1.0)
    elif t >= 0.45:
        factor = 0.6
    elif t > 0.35:
        factor = blend(0.35, 0.45, 0.3, 0.6)
    else:
        factor = 0.3
    return initial * factor


def release_audio_scale(t: float, initial: float = 10.0) -> float:
    """`initial` t^1.5: it decays along sampling."""
    return initial * t**1.5


@dataclass(frozen=True)
class Guidance:
    """v = n + s_r (r - n) + s_a (ra - r); n: no reference, no audio; r: reference alone; ra: both.

    Attributes:
        reference: s_r as a function of t.
        audio: s_a as a function of t.
    """

    reference: Scale
    audio: Scale

    @classmethod
    def constant(cls, reference: float = 1.0, audio: float = 1.0) -> Guidance:
        """The same scales at every step; 1 and 1 is no guidance."""
        return cls(lambda t: reference, lambda t: audio)

    @classmethod
    def above(cls, t_min: float, reference: float = 1.0, audio: float = 1.0) -> Guidance:
        """Constant scales for t >= `t_min`, none below."""
        return cls(lambda t: reference if t >= t_min else 1.0, lambda t: audio if t >= t_min else 1.0)

    @classmethod
    def release(cls, reference: float = 2.5, audio: float = 10.0) -> Guidance:
        """The release's schedules."""
        return cls(lambda t: release_reference_scale(t, reference), lambda t: release_audio_scale(t, audio))

    @classmethod
    def of(cls, flow: FlowConfig) -> Guidance:
        """As the settings say."""
        if flow.guidance_schedule == "release":
            return cls.release(flow.reference_guidance, flow.audio_guidance)
        return cls.above(flow.guidance_from, flow.reference_guidance, flow.audio_guidance)

    def branches(self, t: float) -> list[tuple[float, bool, bool]]:
        """(weight, with reference, with audio) of the branches to run at t; those of zero weight are left out."""
        s_r, s_a = self.reference(t), self.audio(t)
        every = [(1 - s_r, False, False), (s_r - s_a, True, False), (s_a, True, True)]
        return [branch for branch in every if abs(branch[0]) > 1e-9]


def guided(
    model: Callable[..., Tensor],
    guidance: Guidance,
    t: float,
    latents: Tensor,
    timestep: Tensor,
    reference: Tensor,
    audio: Tensor,
    text: Tensor | None = None,
    negative: Tensor | None = None,
) -> Tensor:
    """The guided raw prediction at time t, its branches in one batch; "no" = zeroed latents or features.

    Weights add up to 1, so clean latents may be combined just as velocities.

    Args:
        model: Called as `DubbingTransformer`.
        guidance: The scales.
        t: Time of this step, in [0,1].
        latents: (B,C,F,h,w); as are `timestep` (B,F), `reference`, `audio` and `text`, the model's inputs.
        negative: As `text`, for the branch without reference and audio; None: that is told the text, too.
    """
    branches = guidance.branches(t)
    count = len(branches)
    references = torch.cat(
        [reference if with_reference else torch.zeros_like(reference) for _, with_reference, _ in branches]
    )
    sounds = torch.cat([audio if with_audio else torch.zeros_like(audio) for _, _, with_audio in branches])
    words = None
    if text is not None:
        unguided = text if negative is None else negative
        words = torch.cat([text if with_reference else unguided for _, with_reference, _ in branches])
    predictions = model(torch.cat([latents] * count), torch.cat([timestep] * count), references, sounds, words)
    weights = predictions.new_tensor([weight for weight, _, _ in branches]).reshape(-1, 1, 1, 1, 1, 1)
    return (predictions.unflatten(0, (count, -1)) * weights).sum(0)
