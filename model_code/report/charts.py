"""Small inline SVG charts: no library, no network, colours from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from model_code.metrics.mouth import EstimateValues

WIDTH, HEIGHT = 420, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 12, 26
Series = tuple[Sequence[float], Sequence[float]]


def number(value: float) -> str:
    """A short number for axes and tables."""
    if not math.isfinite(value):
        return "-"
    if abs(value) < 5e-5:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if abs(value) < 100 else 0
    text = f"{value:.{min(digits, 4)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers within [low, high]."""
    span = high - low
    if span <= 0 or not math.isfinite(span):
        return [low]
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


class _Frame:
    """Axes of one chart."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float], width: int, height: int) -> None:
        self.x, self.y, self.width, self.height = x, y, width, height

    def px(self, value: float) -> float:
        low, high = self.x
        return LEFT + (value - low) / ((high - low) or 1) * (self.width - LEFT - RIGHT)

    def py(self, value: float) -> float:
        low, high = self.y
        return self.height - BOTTOM - (value - low) / ((high - low) or 1) * (self.height - TOP - BOTTOM)

    def axes(self) -> str:
        parts = []
        for value in ticks(*self.y):
            y = self.py(value)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{self.width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(
                f'<text class="tick" x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{number(value)}</text>'
            )
        for value in ticks(*self.x, 5):
            place = f'x="{self.px(value):.1f}" y="{self.height - 8}"'
            parts.append(f'<text class="tick" {place} text-anchor="middle">{number(value)}</text>')
        return "".join(parts)

    def path(self, xs: Sequence[float], ys: Sequence[float]) -> str:
        points = [(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(x) and math.isfinite(y)]
        return "M" + "L".join(f"{self.px(x):.1f},{self.py(y):.1f}" for x, y in points) if points else ""


def _svg(frame: _Frame, body: str, label: str) -> str:
    box = f"0 0 {frame.width} {frame.height}"
    return f'<svg class="chart" viewBox="{box}" role="img" aria-label="{escape(label)}">{frame.axes()}{body}</svg>'


def _range(values: Sequence[float]) -> tuple[float, float]:
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return 0.0, 1.0
    low, high = min(known), max(known)
    pad = (high - low) * 0.05 or abs(high) * 0.05 or 0.5
    return low - pad, high + pad


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Running mean over the last `window` values."""
    total = np.cumsum([0.0, *values])
    return [float((total[i + 1] - total[max(0, i + 1 - window)]) / min(i + 1, window)) for i in range(len(values))]


def line_chart(series: Mapping[str, Series], label: str, *, width: int = WIDTH, height: int = HEIGHT) -> str:
    """Lines with a legend; long noisy ones get their running mean on top."""
    xs = [x for points, _ in series.values() for x in points]
    ys = [y for _, points in series.values() for y in points]
    inner = np.quantile([y for y in ys if math.isfinite(y)] or [0.0, 1.0], [0.0, 0.995])
    frame = _Frame((min(xs, default=0), max(xs, default=1)), _range([float(v) for v in inner]), width, height)
    body = []
    for index, (x, y) in enumerate(series.values()):
        clipped = [min(value, frame.y[1]) for value in y]
        if len(y) > 60:
            body.append(f'<path class="line faint c{index % 6}" d="{frame.path(x, clipped)}"/>')
            clipped = smooth(clipped, max(5, len(y) // 25))
        body.append(f'<path class="line c{index % 6}" d="{frame.path(x, clipped)}"/>')
    return _svg(frame, "".join(body), label) + legend(list(series))


def legend(names: Sequence[str]) -> str:
    """Coloured names in the order of the lines; nothing for a single unnamed line."""
    if len(names) < 2:
        return ""
    items = "".join(f'<span><i class="c{index % 6}"></i>{escape(name)}</span>' for index, name in enumerate(names))
    return f'<div class="legend">{items}</div>'


def histogram(accepted: Sequence[float], rejected: Sequence[float], threshold: float | None, label: str) -> str:
    """Stacked bars of accepted and rejected values with the threshold as a line."""
    everything = [*accepted, *rejected, *([] if threshold is None else [threshold])]
    low, high = _range(everything)
    edges = np.linspace(low, high, 31)
    good, bad = np.histogram(accepted, edges)[0], np.histogram(rejected, edges)[0]
    frame = _Frame((low, high), (0, max(1, int((good + bad).max())) * 1.05), WIDTH, HEIGHT)
    bars = []
    for k in range(30):
        x, width = frame.px(edges[k]) + 0.5, frame.px(edges[k + 1]) - frame.px(edges[k]) - 1
        for base, count, name in ((0, good[k], "good"), (good[k], bad[k], "bad")):
            if count:
                top = frame.py(base + count)
                size = f'width="{width:.1f}" height="{frame.py(base) - top:.1f}"'
                bars.append(f'<rect class="{name}" x="{x:.1f}" y="{top:.1f}" {size}/>')
    if threshold is not None:
        x = frame.px(threshold)
        bars.append(f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    return _svg(frame, "".join(bars), label)


def interval_chart(rows: Mapping[str, EstimateValues], label: str) -> str:
    """Values with their intervals if they have any, one a line, on a common axis with zero marked."""
    height = TOP + BOTTOM + 40 * len(rows)
    ends = [end for row in rows.values() for end in (row["value"], row["low"], row["high"], 0.0) if end is not None]
    frame = _Frame(_range(ends), (0, 1), 640, height)
    left, parts = 270, []

    def px(value: float) -> float:
        return left + (value - frame.x[0]) / (frame.x[1] - frame.x[0]) * (frame.width - left - RIGHT)

    for value in ticks(*frame.x, 6):
        parts.append(
            f'<line class="grid" x1="{px(value):.1f}" x2="{px(value):.1f}" y1="{TOP}" y2="{height - BOTTOM}"/>'
        )
        parts.append(
            f'<text class="tick" x="{px(value):.1f}" y="{height - 8}" text-anchor="middle">{number(value)}</text>'
        )
    parts.append(f'<line class="limit" x1="{px(0):.1f}" x2="{px(0):.1f}" y1="{TOP}" y2="{height - BOTTOM}"/>')
    for index, (name, row) in enumerate(rows.items()):
        y = TOP + 20 + 40 * index
        parts.append(f'<text class="name" x="{left - 10}" y="{y + 4}" text-anchor="end">{escape(name)}</text>')
        low, high = row["low"], row["high"]
        if low is not None and high is not None:
            parts.append(f'<line class="whisker" x1="{px(low):.1f}" x2="{px(high):.1f}" y1="{y}" y2="{y}"/>')
        parts.append(f'<circle class="dot" cx="{px(row["value"]):.1f}" cy="{y}" r="4"/>')
    box = f"0 0 {frame.width} {height}"
    return f'<svg class="chart wide" viewBox="{box}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
