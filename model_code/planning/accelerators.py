"""Throughput and memory of accelerators, from their vendors' data sheets."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from model_code.config import Config
from model_code.errors import InputError

Precision = Literal["fp32", "bf16"]


class Accelerator(Config):
    """One accelerator.

    The peaks are dense: data sheets often print the double, for 2:4 sparsity, which nothing here has. fp32 is the
    rate outside the tensor cores, because PyTorch multiplies fp32 matrices without TF32 unless it is told otherwise.
    """

    name: str
    memory_gb: float = Field(description="10^9 bytes.")
    bf16_tflops: float = Field(description="Dense peak of matrix products in bf16 with fp32 sums.")
    fp32_tflops: float = Field(description="Peak in fp32.")

    def peak(self, precision: Precision) -> float:
        """FLOP/s."""
        return 1e12 * (self.bf16_tflops if precision == "bf16" else self.fp32_tflops)


ACCELERATORS: dict[str, Accelerator] = {
    "a100": Accelerator(name="NVIDIA A100 SXM 80 GB", memory_gb=80, bf16_tflops=312, fp32_tflops=19.5),
    "h100": Accelerator(name="NVIDIA H100 SXM", memory_gb=80, bf16_tflops=989.4, fp32_tflops=66.9),
    "h200": Accelerator(name="NVIDIA H200 SXM", memory_gb=141, bf16_tflops=989.4, fp32_tflops=66.9),
    "b200": Accelerator(name="NVIDIA B200 SXM", memory_gb=180, bf16_tflops=2250, fp32_tflops=80),
    "l40s": Accelerator(name="NVIDIA L40S", memory_gb=48, bf16_tflops=362, fp32_tflops=91.6),
    "mi300x": Accelerator(name="AMD MI300X", memory_gb=192, bf16_tflops=1307.4, fp32_tflops=163.4),
}


def find_accelerator(key: str) -> Accelerator:
    """The accelerator of that short name.

    Raises:
        InputError: There is none.
    """
    if key not in ACCELERATORS:
        raise InputError(f"accelerator '{key}' is not known", f"one of {', '.join(ACCELERATORS)}")
    return ACCELERATORS[key]
