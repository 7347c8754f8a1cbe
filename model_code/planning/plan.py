"""A training's plan: what each phase and each pass over the data takes on a named accelerator, beside the paper.

Everything follows from the settings and a few stated assumptions; nothing is trained or measured here.
"""

from __future__ import annotations

import math

from pydantic import Field

from model_code.backbones.codec import TEMPORAL_FACTOR
from model_code.backbones.text import WORDS
from model_code.config import (
    BackbonesConfig,
    Config,
    FlowConfig,
    MediaConfig,
    PairsConfig,
    PhaseConfig,
    TransformerConfig,
)
from model_code.diffusion.guidance import Guidance
from model_code.diffusion.schedule import estimate_times, sigmas
from model_code.dubbing.longform import windows
from model_code.planning import networks
from model_code.planning.accelerators import Accelerator, Precision, find_accelerator
from model_code.planning.flops import Sample, block_flops, forward_flops, training_flops
from model_code.planning.memory import StepMemory, given_bytes, sample_bytes, state_bytes
from model_code.planning.networks import CodecCost
from model_code.planning.storage import Partitions, clip_bytes, latent_bytes, pair_bytes, partitions

USABLE = 0.92
"""Share of an accelerator's memory that a step may take; the rest is the driver's, the collectives' and holes."""
SAMPLING_PRECISION: Precision = "fp32"
"""The dubbing model and the codec load their weights in fp32 and know no autocast."""
CHECKPOINT = 16
"""Bytes of a trained parameter in a checkpoint: weight, average, two moments."""

PAPER_ACCELERATORS = 32
PAPER_HOURS = 600.0
PAPER_DAYS = {"generator": 1.0, "pairs": 2.0, "editor": 0.5}
"""Days on its 32 GPUs (appendix D): generator; synthesis of the pairs; editor with both experts."""
STAGES = {"generator": "generator", "editor": "editor", "lip": "editor", "texture": "editor"}
"""Which of the paper's figures a phase belongs to."""


class Recipe(Config):
    """What the settings say."""

    media: MediaConfig
    transformer: TransformerConfig
    backbones: BackbonesConfig = BackbonesConfig()
    flow: FlowConfig
    phases: tuple[PhaseConfig, ...]
    pairs: PairsConfig
    variants: tuple[str, ...]
    clips_per_shard: int


class Assumptions(Config):
    """What they do not say."""

    accelerator: str = Field("h100", description="Short name of the accelerator.")
    accelerators: int = Field(PAPER_ACCELERATORS, ge=1, description="How many work together.")
    utilisation: float = Field(0.4, gt=0, le=1, description="Share of the dense peak that is reached.")
    precision: Precision | None = Field(None, description="Of everything; None: what settings and code say.")
    hours: float = Field(PAPER_HOURS, gt=0, description="Footage in hours.")
    file_seconds: float = Field(10.0, gt=0, description="Length of a file of footage.")
    footage_mbit: float = Field(5.0, gt=0, description="Mbit/s of the footage as it arrives.")
    accepted: float = Field(0.667, gt=0, le=1, description="Share of the made pairs that pass; the paper's 400 of 600.")


class Stage(Config):
    """Work on the accelerators."""

    name: str
    stage: str = Field(description="Which of the paper's figures it belongs to, or latents, which the paper omits.")
    precision: Precision
    steps: int | None = Field(None, description="Optimiser steps; None where it is a pass over the data.")
    step_flops: float | None = Field(None, description="Of one step: the whole batch, forward and backward.")
    flops: float = Field(description="Of all steps, without what gradient checkpointing computes twice.")
    recomputed: float = Field(0.0, description="FLOPs that it computes twice.")
    accelerator_hours: float
    days: float


class PhaseMemory(Config):
    """A phase on one accelerator, in both ways of sharding, and the first way that fits."""

    phase: str
    precision: Precision
    trained: int
    tokens: int = Field(description="Of one sample, reference and target.")
    ways: tuple[StepMemory, ...]
    chosen: StepMemory | None = Field(description="None: not even one sample fits.")
    gradient_checkpointing: bool = Field(description="The phase's setting of that name.")
    samples: int = Field(description="Samples in one pass of one accelerator.")
    accumulate: int = Field(description="The phase's setting of that name: passes of one update; 0 if none fits.")
    peak: int = Field(description="Bytes at that many samples.")


