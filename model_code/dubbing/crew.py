"""Starts the processes that sample together with this one, and says what they do."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from model_code.dubbing.model import read_transformer
from model_code.dubbing.sampling import Crew, WindowSampler
from model_code.errors import InputError
from model_code.team import Member, started


@contextmanager
def sampling_crew(size: int, device: str) -> Iterator[Crew | None]:
    """Processes that wait for a model (`DubbingPipelineModel.sample_with`) and then sample with it; None for one.

    Each holds the transformer whole. They end with this one, and all of them after `team.PATIENCE` without work.

    Args:
        size: How many, this one included.
        device: `cpu`, or `cuda` for an accelerator each.

    Raises:
        InputError: A device that names one accelerator, or there are fewer.
        RuntimeError: Another process failed or was killed.
    """
    if size == 1:
        yield None
        return
    if device not in ("cpu", "cuda"):
        raise InputError(
            f"device {device} for {size} sampling processes",
            "they take the first accelerators: leave serving.devices empty, or set processes.sampling_processes to 1",
        )
    with tempfile.TemporaryDirectory(prefix="xdub-crew-") as folder:
        members = [Member(rank, size) for rank in range(size)]
        with started(members, "sampling", device, follow, device, Path(folder) / "team") as own:
            crew = Crew(own, own.device(device))
            yield crew
            if not crew.broken:
                crew.tell({"do": "end"})


@torch.no_grad()
def follow(device: str, own: Member) -> None:
    """What every process but the leading one does."""
    crew = Crew(own, own.device(device))
    sampler: WindowSampler | None = None
    while True:
        order, given = crew.hear()
        if order["do"] == "end":
            return
        if order["do"] == "load":
            sampler = None  # the one before makes room
            sampler = WindowSampler(read_transformer(Path(order["folder"]), order["experts"]), order["experts"])
            nn.Module.to(sampler.transformer, crew.device)
            sampler.join(crew)
            own.wait()
        else:
            assert sampler is not None, "nothing was loaded"
            sampler.follow(order, given)
        del given
