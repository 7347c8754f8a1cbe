"""Who becomes champion, on a real registry with models of a few bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from model_code.errors import InputError
from tests.xdub_platform.planted import platform_on, register, score
from xdub_platform.integrity import whole
from xdub_platform.platform import Platform
from xdub_platform.promotion import Decision, move_champion, plan_promotion, promote, promotion_lock, roll_back

NAME = "xdub-dubber"


@pytest.fixture
def platform(tmp_path: Path) -> Platform:
    """A registry whose champion is version 1, with lips that follow the sound at a correlation of 0.8."""
    platform = platform_on(tmp_path / "state")
    register(platform, tmp_path, "one")
    score(platform, 1, tmp_path, noise=0.75)
    assert promote(platform).accepted
    return platform


def champion(platform: Platform) -> int:
    found = platform.mlflow.model_version(NAME, "@champion")
    return int(found.version) if found else 0


def damage(platform: Platform, version: int) -> None:
    folder = platform.mlflow.model_path(NAME, str(version))
    assert folder is not None
    weights = folder / "transformer" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")


def test_the_first_model_needs_scores_and_whole_files(tmp_path: Path) -> None:
    platform = platform_on(tmp_path / "state")
    with pytest.raises(InputError, match="no version @challenger"):
        promote(platform)
    register(platform, tmp_path, "one")
    refused = promote(platform)
    assert not refused.accepted
    assert "has no scores" in refused.reason
    assert champion(platform) == 0
    score(platform, 1, tmp_path, noise=0.5)
    first = promote(platform)
    assert first.accepted
    assert first.champion is None
    assert "first champion" in first.reason
    assert champion(platform) == 1
    again = promote(platform)
    assert not again.accepted
    assert "champion already" in again.reason


def test_a_better_model_is_promoted_and_all_of_it_written_down(platform: Platform, tmp_path: Path) -> None:
    register(platform, tmp_path, "two")
    score(platform, 2, tmp_path, noise=0.4)
    planned = plan_promotion(platform)
    assert planned.accepted
    assert champion(platform) == 1
    decision = promote(platform)
    assert decision.accepted, decision.reason
    assert (decision.challenger, decision.champion, champion(platform)) == (2, 1, 2)
    row = next(row for row in decision.table if row["measure"] == "opening")
    assert row["better_by"] == pytest.approx(row["challenger"] - row["champion"])
    assert row["better_by"] > 0.1
    client = platform.mlflow.client()
    assert decision.run_id is not None
    run = client.get_run(decision.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "promotion"
    assert run.data.tags["promotion.accepted"] == "true"
    report = platform.mlflow.artifact_path(decision.run_id, "decision.md").read_text(encoding="utf-8")
    assert decision.reason in report
    assert "Challenger, version 2" in report
    assert "Champion, version 1" in report
    record = json.loads(platform.mlflow.artifact_path(decision.run_id, "decision.json").read_text(encoding="utf-8"))
    assert record["table"] == decision.table
    assert set(record["scores"]["Champion, version 1"]["rows"]) == {"copy", "texture", "exact"}
    tags = platform.mlflow.versions(NAME)[2]
    assert tags["promotion"].startswith("promote accepted at ")
    assert tags["promotion.run"] == decision.run_id


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        pytest.param({"noise": 1.5}, "is not better by more than the seed spread", id="worse"),
        pytest.param({"noise": 0.73}, "is not better by more than the seed spread", id="within the spread"),
        pytest.param({"noise": 0.75, "luck": {0: 0.0, 1: 0.0}}, "may be the choice of cases", id="two lucky cases"),
        pytest.param(
            {"noise": 0.4, "outside": 33.5},
            "outside_psnr falls by 1.500, more than its tolerance of 1",
            id="one line below its tolerance",
        ),
    ],
)
def test_what_is_not_better_is_refused(platform: Platform, tmp_path: Path, scores: dict, said: str) -> None:  # type: ignore[type-arg]
    register(platform, tmp_path, "two")
    score(platform, 2, tmp_path, **scores)
    decision = promote(platform)
    assert not decision.accepted
    assert said in decision.reason
    assert champion(platform) == 1
    assert platform.mlflow.client().get_run(decision.run_id or "").data.tags["promotion.accepted"] == "false"


def test_a_line_within_its_tolerance_does_not_stand_in_the_way(platform: Platform, tmp_path: Path) -> None:
    register(platform, tmp_path, "two")
    score(platform, 2, tmp_path, noise=0.4, outside=34.1)
    assert promote(platform).accepted


def test_a_damaged_challenger_is_refused(platform: Platform, tmp_path: Path) -> None:
    register(platform, tmp_path, "two")
    score(platform, 2, tmp_path, noise=0.4)
    damage(platform, 2)
    decision = promote(platform)
    assert not decision.accepted
    assert "transformer/model.safetensors is not the file that was registered" in decision.reason
    assert champion(platform) == 1


def test_a_damaged_champion_is_judged_by_its_recorded_scores(platform: Platform, tmp_path: Path) -> None:
    damage(platform, 1)
    register(platform, tmp_path, "worse")
    score(platform, 2, tmp_path, noise=1.5)
    worse = promote(platform)
    assert not worse.accepted
    assert "the champion is damaged" in worse.reason
    assert champion(platform) == 1
    register(platform, tmp_path, "better")
    score(platform, 3, tmp_path, noise=0.4)
    better = promote(platform)
    assert better.accepted
    assert "judged by its recorded scores" in better.reason
    assert champion(platform) == 3


def test_a_champion_whose_artifacts_are_all_gone_still_has_its_values(platform: Platform, tmp_path: Path) -> None:
    import shutil

    folder = platform.mlflow.model_path(NAME, "1")
    assert folder is not None
    shutil.rmtree(folder.parent)
    register(platform, tmp_path, "worse")
    score(platform, 2, tmp_path, noise=1.5)
    assert "is not better by more than the seed spread" in promote(platform).reason
    register(platform, tmp_path, "better")
    score(platform, 3, tmp_path, noise=0.4)
    assert promote(platform).accepted


def test_a_damaged_champion_cannot_be_scored_on_another_benchmark(platform: Platform, tmp_path: Path) -> None:
    register(platform, tmp_path, "two")
    benchmark = platform.settings.benchmark.model_copy(update={"seed": 5})
    score(platform, 2, tmp_path, noise=0.4, config={"benchmark": benchmark.model_dump(mode="json")})
    plan = plan_promotion(platform)
    assert not plan.accepted
    assert "`xdub promote` scores it first" in plan.reason
    damage(platform, 1)
    decision = promote(platform)
    assert not decision.accepted
    assert "has no scores on the benchmark of version 2 and is damaged" in decision.reason
    assert champion(platform) == 1


def test_rollback_takes_any_whole_version_and_lasts(platform: Platform, tmp_path: Path) -> None:
    register(platform, tmp_path, "two")
    score(platform, 2, tmp_path, noise=0.4)
    assert promote(platform).accepted
    damage(platform, 2)
    back = roll_back(platform, 1)
    assert back.accepted
    assert (back.champion, champion(platform)) == (2, 1)
    assert back.table
    assert platform.mlflow.client().get_run(back.run_id or "").data.tags["promotion.kind"] == "roll_back"
    refused = roll_back(platform, 2)
    assert not refused.accepted
    assert "is not the file that was registered" in refused.reason
    with pytest.raises(InputError, match="no version 9"):
        roll_back(platform, 9)
    assert champion(platform) == 1


def test_what_was_rolled_back_returns_only_by_name(platform: Platform, tmp_path: Path) -> None:
    register(platform, tmp_path, "two")
    score(platform, 2, tmp_path, noise=0.4)
    assert promote(platform).accepted
    assert roll_back(platform, 1).accepted
    by_itself = promote(platform)
    assert not by_itself.accepted
    assert "was rolled back at" in by_itself.reason
    assert promote(platform, 2).accepted
    assert roll_back(platform, 1).accepted
    assert roll_back(platform, 2).accepted
    assert champion(platform) == 2
    assert "promotion.withdrawn" not in platform.mlflow.versions(NAME)[2]


def test_a_licence_must_be_acknowledged(platform: Platform, tmp_path: Path) -> None:
    register(platform, tmp_path, "two", {"licence.required": "true"})
    score(platform, 2, tmp_path, noise=0.4)
    decision = promote(platform)
    assert not decision.accepted
    assert "set the tag licence.acknowledged of version 2" in decision.reason
    assert not roll_back(platform, 2).accepted
    platform.mlflow.client().set_model_version_tag(NAME, "2", "licence.acknowledged", "A. Person")
    assert promote(platform).accepted


def test_the_alias_moves_only_from_the_champion_that_was_judged(platform: Platform, tmp_path: Path) -> None:
    register(platform, tmp_path, "two")
    stale = Decision(True, "", 2, None, [], "")
    with pytest.raises(InputError, match="the champion became version 1 while version 2 was compared with none"):
        move_champion(platform, stale)
    assert champion(platform) == 1


RACE = """
import sys, time
from pathlib import Path
from model_code.errors import InputError
from xdub_platform.platform import build_platform
from xdub_platform.promotion import promote
from xdub_platform.settings import load_settings
platform = build_platform(load_settings())
platform.mlflow.client()
Path(sys.argv[1]).touch()
while not Path(sys.argv[2]).exists():
    time.sleep(0.001)
