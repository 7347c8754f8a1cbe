"""``python -m benchmarks.plan``: the plan's predictions beside measured training steps, at two small scales.

Operations are those that PyTorch's flop counter sees in the trainer's step. Time is the CPU time of one thread, so that
other work on the machine does not count: the share of the machine's own `torch.mm` that the one scale reaches predicts
the other, carried over by `carried`. Memory is the highest resident size of a process of its own that trains, over its
size before the model.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.memory import forget_peak, resident
from benchmarks.timing import race
from model_code.backbones.codec import BlockCodec
from model_code.backbones.perceptual import PerceptualEncoder
from model_code.backbones.transformer import DubbingTransformer
from model_code.config import FlowConfig, LoraConfig, PhaseConfig, PhaseName, TransformerConfig
from model_code.faces.identity import IdentityEncoder
from model_code.metrics.syncnet import SyncNet
from model_code.planning.memory import given_bytes, sample_bytes, state_bytes
from model_code.planning.networks import codec_cost, weights
from model_code.planning.plan import phase_samples, step_flops
from model_code.training.data import EncodedClip, LatentTrack, TrainingSet
from model_code.training.loop import Trainer
from model_code.training.losses import video_distance
from model_code.training.phases import Critics, make_phase

CROP, SIDE, CHANNELS, BLOCKS = 96, 12, 160, 9
ROUNDS, MATRIX = 3, 1024
LORA = LoraConfig()
EXTRA: dict[PhaseName, dict[str, object]] = {
    "lip": {"sync_weight": 0.05, "lora": LORA},
    "texture": {"identity_weight": 0.05, "perceptual_weight": 0.05, "silence_probability": 1.0, "lora": LORA},
}


@dataclass(frozen=True)
class Scale:
    """A transformer's size and how many samples it trains on at once."""

    dim: int
    layers: int
    batch: int

    def transformer(self, phase: PhaseName) -> TransformerConfig:
        """Without `residual`, so that only the generator has context channels, as at full scale."""
        return TransformerConfig(
            dim=self.dim,
            num_layers=self.layers,
            num_heads=self.dim // 32,
            ffn_dim=4 * self.dim,
            context_channels=CHANNELS if phase == "generator" else 0,
            residual=False,
        )

    def phase(self, name: PhaseName) -> PhaseConfig:
        """A few steps of a phase."""
        return PhaseConfig(phase=name, steps=1000, batch_size=self.batch, **EXTRA.get(name, {}))  # type: ignore[arg-type]


SCALES = {"small": Scale(dim=192, layers=6, batch=8), "large": Scale(dim=320, layers=8, batch=6)}
STEPS: dict[str, PhaseName] = {"small": "generator", "large": "editor"}


def trainer(
    scale: Scale, name: PhaseName, clips: list[EncodedClip] | None = None, *, checkpointing: bool = False
) -> Trainer:
    """The real trainer on invented clips."""
    torch.manual_seed(0)
    config = scale.phase(name).model_copy(update={"gradient_checkpointing": checkpointing})
    model = DubbingTransformer.build(scale.transformer(name))
    if config.lora is not None:
        from peft import LoraConfig as PeftLora

        model.requires_grad_(False)
        model.add_adapter(
            PeftLora(r=LORA.rank, lora_alpha=LORA.alpha, target_modules=list(LORA.targets)), adapter_name=name
        )
    identity, perceptual, syncnet = IdentityEncoder(), PerceptualEncoder(), SyncNet()
    for network in (identity, perceptual, syncnet):
        network.requires_grad_(False)
    critics = Critics(
        BlockCodec().requires_grad_(False), syncnet.distance, identity.distance, video_distance(perceptual)
    )
    data = TrainingSet(clips or invented_clips(), config.clip_frames, model.config["audio_window"])
    return Trainer(model, make_phase(config, FlowConfig(), critics), data, config)


def invented_clips(count: int = 4) -> list[EncodedClip]:
    """Latents, masks and sound of noise."""

    def track(channels: int) -> LatentTrack:
        singles, blocks = (torch.randn(channels, BLOCKS + more, SIDE, SIDE).half() for more in (1, 0))
        return LatentTrack(singles, blocks)

    videos = {"target": CHANNELS, "masked": CHANNELS, "companion": CHANNELS, "face": 1, "lip": 1}
    return [
        EncodedClip(str(number), "s", {name: track(channels) for name, channels in videos.items()}, torch.randn(74, 64))
        for number in range(count)
    ]


def stepper(scale: Scale, name: PhaseName) -> Callable[[], None]:
    """Takes a training step a call, on one batch."""
    run = trainer(scale, name)
    run.model.train()
    batch = run.phase.draw(run.data, 0)
    return lambda: run._one_step(batch)


def predicted_flops(scale: Scale, name: PhaseName) -> float:
    """Of a step of the whole batch."""
    cost = codec_cost(CHANNELS, CROP)
    return scale.batch * step_flops(scale.phase(name), scale.transformer(name), FlowConfig(), CROP, cost)[0]


