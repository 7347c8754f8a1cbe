"""Closed forms against real modules: PyTorch's flop counter, PEFT's parameters, what autograd keeps."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig as PeftLora
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model_code.backbones.codec import BlockCodec
from model_code.backbones.presets import PRESETS
from model_code.backbones.transformer import DubbingTransformer
from model_code.config import FlowConfig, LoraConfig, PhaseConfig, TransformerConfig
from model_code.planning.accelerators import Precision
from model_code.planning.flops import Sample, block_flops, forward_flops, training_flops
from model_code.planning.memory import Weights, given_bytes, sample_bytes, state_bytes
from model_code.planning.networks import codec_cost, parameters_by_part, weights
from model_code.training.data import TrainingSet
from model_code.training.phases import make_phase
from tests.training.test_parallel import SHAPE, clip

TINY = PRESETS["tiny"]
CASES = {
    "generator": (TINY.model_copy(update={"context_channels": 160}), Sample(7, 1, 12, 12)),
    "editor": (TINY, Sample(3, 3, 12, 12)),
    "refiner": (TINY.model_copy(update={"refiner_layers": 2}), Sample(3, 3, 8, 8)),
    "text": (TINY.model_copy(update={"text_dim": 64}), Sample(3, 3, 12, 12, words=12)),
    "silent": (TINY, Sample(3, 3, 12, 12, audio=False)),
    "spatial": (TINY.model_copy(update={"spatial_attention": True}), Sample(3, 3, 12, 12)),
    "own": (TINY.model_copy(update={"reference_attention": "own"}), Sample(3, 2, 12, 12)),
    "paper": (PRESETS["xdub-paper-1b"].model_copy(update={"num_layers": 2}), Sample(4, 4, 16, 16, words=12)),
    "release": (PRESETS["xdub-wan-5b"].model_copy(update={"num_layers": 2}), Sample(20, 20, 32, 32, words=512)),
}
LORA = LoraConfig(rank=4, targets=("q", "v", "ffn.0"))


def build(config: TransformerConfig, lora: LoraConfig | None) -> DubbingTransformer:
    model = DubbingTransformer.build(config).train()
    if lora is not None:
        model.requires_grad_(False)
        model.add_adapter(PeftLora(r=lora.rank, target_modules=list(lora.targets)))
    return model


def run(model: DubbingTransformer, config: TransformerConfig, sample: Sample) -> Tensor:
    grid = (sample.rows, sample.columns)
    latents = torch.randn(1, config.context_channels + config.in_channels, sample.frames, *grid)
    reference = torch.randn(1, config.in_channels, sample.reference_frames, *grid)
    audio = torch.randn(1, sample.frames, config.audio_window, config.audio_dim) if sample.audio else None
    words = torch.randn(1, sample.words, config.text_dim or 0) if sample.words else None
    return model(latents, torch.rand(1, sample.frames), reference, audio, words)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("lora", [None, LORA, LoraConfig()], ids=["whole", "part", "lora"])
def test_flops_are_those_that_pytorch_counts(name: str, lora: LoraConfig | None) -> None:
    config, sample = CASES[name]
    with torch.device("meta"), sdpa_kernel(SDPBackend.MATH):
        model = build(config, lora)
        with FlopCounterMode(display=False) as counter:
            run(model, config, sample).sum().backward()
    assert training_flops(config, sample, lora) == counter.get_total_flops()


def test_a_forward_pass_costs_what_pytorch_counts() -> None:
    config, sample = CASES["text"]
    with torch.device("meta"), sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model = build(config, None)
        with FlopCounterMode(display=False) as counter:
            run(model, config, sample)
    assert forward_flops(config, sample) == counter.get_total_flops()
    plain = config.model_copy(update={"refiner_layers": 0})
    assert 0.8 < block_flops(plain, sample) / forward_flops(plain, sample) < 1


def test_parts_add_up_to_the_module() -> None:
    model = DubbingTransformer.build(TINY)
    assert sum(parameters_by_part(TINY).values()) == sum(value.numel() for value in model.parameters())
    assert sum(parameters_by_part(PRESETS["xdub-wan-5b"]).values()) == pytest.approx(6.29e9, rel=0.01)


def test_adapters_are_those_of_peft() -> None:
    model = build(TINY, LORA)
    trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
    counted = weights(TINY, LORA)
    assert counted.trained == trained
    assert counted.every == sum(value.numel() for value in model.parameters())


def kept(config: TransformerConfig, sample: Sample, precision: Precision, lora: LoraConfig | None) -> int:
    """Bytes that autograd keeps; weights and autocast's copies of them are known by their shapes and left out."""
    model = build(config, lora)
    shapes = {tuple(value.shape) for value in model.parameters()}
    shapes |= {shape[::-1] for shape in shapes if len(shape) == 2}
    found: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tuple(tensor.shape) not in shapes:
            found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    half = torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), half:
        output = run(model, config, sample)
        (output.float() - torch.zeros(())).square().mean()
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())


