"""The ablations' page: self-contained, the paper's numbers beside ours, verdicts and explanations."""

from __future__ import annotations

import re
from pathlib import Path

from model_code.metrics.ablation import Claim, Ordering, judge_ordering, over_seeds
from model_code.report.ablations import AblatedRow, AblationResult, shown, write_ablations


def _row(name: str, sync: list[float], printed: str) -> AblatedRow:
    values = {measure: over_seeds({str(n): one for n, one in enumerate(sync)}) for measure in ("sync_c", "opening")}
    numbers = {"5": {"sync_c": printed}} if printed else {"pairs": {}}
    return AblatedRow(
        name=name,
        title=f"<{name}>",
        tables=tuple(numbers),
        paper=numbers,
        values=values,
        seconds=over_seeds({"0": 95.0}),
    )


def _result(seeds: int = 3) -> AblationResult:
    rows = (
        _row("full", [2.0, 2.1, 2.2][:seeds], "8.56"),
        _row("no_lip", [1.0, 1.2, 1.1][:seeds], "7.68"),
        _row("editor", [], ""),
    )
    values = {
        row.name: {
            seed: {measure: row.values[measure].seeds[seed] for measure in row.values}
            for seed in row.values["sync_c"].seeds
        }
        for row in rows
    }
    claims = (Claim(better="full", worse="no_lip", measure="sync_c"),)
    return AblationResult(
        command="xdub ablate",
        commit="abc",
        created="today",
        machine="a machine",
        profile="embedded",
        seeds=tuple(range(seeds)),
        steps_scale=0.5,
        tables={"5": "What the editor needs", "pairs": "Pairs"},
        rows=rows,
        orderings=(
            judge_ordering(
                Ordering(name="lip", title="With lip expert", table="5", claims=claims, counted=True),
                values,
                "It saw <enough>.",
            ),
            judge_ordering(Ordering(name="other", title="Another", table="pairs", claims=claims), values),
        ),
        settings={},
    )


def test_the_page_needs_no_network_and_no_other_file(tmp_path: Path) -> None:
    html = write_ablations(_result(), tmp_path / "new" / "a.html").read_text(encoding="utf-8")
    sources = re.findall(r'(?:src|srcset|href|poster)="([^"]+)"', html)
    assert sources
    assert all(source.startswith("#") for source in sources), sources
    assert not re.search(r"@import|<link|url\(|<script", html)


def test_the_page_shows_what_it_was_given(tmp_path: Path) -> None:
    html = write_ablations(_result(), tmp_path / "a.html").read_text(encoding="utf-8")
    told = (
        "1 of 1 hold beyond the spread",
        "paper 8.56",
        "2.1 ± 0.1",
        "8.56 against 7.68",
        "independent, beside it",
        "It saw &lt;enough&gt;.",
        "&lt;no_lip&gt;",
        "1 min 35 s",
        "0.5 times the profile's",
    )
    for text in told:
        assert text in html, text
    assert 'class="better"><b>yes</b>' in html


def test_a_run_of_one_seed_leaves_all_open(tmp_path: Path) -> None:
    html = write_ablations(_result(seeds=1), tmp_path / "a.html").read_text(encoding="utf-8")
    assert "0 of 1 hold beyond the spread, 1 are open" in html
    assert "<b>open</b>" in html
    assert "±" not in html.split("</header>")[1].split("Orderings of the paper")[0]


def test_numbers_keep_three_digits_and_a_true_minus() -> None:
    assert shown(0.00092642, 0.0000123) == "0.000926 ± 1.2e−05"
    assert shown(-0.5) == "−0.5"
    assert shown(None) == "–"
