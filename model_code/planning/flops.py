"""Operations of the `DubbingTransformer`, in closed form from its configuration.

One multiplication and one addition are two operations, as in `torch.utils.flop_counter`; what is not a matrix product
or a convolution (norms, rotary positions, activations) is left out, as there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from model_code.config import LoraConfig, TransformerConfig

Source = Literal["data", "side", "stream"]


@dataclass(frozen=True)
class Sample:
    """One training sample as the transformer sees it.

    Attributes:
        frames: Latent frames of the target.
        reference_frames: Latent frames of the reference.
        rows, columns: Latent cells of a frame.
        words: Text tokens; 0 leaves text attention out.
        audio: False leaves audio attention out (the texture phase's silent steps).
    """

    frames: int
    reference_frames: int
    rows: int
    columns: int
    words: int = 0
    audio: bool = True

    def tokens(self, config: TransformerConfig) -> tuple[int, int]:
        """Tokens of (reference and target, target alone)."""
        each = self.rows * self.columns // (config.patch_size[1] * config.patch_size[2])
        return each * (self.reference_frames + self.frames), each * self.frames

    def seen(self, config: TransformerConfig) -> list[tuple[int, int]]:
        """Self-attention's (tokens, tokens that each of them looks at)."""
        tokens, target = self.tokens(config)
        if config.reference_attention == "full" or target == tokens:
            return [(tokens, tokens)]
        return [(target, tokens), (tokens - target, tokens - target)]


@dataclass(frozen=True)
class Product:
    """A matrix product (rows, inner) x (inner, outer) of one sample.

    Attributes:
        name: The layer's name in the state dict; an attention's products of activations are its `scores` and `mixing`.
        depth: Place along the path from the patches to the output; products of the same depth share an input.
        source: What it reads: data, embeddings of time, sound or text, or the stream of tokens.
        weighted: Whether one factor is a weight.
    """

    name: str
    rows: int
    inner: int
    outer: int
    depth: int
    source: Source
    weighted: bool = True

    @property
    def flops(self) -> int:
        return 2 * self.rows * self.inner * self.outer


def products(config: TransformerConfig, sample: Sample) -> Iterator[Product]:
    """Every product of a forward pass."""
    dim, frames = config.dim, sample.reference_frames + sample.frames
    patch = config.patch_size[1] * config.patch_size[2]
    tokens, target = sample.tokens(config)
    reads_text = bool(sample.words) and config.text_dim is not None
    yield Product("patch_embedding", tokens - target, patch * config.in_channels, dim, 0, "data")
    inputs = config.in_channels + config.context_channels
    yield Product("patch_embedding", target, patch * inputs, dim, 0, "data")
    yield Product("time_embedding.0", frames, config.freq_dim, dim, 0, "data")
    yield Product("time_embedding.2", frames, dim, dim, 0, "side")
    yield Product("time_projection.1", frames, dim, (9 if config.spatial_attention else 6) * dim, 0, "side")
    if reads_text:
        yield Product("text_embedding.0", sample.words, config.text_dim or 0, dim, 0, "data")
        yield Product("text_embedding.2", sample.words, dim, dim, 0, "side")
    if sample.audio:
        yield from _sound(config, sample.frames)
    depth = 1
    for index in range(config.num_layers):
        block = f"blocks.{index}"
        if config.spatial_attention:
            within = [(tokens, tokens // frames)]
            yield from _attention(f"{block}.spatial_attn", tokens, within, dim, depth, "stream")
            depth += 3
        going = target if index == config.num_layers - 1 else tokens  # nothing looks at the last block's reference
        looks = [(target, tokens)] if going < tokens else sample.seen(config)
        yield from _attention(f"{block}.self_attn", tokens, looks, dim, depth, "stream")
        if reads_text:
            words = [(target, sample.words)]
            yield from _attention(f"{block}.cross_attn", sample.words, words, dim, depth + 3, "side")
        if sample.audio:  # a frame's tokens look at that frame's window of sound alone
            heard = [(target, config.audio_window)]
            windows = config.audio_window * sample.frames
            yield from _attention(f"{block}.audio_attn", windows, heard, dim, depth + 6, "side")
        yield Product(f"{block}.ffn.0", going, dim, config.ffn_dim, depth + 9, "stream")
        yield Product(f"{block}.ffn.2", going, config.ffn_dim, dim, depth + 10, "stream")
        depth += 11
    yield Product("head.head", target, dim, patch * config.out_channels, depth, "stream")
    if config.refiner_layers:
        yield from _refiner(config, sample, depth + 1)


def _attention(
    name: str, keys: int, looks: list[tuple[int, int]], dim: int, depth: int, context: Source
) -> Iterator[Product]:
    """(tokens, how many each of them sees) over `keys` projected ones."""
    queries = sum(tokens for tokens, _ in looks)
    yield Product(f"{name}.q", queries, dim, dim, depth, "stream")
    yield Product(f"{name}.k", keys, dim, dim, depth, context)
    yield Product(f"{name}.v", keys, dim, dim, depth, context)
    for part in ("scores", "mixing"):
        for tokens, seen in looks:
            yield Product(f"{name}.{part}", tokens, seen, dim, depth + 1, "stream", weighted=False)
    yield Product(f"{name}.o", queries, dim, dim, depth + 2, "stream")


def _sound(config: TransformerConfig, frames: int) -> Iterator[Product]:
    """The audio projection, and the part of the modulation that comes from sound."""
    rows, inner, window = frames * config.audio_window, config.audio_inner_dim, config.audio_window
    yield Product("audio_embedding.proj_in", rows, config.audio_dim, inner, 0, "data")
    for index in range(config.audio_layers):
        layer = f"audio_embedding.layers.{index}"
        for part in ("to_q", "to_k", "to_v", "to_out.0"):
            yield Product(f"{layer}.attn.{part}", rows, inner, inner, 0, "side")
        for part in ("scores", "mixing"):
            yield Product(f"{layer}.attn.{part}", rows, window, inner, 0, "side", weighted=False)
        yield Product(f"{layer}.ff.net.0.proj", rows, inner, 8 * inner, 0, "side")
        yield Product(f"{layer}.ff.net.2", rows, 4 * inner, inner, 0, "side")
    yield Product("audio_embedding.proj_out", rows, inner, config.dim, 0, "side")
    if config.audio_modulation:
        yield Product("audio_shift.1", frames, window * config.audio_dim, config.dim, 0, "data")
        yield Product("audio_shift.3", frames, config.dim, config.dim, 0, "side")


def _refiner(config: TransformerConfig, sample: Sample, depth: int) -> Iterator[Product]:
    cells, width = sample.frames * sample.rows * sample.columns, config.refiner_width
    inputs = config.in_channels + config.context_channels + config.out_channels
    yield Product("refiner.enter", cells, inputs, width, depth, "stream")
    for index in range(config.refiner_layers):
        yield Product(f"refiner.layers.{index}.modulation", sample.frames, config.dim, 2 * width, depth, "side")
        for part in ("first", "second"):
            yield Product(f"refiner.layers.{index}.{part}", cells, 9 * width, width, depth, "stream")
    yield Product("refiner.leave", cells, width, config.out_channels, depth, "stream")


def adapts(name: str, targets: Sequence[str]) -> bool:
    """Whether PEFT puts an adapter on the layer of that name."""
    return any(name == target or name.endswith(f".{target}") for target in targets)


def forward_flops(config: TransformerConfig, sample: Sample) -> int:
    """Of one sample's forward pass."""
    return sum(product.flops for product in products(config, sample))


def block_flops(config: TransformerConfig, sample: Sample) -> int:
    """The blocks' part of `forward_flops`: what gradient checkpointing computes twice."""
    return sum(product.flops for product in products(config, sample) if product.name.startswith("blocks."))


def training_flops(config: TransformerConfig, sample: Sample, lora: LoraConfig | None = None) -> int:
    """Of one sample's forward and backward pass.

    A product costs its own operations again for the gradient of its weight and once more for that of its input, where
    these are wanted: data has none, and with `lora` neither frozen weights nor what lies before the first adapter.
    Adapters sit on layers of the blocks.
    """
    every = list(products(config, sample))
    if lora is None:
        return sum(product.flops * (2 if product.source == "data" else 3) for product in every)
    adapted = [product for product in every if product.weighted and adapts(product.name, lora.targets)]
    first = min((product.depth for product in adapted), default=10**9)
    reads = {product.name for product in every if product.source == "stream" and product.depth > first}
    learns = reads | {product.name for product in adapted}
    total = sum(product.flops for product in every)
    for product in every:
        if product.weighted:
            total += product.flops * (product.name in reads)
            continue
        attention = product.name.rpartition(".")[0]
        q, k, v = (f"{attention}.{name}" in learns for name in "qkv")
        total += product.flops * (q + k if product.name.endswith("scores") else (q or k) + v)
    for product in adapted:
        down, up = (2 * product.rows * lora.rank * width for width in (product.inner, product.outer))
        total += down * (3 if product.name in reads else 2) + up * 3
    return total
