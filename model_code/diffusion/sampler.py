"""Euler sampling with motion frames and border replacement (X-Dub's release)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor

from model_code.backbones.transformer import DubbingTransformer
from model_code.config import Prediction
from model_code.diffusion.branches import Branches
from model_code.diffusion.flow import to_velocity
from model_code.diffusion.guidance import Guidance, guided
from model_code.errors import InputError


def replace_border(latents: Tensor, source: Tensor, first_frame: int = 0) -> Tensor:
    """`latents` with the outermost ring of cells taken from `source`, from frame `first_frame` on."""
    ring = torch.ones(latents.shape[-2:], dtype=torch.bool, device=latents.device)
    ring[1:-1, 1:-1] = False
    mask = ring.expand(latents.shape[2], -1, -1).clone()
    mask[:first_frame] = False
    return torch.where(mask, source, latents)


@torch.no_grad()
def sample(
    model: Callable[..., Tensor],
    noise: Tensor,
    *,
    reference: Tensor,
    audio: Tensor,
    times: Tensor,
    guidance: Guidance,
    prediction: Prediction,
    text: Tensor | None = None,
    negative: Tensor | None = None,
    context: Tensor | None = None,
    masked: Tensor | None = None,
    face: Tensor | None = None,
    companion_share: float = 1.0,
    motion: Tensor | None = None,
    border: bool = False,
    noise_scale: float = 1.0,
    before_step: Callable[[int, float], object] | None = None,
    remember: bool = False,
    step_reuse: float = 0.0,
) -> Tensor:
    """Samples clean latents.

    Args:
        model: Called as `DubbingTransformer`.
        noise: (B,C,F,h,w).
        reference: (B,C,Fr,h,w) clean reference latents.
        audio: (B,F,window,audio_dim).
        times: (steps+1,) from `schedule.sigmas`, or its later part: then sampling starts from the noised reference.
        guidance: Scales of the triple guidance.
        prediction: What the model's output means.
        text: (B,words,text_dim) or None.
        negative: As `text`, for the branch without reference and audio; None: that is told the text, too.
        context: (B,context,F,h,w), the generator's masked video or an editor's companion, or None.
        masked: As `context`, an editor's second view of the same frames: with the face masked. None: it has one view.
        face: The reference of that view, (B,C,1,h,w).
        companion_share: What the first view counts in the first step's estimate; the second counts the rest. The first
            step decides how much of the old mouth stays.
        motion: (B,C,m,h,w) clean latents of the first m frames, at time 0 and written back after every step.
        border: Replace the outermost latent cells by the reference, noised to min(t, 0.95) before every step and
            clean after the last; motion frames are left alone. Needs a reference of F frames.
        noise_scale: What `noise` is multiplied by.
        before_step: Called with step index and time, to switch experts; names the weights that act from now on.
        remember: Compute what steps share once; the model is a `DubbingTransformer`.
        step_reuse: Threshold below which a step reuses what the blocks added; 0: never. Brings `remember` with it.

    Returns:
        (B,C,F,h,w) clean latents.
    """
    noise = noise_scale * noise
    kept = 0 if motion is None else motion.shape[2]
    if kept >= noise.shape[2]:
        raise InputError(f"{kept} motion frames for {noise.shape[2]} latent frames", "leave at least one to generate")
    if border and reference.shape[2] != noise.shape[2]:
        raise InputError(
            f"border replacement with {reference.shape[2]} reference and {noise.shape[2]} target frames",
            "it is for editors, whose reference has the target's frames",
        )

    steps = [float(t) for t in times]
    start = noise
    if steps[0] < 1:
        if reference.shape[2] != noise.shape[2]:
            raise InputError(
                f"a start at {steps[0]:.2f} with {reference.shape[2]} reference and {noise.shape[2]} target frames",
                "it is for editors, whose reference has the target's frames: set start_from to 1",
            )
        start = (1 - steps[0]) * reference + steps[0] * noise
    branches = None
    if remember or step_reuse:
        branches = Branches(cast(DubbingTransformer, model), guidance, reference, audio, text, negative, step_reuse)

    def keep_motion(z: Tensor) -> Tensor:
        return z if motion is None else torch.cat([motion, z[:, :, kept:]], dim=2)

    z = keep_motion(start)
    acting: object = None
    for index, (t, after) in enumerate(pairwise(steps)):
        earlier, acting = acting, None if before_step is None else before_step(index, t)
        if branches is not None and acting != earlier:
            branches.forget()
        if border:
            level = min(t, 0.95)
            z = replace_border(z, (1 - level) * reference + level * noise, kept)
        timestep = noise.new_full((noise.shape[0], noise.shape[2]), t)
        timestep[:, :kept] = 0
        inputs = z if context is None else torch.cat([context, z], dim=1)
        if branches is None:
            raw = guided(model, guidance, t, inputs, timestep, reference, audio, text, negative)
        else:
            raw = branches(t, inputs, timestep, last=after == 0)
        if index == 0 and masked is not None and face is not None:
            unseen = guided(model, guidance, t, torch.cat([masked, z], dim=1), timestep, face, audio, text, negative)
            raw = companion_share * raw + (1 - companion_share) * unseen
        z = keep_motion(z + (after - t) * to_velocity(raw, z, timestep, prediction))
    return replace_border(z, reference, kept) if border else z
