"""What a state root may lose, on a real registry of models and a real one of data."""

from __future__ import annotations

import uuid
from pathlib import Path

import dagster as dg
import pytest
from typer.testing import CliRunner

from model_code.errors import InputError
from tests.xdub_platform.planted import platform_on, register
from xdub_platform.cli import app
from xdub_platform.instance import open_instance
from xdub_platform.integrity import whole
from xdub_platform.locks import held
from xdub_platform.platform import Platform
from xdub_platform.promotion import WITHDRAWN, promotion_lock, roll_back
from xdub_platform.prune import prune
from xdub_platform.resources.workers import lock_path
from xdub_platform.running import exclusive
from xdub_platform.weights import model_and_version

NAME = "xdub-dubber"
FIRST, TAGGED, CHAMPION, WITHDRAWN_ONE, OLD, OLDER_CHALLENGER, PRESENT = range(1, 8)


@pytest.fixture
def platform(tmp_path: Path) -> Platform:
    """Seven dubbers of as many retrains; `PRESENT` alone lies in the registry, `TAGGED` was published."""
    platform = platform_on(tmp_path / "state")
    for number in range(FIRST, PRESENT + 1):
        retrain(platform, tmp_path, number)
        if number == TAGGED:
            platform.store.publish("may", "what it was in May")
    platform.mlflow.set_alias(NAME, "champion", CHAMPION)
    platform.mlflow.set_alias(NAME, "challenger", OLDER_CHALLENGER)
    platform.mlflow.client().set_model_version_tag(NAME, str(WITHDRAWN_ONE), WITHDRAWN, "2026")
    return platform


def retrain(platform: Platform, folder: Path, number: int) -> None:
    """A finished Dagster run that commits a dubber and registers it."""
    output = folder / f"output-{number}"
    output.mkdir()
    (output / "model.safetensors").write_bytes(str(number).encode() * 1000)
    dataset = platform.store.put("dubber", output)
    assert register(platform, folder, f"{number}", {"dvc.version": dataset.version}) == number
    run = platform.mlflow.client().get_model_version(NAME, str(number)).run_id
    with open_instance(platform.settings) as instance:
        made = dg.DagsterRun(job_name="job", run_id=str(uuid.uuid4()), status=dg.DagsterRunStatus.SUCCESS)
        instance.add_run(made)
    platform.mlflow.client().set_tag(run, "dagster.run_id", made.run_id)


def cached(platform: Platform) -> int:
    return len([path for path in (platform.store.folder / ".dvc" / "cache").rglob("*") if path.is_file()])


def test_what_anything_names_survives(platform: Platform, tmp_path: Path) -> None:
    stranger = register(platform, tmp_path, "stranger", {"dvc.version": "of another state root.dir"}, alias="none")
    platform.mlflow.client().delete_registered_model_alias(NAME, "none")
    gone = platform.mlflow.model_path(NAME, str(OLD))
    before = set(platform.mlflow.versions(NAME)), cached(platform)
    planned = prune(platform, 1, dry_run=True)
    assert (set(platform.mlflow.versions(NAME)), cached(platform)) == before
    done = prune(platform, 1)
    assert done == planned
    assert [each.what for each in done] == [f"{NAME} version {FIRST}", f"{NAME} version {OLD}", "data in DVC's cache"]
    assert all(each.size > 1000 for each in done)
    assert gone is not None
    assert not gone.exists()
    left = set(platform.mlflow.versions(NAME))
    assert left == {TAGGED, CHAMPION, WITHDRAWN_ONE, OLDER_CHALLENGER, PRESENT, stranger}
    assert [whole(platform, version) for version in sorted(left)] == [None] * len(left)
    assert cached(platform) == 4  # a file and its folder, of the present and of the published one
    assert prune(platform, 1) == []
    assert roll_back(platform, TAGGED).accepted
    data = platform.store.path("dubber") / "model.safetensors"
    assert data.read_bytes() == str(PRESENT).encode() * 1000
    retrain(platform, tmp_path, stranger + 1)


def test_newest_and_named_in_the_settings_survive(platform: Platform) -> None:
    settings = platform.settings.model_copy(
        update={"start": platform.settings.start.model_copy(update={"editor": f"{NAME}/{FIRST}"})}
    )
    assert model_and_version(settings, f"{NAME}/{FIRST}") == (NAME, str(FIRST))
    assert all(NAME not in each.what for each in prune(platform.model_copy(update={"settings": settings}), 3))
    assert set(platform.mlflow.versions(NAME)) == set(range(FIRST, PRESENT + 1))


def test_the_scores_of_a_model_that_was_registered_anew_survive(platform: Platform) -> None:
    same = platform.mlflow.versions(NAME)[CHAMPION]["dvc.version"]
    platform.mlflow.client().set_model_version_tag(NAME, str(OLD), "dvc.version", same)
    prune(platform, 1)
    assert OLD in platform.mlflow.versions(NAME)


def test_nothing_is_touched_while_anybody_is_at_work(platform: Platform) -> None:
    settings = platform.settings
    with exclusive(settings), pytest.raises(InputError, match="another run is at work"):
        prune(platform, 1)
    with promotion_lock(settings), pytest.raises(InputError, match="another promotion is at work"):
        prune(platform, 1)
    making = lock_path(settings.path("work"), "editor")
    with held(making), pytest.raises(InputError, match="editor is being made"):
        prune(platform, 1)
    with open_instance(settings) as instance:
        instance.add_run(dg.DagsterRun(job_name="retrain", run_id="unfinished", status=dg.DagsterRunStatus.STARTED))
    with pytest.raises(InputError, match=r"run unfinish of retrain has not ended .*doctor --repair"):
        prune(platform, 1)
    assert set(platform.mlflow.versions(NAME)) == set(range(FIRST, PRESENT + 1))


def test_the_command_says_what_would_be_free(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDUB_STATE_ROOT", str(platform.settings.state_root))
    told = CliRunner().invoke(app, ["prune", "--keep", "1", "--dry-run"])
    assert told.exit_code == 0, told.output
    assert f"{NAME} version {OLD}" in told.output
    assert "MB would be free" in told.output
    assert OLD in platform.mlflow.versions(NAME)


def test_a_state_without_data_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no data registry"):
        prune(platform_on(tmp_path / "state"), 1)
