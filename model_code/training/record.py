"""What a training run records: losses by step and time, what the guard skipped, where it went back, how fast it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

T_BINS = 5
"""Bins of t in which the loss is recorded."""


@dataclass
class Curves:
    """The record; all of it lies in a checkpoint.

    Attributes:
        rows: One row per logging interval: step, loss, its parts, grad_norm, learning_rate, bins
            (mean loss in each fifth of t, None where no sample fell); at a validation's step also what it found.
        skipped: Steps whose update the guard skipped.
        norms: The guard's memory.
        pending: Steps since the last row.
        rollbacks: From which step to which the run went back, each time it did.
        speed: samples_per_second and model_flops_utilisation by step. A clock's: no two runs have the same.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    pending: list[dict[str, Any]] = field(default_factory=list)
    rollbacks: list[list[int]] = field(default_factory=list)
    speed: list[dict[str, float]] = field(default_factory=list, compare=False)

    def skipped_before(self, step: int) -> int:
        """How many updates in a row were skipped just before a step."""
        count = 0
        while count < len(self.skipped) and self.skipped[-1 - count] == step - 1 - count:
            count += 1
        return count

    def close_row(self, step: int, rate: float) -> dict[str, float] | None:
        """Makes a row of what is pending; its means of the losses, or None where nothing was."""
        pending, self.pending = self.pending, []
        if not pending:
            return None
        bins: list[list[float]] = [[] for _ in range(T_BINS)]
        for entry in pending:
            for t, value in zip(entry["t"], entry["losses"], strict=True):
                bins[min(T_BINS - 1, int(t * T_BINS))].append(value)
        names = {name for entry in pending for name in entry["parts"]}
        means = {
            name: _mean([entry["parts"][name] for entry in pending if name in entry["parts"]]) for name in sorted(names)
        }
        self.rows.append(
            {
                "step": step,
                **means,
                "grad_norm": _mean([entry["norm"] for entry in pending]),
                "learning_rate": rate,
                "bins": [_mean(values) if values else None for values in bins],
            }
        )
        return means

    def told(self) -> list[dict[str, Any]]:
        """The rows' numbers beside the speed at their steps."""
        speed: dict[float, Mapping[str, float]] = {entry["step"]: entry for entry in self.speed}
        plain = ({name: value for name, value in row.items() if not isinstance(value, list)} for row in self.rows)
        return [{**row, **speed.get(row["step"], {})} for row in plain]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