class Plan(Config):
    """Everything, as it is written to JSON."""

    assumptions: Assumptions
    accelerator: Accelerator
    codec: CodecCost
    backbones: BackbonesConfig
    parameters: dict[str, int]
    phases: tuple[PhaseMemory, ...]
    stages: tuple[Stage, ...]
    paper_days: dict[str, float] = PAPER_DAYS
    paper_utilisation: dict[str, float] = Field(
        description="Share of this accelerator's bf16 peak at which the paper's number of them does our stages in the "
        "paper's days; above 1 the paper's model must have been smaller than this one."
    )
    pair_hours: dict[str, float] = Field(description="Hours of pairs made, by variant.")
    accepted_hours: float
    storage: dict[str, float] = Field(description="Bytes.")
    partitions: Partitions

    @property
    def parameter_count(self) -> int:
        return sum(self.parameters.values())

    @property
    def settings(self) -> dict[str, str | int | bool]:
        """The settings that make a training as it is planned, by their dotted names; none for what does not fit."""
        fitting = [memory for memory in self.phases if memory.chosen is not None]
        shared = any(memory.chosen.sharding == "FSDP" for memory in fitting if memory.chosen is not None)
        found: dict[str, str | int | bool] = {"processes.sharding": "sharded" if shared else "replicated"}
        for memory in fitting:
            for name in ("accumulate", "gradient_checkpointing", "precision"):
                found[f"phases.{memory.phase}.{name}"] = getattr(memory, name)
        return found


def make_plan(recipe: Recipe, assumptions: Assumptions) -> Plan:
    """The plan of a recipe.

    Raises:
        InputError: The accelerator is not known, or no codec has the transformer's latents.
    """
    accelerator = find_accelerator(assumptions.accelerator)
    codec = networks.codec_cost(recipe.transformer.out_channels, recipe.media.crop_size)
    spread = partitions(assumptions.hours, assumptions.file_seconds, recipe.clips_per_shard, len(recipe.variants))
    made = _pair_hours(recipe, assumptions, spread.shards)
    accepted = sum(hours * (1.0 if name == "rendered" else assumptions.accepted) for name, hours in made.items())
    memories = tuple(_memory(recipe, phase, assumptions, accelerator, codec) for phase in recipe.phases)
    work = _Work(recipe, assumptions, accelerator, codec)
    stages = [work.latents("latents of clips", assumptions.hours)]
    for phase, memory in zip(recipe.phases, memories, strict=True):
        if phase.phase == "editor":
            stages.append(work.pairs(sum(hours for name, hours in made.items() if name != "rendered")))
            stages.append(work.latents("latents of pairs", accepted))
        stages.append(work.training(phase, memory.gradient_checkpointing))
    return Plan(
        assumptions=assumptions,
        accelerator=accelerator,
        codec=codec,
        backbones=recipe.backbones,
        parameters=networks.parameters_by_part(_transformer(recipe, recipe.phases[0])),
        phases=memories,
        stages=tuple(stages),
        paper_utilisation=_paper_utilisation(stages, accelerator),
        pair_hours=made,
        accepted_hours=accepted,
        storage=_storage(recipe, assumptions, codec, sum(made.values()), accepted, memories),
        partitions=spread,
    )


def _transformer(recipe: Recipe, phase: PhaseConfig) -> TransformerConfig:
    """The transformer of a phase: the generator's has context channels, and a residual editor keeps them."""
    config = recipe.transformer
    context = config.out_channels if phase.phase in ("base", "generator") or config.residual else 0
    return config.model_copy(update={"context_channels": context})


