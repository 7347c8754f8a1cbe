"""Renders `ReportData` to ``index.html``: styles and pictures inline, videos as files beside it."""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import cv2
from jinja2 import Environment, FileSystemLoader, select_autoescape
from markupsafe import Markup

from model_code.errors import InputError
from model_code.media.video import read_video
from model_code.metrics.mouth import EstimateValues
from model_code.metrics.scores import BARS, COPY, EXACT, Bar
from model_code.report import charts
from model_code.report.data import Curve, ReportData, Stage

HERE = Path(__file__).parent

ROW_TITLES = {
    COPY: "copying the input",
    "base": "base, untrained here, filling a mask",
    "base_editor": "base, untrained here, editing",
    "generator": "generator",
    "editor": "editor",
    "lip": "editor + lip expert",
    "texture": "editor + lip + texture",
    EXACT: "exact reference (what the judges can see)",
}

CONDITIONS = ("natural", "stylised", "nonhuman", "occluded", "changing_light", "profile")

#: Names of the languages, and their tags where the code alone leaves the script open.
LANGUAGES = {
    "en": ("English", "en"),
    "es": ("Spanish", "es"),
    "fr": ("French", "fr"),
    "de": ("German", "de"),
    "it": ("Italian", "it"),
    "ru": ("Russian", "ru"),
    "el": ("Greek", "el"),
    "zh": ("Mandarin", "zh-Hans"),
    "yue": ("Cantonese", "yue-Hant"),
    "ja": ("Japanese", "ja"),
}

#: Paper, HDTF (Tables 1, 5, 10) by our row; "editor" alone is not printed there.
PAPER_ROWS: dict[str, dict[str, str]] = {
    "generator": {"sync_c": "8.05", "identity": ".855", "psnr": "34.25", "ssim": ".914"},
    "lip": {"sync_c": "8.56", "identity": ".847"},
    "texture": {"sync_c": "8.56", "identity": ".883", "psnr": "34.43", "ssim": ".934"},
}

STEP_COLUMNS = ("opening", "width", "pucker", "leak_opening", "lip_gain", "outside_psnr", "identity_ratio", "silence")
PAPER_COLUMNS = ("sync_c", "identity", "psnr", "ssim")


def write_report(data: ReportData, folder: Path) -> Path:
    """Writes ``index.html`` into `folder`, where the videos named in `data` must lie.

    Returns:
        Path of the page.

    Raises:
        InputError: A case names a video that is not there.
    """
    for case in data.cases:
        for name in (case.input, case.dub, case.reference):
            if not (folder / name).is_file():
                raise InputError(f"the report names {name}, which is not in {folder}", "run the benchmark again")
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=select_autoescape(default=True), trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["seconds"] = seconds
    environment.filters["number"] = charts.number
    html = environment.get_template("page.html.j2").render(
        data=data,
        css=Markup((HERE / "page.css").read_text()),
        chain=Markup(chain_svg(data.stages)),
        steps=_table(data, STEP_COLUMNS),
        paper=_table(data, PAPER_COLUMNS),
        bars=_bars(data),
        conditions=_conditions(data),
        differences=_differences(data),
        losses=_losses(data.curves),
        histograms=[
            (item, Markup(charts.histogram(item.accepted, item.rejected, item.threshold, item.measure)))
            for item in data.histograms
        ],
        calibrations=[
            (item, Markup(charts.line_chart({k: (item.thresholds, v) for k, v in item.accepted.items()}, item.measure)))
            for item in data.calibrations
        ],
        cases=[
            (
                case,
                LANGUAGES.get(case.language, (case.language, case.language)),
                [_poster(folder / name) for name in (case.input, case.dub, case.reference)],
                _mouth_chart(case.true_opening, case.read_opening),
            )
            for case in data.cases
        ],
        pictures=[(caption, _inline(Path(path))) for caption, path in data.pictures],
    )
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "index.html"
    page.write_text(html, encoding="utf-8")
    return page


