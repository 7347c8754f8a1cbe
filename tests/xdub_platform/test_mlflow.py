"""MLflow on sqlite."""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException

from xdub_platform.resources.mlflow import MlflowRun, MlflowRuns, flatten
from xdub_platform.resources.store import Dataset


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database, made once."""
    folder = tmp_path_factory.mktemp("mlflow")
    MlflowRuns(tracking_uri=f"sqlite:///{folder}/mlflow.db").client()
    return folder / "mlflow.db"


@pytest.fixture
def runs(migrated: Path, tmp_path: Path) -> MlflowRuns:
    shutil.copy(migrated, tmp_path / "mlflow.db")
    return MlflowRuns(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db", artifact_root=str(tmp_path / "artifacts"))


def test_a_run_holds_params_curves_dataset_and_artifacts(runs: MlflowRuns, tmp_path: Path) -> None:
    dataset = Dataset("clips/s0", tmp_path, "b1281892a48b41c504411dd26af4e35b.dir", 3, 1)
    note = tmp_path / "note.txt"
    note.write_text("x", encoding="utf-8")
    with runs.run("editor", tags={"partition": "-"}) as run:
        run.params({"phase": {"steps": 5, "shift": 5.0}})
        for step in range(1500):
            run.metric("loss", 1.0 / (step + 1), step)
        run.datasets([dataset], "training")
        run.artifact(note)
    client = runs.client()
    found = client.get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert found.data.params == {"phase.steps": "5", "phase.shift": "5.0"}
    assert len(client.get_metric_history(run.run_id, "loss")) == 1500
    assert found.inputs.dataset_inputs[0].dataset.digest == dataset.version
    assert [item.path for item in client.list_artifacts(run.run_id)] == ["note.txt"]


def test_two_runs_that_start_together_both_log_the_same_new_inputs(
    runs: MlflowRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = [Dataset(f"clips/s{number}", tmp_path, f"{number}.dir", 3, 1) for number in range(2)]
    with runs.run("generator") as one, runs.run("syncnet") as other:
        rivals = [other]

        def rival_in_between() -> uuid.UUID:
            """Called once MLflow has looked for the inputs, before it inserts what it did not find."""
            while rivals:
                rivals.pop().datasets(inputs[:1], "syncnet")
            return uuid.UUID(bytes=os.urandom(16))

        monkeypatch.setattr("mlflow.store.tracking.sqlalchemy_store.uuid.uuid4", rival_in_between)
        one.datasets(inputs, "generator")
    logged = {
        run.run_id: {each.dataset.name for each in runs.client().get_run(run.run_id).inputs.dataset_inputs}
        for run in (one, other)
    }
    assert not rivals
    assert logged == {one.run_id: {"clips/s0", "clips/s1"}, other.run_id: {"clips/s0"}}


def test_a_run_that_raises_is_failed_and_keeps_its_curve(runs: MlflowRuns) -> None:
    opened: list[MlflowRun] = []

    def train() -> None:
        with runs.run("editor") as run:
            opened.append(run)
            run.metric("loss", 0.5, 1)
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        train()
    found = runs.client().get_run(opened[0].run_id)
    assert found.info.status == "FAILED"
    assert found.data.metrics == {"loss": 0.5}


def test_models_are_found_by_alias_and_version(runs: MlflowRuns, tmp_path: Path) -> None:
    weights = tmp_path / "model"
    weights.mkdir()
    for content, alias in (("1", "champion"), ("2", None)):
        (weights / "config.json").write_text(content, encoding="utf-8")
        with runs.run("dubber") as run:
            run.artifact(weights, "model")
            run.register("xdub-dubber", "model", alias=alias, tags={"dataset": "abc"})
    champion = runs.model_path("xdub-dubber")
    assert champion is not None
    assert (champion / "config.json").read_text(encoding="utf-8") == "1"
    newest = runs.model_path("xdub-dubber", "2")
    assert newest is not None
    assert (newest / "config.json").read_text(encoding="utf-8") == "2"
    runs.set_alias("xdub-dubber", "champion", 2)
    assert runs.model_path("xdub-dubber") == newest
    assert runs.model_path("xdub-dubber", "@nobody") is None


def on(root: Path, database: Path | None = None) -> MlflowRuns:
    """The runs of a state root, in its own database or in another root's."""
    database = database or root / "mlflow" / "mlflow.db"
    return MlflowRuns(tracking_uri=f"sqlite:///{database}", artifact_root=str(root / "mlflow" / "artifacts"))


