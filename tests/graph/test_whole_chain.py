"""The whole chain at the smallest numbers: real videos, workers, registry, gates, scores and report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.shipped import need_base
from tests.tiny import TINY_TRANSFORMER
from xdub_platform.chain import Status, Step
from xdub_platform.demo import prepare_corpus, write_run_report
from xdub_platform.dubbing import registered
from xdub_platform.instance import open_instance
from xdub_platform.integrity import kept
from xdub_platform.platform import build_platform
from xdub_platform.running import chain_planner, run_chain
from xdub_platform.settings import Settings, load_settings

SMALL = {
    "clips_per_shard": 4,
    "corpus": {
        "training_heads": 2,
        "heldout_heads": 1,
        "clips_per_head": 2,
        "seconds": (2.0, 2.5),
        "languages": ("en", "es"),
    },
    "transformer": TINY_TRANSFORMER,
    "flow": {"sampling_steps": 8},
    "syncnet": {"steps": 2, "min_accuracy": 0.0},
    "identity": {"steps": 2},
    "gates": {"max_quarantined": 1.0, "min_accepted": 0.0},
    "pairs": {"rendered_per_shard": 2, "rendered_seconds": 1.5, "sampling_steps": 2},
    "phases": {phase: {"steps": 2, "batch_size": 2} for phase in ("generator", "editor", "lip", "texture")},
    "benchmark": {"cases": 1, "seconds": 2.0},
    "variants": ("generated", "rendered"),
}
EASY = {"identity_cosine": -1.0, "mouth_distance": 0.0, "aspect_mean": 0.0}


def small(root: Path, **more: object) -> Settings:
    pairs = {**SMALL["pairs"], "filters": EASY}  # type: ignore[dict-item]
    return load_settings(state_root=root, **{**SMALL, "pairs": pairs, **more})


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, list[Step]]:
    """The chain, run once."""
    need_base()
    settings = small(tmp_path_factory.mktemp("state"))
    prepare_corpus(settings, lambda done, total: None)
    return settings, run_chain(settings, started_by="test")


@pytest.mark.slow
def test_every_stage_is_made(chain: tuple[Settings, list[Step]]) -> None:
    _, steps = chain
    assert [step for step in steps if step.status is not Status.DONE] == []
    assert len(steps) == 2 + 2 + 3 + 2 + 5


@pytest.mark.slow
def test_a_second_run_makes_nothing(chain: tuple[Settings, list[Step]]) -> None:
    settings, _ = chain
    assert {step.status for step in run_chain(settings)} == {Status.FRESH}


@pytest.mark.slow
def test_a_setting_reaches_only_what_reads_it(chain: tuple[Settings, list[Step]]) -> None:
    settings, _ = chain
    phases = {**SMALL["phases"], "lip": {"steps": 3, "batch_size": 2}}  # type: ignore[dict-item]
    changed = small(settings.state_root, phases=phases)
    with open_instance(changed) as instance:
        plan = chain_planner(changed, instance, "test").plan()
    assert {step.node.asset for step in plan if step.reason} == {"lip_expert", "dubber", "benchmark_scores"}


@pytest.mark.slow
def test_one_hash_in_registry_dagster_and_mlflow(chain: tuple[Settings, list[Step]]) -> None:
    settings, steps = chain
    platform = build_platform(settings)
    dataset = platform.store.get("dubber")
    assert dataset is not None
    versions = platform.mlflow.versions(settings.mlflow.model_name)
    assert [tags["dvc.version"] for tags in versions.values()] == [dataset.version]
    with open_instance(settings) as instance:
        planner = chain_planner(settings, instance, "test")
        assert all(planner.stale(step.node) is None for step in steps)


@pytest.mark.slow
def test_the_report_has_scores_cases_and_a_champion(chain: tuple[Settings, list[Step]]) -> None:
    settings, steps = chain
    page = write_run_report(settings, steps, 1.0, "xdub demo")
    scores = json.loads(page.with_name("scores.json").read_text(encoding="utf-8"))
    assert set(scores["rows"]) >= {"copy", "base", "base_editor", "generator", "editor", "lip", "texture", "exact"}
    case = next(page.parent.glob("cases/*/case.json"))
    assert {path.name for path in case.parent.iterdir()} == {"case.json", "input.mp4", "dub.mp4", "reference.mp4"}
    platform = build_platform(settings)
    champion = registered(platform, "@champion")
    assert int(champion.version) == 1
    assert (kept(platform, champion) / "config.json").is_file()
