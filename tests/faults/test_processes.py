"""The planner's run processes end with it, whether they are still importing, at work or idle."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

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
    gone, alive = psutil.wait_procs(children, timeout=60)
    for process in alive:
        process.kill()
    assert alive == []
    assert gone
