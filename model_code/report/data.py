"""What the report shows, as plain data: whoever ran the chain fills it, the page knows no Dagster."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, Field

from model_code.config import Config, PhaseConfig


class Deviation(Config):
    """A stated departure from the paper."""

    field: str
    value: str
    paper: str
    why: str
    effect: str | None


def deviations(settings: BaseModel) -> tuple[Deviation, ...]:
    """The settings of a run that are marked as departing from the paper, and do; the phases' by field, together."""
    found: dict[str, tuple[dict[str, Any], dict[str, str]]] = {}
    for place, field, value, note in _marked(settings, ""):
        own = note["own"]
        if value not in ((own.get(place),) if isinstance(own, dict) else own):
            found.setdefault(field, (note, {}))[1][place] = str(value)
    return tuple(
        Deviation(
            field=field,
            value=", ".join(f"{place} {value}".strip() for place, value in values.items()),
            **{name: note[name] for name in ("paper", "why", "effect")},
        )
        for field, (note, values) in found.items()
    )


def _marked(config: BaseModel, path: str) -> Iterator[tuple[str, str, Any, dict[str, Any]]]:
    """(phase or nothing, field with its path, value, note) of every marked field."""
    phase = config.phase if isinstance(config, PhaseConfig) else ""
    for name, info in type(config).model_fields.items():
        value, extra = getattr(config, name), info.json_schema_extra
        if isinstance(value, BaseModel):
            yield from _marked(value, path if isinstance(value, PhaseConfig) else f"{path}{name}.")
        elif isinstance(extra, dict) and isinstance(extra.get("deviation"), dict):
            yield phase, f"{path}{name}", value, extra["deviation"]  # type: ignore[misc]


class Stage(Config):
    """One asset of the chain."""

    name: str
    title: str
    depends: tuple[str, ...] = Field((), description="Names of the stages that this one reads.")
    seconds: float | None = Field(None, description="Time of this run; None where it did not run.")
    state: Literal["done", "reused", "failed", "missing"] = "done"
    detail: str = Field("", description="One line, such as `4 shards, 120 clips`.")


class Curve(Config):
    """A training curve of one stage."""

    stage: str
    name: str
    steps: tuple[int, ...]
    values: tuple[float, ...]


class Histogram(Config):
    """A gate's measured quantity over everything that it judged."""

    gate: str = Field(description="`clips` or `pairs`, or a shard's name.")
    measure: str
    accepted: tuple[float, ...]
    rejected: tuple[float, ...]
    threshold: float | None = None
    sense: Literal["at least", "at most"] = "at least"


class Calibration(Config):
    """How a threshold was found: share of graded bad material that would be accepted, over the threshold."""

    measure: str
    threshold: float
    thresholds: tuple[float, ...]
    accepted: dict[str, tuple[float, ...]] = Field(description="Curve by grade, e.g. `good`, `nearest other head`.")


class CaseVideos(Config):
    """One benchmark case; paths are relative to the page."""

    case_id: str
    labels: tuple[str, ...]
    language: str
    sentence: str
    input: str
    dub: str
    reference: str
    spoken: str = Field("", description="The sentence's sounds in IPA, for who cannot see or read its script.")
    scores: dict[str, float] = Field(default_factory=dict)
    true_opening: tuple[float, ...] = ()
    read_opening: tuple[float, ...] = ()


class BaseCard(Config):
    """A shipped network's card in one line and a table."""

    name: str
    purpose: str
    facts: dict[str, str] = Field(default_factory=dict)


class Link(Config):
    """A way into one of the running tools."""

    title: str
    url: str
    note: str = ""


class ReportData(Config):
    """Everything on the page.

    `scores` is the JSON of `model_code.metrics.scores.summarise`; `base_scores` the shipped base's on the same cases is
    the row `base` in it.
    """

    title: str = "xdub_platform"
    created: str
    command: str
    commit: str = ""
    machine: str = ""
    profile: str = "embedded"
    total_seconds: float | None = None
    stages: tuple[Stage, ...] = ()
    scores: dict[str, Any] = Field(default_factory=dict)
    scale: Literal["demo", "bench"] = "demo"
    curves: tuple[Curve, ...] = ()
    histograms: tuple[Histogram, ...] = ()
    calibrations: tuple[Calibration, ...] = ()
    cases: tuple[CaseVideos, ...] = ()
    base: tuple[BaseCard, ...] = ()
    links: tuple[Link, ...] = ()
    pictures: tuple[tuple[str, str], ...] = Field((), description="(caption, path of a PNG or JPEG), shown inline.")
    deviations: tuple[Deviation, ...] = ()