def seconds(value: float | None) -> str:
    """``4.2 s``, ``3 min 05 s`` or a dash."""
    if value is None:
        return "-"
    return f"{value:.1f} s" if value < 60 else f"{int(value // 60)} min {int(value % 60):02d} s"


def _bar(measure: str) -> Bar:
    return next(bar for bar in BARS if bar.measure == measure)


def _cell(bar: Bar, estimate: EstimateValues | None) -> dict[str, str] | None:
    if estimate is None:
        return None
    value, low, high = (
        "" if number is None else f"{_rounded(bar, number):.{_digits(bar)}f}".replace("-", "\u2212")
        for number in (estimate["value"], estimate["low"], estimate["high"])
    )
    return {"value": value, "interval": f"{low} to {high}" if low else "–"}


def _table(data: ReportData, columns: tuple[str, ...]) -> dict[str, Any]:
    rows = data.scores.get("rows", {})
    shown = [name for name in columns if any(name in row for row in rows.values())]
    return {
        "columns": [_bar(name) for name in shown],
        "rows": [
            {
                "title": ROW_TITLES.get(row, row),
                "final": row == data.scores.get("final"),
                "judge": row in (COPY, EXACT),
                "cells": [_cell(_bar(name), values.get(name)) for name in shown],
                "paper": [PAPER_ROWS.get(row, {}).get(name) for name in shown],
            }
            for row, values in rows.items()
        ],
    }


def _bars(data: ReportData) -> list[dict[str, Any]]:
    row = data.scores.get("rows", {}).get(data.scores.get("final", ""), {})
    return [
        {
            "bar": bar,
            "cell": _cell(bar, row[bar.measure]),
            "met": bar.met(row[bar.measure]["value"], getattr(bar, data.scale)),
        }
        for bar in BARS
        if bar.measure in row and (bar.demo is not None or bar.bench is not None)
    ]


def _conditions(data: ReportData) -> dict[str, Any]:
    """Every condition has its row, so that one which no case showed is seen to be missing."""
    conditions = data.scores.get("conditions", {})
    titles = dict.fromkeys((*CONDITIONS, *conditions)) if conditions else {}
    shown = [name for name in STEP_COLUMNS if any(name in row for row in conditions.values())]
    return {
        "columns": [_bar(name) for name in shown],
        "rows": [
            {
                "title": label,
                "cases": row.get("cases", 0),
                "heads": row.get("heads"),
                "cells": [_cell(_bar(name), row.get(name)) for name in shown],
            }
            for label, row in ((label, conditions.get(label, {})) for label in titles)
        ],
    }


def _differences(data: ReportData) -> list[tuple[str, Markup, list[dict[str, Any]]]]:
    charted = []
    for title, row in data.scores.get("differences", {}).items():
        lines = [
            {"bar": _bar(name), "cell": _cell(_bar(name), row[name]), "better": _better(_bar(name), row[name])}
            for name in (*STEP_COLUMNS, *PAPER_COLUMNS, "perceptual_distance")
            if name in row
        ]
        small = {_bar(name).label: row[name] for name in STEP_COLUMNS if name in row and _bar(name).unit != "dB"}
        charted.append((title, Markup(charts.interval_chart(small, title)), lines))
    return charted


def _digits(bar: Bar) -> int:
    return 1 if bar.unit == "dB" else 3


def _rounded(bar: Bar, value: float) -> float:
    """As shown, without a minus before zero."""
    return round(value, _digits(bar)) + 0.0


def _better(bar: Bar, estimate: EstimateValues) -> str | None:
    """What the interval says; None where there is none."""
    if estimate["low"] is None or estimate["high"] is None:
        return None
    low, high = _rounded(bar, estimate["low"]), _rounded(bar, estimate["high"])
    if bar.sense == "low":
        low, high = -high, -low
    return "better" if low > 0 else "worse" if high < 0 else "even"


