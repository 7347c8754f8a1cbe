"""Pictures that workers leave beside their data: loss curves and contact sheets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image


def loss_curves(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws the flow loss and its parts, and the loss in each fifth of t.

    Args:
        rows: `loop.Curves.rows`.
        path: A PNG file.
    """
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = [row["step"] for row in rows]
    for name in ("flow", "sync", "identity", "perceptual", "validation_loss"):
        points = [(row["step"], row[name]) for row in rows if name in row]
        if points:
            left.plot(*zip(*points, strict=True), label=name)
    left.set(xlabel="step", title="losses", yscale="log")
    left.legend(fontsize=7)
    count = len(rows[0]["bins"]) if rows else 0
    for index in range(count):
        values = [np.nan if row["bins"][index] is None else row["bins"][index] for row in rows]
        right.plot(steps, values, label=f"t {index / count:.1f}-{(index + 1) / count:.1f}", linewidth=1)
    right.set(xlabel="step", title="flow loss by t", yscale="log")
    right.legend(fontsize=7)
    figure.savefig(path, dpi=100)


def contact_sheet(columns: Sequence[Sequence[NDArray[np.uint8]]], path: Path, frames: int = 5, scale: int = 2) -> None:
    """Writes a sheet: one row a sample, in it `frames` moments of every video side by side, one block a video.

    Args:
        columns: Per sample, its videos (T, S, S, 3).
        path: A PNG file.
        frames: Moments shown.
        scale: Enlargement.
    """
    rows = []
    for videos in columns:
        times = np.linspace(0, min(len(video) for video in videos) - 1, frames).astype(int)
        rows.append(np.concatenate([np.concatenate(list(video[times]), axis=1) for video in videos], axis=0))
    sheet = np.concatenate(rows, axis=0)
    picture = Image.fromarray(sheet)
    picture.resize((sheet.shape[1] * scale, sheet.shape[0] * scale), Image.Resampling.BICUBIC).save(path)
