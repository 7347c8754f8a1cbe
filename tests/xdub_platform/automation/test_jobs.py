"""Jobs that plan: what they hold, wait for, start and tell."""

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.remote_origin import GrpcServerCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.run_coordinator import SubmitRunContext
from dagster._core.storage.tags import SCHEDULE_NAME_TAG

from assets.gates import GATE
from model_code.errors import InputError
from xdub_platform.automation.jobs import full_chain, retrain, take_in_footage
from xdub_platform.automation.origin import AttributedRunCoordinator
from xdub_platform.chain import KIND_TAG, MAKE, PLAN_TAG, STARTED_BY_TAG, Node, Planner, Rules, Status, Step, why_broken
from xdub_platform.instance import open_instance
from xdub_platform.platform import Platform, build_platform
from xdub_platform.running import HELD, exclusive, rules
from xdub_platform.settings import load_settings

shards = dg.DynamicPartitionsDefinition(name="shard")


@pytest.fixture
def platform(tmp_path: Path) -> Platform:
    automation = {"lock_wait_seconds": 0.0, "promote_after_retrain": False}
    return build_platform(load_settings(state_root=tmp_path, automation=automation, processes={"parallel_runs": 1}))


@pytest.fixture
def instance(platform: Platform) -> Iterator[dg.DagsterInstance]:
    with open_instance(platform.settings) as home:
        yield home


def toy(made: Counter[str], code: str = "1") -> dg.Definitions:
    """clips (shard) -> generator -> pairs (shard, also made from clips); every making has a version of its own."""

    def make(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        name = context.asset_key.to_user_string()
        label = f"{name}[{context.partition_key}]" if context.has_partition_key else name
        made[label] += 1
        return dg.MaterializeResult(data_version=dg.DataVersion(f"{label}-{made[label]}"))

    def asset(name: str, deps: list[str], partitions: dg.PartitionsDefinition | None = None) -> dg.AssetsDefinition:
        version = code if name == "generator" else "1"
        return dg.asset(name=name, deps=deps, partitions_def=partitions, code_version=version)(make)

    return dg.Definitions(
        assets=[
            asset("clips", [], shards),
            asset("generator", ["clips"]),
            asset("pairs", ["clips", "generator"], shards),
        ]
    )


def test_new_clips_leave_the_generator_and_the_pairs_that_are_there(instance: dg.DagsterInstance) -> None:
    made: Counter[str] = Counter()
    held = Rules(held=lambda node: node.asset == "generator")
    instance.add_dynamic_partitions("shard", ["s0"])
    Planner(toy(made), instance, held).run()
    instance.add_dynamic_partitions("shard", ["s1"])
    planner = Planner(toy(made), instance, held)
    planned = [str(step.node) for step in planner.plan() if step.status is Status.RUNNING]
    assert planned == ["clips[s1]", "pairs[s1]"]
    planner.run()
    assert made == {"clips[s0]": 1, "clips[s1]": 1, "generator": 1, "pairs[s0]": 1, "pairs[s1]": 1}
    Planner(toy(made), instance).run("key:generator")
    assert made["generator"] == 2
    Planner(toy(made), instance, held).run()
    assert (made["pairs[s0]"], made["pairs[s1]"], made["clips[s0]"]) == (2, 2, 1)
    Planner(toy(made, code="2"), instance, held).run("key:generator")
    assert made["generator"] == 3


def test_only_a_rebase_lets_go(platform: Platform) -> None:
    nodes = [Node(name) for name in (*HELD, "editor")]
    assert [rules(platform).held(node) for node in nodes] == [True, True, True, False]
    assert not any(rules(platform, rebase=True).held(node) for node in nodes)


def test_a_syncnet_that_its_gate_refused_is_not_held(platform: Platform, tmp_path: Path) -> None:
    for passed in (False, True):
        folder = tmp_path / "made"
        folder.mkdir()
        (folder / "weights").write_text(str(passed))
        platform.store.put("syncnet", folder)
        platform.store.record("syncnet", GATE, {"passed": passed, "failures": ["accuracy"], "warnings": [], "docs": ""})
        assert rules(platform).held(Node("syncnet")) == passed


def test_a_plan_of_some_partitions_leaves_the_others(instance: dg.DagsterInstance) -> None:
    made: Counter[str] = Counter()
    instance.add_dynamic_partitions("shard", ["s0", "s1"])
    steps = Planner(toy(made), instance).run("key:clips", only=lambda node: node.partition == "s1")
    assert [str(step.node) for step in steps] == ["clips[s1]"]
    assert made == {"clips[s1]": 1}


def test_who_comes_second_waits_but_not_forever(platform: Platform) -> None:
    with exclusive(platform.settings), pytest.raises(InputError, match="another run is at work"):
        exclusive(platform.settings, wait_seconds=0.1).__enter__()
    first = exclusive(platform.settings)
    first.__enter__()
    threading.Timer(0.5, lambda: first.__exit__(None, None, None)).start()
    start = time.monotonic()
    with exclusive(platform.settings, wait_seconds=30):
        assert time.monotonic() - start > 0.3


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        (
            [
                Step(Node("clips", "s0"), Status.REJECTED, "no consent"),
                Step(Node("pairs", "s0"), Status.BLOCKED, refused=True),
            ],
            None,
        ),
        (
            [Step(Node("pairs", "s0"), Status.BLOCKED, "generator was never made")],
            "pairs[s0] blocked: generator was never made",
        ),
        ([Step(Node("clips", "s0"), Status.FAILED, "no disk")], "clips[s0] failed: no disk"),
        ([Step(Node("lip"), Status.BLOCKED, "syncnet rejected")], "lip blocked: syncnet rejected"),
    ],
)
def test_a_gate_at_work_is_no_failure(steps: list[Step], reason: str | None) -> None:
    assert why_broken(steps) == reason


