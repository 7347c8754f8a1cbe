"""The report: self-contained, complete, honest about what is missing."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from pydantic import Field, ValidationError

from model_code.config import Config, deviation
from model_code.errors import InputError
from model_code.media.video import write_video
from model_code.report import ReportData, write_report
from model_code.report.charts import histogram, interval_chart, line_chart, number, smooth, ticks
from model_code.report.data import Calibration, CaseVideos, Curve, Histogram, Link, Stage, deviations
from model_code.report.page import chain_svg, seconds
from xdub_platform.settings import load_settings


def _estimate(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


def _data(**more: object) -> ReportData:
    row = {"opening": _estimate(0.8), "lip_gain": _estimate(3.0), "sync_c": _estimate(2.0)}
    values: dict[str, object] = {
        "created": "today",
        "command": "xdub demo",
        "stages": [
            Stage(name="clips", title="Clips", seconds=12.5),
            Stage(name="editor", title="Editor", depends=("clips",), seconds=130, detail="<b>&"),
        ],
        "scores": {
            "cases": 8,
            "final": "texture",
            "rows": {"copy": row, "generator": row, "texture": row},
            "conditions": {"changing_light": {"cases": 2, "heads": 1, **row}},
            "differences": {"texture - generator": row},
        },
        "curves": [Curve(stage="editor", name="flow", steps=[0, 1, 2], values=[3.0, 2.0, 1.5])],
        "histograms": [
            Histogram(gate="pairs", measure="identity_cosine", accepted=[0.9], rejected=[0.5], threshold=0.8)
        ],
        "calibrations": [
            Calibration(measure="aspect_mean", threshold=4, thresholds=[3.0, 4.0], accepted={"good": [1.0, 0.9]})
        ],
        "links": [Link(title="Dagster", url="http://127.0.0.1:3000")],
        **more,
    }
    return ReportData.model_validate(values)


def test_the_page_needs_no_network_and_no_other_file(tmp_path: Path) -> None:
    html = write_report(_data(), tmp_path).read_text(encoding="utf-8")
    sources = re.findall(r'(?:src|srcset|href|poster)="([^"]+)"', html)
    allowed = ("#", "data:", "scores.json", "http://127.0.0.1")
    assert all(source.startswith(allowed) for source in sources), sources
    assert "@import" not in html
    assert "<link" not in html
    assert "url(" not in html


def test_the_page_shows_what_it_was_given(tmp_path: Path) -> None:
    html = write_report(_data(), tmp_path).read_text(encoding="utf-8")
    for text in ("12.5 s", "2 min 10 s", "0.800", "0.700 to 0.900", "paper 8.05", "changing light", "calibration", "✓"):
        assert text in html, text
    assert "<b>&" not in html
    assert "&lt;b&gt;&amp;" in html


def test_an_empty_run_is_a_page_too(tmp_path: Path) -> None:
    html = write_report(ReportData(created="today", command="xdub demo"), tmp_path).read_text(encoding="utf-8")
    assert "Deviations from the paper" in html
    assert 'id="scores"' not in html


def test_videos_lie_beside_the_page_and_their_faces_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "cases" / "a"
    folder.mkdir(parents=True)
    frames = np.full((5, 32, 32, 3), 90, np.uint8)
    for name in ("input", "dub", "reference"):
        write_video(folder / f"{name}.mp4", frames)
    names = {name: f"cases/a/{name}.mp4" for name in ("input", "dub", "reference")}
    said = {"language": "yue", "sentence": "你好", "spoken": "neihou"}
    case = CaseVideos(case_id="a", labels=("natural",), true_opening=[0, 1], **said, **names)
    html = write_report(_data(cases=[case]), tmp_path).read_text(encoding="utf-8")
    assert '<p class="sentence" lang="yue-Hant">你好</p>' in html
    assert "Cantonese" in html
    assert "[neihou]" in html
    assert html.count("poster=") == 3
    assert 'src="cases/a/dub.mp4"' in html
    (folder / "dub.mp4").unlink()
    with pytest.raises(InputError, match=r"dub\.mp4"):
        write_report(_data(cases=[case]), tmp_path)


def test_every_condition_has_its_row(tmp_path: Path) -> None:
    html = write_report(_data(), tmp_path).read_text(encoding="utf-8")
    table = html.split("By condition")[1].split("</table>")[0]
    rows = re.findall(r'<th scope="row">([\w ]+) <small>([^<]+)</small>', table)
    assert rows == [
        ("natural", "0 cases"), ("stylised", "0 cases"), ("nonhuman", "0 cases"), ("occluded", "0 cases"),
        ("changing light", "2 cases, 1 head"), ("profile", "0 cases"),
    ]  # fmt: skip


def test_a_value_without_an_interval_shows_a_dash(tmp_path: Path) -> None:
    alone = {"value": 0.8, "low": None, "high": None}
    scores = {
        "final": "texture",
        "rows": {"texture": {"opening": alone}},
        "conditions": {"profile": {"cases": 1, "heads": 1, "opening": alone}},
        "differences": {"texture - lip": {"opening": alone, "width": _estimate(0.5)}},
    }
    html = write_report(_data(scores=scores), tmp_path).read_text(encoding="utf-8")
    assert html.count("<b>0.800</b><small>–</small>") == 4
    opening, width = re.findall(r'<td class="([^"]*)">(better|worse|even|–)</td>', html)
    assert opening == ("none", "–")
    assert width == ("better", "better")
    assert (html.count('class="dot"'), html.count('class="whisker"')) == (2, 1)


def test_a_deviation_says_what_it_does_or_that_nobody_measured_it(tmp_path: Path) -> None:
    class Odd(Config):
        measured: int = Field(1, json_schema_extra=deviation("2", "small", "costs 0.01 of opening", own=(2,)))
        unmeasured: int = Field(1, json_schema_extra=deviation("2", "small", own=(2,)))

    html = write_report(_data(deviations=deviations(Odd())), tmp_path).read_text(encoding="utf-8")
    told = dict(re.findall(r"<code>(\w+)</code>.*<td>([^<]*)</td></tr>", html))
    assert told == {"measured": "costs 0.01 of opening", "unmeasured": "not measured"}
    assert not deviations(Odd(measured=2, unmeasured=2))


def test_deviations_are_the_runs() -> None:
    shipped = {item.field: item.value for item in deviations(load_settings())}
    assert shipped["media.crop_size"] == "96"
    assert shipped["phases.shift"] == "generator 2.0"
    changed = load_settings(media={"crop_size": 512}, phases={"editor": {"face_weight": 0.3}})
    assert dict(set(shipped.items()) - {(item.field, item.value) for item in deviations(changed)}) == {
        "media.crop_size": "96",
        "phases.face_weight": "generator 1.0, editor 1.0, lip 1.0, texture 1.0",
    }
    cluster = {item.field: item.value for item in deviations(load_settings(profile="cluster"))}
    assert cluster == {
        "transformer.spatial_attention": "False",
        "flow.sampling_steps": "30",
        "pairs.sampling_steps": "4",
        "pairs.filters.identity_cosine": "0.85",
    }


def test_unknown_data_is_refused() -> None:
    with pytest.raises(ValidationError):
        ReportData.model_validate({"created": "x", "command": "y", "typo": Field()})


def test_a_stage_stands_right_of_what_it_reads() -> None:
    chain = [Stage(name=n, title=n, depends=d) for n, d in (("c", ("b", "a")), ("a", ()), ("b", ("a",)))]
    svg = chain_svg(chain)
    places = re.findall(r'translate\((\d+),\d+\)">.*?class="title"[^>]*>(\w)<', svg)
    x = {name: int(place) for place, name in places}
    assert x["a"] < x["b"] < x["c"]


def test_numbers_and_times_are_short() -> None:
    assert [number(v) for v in (0.0, 0.8234, 12.34, 1234.5, float("nan"))] == ["0", "0.823", "12.3", "1234", "-"]
    assert [seconds(v) for v in (None, 4.25, 185.0)] == ["-", "4.2 s", "3 min 05 s"]


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0.0, 1.0) == pytest.approx([0.0, 0.5, 1.0])
    assert all(-3 <= value <= 7 for value in ticks(-3, 7))
    assert ticks(2.0, 2.0) == [2.0]


def test_charts_survive_odd_values() -> None:
    assert "<svg" in line_chart({"loss": ([0, 1, 2], [1.0, float("nan"), 2.0])}, "loss")
    assert "<svg" in line_chart({}, "nothing")
    assert "<svg" in histogram([], [], None, "nothing")
    assert "<svg" in histogram([1.0, 1.0], [], 1.0, "all equal")
    assert "NaN" not in interval_chart({"a": _estimate(0.0)}, "one")
    assert smooth([1.0, 3.0, 5.0], 2) == [1.0, 2.0, 4.0]
