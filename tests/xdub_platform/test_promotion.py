"""Who becomes champion, on a real registry with models of a few bytes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy
from mlflow.exceptions import MlflowException
from typer.testing import CliRunner, Result

from assets import benchmark_scores
from assets.benchmark_scores import VERSION, to_registry
from assets.benchmark_scores import config as benchmark_config
from model_code.errors import InputError
from tests.postgres import postgres, postgres_server  # noqa: F401
from tests.shipped import need_base
from tests.tiny import TINY_TRANSFORMER
from tests.xdub_platform.planted import planted_records, platform_on, register, score
from xdub_platform.cli import app
from xdub_platform.dubbing import benchmark_registered
from xdub_platform.integrity import whole
from xdub_platform.platform import Platform, build_platform
from xdub_platform.promotion import (
    Decision,
    compare,
    gain_interval,
    move_champion,
    objections,
    plan_promotion,
    promote,
    promotion_lock,
    roll_back,
    unfit,
)
from xdub_platform.resources.mlflow import MlflowRuns
from xdub_platform.scores import Scored, record_scores, recorded_scores
from xdub_platform.settings import PromotionSettings, Settings, load_settings

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


def test_a_damaged_champion_registered_anew_takes_over_with_its_scores(tmp_path: Path) -> None:
    platform = platform_on(tmp_path / "state")
    for version in (1, 2):
        assert register(platform, tmp_path, "one", {"dvc.version": "abc.dir"}) == version
        if version == 1:
            score(platform, 1, tmp_path, noise=0.75)
            assert promote(platform).accepted
    assert "not better by more" in promote(platform).reason
    damage(platform, 1)
    decision = promote(platform)
    assert decision.accepted
    assert "this is the same model, whole" in decision.reason
    assert champion(platform) == 2


def test_a_champion_whose_artifacts_are_all_gone_still_has_its_values(platform: Platform, tmp_path: Path) -> None:
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


def test_scores_of_another_version_of_the_benchmark_are_no_comparison(
    platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The champion was scored before an upgrade that raised the benchmark's version, the challenger after it."""
    register(platform, tmp_path, "two", {"dvc.version": "two.dir"})
    score(platform, 2, tmp_path, noise=0.4)
    platform.store.put("benchmark_scores", tmp_path / "benchmark-2")
    monkeypatch.setattr(benchmark_scores, "VERSION", "next")
    assert to_registry(platform, "two.dir")["model_version"] == 2
    assert "has no scores on the benchmark of version 2" in plan_promotion(platform).reason
    asked: list[str] = []

    def benchmark(settings: Settings, heads_seed: int | None, version: str, *rest: Any) -> Any:
        asked.append(version)
        raise InputError("no time", "wait")

    monkeypatch.setattr("xdub_platform.dubbing.benchmark_registered", benchmark)
    assert "cannot be scored on it: no time" in promote(platform).reason
    assert asked == ["1"], "the champion is scored anew"
    monkeypatch.setattr(benchmark_scores, "VERSION", "the one after")
    refused = promote(platform).reason
    assert "version next of the benchmark scored the challenger, and this is version the one after" in refused
    assert asked == ["1"], "what cannot help is not begun"
    assert champion(platform) == 1


def test_scores_without_a_version_are_compared_with_nothing(platform: Platform, tmp_path: Path) -> None:
    """Both are of before the benchmark named its version: other code may have made each."""
    register(platform, tmp_path, "two")
    score(platform, 2, tmp_path, noise=0.4)
    client = platform.mlflow.client()
    for version in (1, 2):
        found = recorded_scores(platform, version)
        assert found is not None
        assert found.detail is not None
        found.detail["benchmark"].pop("version", None)
        text = json.dumps(found.detail)
        tag = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "values": found.values}
        client.log_text(client.get_model_version(NAME, str(version)).run_id, text, "scores/of before.json")
        client.set_model_version_tag(NAME, str(version), "scores.of before", json.dumps(tag))
        client.set_model_version_tag(NAME, str(version), "scores.benchmark", "of before")
    refused = promote(platform)
    assert not refused.accepted
    assert "nothing says which code scored version 2" in refused.reason
    score(platform, 2, tmp_path, noise=0.4)  # and the champion's have one too
    assert promote(platform).accepted


