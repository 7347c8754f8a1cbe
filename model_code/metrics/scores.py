"""From single cases to a table: every row of the score table with intervals, conditions and differences.

A `CaseRecord` holds, for one case, the true curves and what each dubber made of it; records of several runs can be
pooled by joining their lists. `summarise` does all statistics.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from model_code.config import Config
from model_code.metrics.image import frechet
from model_code.metrics.mouth import (
    CURVES,
    Estimate,
    EstimateValues,
    bootstrap,
    correlation,
    partial_correlation,
    ratio,
    silence_share,
    sum_moments,
    wrong_audio_moments,
)
from model_code.seeding import rng_for

#: Rows that every run has: the input handed back, and the exact reference itself (what the judges can see at best).
COPY, EXACT = "copy", "exact"
#: What is subtracted from what: the editor against the generator that made its pairs, each expert against none.
DIFFERENCES = (("editor", "generator"), ("lip", "editor"), ("texture", "lip"))


class RowCase(Config):
    """What one dubber made of one case."""

    curves: list[list[float]]
    silent_opening: list[float] | None = None
    lip_psnr: float
    face_psnr: float
    outside_psnr: float
    psnr: float
    ssim: float
    identity: float
    perceptual_distance: float | None = None
    sync_c: float | None = None
    sync_d: float | None = None


class CaseRecord(Config):
    """One benchmark case with its truth and all rows' results."""

    case_id: str
    head: int
    kind: str
    condition: str = Field(description="The clip's condition, or its kind where the condition is plain.")
    language: str
    sentence: str
    input_curves: list[list[float]]
    reference_curves: list[list[float]]
    rows: dict[str, RowCase]

    def labels(self) -> set[str]:
        """The condition rows that this case counts in."""
        return {self.kind, self.condition}


@dataclass(frozen=True)
class Measure:
    """A statistic of a sum over cases.

    Attributes:
        per_case: (cases, ...) contributions that add up; cases are what the bootstrap draws.
        statistic: From sums (draws, ...) to numbers (draws,).
        of_pairs: `per_case` is (cases, cases, ...), a contribution for each pair of cases.
    """

    per_case: np.ndarray
    statistic: Callable[[np.ndarray], np.ndarray]
    of_pairs: bool = False

    def estimate(self, rng: np.random.Generator, draws: int = 1000) -> Estimate:
        """Value and, where there are enough to draw from, 95 % interval."""
        return bootstrap(self.per_case, self.statistic, rng=rng, draws=draws, of_pairs=self.of_pairs)

    def by(self, groups: Sequence[str]) -> Measure:
        """The same with the contributions of each group summed, so that the bootstrap draws groups.

        Cases of one group are alike; as cases of their own they would make intervals too narrow. Of pairs those within
        a group are left out.
        """
        names, index = np.unique(np.array(groups), return_inverse=True)
        belongs = np.eye(len(names))[index]
        summed = np.tensordot(belongs, self.per_case, (0, 0))
        if self.of_pairs:
            summed = np.tensordot(belongs, summed, (0, 1)).swapaxes(0, 1)
            # Drawn twice, a group would be paired with itself four times: more than any other pair.
            summed[np.diag_indices(len(names))] = 0
        return Measure(summed, self.statistic, self.of_pairs)

    def minus(self, other: Measure, rng: np.random.Generator) -> Estimate:
        """This minus another measure of the same cases, resampled together."""
        both = np.stack([self.per_case, other.per_case], 2 if self.of_pairs else 1)
        return bootstrap(
            both,
            lambda sums: self.statistic(sums[:, 0]) - other.statistic(sums[:, 1]),
            rng=rng,
            of_pairs=self.of_pairs,
        )


def _mean(values: Sequence[float | None]) -> Measure | None:
    column = np.array([np.nan if value is None else value for value in values], np.float64)
    known = np.isfinite(column)
    if not known.any():
        return None
    return Measure(np.stack([np.where(known, column, 0.0), known], 1), ratio)


def _of_curve(per_case: np.ndarray, index: int, statistic: Callable[[np.ndarray], np.ndarray]) -> Measure:
    return Measure(per_case[:, index], statistic)


