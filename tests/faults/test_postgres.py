"""Dagster's records and MLflow's on a real Postgres that stops and comes back in the middle of a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.kills import not_whole, processes_of, versions
from tests.graph.test_whole_chain import SMALL
from tests.postgres import PostgresServer, postgres_server
from tests.shipped import need_base
from xdub_platform.demo import prepare_corpus
from xdub_platform.instance import open_instance
from xdub_platform.platform import build_platform
from xdub_platform.repair import leftovers
from xdub_platform.settings import load_settings

__all__ = ["postgres_server"]
AWAY_SECONDS = 2.0
PATIENCE = 900.0
"""Seconds after which a run is given up: the machine may be busy."""


@pytest.fixture
def root(tmp_path: Path, postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Footage of the smallest chain; the settings of this process and its children name two fresh databases."""
    need_base()
    for name, value in SMALL.items():
        monkeypatch.setenv(f"XDUB_{name.upper()}", value if isinstance(value, str) else json.dumps(value))
    monkeypatch.setenv("XDUB_PROCESSES__PARALLEL_RUNS", "1")
    monkeypatch.setenv("XDUB_DATABASE__URL", postgres_server.new_database())
    monkeypatch.setenv("XDUB_MLFLOW__TRACKING_URI", postgres_server.new_database())
    monkeypatch.setenv("XDUB_STATE_ROOT", str(tmp_path / "state"))
    prepare_corpus(load_settings(), lambda done, total: None)
    return tmp_path / "state"


class Run:
    """`xdub run` as a process."""

    def __init__(self, log: Path) -> None:
        self.log = log
        command = [sys.executable, "-c", "from xdub_platform.cli import main; main()"]
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [*command, "run", "--select", "key:raw_corpus or key:clips"],
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "COLUMNS": "400"},
            )

    def wait(self) -> int:
        try:
            return self.process.wait(timeout=PATIENCE)
        finally:
            self.process.kill()

    def told(self) -> str:
        return self.log.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("comes_back", ["in two seconds", "when the run has given up"])
def test_the_server_stops_in_mid_run(root: Path, postgres_server: PostgresServer, comes_back: str) -> None:
    chain = Run(root.parent / "first.log")
    deadline = time.monotonic() + PATIENCE
    while not list(processes_of(root)):
        assert chain.process.poll() is None, chain.told()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    postgres_server.stop()
    try:
        if comes_back == "when the run has given up":
            chain.wait()
        else:
            time.sleep(AWAY_SECONDS)
    finally:
        postgres_server.start()
    status, told = chain.wait(), chain.told()
    if comes_back == "when the run has given up":
        assert status == 3, told
        assert told.splitlines()[-1].startswith("xdub: the database does not answer"), told
    else:
        assert status == 0, told
    assert not_whole(root) == []
    leftovers(load_settings(), repair=True)
    check_rerun(root)


def check_rerun(root: Path) -> None:
    """A rerun makes what is missing, and every run that was begun has an end."""
    again = Run(root.parent / "again.log")
    assert again.wait() == 0, again.told()
    assert not_whole(root) == []
    assert {"clips/heldout-00000", "clips/shard-00000"} <= versions(root).keys()
    settings = load_settings()
    assert leftovers(settings) == []
    with open_instance(settings) as instance:
        assert {run.status.value for run in instance.get_runs()} <= {"SUCCESS", "FAILURE"}
    client = build_platform(settings).mlflow.client()
    experiment = client.get_experiment_by_name(settings.mlflow.experiment)
    assert experiment is not None
    assert experiment.artifact_location == settings.path("mlflow", "artifacts").as_uri()
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.status for run in runs} <= {"FINISHED", "FAILED", "KILLED"}