try:
    decision = promote(platform)
    sys.stdout.write("accepted" if decision.accepted else decision.reason)
except InputError as error:
    sys.stdout.write(str(error))
"""


def start(platform: Platform, code: str, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "XDUB_STATE_ROOT": str(platform.settings.state_root)}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_of_two_promotions_at_once_one_acts(platform: Platform, tmp_path: Path) -> None:
    register(platform, tmp_path, "two")
    score(platform, 2, tmp_path, noise=0.4)
    ready = [tmp_path / "ready-0", tmp_path / "ready-1"]
    processes = [start(platform, RACE, str(path), str(tmp_path / "go")) for path in ready]
    deadline = time.monotonic() + 60
    while not all(path.exists() for path in ready):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (tmp_path / "go").touch()
    said = sorted(process.communicate(timeout=60)[0] for process in processes)
    assert said[0] == "accepted"
    assert "another promotion is at work" in said[1] or "champion already" in said[1]
    assert champion(platform) == 2
    runs = platform.mlflow.client().search_runs(
        [platform.mlflow.client().get_experiment_by_name("xdub").experiment_id], "tags.`promotion.challenger` = '2'"
    )
    assert [run.data.tags["promotion.accepted"] for run in runs].count("true") == 1


HOLD = """
import sys
from xdub_platform.promotion import promotion_lock
from xdub_platform.settings import load_settings
with promotion_lock(load_settings()):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_lock_is_another_processs_until_it_dies(platform: Platform, tmp_path: Path) -> None:
    register(platform, tmp_path, "two")
    score(platform, 2, tmp_path, noise=0.4)
    holder = start(platform, HOLD)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        for act in (lambda: promote(platform), lambda: roll_back(platform, 2)):
            with pytest.raises(InputError, match="another promotion is at work"):
                act()
        assert champion(platform) == 1
    finally:
        holder.kill()
        holder.wait()
    with promotion_lock(platform.settings):
        pass
    assert promote(platform).accepted
    assert whole(platform, "@champion") is None
