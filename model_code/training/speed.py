"""How fast a run trains: samples a second, and the share of the machine's matrix products that the model takes."""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from torch import nn

from model_code.config import FlowConfig, PhaseConfig, TransformerConfig
from model_code.diffusion.schedule import estimate_times
from model_code.planning.flops import Sample, forward_flops, training_flops
from model_code.training.step import ModelInputs

MATRIX = {"cpu": 1024, "cuda": 8192}
"""Side of the matrices whose product is the peak: large enough to reach it, small enough to cost nothing."""
PRODUCTS = 4
"""The best of so many; the first one, which wakes the device up, does not count."""


def matmul_peak(device: torch.device, precision: str) -> float:
    """FLOP/s of a matrix product on a device, on a CPU with this process's threads."""
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    side = MATRIX[device.type]
    left, right = torch.ones(2, side, side, device=device, dtype=kind)
    best = float("inf")
    for number in range(PRODUCTS + 1):
        _finish(device)
        begin = time.perf_counter()
        torch.mm(left, right)
        _finish(device)
        if number:
            best = min(best, time.perf_counter() - begin)
    return 2 * side**3 / best


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Meter:
    """Counts samples, the transformer's operations and seconds between two rows of the curves.

    What the model needs is counted, forward and backward: not what gradient checkpointing computes again, and neither
    critics nor the codec of pixel losses.

    Args:
        model: The transformer.
        config: The phase's.
        flow: Its steps of sampling: as many as are estimated before a window go through the model once more.
        device: Where it trains; its peak is measured here, once.
        processes: How many train it together, each on a device of its own.
        words: Length of the text that the model is told.
    """

    def __init__(
        self,
        model: nn.Module,
        config: PhaseConfig,
        flow: FlowConfig,
        device: torch.device,
        processes: int,
        words: int = 0,
    ) -> None:
        given = {name: model.config[name] for name in TransformerConfig.model_fields}  # type: ignore[index]
        self.shape, self.lora = TransformerConfig.model_validate(given), config.lora
        self.words, self.estimates = words, len(estimate_times(config.phase, flow))
        self.peak = processes * matmul_peak(device, config.precision)
        self._forget()
        self._begin = time.perf_counter()

    def begin(self) -> None:
        """From here on time is training's."""
        self._begin = time.perf_counter()

    def end(self, inputs: ModelInputs) -> None:
        """A step's end; the next one begins."""
        now = time.perf_counter()
        self._seconds += now - self._begin
        self._begin = now
        self._samples += len(inputs.t)
        self._flops += self.flops(inputs)

    def flops(self, inputs: ModelInputs) -> float:
        """Of a step of the whole batch."""
        count, _, frames, rows, columns = inputs.noisy.shape
        beside = inputs.reference.shape[2] if self.shape.reference_tokens else 0
        heard = Sample(frames, beside, rows, columns, words=self.words)
        sample = replace(heard, audio=inputs.audio is not None)
        estimated = self.estimates * int(inputs.own.sum()) * forward_flops(self.shape, heard)
        return float(count * training_flops(self.shape, sample, self.lora) + estimated)

    def row(self) -> dict[str, float]:
        """The speed since the last row."""
        found = {
            "samples_per_second": self._samples / self._seconds,
            "model_flops_utilisation": self._flops / self._seconds / self.peak,
        }
        self._forget()
        return found

    def _forget(self) -> None:
        self._seconds, self._samples, self._flops = 0.0, 0, 0.0
