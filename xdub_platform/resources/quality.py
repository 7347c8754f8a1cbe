"""Great Expectations: what a shard's clips and pairs must satisfy, with Data Docs to read.

Severity ``critical`` fails the gate; ``warning`` is only shown.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from model_code.config import FilterConfig, MediaConfig

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Expectation:
    """One row of a suite, in Great Expectations' terms: class name, arguments, severity, what it is for."""

    kind: str
    arguments: dict[str, Any]
    why: str
    critical: bool = True


@dataclass(frozen=True)
class GateResult:
    """What a gate found.

    Attributes:
        passed: No critical expectation failed.
        failures: One line for each critical failure.
        warnings: One line for each failed warning.
        rows: Table of all expectations: what, ok, unexpected share.
        docs: Data Docs page.
    """

    passed: bool
    failures: tuple[str, ...]
    warnings: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]
    docs: Path | None = None

    def also(self, why: str, ok: bool, found: str) -> GateResult:
        """The same with one more critical condition, judged elsewhere."""
        row = {"expectation": why, "ok": ok, "unexpected %": 0.0 if ok else 100.0, "critical": True}
        failures = self.failures if ok else (*self.failures, f"{why}: {found}")
        return GateResult(self.passed and ok, failures, self.warnings, (*self.rows, row), self.docs)

    def as_record(self) -> dict[str, Any]:
        """For the registry, beside the data."""
        return {
            "passed": self.passed,
            "failures": list(self.failures),
            "warnings": list(self.warnings),
            "docs": str(self.docs or ""),
        }


def clip_suite(media: MediaConfig, min_clips: int, split: str) -> list[Expectation]:
    """What the accepted clips of a shard must satisfy; `split` is the one that the whole shard belongs to."""
    return [
        Expectation("ExpectTableRowCountToBeBetween", {"min_value": min_clips}, f"at least {min_clips} clips"),
        Expectation("ExpectColumnValuesToBeUnique", {"column": "clip_id"}, "no clip twice"),
        Expectation("ExpectColumnValuesToNotBeNull", {"column": "speaker_id"}, "every clip has a speaker"),
        Expectation(
            "ExpectColumnValueLengthsToBeBetween", {"column": "licence", "min_value": 1}, "every clip has a licence"
        ),
        Expectation("ExpectColumnValuesToNotBeNull", {"column": "licence"}, "a licence is stated"),
        Expectation("ExpectColumnValuesToNotBeNull", {"column": "consent"}, "a consent is stated"),
        Expectation(
            "ExpectColumnValueLengthsToBeBetween", {"column": "consent", "min_value": 1}, "every clip has consent"
        ),
        Expectation(
            "ExpectColumnValuesToBeInSet", {"column": "split", "value_set": [split]}, f"only {split} identities"
        ),
        Expectation(
            "ExpectColumnValuesToBeInSet", {"column": "fps", "value_set": [media.fps]}, f"{media.fps} frames a second"
        ),
        Expectation(
            "ExpectColumnValuesToBeInSet",
            {"column": "sample_rate", "value_set": [media.sample_rate]},
            f"{media.sample_rate} Hz",
        ),
        Expectation(
            "ExpectColumnValuesToBeBetween", {"column": "n_frames", "min_value": media.min_clip_frames}, "long enough"
        ),
        Expectation(
            "ExpectColumnValuesToBeUnique", {"column": "sha256", "mostly": 0.95}, "few duplicates", critical=False
        ),
    ]


