"""Footage for the evaluators: single frames of heads from their own seed range, cropped by true landmarks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class EvaluatorFootage:
    """Face crops with the renderer's truth.

    Attributes:
        crops: uint8 (N,96,96,3).
        curves: float32 (N,3): opening, width, pucker.
        heads: int64 (N,): head seed of each frame.
        kinds: (N,) "natural" | "stylised" | "nonhuman".
        held_out: Seeds of the heads kept for scoring.
    """

    crops: np.ndarray
    curves: np.ndarray
    heads: np.ndarray
    kinds: np.ndarray
    held_out: np.ndarray

    def part(self, *, held_out: bool) -> EvaluatorFootage:
        """The frames of the held-out heads, or of the others."""
        rows = np.isin(self.heads, self.held_out) == held_out
        return EvaluatorFootage(self.crops[rows], self.curves[rows], self.heads[rows], self.kinds[rows], self.held_out)

    def batch(self, generator: torch.Generator, *, heads: int, frames: int) -> np.ndarray:
        """Row numbers (heads*frames,): `frames` rows of each of `heads` random heads, head after head."""
        unique = np.unique(self.heads)
        chosen = unique[torch.randperm(len(unique), generator=generator)[:heads].numpy()]
        rows = []
        for head in chosen:
            own = np.flatnonzero(self.heads == head)
            rows.append(own[torch.randint(len(own), (frames,), generator=generator).numpy()])
        return np.concatenate(rows)

    def describe(self) -> dict[str, Any]:
        """Counts for the card."""
        return {
            "frames": len(self.crops),
            "heads": len(np.unique(self.heads)),
            "held_out_heads": len(self.held_out),
            "head_seeds": [int(self.heads.min()), int(self.heads.max())],
        }

    def save(self, path: Path) -> None:
        """Writes one ``.npz``."""
        np.savez(path, crops=self.crops, curves=self.curves, heads=self.heads, kinds=self.kinds, held_out=self.held_out)

    @classmethod
    def load(cls, path: Path) -> EvaluatorFootage:
        """Reads what `save` wrote."""
        with np.load(path, allow_pickle=False) as data:
            return cls(*(data[name] for name in ("crops", "curves", "heads", "kinds", "held_out")))