def kept(scale: Scale, name: PhaseName, checkpointing: bool = False) -> int:
    """Bytes that a step's batch and backward pass need."""
    phase, config = scale.phase(name), scale.transformer(name)
    [(_, sample)] = phase_samples(phase, config, CROP, 8)
    adapters = phase.lora is not None
    each = sample_bytes(config, sample, "fp32", adapters=adapters, checkpointing=checkpointing, fused=False)
    return scale.batch * (each + given_bytes(config, sample))


def carried(share: float, here: float, there: float) -> float:
    """The utilisation of a model from that of another: products run at the peak, the rest is moving activations.

    Args:
        share: Measured utilisation.
        here: Bytes kept for the backward pass over FLOPs, of the model that was measured.
        there: The same of the other model.
    """
    return 1 / (1 + (1 / share - 1) * there / here)


def measured_flops(scale: Scale, name: PhaseName) -> float:
    """The counter does not know the CPU's fused attention: unfused, the same products are counted one by one."""
    step = stepper(scale, name)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        step()
    return float(counter.get_total_flops())


def predicted_bytes(scale: Scale, name: PhaseName, checkpointing: bool) -> int:
    """States and activations of a step on a CPU, by one process."""
    count = weights(scale.transformer(name), scale.phase(name).lora)
    return state_bytes(count, "DDP", 1, "fp32")[0] + kept(scale, name, checkpointing)


def measure_here(scale: Scale, name: PhaseName, checkpointing: bool) -> int:
    """Bytes by which three training steps raise this process's highest resident size."""
    clips = invented_clips()
    stepper(Scale(dim=64, layers=1, batch=1), name)()  # what libraries take at their first use is not the model's
    gc.collect()
    before = resident(peak=False)
    forget_peak()
    run = trainer(scale, name, clips, checkpointing=checkpointing)
    run.run(until=3)
    return resident(peak=True) - before


def measured_bytes(scale: str, checkpointing: bool) -> int:
    """`measure_here` in a process of its own, whose allocator gives back what is freed."""
    small = str(1 << 16)
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": small, "MALLOC_TRIM_THRESHOLD_": small}
    command = [sys.executable, "-m", "benchmarks.plan", "--memory", scale, str(int(checkpointing))]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return int(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Prints predicted over measured; 1 if one lies outside its limit."""
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["--memory"]:
        print(json.dumps(measure_here(SCALES[sys.argv[2]], STEPS[sys.argv[2]], sys.argv[3] == "1")))
        return
    bad = 0

    def report(what: str, predicted: float, measured: float, unit: str, limit: float) -> None:
        nonlocal bad
        ratio = predicted / measured
        bad += not 1 / (1 + limit) <= ratio <= 1 + limit
        print(f"{what}: predicted {predicted:.3g} {unit}, measured {measured:.3g} {unit}, ratio {ratio:.3f}")

    for key, scale in SCALES.items():
        phases: tuple[PhaseName, ...] = ("generator", "editor", "lip", "texture")
        for name in phases if key == "small" else (STEPS[key],):
            two = replace(scale, batch=2)
            predicted, measured = predicted_flops(two, name), measured_flops(two, name)
            report(f"FLOPs, {key}, {name}", predicted / 1e9, measured / 1e9, "GFLOP", 0.05)
    for checkpointing in (False, True):
        for key, scale in SCALES.items():
            predicted, measured = predicted_bytes(scale, STEPS[key], checkpointing), measured_bytes(key, checkpointing)
            what = f"memory, {key}, {STEPS[key]}{', checkpointed' if checkpointing else ''}"
            report(what, predicted / 1e6, measured / 1e6, "MB", 0.2)

    left, right = torch.randn(2, MATRIX, MATRIX)

    def multiply() -> None:
        for _ in range(10):
            torch.mm(left, right)

    entries = {"mm": multiply, **{key: stepper(scale, STEPS[key]) for key, scale in SCALES.items()}}
    seconds = race(entries, ROUNDS, time.process_time)
    peak = 10 * 2 * MATRIX**3 / seconds["mm"]
    flops = {key: predicted_flops(scale, STEPS[key]) for key, scale in SCALES.items()}
    shares = {key: flops[key] / seconds[key] / peak for key in SCALES}
    told = ", ".join(f"{key} {share:.2f}" for key, share in shares.items())
    print(f"torch.mm: {peak / 1e9:.1f} GFLOP/s of one thread; utilisation: {told}")
    traffic = {key: kept(scale, STEPS[key]) / flops[key] for key, scale in SCALES.items()}
    for key, other in (("large", "small"), ("small", "large")):
        share = carried(shares[other], traffic[other], traffic[key])
        report(f"time of a step, {key}, from {other}", flops[key] / (peak * share), seconds[key], "s", 0.2)
        uncarried = shares[key] / shares[other]
        print(f"  with {other}'s utilisation as it stands the ratio would be {uncarried:.3f}")
    sys.exit(int(bad > 0))


if __name__ == "__main__":
    main()