def registered(runs: MlflowRuns, folder: Path, content: str) -> str:
    """Registers a model of one file; its run."""
    (folder / "model").mkdir(parents=True, exist_ok=True)
    (folder / "model" / "config.json").write_text(content, encoding="utf-8")
    with runs.run("dubber") as run:
        run.artifact(folder / "model", "model")
        run.register("xdub-dubber", "model", alias="champion")
    return run.run_id


@pytest.fixture
def old(migrated: Path, tmp_path: Path) -> Path:
    """A state root with a registered model."""
    root = tmp_path / "the old place"
    (root / "mlflow").mkdir(parents=True)
    shutil.copy(migrated, root / "mlflow" / "mlflow.db")
    registered(on(root), tmp_path / "made", "1")
    return root


@pytest.mark.parametrize("how", ["moved", "copied", "moved, and another at the old place"])
def test_a_state_root_elsewhere_reads_and_writes_its_own_artifacts(old: Path, tmp_path: Path, how: str) -> None:
    new = tmp_path / "new"
    shutil.copytree(old, new)
    if how != "copied":
        shutil.rmtree(old)
    if how.endswith("old place"):
        (old / "mlflow" / "artifacts").mkdir(parents=True)
    before = sorted(old.rglob("*"))
    runs = on(new)
    found, model = runs.model_version("xdub-dubber", "@champion"), runs.model_path("xdub-dubber")
    assert found is not None
    assert model is not None
    assert model.is_relative_to(new)
    assert (model / "config.json").read_text(encoding="utf-8") == "1"
    runs.write(found.run_id, "scores", "a.json", "{}")
    assert runs.artifact_path(found.run_id, "scores/a.json").is_relative_to(new)
    assert runs.size(found.run_id, "model") == 1
    runs.delete_artifacts(found.run_id, "model")
    assert runs.model_path("xdub-dubber") is None
    run = registered(runs, tmp_path / "made", "2")
    model = runs.model_path("xdub-dubber")
    assert model is not None
    assert model.is_relative_to(new)
    assert runs.client().get_run(run).info.artifact_uri == model.parent.as_uri()
    assert sorted(old.rglob("*")) == before


def test_state_roots_that_share_a_database_write_to_one_place(old: Path, tmp_path: Path) -> None:
    guest = on(tmp_path / "guest", old / "mlflow" / "mlflow.db")
    run = registered(guest, tmp_path / "made", "2")
    assert on(old).model_path("xdub-dubber") == guest.model_path("xdub-dubber")
    assert guest.artifact_path(run, "model").is_relative_to(old)


def test_no_answer_is_another_thing_than_no_version(runs: MlflowRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    with runs.run("dubber") as run:
        runs.client().create_registered_model("xdub-dubber")
        runs.client().create_model_version("xdub-dubber", "here", run.run_id)
    wanted = ("@nobody", "7", "no number")
    assert [runs.model_version("xdub-dubber", version) for version in wanted] == [None] * 3
    assert [runs.model_version("unheard-of", version) for version in ("@champion", "1")] == [None] * 2
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = MlflowRuns(tracking_uri="http://127.0.0.1:9")
    for version in ("@champion", "1"):
        with pytest.raises(MlflowException, match="refused"):
            away.model_version("xdub-dubber", version)


def test_long_lists_are_logged_by_their_length() -> None:
    assert flatten({"a": {"b": list(range(100))}, "c": [1, 2]}) == [("a.b", "100 values"), ("c", "[1, 2]")]