def test_a_state_root_that_was_moved_goes_on(platform: Platform, tmp_path: Path) -> None:
    register(platform, tmp_path, "two")
    platform.settings.state_root.rename(tmp_path / "elsewhere")
    platform = build_platform(load_settings(state_root=tmp_path / "elsewhere"))
    assert [whole(platform, version) for version in (1, 2)] == [None, None]
    score(platform, 2, tmp_path, noise=0.4)
    assert promote(platform).accepted
    assert roll_back(platform, 1).accepted
    register(platform, tmp_path, "three")
    score(platform, 3, tmp_path, noise=0.3)
    assert promote(platform).accepted
    assert not (tmp_path / "state").exists()


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


def test_a_version_that_cannot_be_read_is_not_taken_for_one_without_a_licence(platform: Platform) -> None:
    assert unfit(platform, 1) is None
    assert unfit(platform, 7) == "version 7 is not registered"
    database = platform.settings.path("mlflow", "mlflow.db")
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("ALTER TABLE model_version_tags RENAME TO away")
    with pytest.raises(MlflowException, match="model_version_tags"):
        unfit(platform, 1)


def test_a_primary_score_without_a_value_is_worse_than_any() -> None:
    settings = PromotionSettings()
    some, none = Scored("b", {"opening": 0.1, "ssim": 0.9}, None), Scored("b", {"ssim": 0.9}, None)
    assert objections(settings, compare(settings, some, none), some, none) == []
    refused = objections(settings, compare(settings, none, some), none, some)
    assert refused == ["the challenger has no value of the primary score, opening"]
    lost = Scored("b", {"opening": 0.5}, None)
    assert objections(settings, compare(settings, lost, some), lost, some) == ["ssim has no value any more"]


@pytest.mark.parametrize(("heads", "told"), [(4, False), (5, True)])
def test_the_gain_of_few_heads_has_no_interval(heads: int, told: bool) -> None:
    mine, theirs = (
        Scored("b", {}, {"records": planted_records(noise, 35.0, {})[:heads], "scores": {"final": "texture"}})
        for noise in (0.4, 0.8)
    )
    assert (gain_interval("opening", mine, theirs) is not None) == told


def test_the_alias_moves_only_from_the_champion_that_was_judged(platform: Platform, tmp_path: Path) -> None:
    register(platform, tmp_path, "two")
    stale = Decision(True, "", 2, None, [], "")
    with pytest.raises(InputError, match="the champion became version 1 while version 2 was compared with none"):
        move_champion(platform, stale)
    assert champion(platform) == 1


