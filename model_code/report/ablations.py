"""Renders the ablations to one page: per table the paper's numbers and ours, per ordering whether it holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, select_autoescape
from markupsafe import Markup
from pydantic import Field

from model_code.config import Config
from model_code.files import write_text
from model_code.metrics.ablation import INDEPENDENT, ClaimResult, OrderingResult, Spread, tally
from model_code.metrics.scores import BARS
from model_code.report.page import seconds

HERE = Path(__file__).parent
COLUMNS = (
    "opening",
    "sync_c",
    "identity",
    "perceptual_distance",
    "perceptual_frechet",
    "width",
    "pucker",
    "leak_opening",
    "lip_gain",
)
STANDS_FOR = {
    "sync_c": "Sync-C",
    "identity": "CSIM",
    "perceptual_distance": "LPIPS",
    "perceptual_frechet": "FID",
}
"""What the paper's column is called."""
BAR = {bar.measure: bar for bar in BARS}


class AblatedRow(Config):
    """One row over seeds.

    `paper` is table -> measure -> as printed; `seconds` is the time of all its jobs, those that
    other rows share included.
    """

    name: str
    title: str
    tables: tuple[str, ...]
    paper: dict[str, dict[str, str]]
    values: dict[str, Spread]
    seconds: Spread


class AblationResult(Config):
    """Everything on the page, and in the JSON file beside it."""

    command: str
    commit: str
    created: str
    machine: str
    profile: str
    seeds: tuple[int, ...]
    steps_scale: float
    tables: dict[str, str] = Field(description="Table -> title.")
    rows: tuple[AblatedRow, ...]
    orderings: tuple[OrderingResult, ...]
    settings: dict[str, Any]


def write_ablations(result: AblationResult, page: Path) -> Path:
    """Writes the page; it needs no other file and no network."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=select_autoescape(default=True), trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["seconds"] = seconds
    titles = {row.name: row.title for row in result.rows}
    html = environment.get_template("ablations.html.j2").render(
        result=result,
        css=Markup((HERE / "page.css").read_text()),
        columns=[{"label": BAR[name].label, "stands_for": STANDS_FOR.get(name, "")} for name in COLUMNS],
        tables=[(name, title, _table(result, name)) for name, title in result.tables.items()],
        counted=[_ordering(one, result, titles) for one in result.orderings if one.counted],
        others=[_ordering(one, result, titles) for one in result.orderings if not one.counted],
        tally=tally(result.orderings),
    )
    write_text(page, html)
    return page


def shown(value: float | None, spread: float | None = None) -> str:
    """Three significant digits, and the spread where there is one."""
    if value is None:
        return "–"
    told = f"{value:.3g}" if spread is None else f"{value:.3g} ± {spread:.2g}"
    return told.replace("-", "\u2212")


def _table(result: AblationResult, name: str) -> list[dict[str, Any]]:
    return [
        {
            "title": row.title,
            "cells": [_cell(row.values.get(measure), row.paper[name].get(measure)) for measure in COLUMNS],
            "seconds": row.seconds.mean,
        }
        for row in result.rows
        if name in row.tables
    ]


def _cell(value: Spread | None, paper: str | None) -> dict[str, str]:
    spread = value or Spread()
    return {"ours": shown(spread.mean, spread.spread), "paper": paper or ""}


def _ordering(one: OrderingResult, result: AblationResult, titles: Mapping[str, str]) -> dict[str, Any]:
    return {"ordering": one, "claims": [_claim(claim, one.table, result, titles) for claim in one.claims]}


def _claim(claim: ClaimResult, table: str, result: AblationResult, titles: Mapping[str, str]) -> dict[str, Any]:
    rows = {row.name: row for row in result.rows}
    pair = [rows.get(claim.better), rows.get(claim.worse)]
    printed = [row.paper.get(table, {}).get(claim.measure) for row in pair if row]
    found = [row.values.get(claim.measure, Spread()) if row else Spread() for row in pair]
    return {
        "claim": claim,
        "better": titles.get(claim.better, claim.better),
        "worse": titles.get(claim.worse, claim.worse),
        "label": BAR[claim.measure].label,
        "stands_for": STANDS_FOR.get(claim.measure, ""),
        "taught": claim.measure in INDEPENDENT,
        "paper": " against ".join(text for text in printed if text) if all(printed) else "",
        "ours": [shown(value.mean) for value in found],
        "difference": shown(claim.difference.mean, claim.difference.spread),
        "seeds": ", ".join(shown(value) for value in claim.difference.seeds.values()),
    }
