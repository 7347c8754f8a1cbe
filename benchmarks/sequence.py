"""``python -m benchmarks.sequence``: one denoiser step by one process, and with its tokens shared out among several.

The random model and the window of `benchmarks.released_step`, one branch, one thread a process. Both clocks are the
leading process's: CPU seconds do not count other work on the machine, nor waiting for the other processes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.released_step import FRAMES, SHAPE, STEP, T, inputs
from benchmarks.timing import race
from model_code.backbones.transformer import DubbingTransformer
from model_code.team import Member, started

Seconds = tuple[float, float]
"""Of CPU, and by the wall clock."""


@torch.inference_mode()
def step(rounds: int, own: Member) -> Seconds:
    """What each of the processes does: so many rounds by either clock, and one before."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = DubbingTransformer.build(SHAPE).eval()
    model.sample_with(own)
    given = inputs(*STEP)
    times = torch.full((1, FRAMES), T)

    def one() -> torch.Tensor:
        return model(given["noise"], times, given["reference"], given["audio"], given["text"])

    cpu, wall = (race({"step": one}, rounds, clock)["step"] for clock in (time.process_time, time.perf_counter))
    return cpu, wall


def together(size: int, rounds: int) -> Seconds:
    """The leading process's seconds."""
    with tempfile.TemporaryDirectory() as folder:
        members = [Member(rank, size) for rank in range(size)]
        with started(members, "sampling", "cpu", step, rounds, Path(folder) / "team") as own:
            return step(rounds, own)


def main() -> None:
    """Prints seconds, and what a block sends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=(1, 2), help="Divisors of the model's 4 heads.")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    tokens = 2 * FRAMES * (STEP[0] // 2) ** 2
    print(f"width {SHAPE.dim}, {SHAPE.num_layers} blocks, {tokens} tokens")
    for size in given.processes:
        cpu, wall = together(size, given.rounds)
        sent = 4 * (size - 1) / size**2 * tokens * SHAPE.dim * 4 / 1e6
        print(f"{size} processes: {cpu:.2f} s of CPU, {wall:.2f} s; each sends {sent:.1f} MB a block", flush=True)


if __name__ == "__main__":
    main()