def row_measures(records: Sequence[CaseRecord], row: str) -> dict[str, Measure]:
    """All measures of one row, by name, in the table's order."""
    mine = [record.rows[row] for record in records]
    copies, exact = [r.rows[COPY] for r in records], [r.rows[EXACT] for r in records]
    outputs = [np.array(case.curves) for case in mine]
    inputs = [np.array(record.input_curves) for record in records]
    references = [np.array(record.reference_curves) for record in records]
    measures: dict[str, Measure | None] = {}
    right = sum_moments(outputs, references)
    for k, curve in enumerate(CURVES):
        measures[curve] = _of_curve(right, k, correlation)
    sentences = [record.sentence for record in records]
    if len(set(sentences)) > 1:
        wrong = wrong_audio_moments(outputs, references, sentences)
        for k, curve in enumerate(CURVES):
            measures[f"{curve}_wrong_audio"] = Measure(wrong[:, :, k], correlation, of_pairs=True)
    leaks = sum_moments(outputs, inputs, references)
    for k, curve in enumerate(CURVES):
        measures[f"leak_{curve}"] = _of_curve(leaks, k, partial_correlation)
    measures["lip_gain"] = _mean([case.lip_psnr - copy.lip_psnr for case, copy in zip(mine, copies, strict=True)])
    measures["outside_psnr"] = _mean([case.outside_psnr for case in mine])
    measures["identity_ratio"] = _mean([case.identity / best.identity for case, best in zip(mine, exact, strict=True)])
    measures["silence"] = _mean(
        [
            None
            if case.silent_opening is None or best.silent_opening is None
            else silence_share(np.array(case.silent_opening), np.array(best.silent_opening), reference[:, 0])
            for case, best, reference in zip(mine, exact, references, strict=True)
        ]
    )
    for name in ("lip_psnr", "face_psnr", "psnr", "ssim", "identity", "perceptual_distance", "sync_c", "sync_d"):
        measures[name] = _mean([getattr(case, name) for case in mine])
    heads = [str(record.head) for record in records]  # clips of one head, and one clip dubbed by several seeds' models
    return {name: measure.by(heads) for name, measure in measures.items() if measure is not None}


def frechet_measure(outputs: Sequence[np.ndarray], references: Sequence[np.ndarray]) -> Measure:
    """Perceptual Fréchet distance between two lists of features (T,D), one array a case, ready for the bootstrap."""

    def sums(features: np.ndarray) -> np.ndarray:
        extended = np.concatenate([np.ones((len(features), 1)), features.astype(np.float64)], 1)
        return extended.T @ extended

    def statistic(sums_of_draws: np.ndarray) -> np.ndarray:
        return np.array([frechet(*_gaussian(left), *_gaussian(right)) for left, right in sums_of_draws])

    per_case = [np.stack([sums(a), sums(b)]) for a, b in zip(outputs, references, strict=True)]
    return Measure(np.stack(per_case), statistic)


