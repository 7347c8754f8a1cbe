"""The folder that `xdub benchmark -o` names: results of an earlier benchmark go, nothing else does."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

import pytest

from assets import benchmark_scores
from model_code.errors import InputError
from model_code.workers.benchmark import BenchmarkWorkerConfig
from tests.xdub_platform.planted import downloads, platform_on, register
from xdub_platform.dubbing import BENCHMARK, benchmark_registered
from xdub_platform.platform import build_platform
from xdub_platform.settings import Settings

TOO_MANY = 10**6
"""Cases that the corpus does not have: the worker ends before it renders any."""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    platform = platform_on(tmp_path / "state")
    register(platform, tmp_path / "models", "a", alias="champion")
    return platform.settings


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in folder.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "with a config beside it"])
def test_a_folder_that_no_benchmark_made_is_left_alone(settings: Settings, tmp_path: Path, beside: bool) -> None:
    results = tmp_path / "docs" / "results"
    (results / "cases").mkdir(parents=True)
    (results / "demo.json").write_text("mine", encoding="utf-8")
    (results / "cases" / "a.mp4").write_text("mine too", encoding="utf-8")
    if beside:
        (tmp_path / "docs" / "results.config.json").write_text("{}", encoding="utf-8")
    before = contents(tmp_path / "docs")
    with pytest.raises(InputError, match="no benchmark's folder"):
        benchmark_registered(settings, None, "@champion", TOO_MANY, results)
    with pytest.raises(InputError, match="no benchmark's folder"):
        benchmark_registered(settings, None, "@champion", TOO_MANY, results / "demo.json")
    assert contents(tmp_path / "docs") == before


def test_an_earlier_benchmark_makes_way_and_what_lies_beside_it_stays(settings: Settings, tmp_path: Path) -> None:
    results = tmp_path / "results"
    for name in ("result.json", "scores.json", "records.jsonl", "cases.png", "rows/base.json", "cases/a/dub.mp4"):
        (results / name).parent.mkdir(parents=True, exist_ok=True)
        (results / name).write_text("{}", encoding="utf-8")
    (results / BENCHMARK).write_text('{"dubber": "another"}', encoding="utf-8")
    (results / "notes.md").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="the benchmark of version 1 failed"):
        benchmark_registered(settings, None, "@champion", TOO_MANY, results)
    assert sorted(path.name for path in results.iterdir()) == [BENCHMARK, "notes.md"]
    made = json.loads((results / BENCHMARK).read_text(encoding="utf-8"))
    assert made["benchmark"]["cases"] == TOO_MANY


def test_results_of_another_version_of_the_benchmark_make_way(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, broken = tmp_path / "results" / "rows", subprocess.CompletedProcess([], 1)
    monkeypatch.setattr("xdub_platform.dubbing.subprocess.run", lambda *arguments, **named: broken)
    for version in (benchmark_scores.VERSION, "next"):
        monkeypatch.setattr(benchmark_scores, "VERSION", version)
        for _ in range(2):
            with pytest.raises(InputError, match="the benchmark of version 1 failed"):
                benchmark_registered(settings, None, "@champion", TOO_MANY, rows.parent)
            made = json.loads((rows.parent / BENCHMARK).read_text(encoding="utf-8"))
            assert BenchmarkWorkerConfig.model_validate(made).version == version
        assert not rows.exists()
        rows.mkdir()


def test_a_downloaded_model_stays_in_the_cache_and_what_was_made_with_it_too(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, model = tmp_path / "results", build_platform(settings).mlflow.model_path("xdub-dubber", "1")
    assert model is not None
    fetched = downloads(monkeypatch, model.parent)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    for _ in range(2):
        with pytest.raises(InputError, match="the benchmark of version 1 failed"):
            benchmark_registered(settings, None, "@champion", TOO_MANY, results)
        (results / "rows").mkdir(exist_ok=True)
        (results / "rows" / "base.json").touch()
    assert fetched == ["manifest.json", "model"]
    assert not list(temporary.iterdir())
    made = json.loads((results / BENCHMARK).read_text(encoding="utf-8"))
    assert Path(made["dubber"]).is_relative_to(settings.path("cache", "weights"))
    monkeypatch.undo()  # the same files, where a registry has them on this machine
    with pytest.raises(InputError, match="the benchmark of version 1 failed"):
        benchmark_registered(settings, None, "@champion", TOO_MANY, results)
    assert (results / "rows" / "base.json").is_file()
