"""Fair timing on a busy machine: everything in turn, several rounds, best time of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping


def race(
    entries: Mapping[str, Callable[[], object]], rounds: int = 5, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Best seconds of each entry by `clock`, wall time if none is given; one untimed round first."""
    best = dict.fromkeys(entries, float("inf"))
    for number in range(rounds + 1):
        for name, function in entries.items():
            begin = clock()
            function()
            if number:
                best[name] = min(best[name], clock() - begin)
    return best


def report(title: str, ours: str, peer: str, best: Mapping[str, float], unit: str, amount: float) -> None:
    """Prints both rates and their ratio on one line."""
    mine, other = amount / best[ours], amount / best[peer]
    print(f"{title}: {ours} {mine:.1f} {unit}, {peer} {other:.1f} {unit}, ratio {mine / other:.2f}")