def _gaussian(total: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    count, mean = total[0, 0], total[0, 1:] / total[0, 0]
    return mean, (total[1:, 1:] - count * np.outer(mean, mean)) / (count - 1)


@dataclass(frozen=True)
class Bar:
    """One line of the score table: what must be reached, in the demo and in the full benchmark.

    Attributes:
        measure: Name in `row_measures`.
        label: Words for people.
        sense: ``"high"`` (at least), ``"low"`` (at most) or ``"zero"`` (within +- of zero).
        demo: Bar of the demo; None reports only.
        bench: Bar of the full benchmark.
        aim: What a very good model reaches.
        unit: Printed after the number.
    """

    measure: str
    label: str
    sense: str
    demo: float | None
    bench: float | None
    aim: float | None
    unit: str = ""

    def met(self, value: float, bar: float | None) -> bool | None:
        """Whether `value` meets `bar`; None without one."""
        if bar is None or not np.isfinite(value):
            return None
        return {"high": value >= bar, "low": value <= bar, "zero": abs(value) <= bar}[self.sense]


BARS = (
    Bar("opening", "Mouth opening, correlation", "high", 0.75, 0.85, 0.95),
    Bar("width", "Mouth width, correlation", "high", None, 0.40, 0.75),
    Bar("pucker", "Pucker, correlation", "high", None, 0.40, 0.75),
    Bar("opening_wrong_audio", "Opening with wrong audio", "zero", None, 0.10, 0.03),
    Bar("width_wrong_audio", "Width with wrong audio", "zero", None, 0.10, 0.03),
    Bar("pucker_wrong_audio", "Pucker with wrong audio", "zero", None, 0.10, 0.03),
    Bar("leak_opening", "Leak of the input's opening", "low", 0.20, 0.10, 0.03),
    Bar("leak_width", "Leak of the input's width", "low", None, None, None),
    Bar("leak_pucker", "Leak of the input's pucker", "low", None, None, None),
    Bar("lip_gain", "Lip region over copying", "high", 2.5, 4.5, 7.0, "dB"),
    Bar("outside_psnr", "Outside the face, before pasting", "high", 30.0, 32.0, 38.0, "dB"),
    Bar("identity_ratio", "Identity to the input, over the reference's", "high", 0.95, 0.98, 1.0),
    Bar("silence", "Silent audio: opening left", "low", 0.15, 0.10, 0.02),
    Bar("lip_psnr", "Lip region", "high", None, None, None, "dB"),
    Bar("face_psnr", "Face", "high", None, None, None, "dB"),
    Bar("psnr", "Whole crop", "high", None, None, None, "dB"),
    Bar("ssim", "SSIM", "high", None, None, None),
    Bar("identity", "Identity cosine to the input (own evaluator)", "high", None, None, None),
    Bar("perceptual_distance", "Perceptual distance to the reference", "low", None, None, None),
    Bar("perceptual_frechet", "Perceptual Fréchet distance (stands for FID)", "low", None, None, None),
    Bar("sync_c", "Sync-C (own SyncNet, which also supervised)", "high", None, None, None),
    Bar("sync_d", "Sync-D (own SyncNet, which also supervised)", "low", None, None, None),
)


def summarise(
    records: Sequence[CaseRecord],
    *,
    final: str,
    differences: Sequence[tuple[str, str]] = DIFFERENCES,
    seed: int = 0,
) -> dict[str, Any]:
    """The table as plain JSON.

    Args:
        records: Cases, all with the same rows; may be pooled from several runs.
        final: The row whose scores are repeated for each condition.
        differences: Pairs (a, b) of rows to subtract, a minus b, with intervals; pairs without both rows are left out.
        seed: Of the bootstrap.

    Returns:
        ``{"cases", "final", "rows": {row: {measure: {value, low, high}}}, "conditions": {label: {"cases", "heads",
        ...}}, "differences": {"a - b": {...}}}``; low and high are None where too few heads have a value.
    """
    rows = list(records[0].rows)
    measures = {row: row_measures(records, row) for row in rows}

    def rng(*parts: str) -> np.random.Generator:
        return rng_for("bootstrap", seed, *parts)

    result: dict[str, Any] = {"cases": len(records), "final": final, "seed": seed}
    result["rows"] = {
        row: _known({name: measure.estimate(rng(name)) for name, measure in table.items()})
        for row, table in measures.items()
    }
    labels = sorted(set().union(*(record.labels() for record in records)))
    result["conditions"] = {}
    for label in labels:
        chosen = [record for record in records if label in record.labels()]
        table = row_measures(chosen, final)
        result["conditions"][label] = {
            "cases": len(chosen),
            "heads": len({record.head for record in chosen}),
            **_known({name: measure.estimate(rng(label, name)) for name, measure in table.items()}),
        }
    result["differences"] = {
        f"{a} - {b}": _known(
            {
                name: measures[a][name].minus(measures[b][name], rng(a, b, name))
                for name in measures[a]
                if name in measures[b]
            }
        )
        for a, b in differences
        if a in measures and b in measures
    }
    return result


def _known(estimates: dict[str, Estimate]) -> dict[str, EstimateValues]:
    """Estimates as JSON, without those that have no value (a mouth that never moves correlates with nothing)."""
    return {name: estimate.as_dict() for name, estimate in estimates.items() if np.isfinite(estimate.value)}


def verdicts(scores: dict[str, Any], scale: str) -> dict[str, bool]:
    """Whether the final row meets each bar of a scale, ``"demo"`` or ``"bench"``."""
    row = scores["rows"][scores["final"]]
    met = {bar.measure: bar.met(row[bar.measure]["value"], getattr(bar, scale)) for bar in BARS if bar.measure in row}
    return {name: value for name, value in met.items() if value is not None}


def save_records(path: Path, records: Iterable[CaseRecord]) -> None:
    """Writes records as JSON, one a line."""
    path.write_text("".join(record.model_dump_json() + "\n" for record in records))


def load_records(*paths: Path) -> list[CaseRecord]:
    """Reads and joins what `save_records` wrote."""
    return [CaseRecord.model_validate(json.loads(line)) for path in paths for line in path.read_text().splitlines()]