def _losses(curves: Sequence[Curve]) -> list[tuple[str, Markup]]:
    stages: dict[str, dict[str, charts.Series]] = defaultdict(dict)
    for curve in curves:
        stages[curve.stage][curve.name] = (curve.steps, curve.values)
    return [(stage, Markup(charts.line_chart(series, stage))) for stage, series in stages.items()]


def _mouth_chart(true: Sequence[float], read: Sequence[float]) -> Markup:
    if not true:
        return Markup("")
    times = [index / 25 for index in range(len(true))]
    series = {"reference": (times, true), "dub": (times[: len(read)], read)}
    return Markup(charts.line_chart(series, "mouth opening", height=120))


def _inline(path: Path) -> Markup:
    return _data_uri("png" if path.suffix == ".png" else "jpeg", path.read_bytes())


def _poster(video: Path) -> Markup:
    """The middle frame, so that the page shows faces before anything plays, and on paper."""
    frames = read_video(video).frames
    _, encoded = cv2.imencode(".jpg", frames[len(frames) // 2][..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
    return _data_uri("jpeg", encoded.tobytes())


def _data_uri(kind: str, data: bytes) -> Markup:
    return Markup(f"data:image/{kind};base64,{base64.b64encode(data).decode()}")


def chain_svg(stages: Sequence[Stage]) -> str:
    """The chain from left to right: a stage stands one column after the last that it reads."""
    if not stages:
        return ""
    by_name = {stage.name: stage for stage in stages}
    columns: dict[str, int] = {}

    def column(name: str) -> int:
        if name not in columns:
            columns[name] = 1 + max((column(p) for p in by_name[name].depends if p in by_name), default=-1)
        return columns[name]

    lanes: dict[int, list[str]] = defaultdict(list)
    for stage in stages:
        lanes[column(stage.name)].append(stage.name)
    box_w, box_h, gap_x, gap_y = 146, 58, 20, 16
    tallest = max(len(lane) for lane in lanes.values())
    height = tallest * (box_h + gap_y) + gap_y
    places = {}
    for index, lane in lanes.items():
        top = (height - len(lane) * (box_h + gap_y) + gap_y) / 2
        for row, name in enumerate(lane):
            places[name] = (8 + index * (box_w + gap_x), top + row * (box_h + gap_y))
    parts = []
    for stage in stages:
        x1, y1 = places[stage.name][0], places[stage.name][1] + box_h / 2
        for parent in stage.depends:
            if parent in places:
                x0, y0 = places[parent][0] + box_w, places[parent][1] + box_h / 2
                bend = (x1 - x0) / 2
                curve = f"M{x0},{y0:.0f}C{x0 + bend:.0f},{y0:.0f} {x1 - bend:.0f},{y1:.0f} {x1},{y1:.0f}"
                far = " far" if columns[stage.name] - columns[parent] > 1 else ""
                parts.append(f'<path class="edge{far}" d="{curve}"/>')
    for stage in stages:
        x, y = places[stage.name]
        time = seconds(stage.seconds) if stage.state == "done" else stage.state
        parts.append(
            f'<g class="stage {stage.state}" transform="translate({x},{y:.0f})">'
            f'<rect width="{box_w}" height="{box_h}" rx="9"/>'
            f'<text class="title" x="10" y="22">{escape(stage.title)}</text>'
            f'<text class="time" x="10" y="38">{escape(time)}</text>'
            f'<text class="detail" x="10" y="53">{escape(stage.detail[:24])}</text></g>'
        )
    width = 16 + (max(lanes) + 1) * (box_w + gap_x) - gap_x
    box = f'viewBox="0 0 {width} {height}" style="min-width:{width * 0.7:.0f}px;max-width:{width}px"'
    return f'<svg class="chain" {box} role="img" aria-label="the chain">{"".join(parts)}</svg>'
