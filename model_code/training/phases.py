"""The phases of the transformer's training, as small strategies: what goes in, what loss comes out.

base       inpainting and editing of many heads; stands for the paper's pretrained backbone.
generator  masked face inpainting from one reference frame and sound (paper, pair construction).
editor     V from its companion V', frame-concatenated, and V's sound; high-noise shift 5.0.
lip        LoRA on the editor, shift 1.5, with a sync loss on decoded frames.
texture    LoRA on the editor, shift 0.2, sound off half of the time, and only then identity and
           perceptual losses.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from model_code.backbones.codec import TEMPORAL_FACTOR, LatentCodec
from model_code.config import FlowConfig, PhaseConfig
from model_code.diffusion.flow import add_noise, clipped_estimate, sample_timesteps, to_velocity, velocity_target
from model_code.diffusion.schedule import estimate_times
from model_code.errors import InputError
from model_code.seeding import rng_for
from model_code.training.data import Batch, TrainingSet, latent_length
from model_code.training.losses import FrameCritic, SyncCritic, region_weights, velocity_loss
from model_code.training.step import ModelInputs, StepResult


@dataclass
class Critics:
    """Frozen networks of the pixel losses; a phase that needs one which is missing refuses to start."""

    codec: LatentCodec | None = None
    sync: SyncCritic | None = None
    identity: FrameCritic | None = None
    perceptual: FrameCritic | None = None


def _unwrapped(model: nn.Module) -> Any:
    """The transformer itself, where DDP stands in for it."""
    return getattr(model, "module", model)


def takes_context(model: nn.Module) -> bool:
    """Whether the transformer has context channels."""
    return bool(_unwrapped(model).config["context_channels"])


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """The model that sampling starts with: experts act on its later steps alone."""
    switch_adapters(model, on=False)
    try:
        yield
    finally:
        switch_adapters(model, on=True)


def switch_adapters(model: nn.Module, *, on: bool) -> None:
    """Lets the expert in training act, or not; a model without one stays as it is."""
    plain = _unwrapped(model)
    if getattr(plain, "peft_config", None):
        plain.enable_adapters() if on else plain.disable_adapters()


def noise_like(clean: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian noise from the CPU `generator`; elsewhere from the device's own, seeded by it."""
    if clean.device.type == "cpu":
        return torch.randn(clean.shape, generator=generator)
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.randn(clean.shape, generator=torch.Generator(clean.device).manual_seed(seed), device=clean.device)


def _drop(generator: torch.Generator, count: int, probability: float, device: torch.device) -> Tensor:
    return (torch.rand(count, generator=generator) < probability).to(device)


