"""The planner's run processes end with it, whether they are still importing, at work or idle."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import psutil
import pytest

from xdub_platform import processes
from xdub_platform.instance import open_instance
from xdub_platform.settings import load_settings

PLANNER = """
import time
from xdub_platform.chain import Node
from xdub_platform.processes import RunProcesses
from xdub_platform.settings import load_settings

if __name__ == "__main__":
    with RunProcesses(load_settings()) as processes:
        future = processes.submit(Node("raw_corpus", "shard-00000"), {}, "run")
        print("begun", flush=True)
        if WAIT:
            future.exception()
            print("idle", flush=True)
        time.sleep(600)
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["begun", "idle"])
def test_run_processes_end_with_the_planner(tmp_path: Path, moment: str) -> None:
    script = tmp_path / "planner.py"
    script.write_text(PLANNER.replace("WAIT", str(moment == "idle")), encoding="utf-8")
    environment = {**os.environ, "XDUB_STATE_ROOT": str(tmp_path / "state")}
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment) as planner:
        assert planner.stdout is not None
        while planner.stdout.readline().strip() != moment:
            assert planner.poll() is None
        children = psutil.Process(planner.pid).children(recursive=True)
        assert len(children) >= 2
        time.sleep(0.5)
        planner.kill()
    assert children
    assert living(children) == []


def living(children: list[psutil.Process]) -> list[psutil.Process]:
    """Those that have not ended within a minute; they are ended now."""
    alive: list[psutil.Process] = psutil.wait_procs(children, timeout=60)[1]
    for process in alive:
        process.kill()
    return alive


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [1, 2])
def test_a_planner_that_is_told_to_end_takes_its_run_along(tmp_path: Path, parallel: int) -> None:
    settings = load_settings(state_root=tmp_path / "state", processes={"parallel_runs": parallel})
    settings.incoming.mkdir(parents=True)
    (settings.incoming / "a.mp4").write_bytes(b"no video")
    environment = {
        **os.environ,
        "XDUB_STATE_ROOT": str(settings.state_root),
        "XDUB_PROCESSES__PARALLEL_RUNS": str(parallel),
    }
    command = [sys.executable, "-c", "from xdub_platform.cli import main; main()", "run"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment) as planner:
        while not list(settings.path("work", "clips").glob("*/*/worker.log")):
            assert planner.poll() is None
            time.sleep(0.05)
        children = psutil.Process(planner.pid).children(recursive=True)
        planner.terminate()
        assert planner.wait(60) != 0
    assert children
    assert living(children) == []
    with open_instance(settings) as instance:
        runs = {str(next(iter(run.asset_selection or ()))): run.status for run in instance.get_runs()}
    clips, raw = str(dg.AssetKey("clips")), str(dg.AssetKey("raw_corpus"))
    assert runs == {raw: dg.DagsterRunStatus.SUCCESS, clips: dg.DagsterRunStatus.FAILURE}


@pytest.mark.slow
def test_a_run_process_that_does_not_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "LEAVE", 2.0)
    before = multiprocessing.active_children()
    settings = load_settings(state_root=tmp_path, processes={"parallel_runs": 1})
    runs = processes.RunProcesses(settings)
    runs.pool.submit(signal.signal, signal.SIGTERM, signal.SIG_IGN).result()
    runs.pool.submit(time.sleep, 600)
    time.sleep(1.0)
    runs.__exit__(OSError, OSError(), None)
    assert multiprocessing.active_children() == before


@pytest.mark.slow
def test_an_idle_run_process_that_is_ended_does_not_hold_up_the_others(tmp_path: Path) -> None:
    settings = load_settings(state_root=tmp_path, processes={"parallel_runs": 2})
    with open_instance(settings):
        runs = processes.RunProcesses(settings)
        begun: set[int] = set()
        while len(begun) < 2:
            nap = runs.pool.submit(time.sleep, 0.2)
            begun.add(runs.pool.submit(os.getpid).result())
            nap.result()
        runs.pool.submit(signal.signal, signal.SIGTERM, signal.SIG_IGN).result()
        # While it naps, the other one takes the lock under which they wait for work.
        runs.pool.submit(time.sleep, 0.2).result()
        time.sleep(0.5)
        start = time.monotonic()
        runs.__exit__(OSError, OSError(), None)
    assert time.monotonic() - start < processes.LEAVE / 2
