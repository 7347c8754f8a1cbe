"""Guidance over a whole sampling run, whose branches and steps share what they can."""

from __future__ import annotations

import torch
from torch import Tensor

from model_code.backbones.reuse import Remembered, StepReuse
from model_code.backbones.transformer import DubbingTransformer
from model_code.diffusion.guidance import Guidance


class Branches:
    """What `guided` computes, at every step of one batch of windows.

    The branches run in turn. Sound, text and, in attention mode "own", the reference go through the model once for as
    long as its weights stay; branches with the same one share it.

    Args:
        model: The transformer.
        guidance: The scales.
        reference: (B,C,Fr,h,w) clean reference latents.
        audio: (B,F,window,audio_dim).
        text: (B,words,text_dim) or None.
        negative: As `text`, for the branch without reference and audio; None: that is told the text, too.
        step_reuse: Threshold of `StepReuse`; 0 runs the blocks at every step.
    """

    def __init__(
        self,
        model: DubbingTransformer,
        guidance: Guidance,
        reference: Tensor,
        audio: Tensor,
        text: Tensor | None,
        negative: Tensor | None,
        step_reuse: float,
    ) -> None:
        self.model, self.guidance, self.step_reuse = model, guidance, step_reuse
        self._given = reference, audio
        self._texts = {True: text, False: text if negative is None else negative}
        self.forget()

    def forget(self) -> None:
        """Other weights are at work (an expert's): nothing computed with the earlier ones holds."""
        self._references: dict[bool, Tensor | Remembered] = {}
        self._sounds: dict[bool, Remembered] = {}
        self._words: dict[int, Remembered | None] = {}
        self._steps: dict[tuple[bool, bool], StepReuse] = {}

    def __call__(self, t: float, latents: Tensor, timestep: Tensor, last: bool) -> Tensor:
        """The guided raw prediction.

        Args:
            t: Time of this step, in [0,1].
            latents: (B,C,F,h,w), with the context before it if there is one.
            timestep: (B,F).
            last: The last step reuses nothing: what it says is the result.
        """
        total = None
        for weight, seen, heard in self.guidance.branches(t):
            steps = None
            if self.step_reuse:
                steps = self._steps.setdefault((seen, heard), StepReuse(self.step_reuse))
                if last:
                    steps.expire()
            raw = self.model(
                latents, timestep, self._reference(seen), self._sound(heard), self._text(seen), steps=steps
            )
            total = weight * raw if total is None else total + weight * raw
        assert total is not None, "the weights add up to 1"
        return total

    def _reference(self, seen: bool) -> Tensor | Remembered:
        if seen not in self._references:
            reference = self._given[0]
            if self.model.config["reference_attention"] != "own":
                self._references[seen] = reference if seen else torch.zeros_like(reference)
            elif seen:
                self._references[seen] = self.model.remember_reference(reference)
            else:
                nothing = self.model.remember_reference(torch.zeros_like(reference[:1]))
                self._references[seen] = nothing.spread(len(reference))
        return self._references[seen]

    def _sound(self, heard: bool) -> Remembered:
        if heard not in self._sounds:
            audio = self._given[1]
            self._sounds[heard] = self.model.remember_sound(audio if heard else torch.zeros_like(audio))
        return self._sounds[heard]

    def _text(self, seen: bool) -> Remembered | None:
        text = self._texts[seen]
        if text is None:
            return None
        if id(text) not in self._words:
            self._words[id(text)] = self.model.remember_text(text)
        return self._words[id(text)]