def test_every_queued_run_says_what_started_it(instance: dg.DagsterInstance) -> None:
    assert isinstance(instance.run_coordinator, AttributedRunCoordinator)
    server = GrpcServerCodeLocationOrigin(host="127.0.0.1", port=9)
    where = RemoteJobOrigin(RemoteRepositoryOrigin(server, "__repository__"), full_chain.name)
    code = dg.reconstructable(full_chain).get_python_origin()
    origins = {}
    for tags in ({}, {SCHEDULE_NAME_TAG: "weekly_retrain"}, {STARTED_BY_TAG: "a person"}):
        run = instance.create_run_for_job(full_chain, tags=tags, remote_job_origin=where, job_code_origin=code)
        instance.run_coordinator.submit_run(SubmitRunContext(run, workspace=None))  # type: ignore[arg-type]
        queued = instance.get_run_by_id(run.run_id)
        assert queued is not None
        assert queued.status is dg.DagsterRunStatus.QUEUED
        origins[queued.tags[STARTED_BY_TAG]] = queued.tags[KIND_TAG]
    assert set(origins) == {"Dagster UI", "schedule weekly_retrain", "a person"}


@pytest.mark.slow
def test_a_retrain_without_pairs_says_why_and_makes_no_pairs(platform: Platform, instance: dg.DagsterInstance) -> None:
    result = retrain.execute_in_process(instance=instance, resources={"platform": platform}, raise_on_error=False)
    assert not result.success
    (failure,) = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    assert failure.user_failure_data
    assert "editor" in str(failure.user_failure_data.description)
    records = instance.get_run_records(dg.RunsFilter(tags={PLAN_TAG: result.run_id}))
    assert all(record.dagster_run.asset_selection == {dg.AssetKey("editor")} for record in records)


@pytest.mark.slow
def test_footage_that_is_none_is_refused_and_told(platform: Platform, instance: dg.DagsterInstance) -> None:
    platform.settings.incoming.mkdir()
    for name in ("a", "b"):
        (platform.settings.incoming / f"{name}.mp4").write_bytes(b"no video")
        os.utime(platform.settings.incoming / f"{name}.mp4", (1, 1))
    tags = {STARTED_BY_TAG: "sensor new_footage"}
    result = take_in_footage.execute_in_process(
        instance=instance, resources={"platform": platform}, raise_on_error=False, tags=tags
    )
    assert not result.success
    children = instance.get_run_records(dg.RunsFilter(tags={PLAN_TAG: result.run_id}))
    assert {record.dagster_run.tags[STARTED_BY_TAG] for record in children} == {"sensor new_footage"}
    assert {record.dagster_run.tags[KIND_TAG] for record in children} == {MAKE}
    (failure,) = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    assert failure.user_failure_data
    table = failure.user_failure_data.metadata["steps"].value
    told = {record.data["asset and partition"]: record.data for record in table.records}
    assert told["raw_corpus[shard-00000]"]["status"] == Status.DONE
    assert told["clips[shard-00000]"]["status"] == Status.REJECTED
    assert "at least 1 clips" in str(told["clips[shard-00000]"]["why"])
    assert "no shard of clips is accepted" in str(failure.user_failure_data.description)


@pytest.mark.slow
def test_a_taking_in_also_makes_what_an_earlier_one_left(platform: Platform, instance: dg.DagsterInstance) -> None:
    settings = platform.settings
    settings.incoming.mkdir()
    for name in ("a", "b"):
        (settings.incoming / f"{name}.mp4").write_bytes(b"no video")
        os.utime(settings.incoming / f"{name}.mp4", (1, 1))
        platform.ledger.take(settings.incoming, 1)
    (settings.incoming / "arriving.mp4").write_bytes(b"no vi")
    asked = {"ops": {"run_take_in": {"config": {"shards": ["shard-00001"]}}}}
    resources = {"platform": platform}
    take_in_footage.execute_in_process(asked, instance=instance, resources=resources, raise_on_error=False)
    assert platform.store.names("clips") == ["clips/shard-00000", "clips/shard-00001"]
    assert platform.ledger.shards() == ["shard-00000", "shard-00001"], "the third is still being written"