@pytest.mark.parametrize("name", ["generator", "editor", "text", "silent", "spatial", "own"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("lora", [None, LoraConfig()], ids=["whole", "lora"])
def test_what_autograd_keeps_grows_as_predicted(name: str, precision: Precision, lora: LoraConfig | None) -> None:
    """By the layer: three more layers, so that what stands around the blocks does not count."""
    config, sample = CASES[name]
    deep = config.model_copy(update={"num_layers": config.num_layers + 3})
    measured = kept(deep, sample, precision, lora) - kept(config, sample, precision, lora)
    adapters = lora is not None
    predicted = sample_bytes(deep, sample, precision, adapters=adapters, fused=False)
    predicted -= sample_bytes(config, sample, precision, adapters=adapters, fused=False)
    assert predicted / measured == pytest.approx(1, abs=0.1)


def test_checkpointing_keeps_little_more_than_one_block() -> None:
    config, sample = PRESETS["xdub-wan-5b"], Sample(20, 20, 32, 32, words=512)
    whole, saved = (sample_bytes(config, sample, "bf16", checkpointing=kind) for kind in (False, True))
    assert saved < whole / 10
    assert sample_bytes(config, sample, "bf16") < sample_bytes(config, sample, "fp32")


@pytest.mark.parametrize(("name", "beside"), [("generator", "masked"), ("editor", "companion")])
def test_a_batch_takes_what_is_predicted(name: str, beside: str) -> None:
    """Whoever trains on it, each process draws and noises the whole of it."""
    clips = []
    for number in range(4):
        made = clip(number)
        tracks = {key: made.tracks[key] for key in ("target", "face", "lip", beside)}
        clips.append(replace(made, tracks=tracks))
    context = 6 if name == "generator" else 0
    config = PhaseConfig(phase=name, pixel_weighting=False, batch_size=4, clip_frames=25)  # type: ignore[arg-type]
    strategy = make_phase(config, FlowConfig())
    batch = strategy.draw(TrainingSet(clips, 25, SHAPE.audio_window), config.steps)
    inputs = strategy.inputs(batch, torch.Generator().manual_seed(0), with_context=bool(context))
    tensors = [value for given in (batch, inputs) for value in vars(given).values() if isinstance(value, Tensor)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    predicted = given_bytes(
        SHAPE.model_copy(update={"context_channels": context}), Sample(7, 1 if context else 7, 4, 4)
    )
    assert sum(storages.values()) == pytest.approx(4 * predicted, rel=0.01)


def test_states_are_twenty_bytes_a_parameter_and_sharded() -> None:
    count = Weights(every=1000, trained=1000, block=100, outside=200)
    assert state_bytes(count, "DDP", 8, "fp32") == (20_000, 4000)
    assert state_bytes(count, "DDP", 8, "bf16")[0] == 22_000
    assert state_bytes(count, "FSDP", 8, "bf16") == (20_000 // 8 + 2 * 500, 500)
    frozen = Weights(every=1000, trained=10, block=100, outside=200)
    assert state_bytes(frozen, "DDP", 8, "fp32") == (4000 + 160, 40)


def test_every_further_latent_frame_costs_the_codec_the_same() -> None:
    cost = codec_cost(160, 96)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        BlockCodec().requires_grad_(False).decode(torch.empty(1, 160, 4, 12, 12))
    assert cost.decoding(4) == counter.get_total_flops()


def test_the_release_has_wans_autoencoder() -> None:
    cost = codec_cost(48, 64)
    assert (cost.spatial, round(cost.parameters / 1e6)) == (16, 705)
    assert codec_cost(16, 64).parameters == pytest.approx(127e6, rel=0.01)
