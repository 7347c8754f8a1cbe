"""``python -m benchmarks.training_step``: a training step's share of the matrix product's peak of the same run.

The trainer's own step (forward and backward pass, clipping, AdamW, moving average) of an editor with more than 20 M
parameters, on invented clips. Operations are those that the model needs (`training.speed.Meter`), as PyTorch's flop
counter counts them; the peak is `torch.mm` on square matrices, measured in turn with the step. 1 if the share is below
the bar. With one thread time is CPU time: other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.plan import Scale, trainer
from benchmarks.timing import race
from model_code.training.phases import takes_context

BAR = 0.5
SIZES = (1024, 2048)
"""Sides of the square matrices; the faster product is the peak."""


def main(arguments: argparse.Namespace) -> int:
    """Prints the share."""
    torch.set_num_threads(arguments.threads)
    run = trainer(Scale(dim=arguments.dim, layers=arguments.layers, batch=arguments.batch), "editor")
    run.model.train()
    batch = run.phase.draw(run.data, 0)
    inputs = run.phase.inputs(batch, torch.Generator().manual_seed(0), with_context=takes_context(run.model))
    flops = run.meter.flops(inputs)
    matrices = {side: torch.randn(2, side, side) for side in SIZES}
    entries = {f"mm {side}": lambda pair=pair: torch.mm(*pair) for side, pair in matrices.items()}
    clock = time.process_time if arguments.threads == 1 else time.perf_counter
    best = race({**entries, "step": lambda: run._one_step(batch)}, arguments.rounds, clock)
    peak = max(2 * side**3 / best[f"mm {side}"] for side in SIZES)
    share = flops / best["step"] / peak
    count = sum(value.numel() for value in run.parameters.values())
    print(f"{count / 1e6:.1f} M parameters, {arguments.batch} samples, {arguments.threads} threads")
    print(f"torch.mm: {peak / 1e9:.1f} GFLOP/s; a step: {flops / 1e9:.0f} GFLOP in {best['step']:.2f} s")
    print(f"share of the peak: {share:.3f} (bar {BAR})")
    if arguments.profile:
        with profile(activities=[ProfilerActivity.CPU]) as told:
            run._one_step(batch)
        print(told.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=40))
    return int(share < BAR)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--profile", action="store_true", help="Also show where the time goes.")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main(parsed()))
