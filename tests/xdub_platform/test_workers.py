"""Workers as processes launched through Dagster Pipes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import psutil
import pytest

from model_code.lifetime import PARENT
from xdub_platform.chain import failure_line
from xdub_platform.resources.workers import Workers, lock_path, started


@pytest.fixture
def workers(tmp_path: Path) -> Workers:
    return Workers(work_root=str(tmp_path / "work"))


def run(
    workers: Workers,
    worker: str,
    config: dict[str, object],
    inputs: dict[str, str] | None = None,
    code: str | None = None,
) -> dg.ExecuteInProcessResult:
    @dg.asset(code_version=code)
    def made(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        workers.run(context, worker, config, inputs or {})
        return dg.MaterializeResult()

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


def test_every_version_of_the_inputs_has_a_folder_of_its_own(workers: Workers, tmp_path: Path) -> None:
    for version in ("1.dir", "2.dir", "2.dir"):
        run(workers, "nothing", {"shard": "shard-00000"}, {"raw_corpus/shard-00000": version})
    configs = list((tmp_path / "work" / "made" / "all").glob("*/config.json"))
    assert len(configs) == 2


def test_every_code_version_has_a_folder_of_its_own(workers: Workers, tmp_path: Path) -> None:
    for code in ("1", "2", "2"):
        run(workers, "nothing", {"shard": "shard-00000"}, code=code)
    configs = list((tmp_path / "work" / "made" / "all").glob("*/config.json"))
    assert len(configs) == 2


def test_the_same_asset_and_partition_is_made_once_at_a_time(workers: Workers, tmp_path: Path) -> None:
    made: list[str] = []

    @dg.asset(partitions_def=dg.StaticPartitionsDefinition(["s0", "s1"]))
    def clips(context: dg.AssetExecutionContext) -> None:
        with workers.alone(context):
            made.append(context.partition_key)

    def materialise(partition: str) -> dg.ExecuteInProcessResult:
        return dg.materialize([clips], partition_key=partition, raise_on_error=False)

    lock = lock_path(tmp_path / "work", "clips", "s0")
    other = (
        "from pathlib import Path; from xdub_platform.locks import Owner, owned\n"
        f"with owned(Path({str(lock)!r}), Owner('clips[s0]', 'run-of-a-planner')): print(1, flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", other], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        line = failure_line(materialise("s0").all_events)
        assert line.startswith("clips[s0] is already being made by run run-of-a (process")
        assert materialise("s1").success
        process.kill()
    assert materialise("s0").success
    assert made == ["s1", "s0"]
    assert not lock.exists()


def test_finished_work_is_not_done_again(workers: Workers, tmp_path: Path) -> None:
    config: dict[str, object] = {"files": str(tmp_path / "raw"), "shard": "shard-00000"}
    (tmp_path / "raw").mkdir()
    assert run(workers, "ingest", config).success  # no video: an empty shard
    (scratch,) = (tmp_path / "work" / "made" / "all").glob("*/config.json")
    output = scratch.parent / "output"
    before = (output / "manifest.parquet").stat()
    (output / "result.json").unlink()  # whoever commits it was killed here
    assert run(workers, "ingest", config).success
    assert (output / "manifest.parquet").stat() == before
    for path in output.iterdir():
        path.unlink()
    assert run(workers, "ingest", config).success
    assert (output / "manifest.parquet").is_file()


def test_a_workers_children_end_with_it(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(
        "import subprocess, time\nfrom model_code.lifetime import die_with_parent\n"
        "from model_code.workers.run import guarded\n"
        "die_with_parent()\nwith guarded():\n"
        "    child = subprocess.Popen(['sleep', '600'])\n    print(child.pid, flush=True)\n    time.sleep(600)\n",
        encoding="utf-8",
    )
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, start_new_session=True) as worker:
        assert worker.stdout is not None
        child = psutil.Process(int(worker.stdout.readline()))
        worker.kill()
        worker.stdout.close()
    assert psutil.wait_procs([child], timeout=20)[1] == []


def test_a_worker_whose_parent_is_gone_does_not_begin(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "model_code.workers.ingest", "--config", str(tmp_path / "config.json")],
        env={**os.environ, PARENT: "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.endswith("the process that started this one has ended\n")


def test_a_worker_that_hears_no_signal_does_not_outlive_the_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xdub_platform.resources.workers.PARTING", 0.2)
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    log = tmp_path / "log"
    with log.open("wb") as file, started([sys.executable, "-c", code], {}, file) as process:
        while not log.stat().st_size:
            time.sleep(0.01)
    assert process.returncode == -signal.SIGKILL
