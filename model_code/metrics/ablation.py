"""Does an ordering of the paper hold here, beyond what another seed alone changes?

A claim says that one row is better than another in one measure. Both rows are trained and scored under the same
seeds, so that their difference is taken seed by seed. The spread is the standard deviation of these differences: a
claim holds if their mean exceeds it, fails if it lies as far on the other side, and is open with less than two seeds.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from pydantic import Field

from model_code.config import Config
from model_code.metrics.scores import BARS

Verdict = Literal["yes", "no", "within spread", "open"]
INDEPENDENT = {"sync_c": "opening"}
"""Measures whose judge also taught, and the independent one that stands beside them."""
SENSES = {bar.measure: bar.sense for bar in BARS}
RowValues = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Row -> seed -> measure -> value."""


class Claim(Config):
    """One row is better than another in a measure."""

    better: str
    worse: str
    measure: str


class Ordering(Config):
    """What a table of the paper says, or what we ask beside it.

    Attributes:
        name: Key of its explanation.
        title: In words.
        table: Where the paper says it.
        claims: All have to hold.
        counted: One of the paper's orderings that are to be reproduced.
    """

    name: str
    title: str
    table: str
    claims: tuple[Claim, ...]
    counted: bool = False


class Spread(Config):
    """A number over seeds; None where there are too few."""

    seeds: dict[str, float] = Field(default_factory=dict)
    mean: float | None = None
    spread: float | None = Field(None, description="Standard deviation over seeds (n - 1).")


class ClaimResult(Claim):
    """A claim as measured; differences are positive where it holds."""

    beside: bool = Field(False, description="Independent measure beside one whose judge taught; decides nothing.")
    difference: Spread
    verdict: Verdict


class OrderingResult(Config):
    """An ordering as measured."""

    name: str
    title: str
    table: str
    counted: bool
    claims: tuple[ClaimResult, ...]
    verdict: Verdict
    explanation: str = Field("", description="Why, in somebody's words.")


def over_seeds(values: Mapping[str, float]) -> Spread:
    """Mean and spread of one number a seed."""
    numbers = list(values.values())
    return Spread(
        seeds=dict(sorted(values.items())),
        mean=statistics.fmean(numbers) if numbers else None,
        spread=statistics.stdev(numbers) if len(numbers) > 1 else None,
    )


def verdict_on(difference: Spread) -> Verdict:
    """Whether a difference that should be positive is."""
    if difference.mean is None or difference.spread is None:
        return "open"
    if difference.mean > difference.spread:
        return "yes"
    return "no" if difference.mean < -difference.spread else "within spread"


def together(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict on several claims that all have to hold."""
    found = set(verdicts)
    order: tuple[Verdict, ...] = ("no", "open", "within spread", "yes")
    return next((verdict for verdict in order if verdict in found), "open")


def judge_claim(claim: Claim, values: RowValues, beside: bool = False) -> ClaimResult:
    """A claim on the seeds that both of its rows have."""
    better, worse = values.get(claim.better, {}), values.get(claim.worse, {})
    sign = -1 if SENSES[claim.measure] == "low" else 1
    found = {
        seed: sign * (better[seed][claim.measure] - worse[seed][claim.measure])
        for seed in better
        if seed in worse and claim.measure in better[seed] and claim.measure in worse[seed]
    }
    difference = over_seeds(found)
    return ClaimResult(**claim.model_dump(), beside=beside, difference=difference, verdict=verdict_on(difference))


def judge_ordering(ordering: Ordering, values: RowValues, explanation: str = "") -> OrderingResult:
    """An ordering, with the independent measure after every claim whose judge also taught."""
    claims: list[ClaimResult] = []
    for claim in ordering.claims:
        claims.append(judge_claim(claim, values))
        if claim.measure in INDEPENDENT:
            other = claim.model_copy(update={"measure": INDEPENDENT[claim.measure]})
            claims.append(judge_claim(other, values, beside=True))
    return OrderingResult(
        name=ordering.name,
        title=ordering.title,
        table=ordering.table,
        counted=ordering.counted,
        claims=tuple(claims),
        verdict=together(claim.verdict for claim in claims if not claim.beside),
        explanation=explanation,
    )


def tally(results: Sequence[OrderingResult]) -> dict[str, int]:
    """How many of the paper's orderings got which verdict."""
    counted = [result.verdict for result in results if result.counted]
    return {verdict: counted.count(verdict) for verdict in ("yes", "no", "within spread", "open")}
