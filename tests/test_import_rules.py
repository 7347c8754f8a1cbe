"""Who may import whom: rooms, evaluators, and no ring of files."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("model_code", "assets", "ops", "xdub_platform")
EVALUATORS = "model_code.metrics.evaluators"


def _files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def _imports(path: Path) -> frozenset[str]:
    """Every module that a file imports, wherever in the file; `from a import b` counts as a and a.b."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively; the path is the import"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(names)


def _within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize("path", _files("model_code"), ids=_module)
def test_the_numeric_room_knows_no_orchestration(path: Path) -> None:
    forbidden = ["dagster", "mlflow", "assets", "ops", "xdub_platform", "great_expectations", "dvc"]
    if _within(_module(path), "model_code.workers"):
        allowed = {name for name in _imports(path) if _within(name, "dagster_pipes")}
    else:
        forbidden.append("dagster_pipes")
        allowed = set[str]()
    bad = {name for name in _imports(path) - allowed for package in forbidden if _within(name, package)}
    assert not bad, f"{_module(path)} imports {sorted(bad)}"


@pytest.mark.parametrize("room", ["training", "pairs"])
def test_what_teaches_or_filters_does_not_reach_the_evaluators(room: str) -> None:
    """Not even through another file of ours."""
    graph = {_module(path): _imports(path) for path in _files("model_code")}
    for start in (name for name in graph if _within(name, f"model_code.{room}")):
        seen, waiting = set(), [start]
        while waiting:
            module = waiting.pop()
            if module in seen:
                continue
            seen.add(module)
            assert not _within(module, EVALUATORS), f"{start} reaches {module}"
            waiting += [name for name in graph.get(module, frozenset()) if name in graph]


@pytest.mark.parametrize("path", [*_files("model_code/training"), *_files("model_code/pairs")], ids=_module)
def test_what_teaches_or_filters_does_not_load_the_evaluators_by_name(path: Path) -> None:
    """`model_code.base.load` takes names, which no import shows."""
    text = path.read_text(encoding="utf-8")
    assert "mouth_reader" not in text
    assert "identity_judge" not in text


def test_only_those_who_may_know_the_truth_read_it() -> None:
    """Ingest, training and the generated and relit pairs see a user's footage, never the renderer's answers."""
    blind = ("media", "faces", "training", "diffusion", "backbones", "dubbing")
    knowing = {"model_code.avatars.clipspec", "model_code.avatars.corpus", "model_code.avatars.render"}
    for room in blind:
        for path in _files(f"model_code/{room}"):
            assert not _imports(path) & knowing, f"{_module(path)} knows what only the renderer knows"


def test_no_two_files_import_each_other() -> None:
    graph = {_module(path): _imports(path) for room in ROOMS for path in _files(room)}
    pairs = {
        tuple(sorted((name, other)))
        for name, imported in graph.items()
        for other in imported & graph.keys()
        if not _within(name, other) and not _within(other, name) and name in graph[other]
    }
    assert not pairs, f"these files import each other: {sorted(pairs)}"


def test_rooms_stand_in_order() -> None:
    """`model_code` below all, `assets` and `ops` beside each other, what gathers them on top."""
    for path in [*_files("assets"), *_files("ops")]:
        top = {"xdub_platform.definitions", "xdub_platform.cli", "xdub_platform.automation", "xdub_platform.serving"}
        other = "ops" if _module(path).startswith("assets") else "assets"
        bad = {name for name in _imports(path) if _within(name, other) or any(_within(name, one) for one in top)}
        assert not bad, f"{_module(path)} imports {sorted(bad)}"


def test_nothing_loads_what_could_execute_code() -> None:
    for room in ROOMS:
        for path in _files(room):
            bad = {name for name in _imports(path) if name.split(".")[0] in {"pickle", "dill", "cloudpickle", "joblib"}}
            assert not bad, f"{_module(path)} imports {sorted(bad)}"