def pair_suite(filters: FilterConfig) -> list[Expectation]:
    """What the accepted pairs of a partition must satisfy: the filters, told by somebody else than the filter."""
    scores = ("identity_cosine", "mouth_distance", "aspect_mean")
    return [
        # A small shard may have no clip to relight: nothing to learn from, but nothing bad either.
        Expectation("ExpectTableRowCountToBeBetween", {"min_value": 1}, "at least one accepted pair", critical=False),
        # A range lets NaN pass, so that every score must first be there.
        *(
            Expectation("ExpectColumnValuesToNotBeNull", {"column": name}, f"every pair has its {name}")
            for name in scores
        ),
        Expectation("ExpectColumnValuesToBeUnique", {"column": "pair_id"}, "no pair twice"),
        Expectation("ExpectColumnValuesToNotBeNull", {"column": "clip_id"}, "every pair has its clip"),
        Expectation(
            "ExpectColumnValuesToBeBetween",
            {"column": "identity_cosine", "min_value": filters.identity_cosine},
            f"same person: cosine >= {filters.identity_cosine}",
        ),
        Expectation(
            "ExpectColumnValuesToBeBetween",
            {"column": "mouth_distance", "min_value": filters.mouth_distance},
            f"different mouth: distance >= {filters.mouth_distance}",
        ),
        Expectation(
            "ExpectColumnValuesToBeBetween",
            {"column": "aspect_mean", "min_value": filters.aspect_mean, "strict_min": True},
            f"looks right: mean aspect > {filters.aspect_mean}",
        ),
    ]


class QualityGates(dg.ConfigurableResource):
    """Runs a suite over a table and writes its Data Docs.

    Args:
        docs_root: Folder of the Data Docs; one site for each dataset.
    """

    docs_root: str

    def check(self, name: str, table: pd.DataFrame, suite: list[Expectation]) -> GateResult:
        """Validates `table`.

        Args:
            name: Dataset, such as ``clips/shard-00000``.
            table: One row for each clip or pair.
            suite: What must hold.
        """
        os.environ["GX_ANALYTICS_ENABLED"] = "false"
        import great_expectations as gx

        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = {"globally": False}  # type: ignore[assignment]
        site = Path(self.docs_root) / name
        context.add_data_docs_site("docs", _site(site))  # type: ignore[arg-type]
        label = name.replace("/", "_")
        batch = (
            context.data_sources.add_pandas(label)
            .add_dataframe_asset("rows")
            .add_batch_definition_whole_dataframe("all")
        )
        expectations = context.suites.add(gx.ExpectationSuite(name=label))
        for item in suite:
            severity = "critical" if item.critical else "warning"
            meta = {"why": item.why}
            expectations.add_expectation(
                getattr(gx.expectations, item.kind)(**item.arguments, severity=severity, meta=meta)
            )
        validation = context.validation_definitions.add(
            gx.ValidationDefinition(name=label, data=batch, suite=expectations)
        )
        checkpoint = context.checkpoints.add(
            gx.Checkpoint(
                name=label,
                validation_definitions=[validation],
                actions=[gx.checkpoint.UpdateDataDocsAction(name="docs")],
            )
        )
        outcome = checkpoint.run(batch_parameters={"dataframe": table})
        results = next(iter(outcome.run_results.values())).results
        return _gate_result(suite, results, set(table.columns), site / "index.html")


def _site(folder: Path) -> dict[str, Any]:
    return {
        "class_name": "SiteBuilder",
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
        "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(folder)},
    }


def _gate_result(suite: list[Expectation], results: list[Any], columns: set[str], docs: Path) -> GateResult:
    rows: list[dict[str, Any]] = []
    failures: list[str] = []
    warnings: list[str] = []
    by_why = {result.expectation_config.meta["why"]: result for result in results}
    for item in suite:
        result = by_why[item.why]
        found = result.result or {}
        share = float(found.get("unexpected_percent") or 0.0)
        observed = found.get("observed_value")
        rows.append(
            {
                "expectation": item.why,
                "ok": bool(result.success),
                "unexpected %": round(share, 2),
                "critical": item.critical,
            }
        )
        if not result.success:
            column = item.arguments.get("column")
            detail = f"found {observed}" if observed is not None else f"{share:.0f} % of rows do not"
            if column and column not in columns:
                detail = f"the manifest has no column {column!r}"
            (failures if item.critical else warnings).append(f"{item.why}: {detail}")
    return GateResult(not failures, tuple(failures), tuple(warnings), tuple(rows), docs)
