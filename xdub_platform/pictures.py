"""Small pictures for asset metadata, inline, so that the UI shows them without a file server."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
from numpy.typing import NDArray

MAX_SIDE = 900


def inline(png: bytes, caption: str) -> dg.MarkdownMetadataValue:
    """A PNG as Markdown metadata."""
    return dg.MetadataValue.md(f"![{caption}](data:image/png;base64,{base64.b64encode(png).decode()})")


def picture_file(path: Path) -> dg.MarkdownMetadataValue:
    """A picture file as metadata, scaled down to `MAX_SIDE`."""
    from PIL import Image

    with Image.open(path) as image:
        return inline(_png(image), path.stem)


def frame_grid(frames: Sequence[NDArray[np.uint8]], columns: int = 8) -> bytes:
    """(S, S, 3) uint8 frames side by side as a PNG."""
    from PIL import Image

    side = frames[0].shape[0]
    rows = -(-len(frames) // columns)
    grid = np.zeros((rows * side, min(columns, len(frames)) * side, 3), np.uint8)
    for index, frame in enumerate(frames):
        y, x = divmod(index, columns)
        grid[y * side : (y + 1) * side, x * side : (x + 1) * side] = frame
    return _png(Image.fromarray(grid))


def curves(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> bytes:
    """A line for each of `names` over ``step`` as a PNG."""
    figure, axes = _figure()
    for name in names:
        points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), label=name)
    axes.set_xlabel("step")
    axes.legend()
    return _figure_png(figure)


def histogram(values: Sequence[float], threshold: float, name: str) -> bytes:
    """A histogram with its threshold as a PNG."""
    figure, axes = _figure()
    axes.hist(list(values), bins=20)
    axes.axvline(threshold, color="tab:red", label=f"threshold {threshold:g}")
    axes.set_xlabel(name)
    axes.legend()
    return _figure_png(figure)


def bars(values: Mapping[str, float], label: str) -> bytes:
    """A horizontal bar for each name as a PNG."""
    figure, axes = _figure()
    figure.set_figheight(max(1.2, 0.6 + 0.22 * len(values)))
    axes.barh(list(values), list(values.values()))
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=7)
    axes.set_xlabel(label)
    return _figure_png(figure)


def table(rows: Sequence[Mapping[str, Any]], limit: int = 30) -> dg.TableMetadataValue | dg.TextMetadataValue:
    """Rows as a metadata table; columns are those of the first row."""
    if not rows:
        return dg.MetadataValue.text("none")
    names = list(rows[0])
    records = [dg.TableRecord({name: _cell(row.get(name)) for name in names}) for row in rows[:limit]]
    schema = dg.TableSchema(columns=[dg.TableColumn(name, "string") for name in names])
    return dg.MetadataValue.table(records, schema=schema)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _figure() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 2.6), dpi=100, layout="constrained")
    return figure, figure.subplots()


def _figure_png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _png(image: Any) -> bytes:
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, format="png", optimize=True)
    return buffer.getvalue()
