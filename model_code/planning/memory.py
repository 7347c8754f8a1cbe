"""Memory of a training step, in closed form: model states by way of sharding, and what the backward pass needs.

What a layer keeps for its backward pass follows from PyTorch's operations: a linear layer its input, a norm its input,
a product of two activations both factors, fused attention its three inputs and its output.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from model_code.backbones.codec import TEMPORAL_FACTOR
from model_code.config import Config, TransformerConfig
from model_code.planning.accelerators import Precision
from model_code.planning.flops import Sample

Sharding = Literal["DDP", "FSDP"]

MASTER, GRADIENT, MOMENTS, AVERAGE = 4, 4, 8, 4
"""Bytes of a trained parameter: fp32 weight, gradient, AdamW's two moments, moving average."""


class Weights(Config):
    """Parameters of a phase's model.

    Attributes:
        every: All parameters, frozen ones too.
        trained: Those that learn.
        block: Of one block, the unit that FSDP gathers at once.
        outside: Of what lies outside the blocks.
    """

    every: int
    trained: int
    block: int
    outside: int


class Widths(Config):
    """Bytes of an activation by the kind of operation that keeps it.

    Attributes:
        product: Inputs of matrix products and attention.
        norm: Inputs and outputs of norms, which autocast keeps in fp32.
        copies: Times a norm's output is kept as the input of the products after it: autocast casts it for each.
        rms: Tensors that an RMS norm keeps: its input; without a fused kernel (on a CPU) the normed values too.
        stream: The residual stream; a learned table of places keeps it in fp32.
    """

    product: int
    norm: int
    copies: int
    rms: int
    stream: int

    @classmethod
    def of(cls, precision: Precision, config: TransformerConfig, fused: bool) -> Widths:
        """Of a training in `precision`; `fused` as on an accelerator."""
        half = precision == "bf16"
        return cls(
            product=2 if half else 4,
            norm=4,
            copies=3 if half else 1,
            rms=1 if fused else 2,
            stream=2 if half and not config.positions else 4,
        )


