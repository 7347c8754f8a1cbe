"""Whether an ordering holds: differences seed by seed, their spread, and what several claims say together."""

from __future__ import annotations

import pytest

from model_code.metrics.ablation import (
    Claim,
    Ordering,
    Spread,
    Verdict,
    judge_claim,
    judge_ordering,
    over_seeds,
    tally,
    together,
    verdict_on,
)

SYNC = Claim(better="full", worse="less", measure="sync_c")
FRECHET = Claim(better="full", worse="less", measure="perceptual_frechet")


def values(full: list[float], less: list[float], measure: str) -> dict[str, dict[str, dict[str, float]]]:
    """Two rows over seeds 0, 1, ..."""
    rows = {"full": full, "less": less}
    return {row: {str(seed): {measure: value} for seed, value in enumerate(own)} for row, own in rows.items()}


def test_mean_and_spread_of_three_seeds() -> None:
    found = over_seeds({"0": 1.0, "1": 2.0, "2": 4.0})
    assert found.mean == pytest.approx(2.33333333)
    assert found.spread == pytest.approx(1.52752523)
    assert over_seeds({"0": 5.0}) == Spread(seeds={"0": 5.0}, mean=5.0, spread=None)
    assert over_seeds({}).mean is None


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([0.1, 0.2, 0.3], "yes"),  # mean 0.2, spread 0.1
        ([-0.1, 0.2, 0.3], "within spread"),  # 0.133, 0.208
        ([0.1, -0.2, -0.3], "within spread"),
        ([-0.1, -0.2, -0.3], "no"),
        ([0.0, 0.0, 0.0], "within spread"),
        ([0.2], "open"),
        ([], "open"),
    ],
)
def test_a_claim_holds_beyond_the_spread_of_its_differences(differences: list[float], verdict: Verdict) -> None:
    assert verdict_on(over_seeds({str(seed): value for seed, value in enumerate(differences)})) == verdict


def test_rows_are_compared_under_the_same_seed() -> None:
    """The rows differ far more from seed to seed than from each other."""
    result = judge_claim(SYNC, values([1.0, 5.0, 9.0], [0.8, 4.7, 8.8], "sync_c"))
    assert list(result.difference.seeds.values()) == pytest.approx([0.2, 0.3, 0.2])
    assert result.difference.spread == pytest.approx(0.0577350)
    assert result.verdict == "yes"
    unpaired = judge_claim(SYNC, values([1.0, 5.0], [0.8, 4.7, 8.8], "sync_c"))
    assert set(unpaired.difference.seeds) == {"0", "1"}


def test_less_is_better_where_the_measure_says_so() -> None:
    better = judge_claim(FRECHET, values([1.0, 1.1, 1.0], [2.0, 2.0, 2.1], "perceptual_frechet"))
    assert better.difference.mean == pytest.approx(1.0)
    assert better.verdict == "yes"


def test_all_claims_have_to_hold() -> None:
    assert together(["yes", "yes"]) == "yes"
    assert together(["yes", "within spread"]) == "within spread"
    assert together(["yes", "within spread", "open"]) == "open"
    assert together(["yes", "open", "no"]) == "no"
    assert together([]) == "open"


def test_the_independent_measure_stands_beside_sync_c_and_decides_nothing() -> None:
    found = values([2.0, 2.1, 2.2], [1.0, 1.1, 1.2], "sync_c")
    for row, sign in (("full", -1), ("less", 1)):
        for seed in found[row]:
            found[row][seed]["opening"] = sign * (0.5 + 0.1 * int(seed))
    ordering = Ordering(name="a", title="A", table="5", claims=(SYNC,), counted=True)
    result = judge_ordering(ordering, found, "because")
    assert [(claim.measure, claim.beside, claim.verdict) for claim in result.claims] == [
        ("sync_c", False, "yes"),
        ("opening", True, "no"),
    ]
    assert (result.verdict, result.explanation) == ("yes", "because")
    open_one = judge_ordering(ordering.model_copy(update={"counted": False}), {})
    assert open_one.verdict == "open"
    assert tally([result, open_one]) == {"yes": 1, "no": 0, "within spread": 0, "open": 0}