def test_a_rollback_that_is_cut_short_leaves_nothing_that_comes_back(
    platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(platform, tmp_path, "two")
    score(platform, 2, tmp_path, noise=0.4)
    assert promote(platform).accepted
    moves = MlflowRuns.set_alias

    def crash(*arguments: Any) -> None:
        moves(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(MlflowRuns, "set_alias", crash)
        with pytest.raises(KeyboardInterrupt):
            roll_back(platform, 1)
    assert champion(platform) == 1
    assert "was rolled back" in promote(platform).reason
    assert champion(platform) == 1


def test_the_benchmark_asset_writes_scores_to_the_version_with_the_dubbers_bytes(tmp_path: Path) -> None:
    platform = platform_on(tmp_path / "state")
    with pytest.raises(dg.Failure, match=r"no registered version holds the dubber abc\.dir"):
        to_registry(platform, "abc.dir")
    register(platform, tmp_path, "one", {"dvc.version": "abc.dir"})
    register(platform, tmp_path, "two", {"dvc.version": "def.dir"})
    score(platform, 2, tmp_path, noise=0.5)
    platform.store.put("benchmark_scores", tmp_path / "benchmark-2")
    told = to_registry(platform, "abc.dir")
    assert told["model_version"] == 1
    found = recorded_scores(platform, 1)
    assert found is not None
    assert found.benchmark == told["benchmark"]
    assert found.values == recorded_scores(platform, 2).values  # type: ignore[union-attr]


def test_the_command_says_what_was_decided(platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDUB_STATE_ROOT", str(platform.settings.state_root))
    monkeypatch.setenv("COLUMNS", "150")
    register(platform, tmp_path, "two")
    score(platform, 2, tmp_path, noise=0.4)

    def xdub(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["promote", *arguments])

    planned = xdub("--plan")
    assert planned.exit_code == 0
    assert "Version 2 accepted" in planned.output
    assert "Mouth opening, correlation" in planned.output
    assert champion(platform) == 1
    assert xdub().exit_code == 0
    assert champion(platform) == 2
    refused = xdub("1")
    assert refused.exit_code == 1
    assert "Version 1 refused" in refused.output
    back = xdub("--rollback", "1")
    assert back.exit_code == 0
    assert "rolled back from version 2 as asked" in back.output
    assert champion(platform) == 1
    assert isinstance(xdub("--rollback", "1", "--plan").exception, InputError)
    assert isinstance(xdub("9").exception, InputError)


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
    client = platform.mlflow.client()
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, "tags.`promotion.challenger` = '2'")
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


@pytest.mark.slow
def test_machines_that_share_a_database_promote_one_at_a_time(postgres: str, tmp_path: Path) -> None:  # noqa: F811
    here = load_settings(state_root=tmp_path / "here", database={"url": postgres})
    there = load_settings(state_root=tmp_path / "there", database={"url": postgres})
    other_model = load_settings(state_root=tmp_path / "third", database={"url": postgres}, mlflow={"model_name": "b"})
    with promotion_lock(here) as held:
        with pytest.raises(InputError, match="another promotion is at work"), promotion_lock(there):
            pass
        with promotion_lock(other_model):
            pass
        held()
        address = sqlalchemy.make_url(postgres).set(drivername="postgresql+psycopg2")
        engine = sqlalchemy.create_engine(address, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(
                sqlalchemy.text("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'")
            )
        engine.dispose()
        with pytest.raises(InputError, match="the database that holds the promotion's lock was lost"):
            held()
    with promotion_lock(there):
        pass


TINY = {
    "corpus": {"training_heads": 1, "heldout_heads": 1, "clips_per_head": 2, "seconds": (2.0, 2.5)},
    "benchmark": {"cases": 2, "seconds": 2.0},
    "flow": {"sampling_steps": 4},
    "transformer": TINY_TRANSFORMER,
}


def write_dubber(folder: Path, settings: Settings, seed: int) -> Path:
    """A dubber of random weights that the benchmark can load."""
    import torch
    from peft import LoraConfig

    from model_code import base
    from model_code.backbones.transformer import DubbingTransformer
    from model_code.dubbing.model import DubberConfig, DubbingPipelineModel

    torch.manual_seed(seed)
    transformer = DubbingTransformer.build(settings.transformer)
    for expert in ("lip", "texture"):
        transformer.add_adapter(LoraConfig(r=2, target_modules=["q", "v"]), adapter_name=expert)
    config = DubberConfig(
        mode="editor", flow=settings.flow, crop_size=settings.media.crop_size, experts=("lip", "texture")
    )
    model = DubbingPipelineModel(config, base.load("codec"), base.load("audio_encoder"), transformer)
    model.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_champion_of_another_benchmark_is_scored_first(tmp_path: Path) -> None:
    need_base()
    platform = platform_on(tmp_path / "state", **TINY)
    settings = platform.settings
    for version in (1, 2):
        with platform.mlflow.run("dubber") as run:
            run.artifact(write_dubber(tmp_path / f"dubber-{version}", settings, version), "model")
            assert run.register(NAME, "model", alias="challenger") == version
    score(platform, 1, tmp_path, noise=0.4)
    assert promote(platform, 1).accepted
    mine = tmp_path / "footage" / "anna.mp4"
    mine.parent.mkdir()
    mine.write_bytes(b"of the user, beside the benchmark's folder")
    folder, scores = benchmark_registered(settings, None, "2", None, tmp_path / "benchmark")
    assert mine.is_file()
    assert not list(folder.glob(".*"))
    benchmark = record_scores(platform, 2, {**benchmark_config(settings), "version": VERSION}, folder)
    assert recorded_scores(platform, 1, benchmark) is None
    decision = promote(platform)
    theirs = recorded_scores(platform, 1, benchmark)
    assert theirs is not None
    assert theirs.detail is not None
    assert theirs.detail["benchmark"]["cases"] == [
        [case["case_id"], case["sentence"]]
        for case in map(json.loads, (folder / "records.jsonl").read_text("utf-8").splitlines())
    ]
    row = next(row for row in decision.table if row["measure"] == "opening")
    assert row["challenger"] == scores["rows"]["texture"]["opening"]["value"]
    assert row["champion"] == theirs.values["opening"]
    assert not settings.path("benchmarks", f"promotion-v1-{benchmark}").exists()