class StepMemory(Config):
    """Bytes of one accelerator during a phase's steps."""

    sharding: Sharding
    states: int = Field(description="Weights, gradients, moments, average, the codec; with FSDP also gathered blocks.")
    batch: int = Field(description="All samples of a batch, noised: each accelerator has the whole of it.")
    optimizer: int = Field(description="AdamW's temporaries, at a moment without activations.")
    sample: int = Field(description="What one sample's backward pass needs.")
    sample_checkpointed: int = Field(description="The same with gradient checkpointing of every block.")

    def peak(self, samples: int, checkpointing: bool) -> int:
        """Bytes with so many samples in one pass."""
        each = self.sample_checkpointed if checkpointing else self.sample
        return self.states + self.batch + max(self.optimizer, samples * each)

    def samples(self, budget: float, checkpointing: bool) -> int:
        """The most samples that fit into `budget` bytes."""
        each = self.sample_checkpointed if checkpointing else self.sample
        return 0 if self.peak(0, checkpointing) > budget else int((budget - self.states - self.batch) // each)


def state_bytes(weights: Weights, sharding: Sharding, accelerators: int, precision: Precision) -> tuple[int, int]:
    """(states, optimiser's temporaries) of one accelerator.

    DDP's gradient buckets are taken as views of the gradients. FSDP shards all states and gathers, in the precision of
    the products, what lies outside the blocks, the block at work and the next one, and holds one block's gradient.
    """
    low = 2 if precision == "bf16" else 4
    kept = MASTER * weights.every + (GRADIENT + MOMENTS + AVERAGE) * weights.trained
    temporaries = 4 * weights.trained
    if sharding == "DDP":
        casts = low * weights.every if precision == "bf16" else 0  # autocast keeps its casts for the backward pass
        return kept + casts, temporaries
    gathered = low * (weights.outside + 3 * weights.block)
    return -(-kept // accelerators) + gathered, -(-temporaries // accelerators)


def given_bytes(config: TransformerConfig, sample: Sample) -> int:
    """Bytes of one sample of a batch and what noise and drops make of it, in fp32.

    Target, companion or masked video, noise and noisy; two masks; the transformer's input where it has a context; the
    reference frame, and the reference after drops; the sound before and after them, and as it was cut for its windows.
    """
    cells, channels = sample.rows * sample.columns, config.in_channels
    context = channels + config.context_channels if config.context_channels else 0
    here = sample.frames * cells * (4 * channels + 2 + context)
    beside = (1 + sample.reference_frames) * cells * channels
    heard = 2 * sample.frames * config.audio_window + 2 * (TEMPORAL_FACTOR * (sample.frames - 1) + 1)
    return 4 * (here + beside + heard * config.audio_dim)


def sample_bytes(
    config: TransformerConfig,
    sample: Sample,
    precision: Precision,
    *,
    adapters: bool = False,
    checkpointing: bool = False,
    fused: bool = True,
) -> int:
    """Bytes that one sample adds to a training step at its peak, the start of the backward pass, beside `given_bytes`.

    Args:
        config: The transformer's shape.
        sample: The sample's.
        precision: Of the products.
        adapters: Only LoRA adapters learn: frozen layers keep no inputs for their weights' gradients.
        checkpointing: Blocks keep their input alone, and one of them at a time is computed again.
        fused: As on an accelerator.
    """
    widths = Widths.of(precision, config, fused)
    tokens, _ = sample.tokens(config)
    block, last = (_block(config, sample, widths, adapters, last) for last in (False, True))
    passing = tokens * widths.product * (2 * config.dim + config.ffn_dim)  # gradients on their way through one block
    around, refiner = _around(config, sample, widths, adapters), _refiner(config, sample, widths, adapters)
    if checkpointing:  # the refiner's activations are gone by the time that the first block is computed again
        return config.num_layers * tokens * config.dim * widths.stream + around + max(block + passing, refiner)
    return (config.num_layers - 1) * block + last + passing + around + refiner


def _block(config: TransformerConfig, sample: Sample, widths: Widths, adapters: bool, last: bool) -> int:
    """What one block keeps; in the last one only the target's tokens go on after they have seen the reference's."""
    tokens, target = sample.tokens(config)
    going = target if last else tokens
    product, norm = widths.product, widths.norm
    rms = norm * (1 if adapters else widths.rms)
    normed, branch = (0, 0) if adapters else (norm, product)  # factors of what modulates a branch's two ends
    recast = product if adapters and widths.copies > 1 else 0  # PEFT brings inputs to fp32, autocast back
    seen = norm + normed + widths.copies * product + recast + rms + 2 * product  # input, keys and values
    looks = rms + 2 * product + branch  # queries and what they get
    total = tokens * config.dim * seen + going * config.dim * looks
    total += going * (config.dim * (norm + normed + product + branch) + 2 * config.ffn_dim * product)  # feed-forward
    total += tokens * 4 * 3 + going * 4 * (config.num_heads + 3)  # statistics of the norms, sums of the softmax
    if config.reference_attention == "own" and target < going:
        total += tokens * config.dim * product  # the two attentions' outputs, joined
    if config.spatial_attention:  # an attention more, but nothing that the feed-forward layer keeps
        total += tokens * (config.dim * (seen + looks) + 4 * (config.num_heads + 4))
    windows = sample.frames * config.audio_window if sample.audio else 0
    contexts = [count for count in (sample.words if config.text_dim is not None else 0, windows) if count]
    if contexts:
        total += going * config.dim * norm  # the first one's norm reads a part of the stream, which stays whole
    for count in contexts:
        total += target * (config.dim * (3 * product + rms + recast) + 4 * (config.num_heads + 3))
        total += count * config.dim * (2 * (product + recast) + rms)
    total += max(0, len(contexts) - 1) * target * config.dim * norm  # the second one norms a stream of its own
    modulations = 12 if config.spatial_attention else 8
    return total + (sample.reference_frames + sample.frames) * modulations * config.dim * product


def _around(config: TransformerConfig, sample: Sample, widths: Widths, adapters: bool) -> int:
    """Outside the blocks: embeddings, sound, head, loss."""
    tokens, target = sample.tokens(config)
    product, norm = widths.product, widths.norm
    cells = sample.rows * sample.columns
    inputs, outputs = config.in_channels + config.context_channels, config.out_channels
    here, beside = sample.frames * cells, sample.reference_frames * cells
    total = 4 * here * outputs * 3  # prediction, its error, the weighted square
    total += target * config.dim * (norm + product) + tokens * config.dim * norm
    if not adapters:
        total += product * (here * inputs + beside * config.in_channels)
    if sample.audio and not adapters:
        heard = sample.frames * config.audio_window
        total += heard * product * (24 * config.audio_inner_dim * config.audio_layers + 2 * config.dim)
    return total


def _refiner(config: TransformerConfig, sample: Sample, widths: Widths, adapters: bool) -> int:
    """What the convolutions after the blocks keep."""
    if not config.refiner_layers:
        return 0
    each = (0 if adapters else widths.product) + widths.norm + 3 * widths.product
    inputs = config.in_channels + config.context_channels + config.out_channels
    trunk = config.refiner_width * (config.refiner_layers * each + widths.product)
    return sample.frames * sample.rows * sample.columns * (trunk + inputs * widths.product)
