"""What a crash leaves, made by crashes, and what `xdub doctor --repair` does about it."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.events import EngineEventData

from model_code.errors import InputError
from xdub_platform.instance import open_instance
from xdub_platform.locks import Owner, owned, owner_of, seized
from xdub_platform.platform import build_platform
from xdub_platform.repair import Leftover, end_killed_runs, leftovers
from xdub_platform.settings import Settings, load_settings

KILLED_RUN = """
import os, signal, sys
import dagster as dg
from xdub_platform.instance import open_instance
from xdub_platform.platform import build_platform
from xdub_platform.settings import load_settings

@dg.asset
def editor(context: dg.AssetExecutionContext) -> None:
    platform = build_platform(load_settings())
    with platform.workers.alone(context), platform.mlflow.run("editor", tags={"dagster.run_id": context.run_id}):
        os.kill(os.getpid(), signal.SIGKILL)

with open_instance(load_settings()) as instance:
    dg.materialize([editor], instance=instance)
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(state_root=tmp_path / "state")


def put(settings: Settings, name: str, text: str) -> None:
    source = settings.path("work", "new")
    source.mkdir(parents=True)
    (source / "manifest.parquet").write_text(text, encoding="utf-8")
    store = build_platform(settings).store
    store.put(name, source)
    store.record(name, "gate", {"passed": True})


