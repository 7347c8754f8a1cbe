"""The sensor of new footage on a real state root, registry and Dagster home."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dagster._core.storage.tags import WILL_RETRY_TAG

from assets.gates import GATE
from assets.produce import INPUTS
from xdub_platform.automation.bucket import Bucket
from xdub_platform.automation.footage import new_pairs, unmade_shards
from xdub_platform.automation.jobs import PLANS, full_chain, take_in_footage
from xdub_platform.automation.sensors import look_for_footage, new_footage
from xdub_platform.instance import open_instance
from xdub_platform.locks import Owner, owned
from xdub_platform.platform import Platform, build_platform
from xdub_platform.settings import load_settings

HOURS = 0.01
KILLED = """
import os, signal, sys
from unittest.mock import patch
from xdub_platform.automation import jobs
from xdub_platform.instance import open_instance
from xdub_platform.platform import build_platform
from xdub_platform.settings import load_settings

job, doing = sys.argv[1:]
with open_instance(load_settings()) as instance, patch(doing, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)):
    getattr(jobs, job).execute_in_process(instance=instance, resources={"platform": build_platform(load_settings())})
"""
"""A process that is killed in the middle of a job."""
LONG_AGO = (1_000_000, 1_000_000)


@pytest.fixture
def platform(tmp_path: Path) -> Platform:
    automation = {"rest_seconds": 60.0, "retrain_after_hours": HOURS}
    return build_platform(load_settings(state_root=tmp_path, clips_per_shard=2, automation=automation))


@pytest.fixture
def instance(platform: Platform) -> Iterator[dg.DagsterInstance]:
    with open_instance(platform.settings) as home:
        yield home


def drop(platform: Platform, *names: str, at_rest: bool = True) -> None:
    platform.settings.incoming.mkdir(exist_ok=True)
    for name in names:
        video = platform.settings.incoming / f"{name}.mp4"
        video.write_bytes(name.encode())
        if at_rest:
            os.utime(video, LONG_AGO)


def commit(platform: Platform, name: str, **tables: list[dict[str, object]]) -> str:
    folder = platform.settings.path("work", "new")
    folder.mkdir(parents=True)
    (folder / "data.txt").write_text(name, encoding="utf-8")
    for table, rows in tables.items():
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{table}.parquet")
    return platform.store.put(name, folder).version


def commit_pairs(platform: Platform, name: str, hours: float, passed: bool = True) -> str:
    frames = round(hours * 3600 * platform.settings.media.fps)
    rows: list[dict[str, object]] = [{"n_frames": frames, "accepted": True}, {"n_frames": 10**6, "accepted": False}]
    version = commit(platform, name, manifest=rows)
    platform.store.record(name, GATE, {"passed": passed, "failures": [] if passed else ["too few"]})
    return version


def look(platform: Platform, instance: dg.DagsterInstance, cursor: str | None = None) -> dg.SensorResult:
    return look_for_footage(dg.build_sensor_context(instance, cursor=cursor), platform)


def requested(result: dg.SensorResult) -> list[str | None]:
    return [request.job_name for request in result.run_requests or ()]


def test_files_at_rest_become_shards_one_run_and_partitions(platform: Platform, instance: dg.DagsterInstance) -> None:
    drop(platform, "a", "b", "c")
    drop(platform, "d", at_rest=False)
    result = look(platform, instance)
    (request,) = result.run_requests or ()
    assert request.job_name == "take_in_footage"
    assert request.run_config["ops"]["run_take_in"]["config"]["shards"] == ["shard-00000", "shard-00001"]
    (partitions,) = result.dynamic_partitions_requests or ()
    assert list(partitions.partition_keys) == ["shard-00000", "shard-00001"]
    assert json.loads(str(result.cursor)) == {"shard": 1}
    again = look(platform, instance, result.cursor)
    assert requested(again) == []
    assert "0 new shards" in str(again.skip_reason)


def test_a_video_waits_for_its_sidecar(platform: Platform, instance: dg.DagsterInstance) -> None:
    drop(platform, "a")
    (platform.settings.incoming / "a.json").write_text("{}", encoding="utf-8")
    assert requested(look(platform, instance)) == []
    os.utime(platform.settings.incoming / "a.json", LONG_AGO)
    assert requested(look(platform, instance)) == ["take_in_footage"]


def test_a_daemon_killed_before_it_asked_asks_again_with_the_same_key(
    platform: Platform, instance: dg.DagsterInstance
) -> None:
    first_cursor = look(platform, instance).cursor
    drop(platform, "a")
    lost, again = look(platform, instance, first_cursor), look(platform, instance, first_cursor)
    keys = [request.run_key for result in (lost, again) for request in result.run_requests or ()]
    assert len(keys) == 2
    assert len(set(keys)) == 1
    assert platform.ledger.shards() == ["shard-00000"]


def test_switched_on_it_starts_with_what_nobody_made(platform: Platform, instance: dg.DagsterInstance) -> None:
    drop(platform, "a", "b", "c")
    platform.ledger.take(platform.settings.incoming, 2)
    commit(platform, "clips/shard-00000")
    assert unmade_shards(platform) == ["shard-00001"]
    (request,) = look(platform, instance).run_requests or ()
    assert request.run_config["ops"]["run_take_in"]["config"]["shards"] == ["shard-00001"]


def test_what_a_failed_run_was_to_make_is_asked_for_again(platform: Platform, instance: dg.DagsterInstance) -> None:
    automation = platform.settings.automation.model_copy(update={"again_after_seconds": 0.0})
    later = build_platform(platform.settings.model_copy(update={"automation": automation}))
    drop(platform, "a", "b", "c")
    asked = look(platform, instance)
    (first,) = asked.run_requests or ()

    def fail(request: dg.RunRequest) -> None:
        run = instance.create_run_for_job(take_in_footage, run_config=request.run_config, tags=request.tags)
        assert requested(look(later, instance, asked.cursor)) == []
        instance.report_run_failed(run)

    fail(first)
    assert requested(look(platform, instance, asked.cursor)) == [], "not before the pause is over"
    (second,) = look(later, instance, asked.cursor).run_requests or ()
    assert second.run_key != first.run_key
    assert second.run_config == first.run_config
    drop(platform, "d")
    (third,) = look(platform, instance, asked.cursor).run_requests or ()
    assert third.run_config["ops"]["run_take_in"]["config"]["shards"] == ["shard-00000", "shard-00001", "shard-00002"]
    asked = look(later, instance, asked.cursor)
    fail(second)
    commit(platform, "clips/shard-00000")
    platform.store.record("clips/shard-00000", GATE, {"passed": False, "failures": ["no consent"]})
    (fourth,) = look(later, instance, asked.cursor).run_requests or ()
    assert fourth.run_config["ops"]["run_take_in"]["config"]["shards"] == ["shard-00001"], "the gate refused the other"


def test_a_failed_run_is_not_forgotten_over_one_that_was_asked_for_meanwhile(
    platform: Platform, instance: dg.DagsterInstance
) -> None:
    automation = platform.settings.automation.model_copy(update={"again_after_seconds": 0.0})
    later = build_platform(platform.settings.model_copy(update={"automation": automation}))

    def ask(cursor: str | None) -> tuple[list[str], dg.DagsterRun, str | None]:
        asked = look(later, instance, cursor)
        (request,) = asked.run_requests or ()
        run = instance.create_run_for_job(take_in_footage, run_config=request.run_config, tags=request.tags)
        return request.run_config["ops"]["run_take_in"]["config"]["shards"], run, asked.cursor

    drop(platform, "a")
    first, fails, cursor = ask(None)
    drop(platform, "b")
    second, goes_on, cursor = ask(cursor)
    assert (first, second) == (["shard-00000"], ["shard-00001"])
    for shard in (*first, *second):
        commit(platform, f"clips/{shard}")  # it fails at its pairs
    instance.report_run_failed(fails)
    again, _, cursor = ask(cursor)
    assert again == first
    instance.report_run_canceled(goes_on)
    assert requested(look(later, instance, cursor)) == []


def test_enough_accepted_hours_start_one_retrain(platform: Platform, instance: dg.DagsterInstance) -> None:
    commit_pairs(platform, "companion_pairs/shard-00000/generated", HOURS * 0.6)
    commit_pairs(platform, "companion_pairs/shard-00000/rendered", 1.0, passed=False)
    assert requested(look(platform, instance)) == []
    commit_pairs(platform, "companion_pairs/shard-00001/generated", HOURS * 0.6)
    first, second = look(platform, instance), look(platform, instance)
    assert requested(first) == ["retrain"]
    keys = {request.run_key for result in (first, second) for request in result.run_requests or ()}
    assert len(keys) == 1
    commit_pairs(platform, "companion_pairs/shard-00002/generated", HOURS * 0.6)
    (later,) = look(platform, instance).run_requests or ()
    assert later.run_key not in keys


def test_pairs_that_the_editor_knows_do_not_count(platform: Platform) -> None:
    name = "companion_pairs/shard-00000/generated"
    version = commit_pairs(platform, name, HOURS)
    commit(platform, "editor")
    platform.store.record("editor", INPUTS, {"datasets": {name: version}})
    assert new_pairs(platform).hours == 0
    commit_pairs(platform, name, HOURS * 2)
    assert new_pairs(platform).hours == pytest.approx(HOURS * 2, rel=0.01)


def test_a_retrain_waits_for_the_planner_at_work(platform: Platform, instance: dg.DagsterInstance) -> None:
    commit_pairs(platform, "companion_pairs/shard-00000/generated", HOURS)
    run = instance.create_run_for_job(full_chain, tags=PLANS)
    waiting = look(platform, instance)
    assert requested(waiting) == []
    assert "a run is at work" in str(waiting.skip_reason)
    instance.report_run_canceled(run)
    assert requested(look(platform, instance)) == ["retrain"]


@pytest.mark.parametrize(
    ("job", "doing", "again"),
    [
        ("full_chain", "xdub_platform.running.run_chain", "true"),
        ("fetch_footage", f"{Bucket.__module__}.Bucket.fetch", "false"),
    ],
)
def test_a_run_that_was_killed_with_its_code_location_fails(
    platform: Platform, instance: dg.DagsterInstance, job: str, doing: str, again: str
) -> None:
    environment = {**os.environ, "XDUB_STATE_ROOT": str(platform.settings.state_root)}
    done = subprocess.run([sys.executable, "-c", KILLED, job, doing], env=environment, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    (run,) = instance.get_runs()
    assert run.status is dg.DagsterRunStatus.STARTED
    look(platform, instance)
    (run,) = instance.get_runs()
    assert run.status is dg.DagsterRunStatus.FAILURE
    assert run.tags[WILL_RETRY_TAG] == again
    assert not list(platform.settings.path("work", "jobs").iterdir())


def test_runs_that_live_or_are_another_machines_go_on(platform: Platform, instance: dg.DagsterInstance) -> None:
    folder = platform.settings.path("work", "jobs")
    for run_id in ("here", "elsewhere"):
        instance.add_run(dg.DagsterRun(job_name="full_chain", run_id=run_id, status=dg.DagsterRunStatus.STARTED))
    with owned(folder / "here.lock", Owner("full_chain", "here")):
        gone = Owner("full_chain", "elsewhere", pid=2**22 + 1, host="elsewhere")
        (folder / "elsewhere.lock").write_text(json.dumps(vars(gone)), encoding="utf-8")
        look(platform, instance)
    assert {run.status for run in instance.get_runs()} == {dg.DagsterRunStatus.STARTED}


def test_it_is_off_until_somebody_or_a_setting_switches_it_on(platform: Platform, tmp_path: Path) -> None:
    assert new_footage(platform.settings).default_status is dg.DefaultSensorStatus.STOPPED
    running = load_settings(state_root=tmp_path, automation={"running": True})
    assert new_footage(running).default_status is dg.DefaultSensorStatus.RUNNING
