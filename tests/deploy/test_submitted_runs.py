"""Runs that the planner submits, to a real webserver; Dagster's own launcher stands in for that of a cluster."""

from __future__ import annotations

import os
import runpy
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster._core.instance.ref import InstanceRef
from dagster_graphql import DagsterGraphQLClientError
from dagster_postgres.utils import DagsterPostgresException

from tests.postgres import PostgresServer, postgres_server
from xdub_platform.chain import Node, Planner, Status
from xdub_platform.instance import open_instance
from xdub_platform.kubernetes import LOOK_EVERY, SubmittedRuns
from xdub_platform.settings import load_settings

__all__ = ["postgres_server"]
NOWHERE = "http://127.0.0.1:1"

CODE = """
import time

import dagster as dg

cells = dg.MultiPartitionsDefinition(
    {"shard": dg.StaticPartitionsDefinition(["s0", "s1"]), "variant": dg.StaticPartitionsDefinition(["a", "b"])}
)


@dg.asset(partitions_def=cells)
def pairs(context: dg.AssetExecutionContext) -> None:
    context.add_output_metadata({"made": context.partition_key})


@dg.asset
def editor() -> None:
    raise dg.Failure("no pairs were accepted")


@dg.asset(check_specs=[dg.AssetCheckSpec("gate", asset="clips", blocking=True)])
def clips() -> dg.MaterializeResult:
    return dg.MaterializeResult(check_results=[dg.AssetCheckResult(passed=False, description="no consent")])


@dg.asset
def generator() -> None:
    time.sleep(300)


defs = dg.Definitions(assets=[pairs, editor, clips, generator])
"""


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """Its home is that of the webserver."""
    home = tmp_path / "home"
    home.mkdir()
    direct = {"module": "dagster._core.run_coordinator", "class": "DefaultRunCoordinator"}
    config = {"telemetry": {"enabled": False}, "run_coordinator": direct}
    (home / "dagster.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    with dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(home))) as found:
        yield found


@pytest.fixture
def defs(tmp_path: Path) -> dg.Definitions:
    code = tmp_path / "code.py"
    code.write_text(CODE, encoding="utf-8")
    return runpy.run_path(str(code))["defs"]


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def webserver(folder: Path, port: int) -> Iterator[None]:
    """Serves the definitions on the instance until the block ends."""
    program = Path(sys.executable).with_name("dagster-webserver")
    with (folder / "webserver.log").open("w") as log:
        process = subprocess.Popen(
            [str(program), "-f", str(folder / "code.py"), "-p", str(port)],
            env={**os.environ, "DAGSTER_HOME": str(folder / "home")},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_for(f"http://127.0.0.1:{port}/server_info", process)
            yield
        finally:
            process.terminate()
            process.wait(60)


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        assert process.poll() is None, "the webserver ended"
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    pytest.fail("the webserver does not answer")


@pytest.mark.slow
def test_nodes_become_runs(instance: dg.DagsterInstance, defs: dg.Definitions, tmp_path: Path, port: int) -> None:
    settings = load_settings(
        state_root=tmp_path / "state",
        kubernetes={"webserver": f"http://127.0.0.1:{port}"},
        processes={"parallel_runs": 2},
    )
    tags = {"xdub/started_by": "test"}
    with SubmittedRuns(settings, defs, instance) as runs:
        made = runs.submit(Node("pairs", "s1|b"), tags, "planned")
        time.sleep(LOOK_EVERY)  # it is away at first: the planner asks again
        assert not made.done()
        with webserver(tmp_path, port):
            failed = runs.submit(Node("editor"), tags, "planned")
            refused = runs.submit(Node("clips"), tags, "planned").result(300)
            good, bad = made.result(300), failed.result(300)
    assert (good.status, good.reason) == (Status.DONE, "")
    assert (bad.status, bad.reason) == (Status.FAILED, "no pairs were accepted")
    assert (refused.status, refused.reason) == (Status.REJECTED, "no consent")
    run = instance.get_run_by_id(str(good.run_id))
    assert run is not None
    assert run.tags["xdub/started_by"] == "test"
    record = instance.get_latest_materialization_event(dg.AssetKey("pairs"))
    assert record is not None
    assert record.asset_materialization is not None
    assert record.asset_materialization.partition == "s1|b"
    assert record.asset_materialization.metadata["made"].value == "s1|b"


def begin(instance: dg.DagsterInstance, defs: dg.Definitions, node: Node) -> dg.DagsterRun:
    """A run at work, as a planner leaves it behind when its own pod dies."""
    job, key = defs.resolve_implicit_global_asset_job_def(), dg.AssetKey(node.asset)
    partitions = defs.resolve_asset_graph().get(key).partitions_def
    own = partitions.get_tags_for_partition_key(node.partition) if partitions and node.partition else {}
    return instance.create_run_for_job(
        job, asset_selection={key}, tags=own, run_config={}, status=dg.DagsterRunStatus.STARTED
    )


def succeed(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    event = dg.DagsterEvent(event_type_value=dg.DagsterEventType.RUN_SUCCESS.value, job_name=run.job_name)
    instance.report_dagster_event(event, run.run_id)


def test_what_a_dead_planner_left_at_work_is_waited_for(
    instance: dg.DagsterInstance, defs: dg.Definitions, tmp_path: Path
) -> None:
    settings = load_settings(state_root=tmp_path / "state", kubernetes={"webserver": NOWHERE, "patience_seconds": 0.0})
    nodes = [Node("pairs", "s0|a"), Node("pairs", "s1|b"), Node("editor")]
    left = {node: begin(instance, defs, node) for node in nodes}
    succeed(instance, left[Node("pairs", "s0|a")])  # one that has ended is no reason to make nothing
    with SubmittedRuns(settings, defs, instance) as runs:
        again, pairs, editor = (runs.submit(node, {}, "planned") for node in nodes)
        succeed(instance, left[nodes[1]])
        instance.report_run_failed(left[nodes[2]], "its pod was evicted")
        good, bad = pairs.result(60), editor.result(60)
        with pytest.raises(DagsterGraphQLClientError):  # a new run would be made, by a webserver that is not there
            again.result(60)
    assert (good.status, good.run_id) == (Status.DONE, left[nodes[1]].run_id)
    assert (bad.status, bad.reason, bad.run_id) == (Status.FAILED, "its pod was evicted", left[nodes[2]].run_id)


def test_a_planner_that_is_told_to_end_waits_for_nothing(
    instance: dg.DagsterInstance, defs: dg.Definitions, tmp_path: Path
) -> None:
    settings = load_settings(
        state_root=tmp_path / "state", kubernetes={"webserver": NOWHERE}, processes={"parallel_runs": 2}
    )

    def plan() -> None:
        with SubmittedRuns(settings, defs, instance) as runs:
            runs.submit(Node("editor"), {}, "planned")  # waits for the run that is at it
            runs.submit(Node("clips"), {}, "planned")  # asks a webserver that is away
            time.sleep(LOOK_EVERY)
            raise KeyboardInterrupt

    found = begin(instance, defs, Node("editor"))
    in_the_end = threading.Timer(30.0, succeed, [instance, found])
    in_the_end.start()
    with pytest.raises(KeyboardInterrupt):
        plan()
    left = instance.get_run_by_id(found.run_id)
    assert left is not None
    assert left.status is dg.DagsterRunStatus.STARTED, "another planner's is not ended"
    in_the_end.cancel()


@pytest.mark.slow
def test_a_planner_that_is_told_to_end_ends_its_runs(
    instance: dg.DagsterInstance, defs: dg.Definitions, tmp_path: Path, port: int
) -> None:
    settings = load_settings(state_root=tmp_path / "state", kubernetes={"webserver": f"http://127.0.0.1:{port}"})

    def wait_until(status: dg.DagsterRunStatus) -> None:
        for _ in range(1500):
            if instance.get_runs(dg.RunsFilter(statuses=[status])):
                return
            time.sleep(0.2)
        pytest.fail(f"the run is not {status}, but {[run.status for run in instance.get_runs()]}")

    def plan() -> None:
        with SubmittedRuns(settings, defs, instance) as runs:
            runs.submit(Node("generator"), {}, "planned")
            wait_until(dg.DagsterRunStatus.STARTED)
            raise KeyboardInterrupt

    with webserver(tmp_path, port):
        with pytest.raises(KeyboardInterrupt):
            plan()
        wait_until(dg.DagsterRunStatus.CANCELED)


@pytest.mark.slow
@pytest.mark.parametrize("patience", [600.0, 0.0], ids=["patient", "impatient"])
def test_a_database_that_is_away_for_a_while_ends_no_plan(
    defs: dg.Definitions, tmp_path: Path, postgres_server: PostgresServer, patience: float
) -> None:
    settings = load_settings(
        state_root=tmp_path / "state",
        database={"url": postgres_server.new_database()},
        kubernetes={"webserver": NOWHERE, "patience_seconds": patience},
    )
    with open_instance(settings) as instance:
        run = begin(instance, defs, Node("editor"))
        planner = Planner(defs, instance)
        with ThreadPoolExecutor(1) as pool, SubmittedRuns(settings, defs, instance) as runs:
            plan = pool.submit(planner.run, "key:editor", submit=runs.submit)
            time.sleep(2 * LOOK_EVERY)  # by now both its threads ask again and again
            postgres_server.stop()
            try:
                if patience == 0.0:
                    with pytest.raises(DagsterPostgresException):
                        plan.result(120)
                else:
                    time.sleep(15.0)  # longer than Dagster itself tries to connect
            finally:
                postgres_server.start()
            succeed(instance, run)
            if patience:
                (step,) = plan.result(120)
                assert (step.status, step.run_id) == (Status.DONE, run.run_id)