def write(path: Path, text: str = "half", age: float = 0.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def committed_bytes(settings: Settings) -> dict[str, str]:
    """Every committed file: pointers, data, records, DVC's cache."""
    folder = settings.path("registry")
    store = build_platform(settings).store
    places = [folder / "records", folder / ".dvc" / "cache", *(store.path(name) for name in store.names(""))]
    files = [path for place in places for path in place.rglob("*") if path.is_file()] + [*folder.rglob("*.dvc")]
    found = [path for path in files if path.is_file() and path.suffix not in (".tmp", ".part")]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def found(settings: Settings, repair: bool = False) -> dict[str, Leftover]:
    return {f"{leftover.kind}: {leftover.what}": leftover for leftover in leftovers(settings, repair)}


def scratch(settings: Settings, asset: str, partition: str = "all", digest: str = "aaaa") -> Path:
    folder = settings.path("work", asset, partition, digest)
    write(folder / "config.json", "{}")
    return folder


def test_what_waits_for_its_registration_stays(settings: Settings) -> None:
    put(settings, "editor", "two")
    dataset = build_platform(settings).store.get("editor")
    assert dataset is not None
    folder = scratch(settings, "editor")
    write(folder / "config.json", "{}", age=3600)
    note = write(folder / "committed.json", json.dumps({"version": dataset.version}), age=3600)
    assert found(settings, repair=True) == {}
    assert note.is_file()
    write(note, json.dumps({"version": "that of before"}), age=3600)
    assert set(found(settings, repair=True)) == {"scratch: work/editor/all/aaaa"}
    assert not folder.exists()


def test_a_clean_state_shows_nothing(settings: Settings) -> None:
    assert found(settings) == {}
    put(settings, "clips/shard-00000", "one")
    assert found(settings, repair=True) == {}
    assert not settings.path("work", "clips").exists()


def test_listing_changes_nothing_and_repair_clears_all_but_what_is_committed(settings: Settings) -> None:
    put(settings, "clips/shard-00000", "one")
    put(settings, "editor", "two")
    before, root = committed_bytes(settings), settings.state_root
    half = scratch(settings, "generator")
    write(half / "output" / "model.safetensors")
    write(half / ".output.x" / "members" / "a.mp4")
    write(half / "checkpoints" / ".step_000020.77" / "weights.safetensors")
    kept = write(half / "checkpoints" / "step_000010" / "state.json")
    finished = scratch(settings, "syncnet")
    write(finished / "output" / "model.safetensors")
    waiting = write(finished / "output" / "result.json", "{}")
    superseded = scratch(settings, "editor")
    write(superseded / "config.json", "{}", age=3600)
    write(settings.path("work", "raw_corpus", "shard-00001", "a.mp4"))
    write(settings.path("incoming", ".a.mp4.part"), age=120)
    young = write(settings.path("incoming", ".b.mp4.part"))
    users = write(settings.path("incoming", "c.mp4.part"), age=120)
    write(settings.path("cache", "latents", f"a.{2**22 + 1}.partial"), age=120)
    writing = write(settings.path("cache", "latents", "b.1.partial"), age=120)  # process 1 lives, and did then
    write(root / "registry" / "data" / "clips" / "shard-00001" / "shard.tar")
    write(root / "registry" / ".dvc" / "cache" / "files" / "md5" / "1c" / ".Xy-1.tmp", age=120)
    write(root / "registry" / ".dvc" / "tmp" / "rwlock", "", age=120)
    write(root / "registry" / ".git" / "index.lock", "", age=120)
    everything = sorted(path for path in root.rglob("*") if path.name != "dagster.yaml")
    listed = found(settings)
    assert sorted(path for path in root.rglob("*") if path.name != "dagster.yaml") == everything
    assert set(listed) == {
        "half-written: work/generator/all/aaaa",
        "scratch: work/editor/all/aaaa",
        "scratch: work/raw_corpus/shard-00001",
        "partial file: incoming/.a.mp4.part",
        f"partial file: cache/latents/a.{2**22 + 1}.partial",
        "data: clips/shard-00001",
        "DVC or git: registry/.dvc/cache/files/md5/1c/.Xy-1.tmp",
        "DVC or git: registry/.dvc/tmp/rwlock",
        "DVC or git: registry/.git/index.lock",
    }
    assert "without a manifest" in listed["data: clips/shard-00001"].why
    assert found(settings, repair=True).keys() == listed.keys()
    assert found(settings) == {}
    assert all(path.exists() for path in (kept, waiting, young, users, writing))
    assert not superseded.exists()
    assert not (half / "output").exists()
    assert committed_bytes(settings) == before
    put(settings, "clips/shard-00001", "three")


def test_a_committed_shard_without_its_manifest_is_told_and_left_alone(settings: Settings) -> None:
    put(settings, "clips/shard-00000", "one")
    build_platform(settings).store.path("clips/shard-00000").joinpath("manifest.parquet").unlink()
    leftover = found(settings, repair=True)["damaged: clips/shard-00000"]
    assert leftover.clear is None
    assert build_platform(settings).store.get("clips/shard-00000")


def test_what_a_living_process_holds_is_not_touched(settings: Settings) -> None:
    half = scratch(settings, "clips", "shard-00000")
    write(half / "output" / "shard.tar")
    lock = settings.path("work", "clips", "shard-00000.lock")
    with owned(lock, Owner("clips[shard-00000]", "run")):
        assert found(settings, repair=True) == {}
        with pytest.raises(InputError, match=r"clips\[shard-00000\] is already being made by run run \(process"):
            lock_again(lock)
    assert not lock.exists()
    with seized(half / "output.lock"):  # a worker that was started by hand
        assert found(settings, repair=True) == {}
    with build_platform(settings).store.locked():
        write(settings.path("registry", "data", "clips", "shard-00001", "shard.tar"))
        assert "data: clips" not in found(settings)
    assert found(settings, repair=True).keys() == {
        "half-written: work/clips/shard-00000/aaaa",
        "data: clips",
    }


def lock_again(path: Path) -> None:
    with owned(path, Owner("clips[shard-00000]", "other")):
        pass


@pytest.fixture
def killed(settings: Settings) -> tuple[Settings, str]:
    """A state where a run was killed in the middle of its asset; and the run."""
    environment = {**os.environ, "XDUB_STATE_ROOT": str(settings.state_root)}
    script = settings.state_root.parent / "killed_run.py"
    script.write_text(KILLED_RUN, encoding="utf-8")
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    owner = owner_of(settings.path("work", "editor", "all.lock"))
    assert owner
    return settings, owner.run_id


@pytest.mark.slow
def test_records_of_a_killed_run_end(killed: tuple[Settings, str]) -> None:
    settings, run_id = killed
    kinds = [leftover.kind for leftover in leftovers(settings)]
    assert kinds == ["MLflow run", "Dagster run", "lock"]
    with open_instance(settings) as instance:
        run = instance.get_run_by_id(run_id)
        assert run is not None
        assert run.status is dg.DagsterRunStatus.STARTED  # listing changes nothing
    leftovers(settings, repair=True)
    assert leftovers(settings) == []
    with open_instance(settings) as instance:
        run = instance.get_run_by_id(run_id)
        assert run is not None
        assert run.status is dg.DagsterRunStatus.FAILURE
    client = build_platform(settings).mlflow.client()
    experiment = client.get_experiment_by_name(settings.mlflow.experiment)
    assert experiment is not None
    assert [run.info.status for run in client.search_runs([experiment.experiment_id])] == ["KILLED"]


@pytest.mark.slow
def test_a_database_that_is_away_is_named_without_its_password(tmp_path: Path) -> None:
    settings = load_settings(state_root=tmp_path, database={"url": "postgresql://xdub:HUNTER2@127.0.0.1:9/xdub"})
    lock = write(settings.path("work", "editor", "all.lock"), json.dumps(vars(Owner("editor", "killed"))))
    (away,) = leftovers(settings, repair=True)
    assert away.kind == "database"
    assert away.what == "$XDUB_DATABASE__URL"
    assert "HUNTER2" not in away.why
    assert lock.exists()  # who was killed with it is to be ended when the database is back


@pytest.mark.parametrize("sweeper", ["doctor", "sensor"])
def test_a_killed_run_ends_though_another_took_its_lock(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, sweeper: str
) -> None:
    monkeypatch.setattr("xdub_platform.repair._is_local", lambda url: False)  # only locks say where a run was
    lock = settings.path("work", "editor", "all.lock")
    write(lock, json.dumps(vars(Owner("editor", "killed", pid=2**22 + 1))))
    with open_instance(settings) as instance:
        for run_id in ("killed", "next"):
            instance.add_run(dg.DagsterRun(job_name="job", run_id=run_id, status=dg.DagsterRunStatus.STARTED))
        with owned(lock, Owner("editor", "next")):
            if sweeper == "doctor":
                assert set(found(settings, repair=True)) == {
                    "Dagster run: killed of job",
                    "lock: work/editor/killed.lock",
                }
            else:
                end_killed_runs(settings, instance)
            ended = {run.run_id: run.status for run in instance.get_runs()}
            assert ended == {"killed": dg.DagsterRunStatus.FAILURE, "next": dg.DagsterRunStatus.STARTED}
    assert not list(lock.parent.iterdir())


def test_a_run_of_another_machine_is_left_alone(settings: Settings) -> None:
    lock = write(settings.path("work", "editor", "all.lock"))
    owner = Owner("editor", "run", pid=2**22 + 1, host="elsewhere")
    lock.write_text(json.dumps(vars(owner)), encoding="utf-8")
    assert owner_of(lock) == owner
    with open_instance(settings) as instance:
        instance.add_run(dg.DagsterRun(job_name="job", run_id="run", status=dg.DagsterRunStatus.STARTED))
    assert set(found(settings)) == {"lock: work/editor/all.lock"}


def test_a_run_whose_lock_is_held_lives_whatever_its_number_says(settings: Settings) -> None:
    """So it is with a run of another container that has this one's host name."""
    with open_instance(settings) as instance:
        run = dg.DagsterRun(job_name="job", run_id="run", status=dg.DagsterRunStatus.STARTED)
        instance.add_run(run)
        instance.report_engine_event("started", run, EngineEventData({"pid": dg.MetadataValue.text(str(2**22 + 1))}))
        with owned(settings.path("work", "editor", "all.lock"), Owner("editor", "run", pid=2**22 + 1)):
            assert found(settings, repair=True) == {}
            end_killed_runs(settings, instance)
            assert [each.status for each in instance.get_runs()] == [dg.DagsterRunStatus.STARTED]
    assert set(found(settings)) == {"Dagster run: run of job"}  # no lock tells of it any more


def test_a_run_that_never_named_its_process_is_given_time(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_instance(settings) as instance:
        instance.add_run(dg.DagsterRun(job_name="job", run_id="run", status=dg.DagsterRunStatus.STARTED))
    assert found(settings) == {}
    monkeypatch.setattr("xdub_platform.repair.NAMELESS_SECONDS", 0.0)
    assert set(found(settings, repair=True)) == {"Dagster run: run of job"}
    assert found(settings) == {}
