"""Great Expectations suites of clips and pairs."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from model_code.config import FilterConfig, MediaConfig
from xdub_platform.resources.quality import QualityGates, clip_suite, pair_suite


@pytest.fixture
def gates(tmp_path: Path) -> QualityGates:
    return QualityGates(docs_root=str(tmp_path / "docs"))


def pairs(**columns: list[float]) -> pd.DataFrame:
    good = {"identity_cosine": [0.95, 0.9], "mouth_distance": [2.0, 3.0], "aspect_mean": [4.5, 4.2]}
    return pd.DataFrame({"pair_id": ["a", "b"], "clip_id": ["x", "y"], **good, **columns})


def test_good_pairs_pass_with_a_page_to_read(gates: QualityGates) -> None:
    result = gates.check("pairs/s0/relit", pairs(), pair_suite(FilterConfig()))
    assert result.passed
    assert result.failures == ()
    assert result.docs.is_file()


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("identity_cosine", 0.5, "same person"),
        ("mouth_distance", 0.1, "different mouth"),
        ("aspect_mean", 4.0, "looks right"),
        ("identity_cosine", float("nan"), "every pair has its identity_cosine"),
    ],
)
def test_one_bad_pair_fails_the_gate_and_is_named(gates: QualityGates, column: str, value: float, said: str) -> None:
    filters = FilterConfig()
    good = {"identity_cosine": 0.95, "mouth_distance": 2.0, "aspect_mean": 4.5}[column]
    result = gates.check("pairs/s0/relit", pairs(**{column: [good, value]}), pair_suite(filters))
    assert not result.passed
    assert any(said in line for line in result.failures)


def test_no_pairs_and_no_columns_fail(gates: QualityGates) -> None:
    empty = gates.check("pairs/s0/relit", pairs().iloc[:0], pair_suite(FilterConfig()))
    assert empty.passed
    assert empty.warnings == ("at least one accepted pair: found 0",)
    without = gates.check("pairs/s1/relit", pairs()[["pair_id", "clip_id"]], pair_suite(FilterConfig()))
    assert "the manifest has no column 'identity_cosine'" in " ".join(without.failures)


def test_clips_need_consent_and_one_split(gates: QualityGates) -> None:
    row = {"speaker_id": "s", "fps": 25, "sample_rate": 16_000, "n_frames": 80, "sha256": "x", "licence": "CC0"}
    table = pd.DataFrame(
        [
            {**row, "clip_id": "a", "consent": "signed 2026-01-02", "split": "train"},
            {**row, "clip_id": "b", "consent": "", "split": "heldout"},
        ]
    )
    result = gates.check("clips/s0", table, clip_suite(MediaConfig(), 1, "train"))
    assert result.failures == (
        "every clip has consent: 50 % of rows do not",
        "only train identities: 50 % of rows do not",
    )
    assert result.warnings == ("few duplicates: 100 % of rows do not",)


def test_a_further_condition_joins_the_verdict(gates: QualityGates) -> None:
    result = gates.check("pairs/s0/relit", pairs(), pair_suite(FilterConfig())).also("enough", False, "found 3 %")
    assert not result.passed
    assert result.failures == ("enough: found 3 %",)
