"""Workers as processes launched through Dagster Pipes."""

from pathlib import Path

import dagster as dg
import pytest

from xdub_platform.chain import failure_line
from xdub_platform.resources.workers import Workers


@pytest.fixture
def workers(tmp_path: Path) -> Workers:
    return Workers(work_root=str(tmp_path / "work"))


def run(workers: Workers, worker: str, config: dict[str, object]) -> dg.ExecuteInProcessResult:
    @dg.asset
    def made(context: dg.AssetExecutionContext) -> None:
        workers.run(context, worker, config)

    with dg.DagsterInstance.ephemeral() as instance:
        return dg.materialize([made], instance=instance, raise_on_error=False)


def test_bad_config_fails_with_the_workers_own_line(workers: Workers) -> None:
    result = run(workers, "ingest", {"shard": "shard-00000"})
    line = failure_line(result.all_events)
    assert line.startswith("worker ingest ended with status 2")
    assert "files: Field required" in line


def test_a_worker_that_does_not_exist_is_told(workers: Workers) -> None:
    line = failure_line(run(workers, "nothing", {}).all_events)
    assert "No module named model_code.workers.nothing" in line


def test_every_config_has_a_folder_of_its_own(workers: Workers, tmp_path: Path) -> None:
    for shard in ("shard-00000", "shard-00001", "shard-00001"):
        run(workers, "nothing", {"shard": shard})
    configs = list((tmp_path / "work" / "made" / "all").glob("*/config.json"))
    assert len(configs) == 2