@dataclass
class Phase:
    """Base of the strategies.

    Args:
        config: The phase's numbers.
        flow: Parameterisation.
        critics: Networks of the pixel losses.
        text: (words, D) the one encoded text of all clips, for transformers that read.
    """

    config: PhaseConfig
    flow: FlowConfig
    critics: Critics = field(default_factory=Critics)
    text: Tensor | None = None

    def words(self, like: Tensor) -> Tensor | None:
        """The text for every sample of `like` (B, ...), where it is: (B, words, D), or None."""
        return None if self.text is None else self.text.to(like).expand(len(like), -1, -1)

    def draw(self, data: TrainingSet, step: int) -> Batch:
        """The batch of a step: whole windows, or the lower face of short ones where `cells` is set."""
        config = self.config
        if config.cells is None or step >= config.whole_from * config.steps:
            return data.batch(config.seed, step, config.batch_size)
        batch = data.batch(config.seed, step, config.batch_size, frames=config.short_frames)
        return batch.cut(config.cells, rng_for("cells", config.seed, step))

    @cached_property
    def channel_weights(self) -> Tensor | None:
        """(C,) weights of the latent channels, or None."""
        if not self.config.pixel_weighting:
            return None
        if self.critics.codec is None:
            raise ValueError("pixel_weighting needs a codec")
        return self.critics.codec.pixel_weights

    def reference(self, batch: Batch) -> Tensor:
        """Reference latents (B, C, R, h, w)."""
        return batch.reference

    def context(self, batch: Batch, generator: torch.Generator) -> Tensor | None:
        """What is known of the target's own frames (B, C, F, h, w), for models with context channels."""
        return None

    def inputs(
        self, batch: Batch, generator: torch.Generator, *, with_context: bool, t: Tensor | None = None
    ) -> ModelInputs:
        """Times (B,) unless they are given, noise, motion frames, drops; all chance comes from `generator` (CPU)."""
        config, device = self.config, batch.target.device
        count, frames = batch.target.shape[0], batch.target.shape[2]
        if t is None:
            t = sample_timesteps(count, config.shift, generator, uniform=config.uniform_times)
        t = t.to(device)
        noise = self.flow.noise_scale * noise_like(batch.target, generator)
        motion = latent_length(config.motion_frames) if config.motion_frames else 0
        has_motion = ~_drop(generator, count, config.motion_drop, device)
        no_audio = _drop(generator, count, config.audio_drop, device)
        no_reference = _drop(generator, count, config.reference_drop, device)
        learned = torch.ones(count, frames, device=device)
        learned[:, :motion] = (~has_motion).float()[:, None]
        timestep = t[:, None] * learned
        noisy = add_noise(batch.target, noise, timestep)
        context = self.context(batch, generator) if with_context else None
        reference = self.reference(batch) * (~no_reference).float()[:, None, None, None, None]
        audio: Tensor | None = batch.audio * (~no_audio).float()[:, None, None, None]
        return ModelInputs(
            latents=noisy if context is None else torch.cat([context, noisy], dim=1),
            timestep=timestep,
            reference=reference,
            audio=audio,
            noisy=noisy,
            noise=noise,
            t=t,
            learned=learned,
            own=torch.arange(count, device=device) < self._own_count(count),
        )

    def from_own_estimates(self, model: nn.Module, batch: Batch, inputs: ModelInputs, parts: int = 1) -> ModelInputs:
        """The same inputs, a share of the samples noised from what the model makes of pure noise (exposure bias).

        An expert is shown an estimate that was refined at the time of every step before its window: it is not to do
        their work once more. Each refinement noises the last estimate anew, where sampling keeps some of those before;
        nothing is guided, and no masked view mixed in (`companion_share`). Silent steps too see what was made with
        sound, as in sampling. Each of the parts that the batch is shared out in asks the model about as many samples:
        where processes share the weights too, none can do alone.
        """
        count = math.ceil(self._own_count(len(batch.target) * parts) / parts)
        if not count:
            return inputs
        target, learned, noise = batch.target[:count], inputs.learned[:count], inputs.noise[:count]
        known = inputs.latents[:, : inputs.latents.shape[1] - inputs.noisy.shape[1]]
        audio = (batch.audio if inputs.audio is None else inputs.audio)[:count]
        own = (inputs.own[:count, None] & learned.bool())[:, None, :, None, None]
        clean = target
        with torch.no_grad(), without_adapters(model):
            for time in estimate_times(self.config.phase, self.flow):
                latents = torch.cat([known[:count], add_noise(clean, noise, time * learned)], dim=1)
                estimate = model(
                    latents, time * learned, inputs.reference[:count], audio, self.words(latents), place=batch.place
                )
                clean = torch.where(own, estimate, target)
        noisy = torch.cat([add_noise(clean, noise, inputs.timestep[:count]), inputs.noisy[count:]])
        return replace(inputs, latents=torch.cat([known, noisy], dim=1), noisy=noisy)

    def _own_count(self, samples: int) -> int:
        return round(self.config.own_estimates * samples)

    def training_step(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> StepResult:
        """One forward pass over a batch, and its losses."""
        return self.losses(model, batch, self.inputs(batch, generator, with_context=takes_context(model)))

    def losses(self, model: nn.Module, batch: Batch, inputs: ModelInputs, part: slice = slice(None)) -> StepResult:
        """One forward pass and its losses, of a `part` of the batch where processes or passes share it."""
        batch, inputs = batch.part(part), inputs.part(part)
        inputs = self.from_own_estimates(model, batch, inputs, part.step or 1)
        words = self.words(inputs.latents)
        raw = model(inputs.latents, inputs.timestep, inputs.reference, inputs.audio, words, place=batch.place)
        weights = region_weights(batch.face, batch.lip, self.config.face_weight, self.config.lip_weight)
        per_sample = velocity_loss(
            raw,
            batch.target,
            inputs.noise,
            inputs.t,
            weights,
            inputs.learned,
            self.flow.prediction,
            self.flow.velocity_weight_max,
            self.channel_weights,
        )
        parts = {"flow": per_sample.mean(), **self.pixel_losses(raw, batch, inputs)}
        weight = {
            "flow": 1.0,
            "sync": self.config.sync_weight,
            "identity": self.config.identity_weight,
            "perceptual": self.config.perceptual_weight,
        }
        loss = torch.stack([weight[name] * value for name, value in parts.items()]).sum()
        return StepResult(loss, {"loss": loss, **parts}, inputs.t, per_sample)

    def pixel_losses(self, raw: Tensor, batch: Batch, inputs: ModelInputs) -> dict[str, Tensor]:
        """Losses on decoded frames by name; none in most phases."""
        return {}

    def decoded(self, raw: Tensor, batch: Batch, inputs: ModelInputs) -> Tensor:
        """First latent frames of the clipped estimate, motion frames the target's: (B, 3, 13, H, W) float32."""
        assert self.critics.codec is not None
        # Not inputs.noisy: what was noised from an estimate is still judged against the target.
        noisy = add_noise(batch.target, inputs.noise, inputs.timestep)
        predicted = to_velocity(raw.float(), noisy, inputs.timestep, self.flow.prediction)
        velocity = velocity_target(batch.target, inputs.noise)
        latents = clipped_estimate(batch.target, velocity, predicted, inputs.timestep, self.config.pixel_t_max)
        return self.critics.codec.decode(latents[:, :, : self.config.pixel_latent_frames]).float()


class GeneratorPhase(Phase):
    """[z_mask, z_tgt] with one reference frame of another segment and V's own sound."""

    def context(self, batch: Batch, generator: torch.Generator) -> Tensor | None:
        """Latents of the video with the face painted grey."""
        assert batch.masked is not None, "the generator trains on clips encoded with masked=True"
        return batch.masked


class BasePhase(GeneratorPhase):
    """Both tasks to come: fill a masked face from one reference frame, or give a companion the mouth of its sound.

    Companions are the same procedural head saying something else.
    """

    def through_tokens(self, step: int) -> bool:
        """Whether this step edits a companion."""
        return bool(rng_for("context", self.config.seed, step).random() < self.config.token_context)

    def draw(self, data: TrainingSet, step: int) -> Batch:
        """The generator's batch, or one whose context and reference are the companion."""
        batch = super().draw(data, step)
        if self.through_tokens(step):
            assert batch.companion is not None, "the base trains on clips encoded with a companion"
            batch.reference = batch.masked = batch.companion
        return batch


class EditorPhase(Phase):
    """V from [z_ref = V', z_tgt = z_t] and V's sound; the generator's task where the phase `inpaints`."""

    def reference(self, batch: Batch) -> Tensor:
        """The companion's window at the same time."""
        if self.config.inpaints:
            return batch.reference
        assert batch.companion is not None, "the editor trains on pairs"
        return batch.companion

    def context(self, batch: Batch, generator: torch.Generator) -> Tensor | None:
        """The companion once more, for an editor that kept the generator's context channels."""
        return batch.masked if self.config.inpaints else batch.companion


class LipPhase(EditorPhase):
    """The editor's task at mid noise, plus a sync distance on 13 decoded frames."""

    def pixel_losses(self, raw: Tensor, batch: Batch, inputs: ModelInputs) -> dict[str, Tensor]:
        """Sync distance between decoded frames and the window's sound."""
        if not self.config.sync_weight:
            return {}
        if self.critics.sync is None or self.critics.codec is None:
            raise ValueError("the lip phase needs a codec and a SyncNet")
        decoded = self.decoded(raw, batch, inputs)
        return {"sync": self.critics.sync(decoded, batch.features[:, : 2 * decoded.shape[2]]).mean()}


class TexturePhase(EditorPhase):
    """The editor's task at low noise; in silent steps the audio is off and pixel losses are on.

    The paper draws silence per sample; a whole step is silent or not here, which is the same in expectation
    and lets the audio cross-attention be skipped.
    """

    def inputs(
        self, batch: Batch, generator: torch.Generator, *, with_context: bool, t: Tensor | None = None
    ) -> ModelInputs:
        """As the editor's, without sound in silent steps."""
        inputs = super().inputs(batch, generator, with_context=with_context, t=t)
        if float(torch.rand((), generator=generator)) < self.config.silence_probability:
            inputs.audio = None
        return inputs

    def pixel_losses(self, raw: Tensor, batch: Batch, inputs: ModelInputs) -> dict[str, Tensor]:
        """Identity and perceptual distance to the target's frames, in silent steps only."""
        if inputs.audio is not None or not (self.config.identity_weight or self.config.perceptual_weight):
            return {}
        if self.critics.identity is None or self.critics.perceptual is None or self.critics.codec is None:
            raise ValueError("the texture phase needs a codec, an identity encoder and a perceptual encoder")
        decoded = self.decoded(raw, batch, inputs)
        with torch.no_grad():
            target = self.critics.codec.decode(batch.target[:, :, : self.config.pixel_latent_frames]).float()
        judged = torch.arange(decoded.shape[2] - 1, TEMPORAL_FACTOR, -self.config.judged_every, device=decoded.device)
        decoded, target = decoded[:, :, judged], target[:, :, judged]
        return {
            "identity": self.critics.identity(decoded, target).mean(),
            "perceptual": self.critics.perceptual(decoded, target).mean(),
        }


PHASES: dict[str, type[Phase]] = {
    "base": BasePhase,
    "generator": GeneratorPhase,
    "editor": EditorPhase,
    "lip": LipPhase,
    "texture": TexturePhase,
}


def make_phase(
    config: PhaseConfig, flow: FlowConfig, critics: Critics | None = None, text: Tensor | None = None
) -> Phase:
    """The strategy that `config.phase` names."""
    if config.pixel_latent_frames * TEMPORAL_FACTOR - 3 > config.clip_frames:
        raise ValueError(f"pixel_latent_frames {config.pixel_latent_frames} exceeds clip_frames {config.clip_frames}")
    if config.own_estimates and flow.prediction != "x":
        raise InputError(
            f"own_estimates {config.own_estimates} with prediction {flow.prediction}",
            "they change what a velocity means: set it to 0, or the prediction to x",
        )
    if config.cells is not None and (config.sync_weight or config.identity_weight or config.perceptual_weight):
        raise ValueError("pixel losses look at whole faces: leave cells unset")
    return PHASES[config.phase](config, flow, critics or Critics(), text)
