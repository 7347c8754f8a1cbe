"""``python -m benchmarks.reuse FOLDER``: what a late start and reused steps do to the shipped base's dubs.

The base edits the first second of held-out heads in 30 steps at shift 5, guided at every step. Each row says how often
its blocks ran, how near its dub is to the one that skips nothing, and the scores of both against the exact reference.
FOLDER holds the cases that `xdub demo` keeps (``.xdub/embedded/cache/cases/*``).
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from model_code import base
from model_code.config import FlowConfig
from model_code.dubbing.model import DubberConfig, DubbingPipelineModel, load_transformer
from model_code.metrics.benchmark import Case
from model_code.metrics.image import psnr

CASES, FRAMES = 3, 25
EVERY = FlowConfig(sampling_steps=30, sampling_shift=5.0, guidance_from=0.0)
ROWS: dict[str, dict[str, object]] = {
    "every step": {},
    "start_from 0.91": {"start_from": 0.91},
    "step_reuse 0.05": {"step_reuse": 0.05},
    "step_reuse 0.1": {"step_reuse": 0.1},
    "step_reuse 0.2": {"step_reuse": 0.2},
    "start_from 0.91, step_reuse 0.1": {"start_from": 0.91, "step_reuse": 0.1},
}


def main() -> None:
    """Prints the rows."""
    torch.set_num_threads(1)
    cases = [Case.load(path) for path in sorted(Path(sys.argv[1]).glob("*.npz"))[:CASES]]
    items = [replace(case.item(), frames=case.frames[:FRAMES], samples=case.samples[: FRAMES * 640]) for case in cases]
    transformer = load_transformer(base.FOLDER / "prior")
    model = DubbingPipelineModel(
        DubberConfig(mode="editor", noise_retries=0), base.load("codec"), base.load("audio_encoder"), transformer
    )
    ran = [0]

    def count(block: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        ran[0] += len(inputs[0])

    transformer.blocks[-1].register_forward_pre_hook(count)
    reader, every, whole = base.load("mouth_reader"), 0, None
    for name, changes in ROWS.items():
        ran[0] = 0
        dubs = model.with_flow(EVERY.model_copy(update=changes)).dub_many(items)
        if whole is None:
            every, whole = ran[0], dubs
        near = np.mean([min(60.0, psnr(dub, other)) for dub, other in zip(dubs, whole, strict=True)])
        opened = np.concatenate([reader.read(dub)[:, 0] for dub in dubs])
        print(
            f"{name:<34} blocks ran {ran[0] / every:4.0%}  {near:5.1f} dB to every step  "
            f"lips {lips(cases, dubs):5.2f} dB  opening {np.corrcoef(opened, openings(cases))[0, 1]:.3f}",
            flush=True,
        )


def lips(cases: list[Case], dubs: list[np.ndarray]) -> float:
    """Mean PSNR of the lips to the exact reference."""
    pairs = zip(cases, dubs, strict=True)
    return float(np.mean([psnr(dub, case.reference[:FRAMES], case.lips()[:FRAMES]) for case, dub in pairs]))


def openings(cases: list[Case]) -> np.ndarray:
    """True mouth opening of the exact references, one clip after the other."""
    return np.concatenate([case.reference_curves[:FRAMES, 0] for case in cases])


if __name__ == "__main__":
    main()
