"""The jobs that promote and roll back, as Dagster runs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from ops.promote import promote, roll_back
from tests.xdub_platform.planted import platform_on, register, score
from xdub_platform.platform import Platform


@pytest.fixture
def platform(tmp_path: Path) -> Platform:
    """Two versions with scores, the second better; no champion."""
    platform = platform_on(tmp_path / "state")
    for version, (weights, noise) in enumerate((("one", 0.75), ("two", 0.4)), 1):
        register(platform, tmp_path, weights)
        score(platform, version, tmp_path, noise=noise)
    return platform


def run(job: dg.JobDefinition, platform: Platform, instance: dg.DagsterInstance, **config: Any) -> Any:
    op = {"promote": "promote_model", "roll_back": "roll_back_model"}[job.name]
    return job.execute_in_process(
        run_config={"ops": {op: {"config": config}}},
        resources={"platform": platform},
        instance=instance,
        raise_on_error=False,
    )


def test_promotion_refusal_and_rollback_show_their_reasons(platform: Platform) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        first = run(promote, platform, instance, version=1)
        assert first.output_for_node("promote_model") == 1
        better = run(promote, platform, instance)
        assert better.output_for_node("promote_model") == 2
        told = shown(instance)
        assert told["decision"].value == "accepted"
        assert "opening is better by" in told["reason"].value
        assert told["comparison"].records[0].data["measure"] == "opening"
        report = told["report"].value
        assert "Challenger, version 2:" in report
        assert "Champion, version 1:" in report
        refused = run(promote, platform, instance, version=1)
        assert refused.success
        assert refused.output_for_node("promote_model") == 2
        assert shown(instance)["decision"].value == "refused"
        back = run(roll_back, platform, instance, version=1)
        assert back.output_for_node("roll_back_model") == 1
        assert platform.mlflow.model_version("xdub-dubber", "@champion").version == 1  # type: ignore[union-attr]


def shown(instance: dg.DagsterInstance) -> dict[str, Any]:
    """What the dubber's page says last."""
    records = instance.fetch_observations(dg.AssetKey("dubber"), limit=1).records
    observation = records[0].asset_observation
    assert observation is not None
    return dict(observation.metadata)


def test_a_rollback_that_cannot_be_done_fails_the_run(platform: Platform) -> None:
    folder = platform.mlflow.model_path("xdub-dubber", "1")
    assert folder is not None
    (folder / "config.json").unlink()
    with dg.DagsterInstance.ephemeral() as instance:
        damaged = run(roll_back, platform, instance, version=1)
        assert not damaged.success
        assert "config.json is missing" in failure(damaged)
        assert shown(instance)["decision"].value == "refused"
        missing = run(roll_back, platform, instance, version=9)
        assert not missing.success
        assert "no version 9 of xdub-dubber is registered" in failure(missing)


def failure(result: Any) -> str:
    event = next(event for event in result.all_events if event.is_step_failure)
    return str(event.step_failure_data.user_failure_data.description)
