"""What the steps of a sampling run may take from one another: conditions' keys and values, and what blocks added."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from torch import Tensor

from model_code.backbones.attention import KeysValues


@dataclass(frozen=True)
class Remembered:
    """One condition (reference, sound or text) as the blocks see it: neither time nor noisy latents change it.

    Attributes:
        blocks: Keys and values in every block; the first dimension is the batch, the second of sound's the frames.
        shift: (B,F,dim) what sound adds to the time embedding.
    """

    blocks: tuple[KeysValues, ...]
    shift: Tensor | None = None

    def each(self, function: Callable[[Tensor], Tensor]) -> Remembered:
        """The same with every tensor changed."""
        blocks = tuple((function(k), function(v)) for k, v in self.blocks)
        return Remembered(blocks, None if self.shift is None else function(self.shift))

    def take(self, rows: Tensor) -> Remembered:
        """Of some samples."""
        return self.each(lambda value: value[rows])

    def spread(self, count: int) -> Remembered:
        """One sample's, for `count` samples that are alike; takes no memory."""
        return self.each(lambda value: value.expand(count, *value.shape[1:]))


Given = TypeVar("Given", bound=Tensor | Remembered | None)


def seen_by(block: int, condition: Tensor | Remembered | None) -> Tensor | KeysValues | None:
    """What a block is given of a condition that may be remembered."""
    return condition.blocks[block] if isinstance(condition, Remembered) else condition


def of_samples(rows: Tensor | None, value: Given) -> Given:
    """Some samples' part of tokens or of a condition; None: of all."""
    if rows is None or value is None:
        return value
    return cast(Given, value.take(rows) if isinstance(value, Remembered) else cast(Tensor, value)[rows])


class StepReuse:
    """Decides at every step whether the blocks run, or their last addition is taken again (TeaCache, arXiv 2411.19108).

    The blocks' input, modulated by the step's time, changes from step to step. Its relative changes are added up, and
    while the sum stays below a threshold the blocks' addition is that of the last time they ran. Each sample decides
    for itself, so that its result does not depend on its company. One object serves one guidance branch of one run.

    Args:
        threshold: Of the sum; 0 runs the blocks at every step.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.asked = 0
        self.ran = 0
        self._last: Tensor | None = None
        self._sum = torch.zeros(0)
        self._added = torch.zeros(0)

    def expire(self) -> None:
        """The next step runs the blocks."""
        self._last = None

    def add(
        self,
        probe: Tensor,
        x: Tensor,
        blocks: Callable[[Tensor | None], Tensor],
        agree: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """x with what the blocks add to it.

        Args:
            probe: (B,...) the first block's modulated input.
            x: (B,...) tokens before the blocks.
            blocks: Tokens after the blocks, of the given samples; None: of all.
            agree: What several processes decide, from what this one would; None: it is alone.
        """
        due = self._due(probe, agree)
        self.asked, self.ran = self.asked + len(due), self.ran + int(due.sum())
        if due.all():
            after = blocks(None)
            self._added = after - x
            return after
        if due.any():
            rows = due.nonzero().squeeze(1)
            self._added[rows] = blocks(rows) - x[rows]
        return x + self._added

    def _due(self, probe: Tensor, agree: Callable[[Tensor], Tensor] | None) -> Tensor:
        """(B,) whether a sample's blocks have to run."""
        last, self._last = self._last, probe
        if last is None:
            due = torch.ones(len(probe), dtype=torch.bool, device=probe.device)
            self._sum = torch.zeros(len(probe), device=probe.device)
        else:
            changed = (probe - last).abs().flatten(1).mean(1) / last.abs().flatten(1).mean(1)
            self._sum += changed.float()
            due = self._sum >= self.threshold
            if agree is not None:
                due = agree(due)
        self._sum[due] = 0
        return due