def phase_samples(
    phase: PhaseConfig, config: TransformerConfig, crop_size: int, spatial: int
) -> list[tuple[float, Sample]]:
    """What a phase's steps see: (share of the steps, sample), windows of the lower face apart from whole crops."""

    def sample(side: int, frames: int) -> Sample:
        latent = 1 + (frames - 1) // TEMPORAL_FACTOR
        reference = 1 if phase.phase in ("base", "generator") else latent
        return Sample(latent, reference, side, side, WORDS if config.text_dim is not None else 0)

    whole = sample(crop_size // spatial, phase.clip_frames)
    if phase.cells is None:
        return [(1.0, whole)]
    parts = [(phase.whole_from, sample(phase.cells, phase.short_frames)), (1 - phase.whole_from, whole)]
    return [part for part in parts if part[0] > 0]


def step_flops(
    phase: PhaseConfig, config: TransformerConfig, flow: FlowConfig, crop_size: int, codec: CodecCost
) -> tuple[float, float]:
    """(FLOPs of one sample's share of a step, of them those of the blocks' forward pass), the mean over all steps."""
    total = blocks = 0.0
    estimates = phase.own_estimates * len(estimate_times(phase.phase, flow))
    silent_share = phase.silence_probability if phase.phase == "texture" else 0.0
    for share, sample in phase_samples(phase, config, crop_size, codec.spatial):
        silent = Sample(**{**vars(sample), "audio": False})
        for part, seen in ((share * (1 - silent_share), sample), (share * silent_share, silent)):
            total += part * training_flops(config, seen, phase.lora)
            blocks += part * block_flops(config, seen)
        total += share * estimates * forward_flops(config, sample)
    return total + _pixel_flops(phase, crop_size, codec), blocks


def _pixel_flops(phase: PhaseConfig, crop_size: int, codec: CodecCost) -> float:
    """Decoding, once for the target and twice (forward and backward) for the estimate, and critics."""
    decoding, count = codec.decoding(phase.pixel_latent_frames), TEMPORAL_FACTOR * (phase.pixel_latent_frames - 1) + 1
    if phase.phase == "lip" and phase.sync_weight:
        return 2 * decoding + networks.critic_flops("lip", crop_size, count, count)
    if phase.phase == "texture" and (phase.identity_weight or phase.perceptual_weight):
        judged = len(range(count - 1, TEMPORAL_FACTOR, -phase.judged_every))
        each = 3 * decoding + networks.critic_flops("texture", crop_size, count, judged)
        return phase.silence_probability * each
    return 0.0


def _memory(
    recipe: Recipe, phase: PhaseConfig, assumptions: Assumptions, accelerator: Accelerator, codec: CodecCost
) -> PhaseMemory:
    config, precision = _transformer(recipe, phase), assumptions.precision or phase.precision
    count = networks.weights(config, phase.lora)
    samples = [sample for _, sample in phase_samples(phase, config, recipe.media.crop_size, codec.spatial)]
    decodes = bool(phase.sync_weight or phase.identity_weight or phase.perceptual_weight)
    pixels = codec.kept(phase.pixel_latent_frames) * (2 if precision == "bf16" else 4) // 4 if decodes else 0

    def each(checkpointing: bool) -> int:
        adapters = phase.lora is not None
        return pixels + max(
            sample_bytes(config, sample, precision, adapters=adapters, checkpointing=checkpointing)
            for sample in samples
        )

    ways = []
    for sharding in ("DDP", "FSDP"):
        states, temporaries = state_bytes(count, sharding, assumptions.accelerators, precision)
        ways.append(
            StepMemory(
                sharding=sharding,
                states=states + 4 * codec.parameters,
                batch=phase.batch_size * max(given_bytes(config, sample) for sample in samples),
                optimizer=temporaries,
                sample=each(False),
                sample_checkpointed=each(True),
            )
        )
    budget = USABLE * accelerator.memory_gb * 1e9
    per_step = math.ceil(phase.batch_size / assumptions.accelerators)
    # What costs nothing first: sharding costs communication, checkpointing a third more computing.
    choices = [(way, checkpointing) for checkpointing in (False, True) for way in ways]
    chosen, checkpointing = next((one for one in choices if one[0].samples(budget, one[1])), (None, True))
    # Passes have as many samples each, or their mean would not be the batch's.
    passes = [count for count in range(1, per_step + 1) if per_step % count == 0]
    fits = [count for count in passes if chosen and per_step // count <= chosen.samples(budget, checkpointing)]
    accumulate = fits[0] if fits else 0
    fitting = per_step // accumulate if accumulate else 0
    return PhaseMemory(
        phase=phase.phase,
        precision=precision,
        trained=count.trained,
        tokens=max(sample.tokens(config)[0] for sample in samples),
        ways=tuple(ways),
        chosen=chosen,
        gradient_checkpointing=checkpointing,
        samples=fitting,
        accumulate=accumulate,
        peak=chosen.peak(fitting, checkpointing) if chosen else 0,
    )


class _Work:
    """Turns operations into hours."""

    def __init__(self, recipe: Recipe, assumptions: Assumptions, accelerator: Accelerator, codec: CodecCost) -> None:
        self.recipe, self.assumptions, self.accelerator, self.codec = recipe, assumptions, accelerator, codec

    def stage(self, name: str, stage: str, precision: Precision, flops: float, recomputed: float = 0.0) -> Stage:
        rate = self.accelerator.peak(precision) * self.assumptions.utilisation
        hours = (flops + recomputed) / rate / 3600
        return Stage(
            name=name,
            stage=stage,
            precision=precision,
            flops=flops,
            recomputed=recomputed,
            accelerator_hours=hours,
            days=hours / self.assumptions.accelerators / 24,
        )

    def training(self, phase: PhaseConfig, checkpointing: bool) -> Stage:
        """All steps of a phase."""
        config = _transformer(self.recipe, phase)
        each, blocks = step_flops(phase, config, self.recipe.flow, self.recipe.media.crop_size, self.codec)
        count = phase.steps * phase.batch_size
        precision = self.assumptions.precision or phase.precision
        stage = self.stage(
            phase.phase, STAGES[phase.phase], precision, count * each, count * blocks if checkpointing else 0.0
        )
        return stage.model_copy(update={"steps": phase.steps, "step_flops": phase.batch_size * each})

    def latents(self, name: str, hours: float) -> Stage:
        """Two videos an hour, each encoded as a whole and every fourth frame alone."""
        frames = hours * 3600 * self.recipe.media.fps / TEMPORAL_FACTOR
        flops = 2 * frames * (self.codec.encode[0] + self.codec.encode[1])
        return self.stage(name, "latents", self.assumptions.precision or SAMPLING_PRECISION, flops)

    def pairs(self, hours: float) -> Stage:
        """The generator's dubs: windows of its own training length, bridged by motion frames."""
        recipe, flow, codec = self.recipe, self.recipe.flow, self.codec
        generator = next(phase for phase in recipe.phases if phase.phase == "generator")
        config, length = _transformer(recipe, generator), generator.clip_frames
        clip = max(1, round(self.assumptions.file_seconds * recipe.media.fps))
        count = hours * 3600 / self.assumptions.file_seconds * len(windows(clip, length, generator.motion_frames))
        whole = generator.model_copy(update={"cells": None})
        [(_, sample)] = phase_samples(whole, config, recipe.media.crop_size, codec.spatial)
        guidance = Guidance.of(flow.model_copy(update={"audio_guidance": recipe.pairs.audio_guidance}))
        times = [float(t) for t in sigmas(recipe.pairs.sampling_steps, flow.sampling_shift)][:-1]
        passes = sum(len(guidance.branches(t)) for t in times)
        motion = 1 + (generator.motion_frames - 1) // TEMPORAL_FACTOR
        coding = codec.encoding(1) + codec.encoding(sample.frames) + codec.encoding(motion)
        each = passes * forward_flops(config, sample) + coding + codec.decoding(sample.frames)
        return self.stage("companion pairs", "pairs", self.assumptions.precision or SAMPLING_PRECISION, count * each)


def _pair_hours(recipe: Recipe, assumptions: Assumptions, shards: int) -> dict[str, float]:
    pairs = recipe.pairs
    made = {
        "generated": assumptions.hours * pairs.clip_fraction * pairs.pairs_per_clip,
        "relit": assumptions.hours * pairs.relit_fraction * pairs.pairs_per_clip,
        "rendered": shards * pairs.rendered_per_shard * pairs.rendered_seconds / 3600,
    }
    return {name: hours for name, hours in made.items() if name in recipe.variants}


def _paper_utilisation(stages: list[Stage], accelerator: Accelerator) -> dict[str, float]:
    shares = {}
    for name, days in PAPER_DAYS.items():
        flops = sum(stage.flops for stage in stages if stage.stage == name)
        shares[name] = flops / (PAPER_ACCELERATORS * days * 86_400 * accelerator.peak("bf16"))
    return shares


def _storage(
    recipe: Recipe,
    assumptions: Assumptions,
    codec: CodecCost,
    made: float,
    accepted: float,
    memories: tuple[PhaseMemory, ...],
) -> dict[str, float]:
    media, transformer, seconds = recipe.media, recipe.transformer, assumptions.hours * 3600
    largest = max(memory.trained for memory in memories)
    kept = max(phase.keep_checkpoints for phase in recipe.phases)
    whole = [memory.trained for memory, phase in zip(memories, recipe.phases, strict=True) if phase.lora is None]
    return {
        "raw footage": seconds * assumptions.footage_mbit * 1e6 / 8,
        "clips": clip_bytes(media, seconds),
        "pairs, refused ones too": pair_bytes(media, made * 3600),
        "latents of clips": latent_bytes(media, transformer, codec.spatial, seconds),
        "latents of accepted pairs": latent_bytes(media, transformer, codec.spatial, accepted * 3600),
        "models": 4.0 * (sum(whole) + sum(memory.trained for memory in memories)),
        "checkpoints, one of them being written": (1.0 + kept) * CHECKPOINT * largest,
    }
