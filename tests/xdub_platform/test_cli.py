"""The `xdub` command as a process: quick help, one line and exit code 2 for bad input."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from xdub_platform.cli import app


def xdub(*arguments: str, state: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    given = {**os.environ, **environment, **({"XDUB_STATE_ROOT": str(state)} if state else {})}
    command = [sys.executable, "-c", "from xdub_platform.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=given, check=False)


def test_help_loads_nothing_heavy() -> None:
    code = "import sys, xdub_platform.cli; print(*{'torch', 'dagster', 'mlflow', 'numpy'} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []
    done = xdub("--help")
    assert done.returncode == 0
    for command in ("demo", "dub", "ingest", "benchmark", "status", "doctor"):
        assert f"  {command} " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["dub", "video.mp4", "speech.wav", "-o", "out.mp4"], "no version @champion of xdub-dubber is registered"),
        (
            ["dub", "a.mp4", "b.wav", "-o", "c.mp4", "--speaker", "left"],
            "the speaker 'left' is neither a number from 1",
        ),
        (["ingest", "missing.mp4"], "'missing.mp4' does not exist (check the path)"),
        (["status", "--profile", "tiny"], "setting PROFILE='tiny'"),
        (["run", "--select", "key:editro"], "'key:editro' selects no asset (write key:NAME; the assets are bench"),
        (["run", "--plan", "--select", "editro"], "'editro' selects no asset"),
        (["run", "--plan", "--select", "key:("], "'key:(' selects no asset"),
    ],
)
def test_bad_input_ends_in_one_line(tmp_path: Path, arguments: list[str], said: str) -> None:
    done = xdub(*arguments, state=tmp_path / "state")
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("xdub: ")]
    assert len(lines) == 1
    assert said in lines[0]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("command", "environment", "said"),
    [
        ("status", {"XDUB_DATABASE__URL": "postgresql://xdub@127.0.0.1:9/xdub"}, "the database does not answer"),
        (
            "promote",
            {"XDUB_MLFLOW__TRACKING_URI": "http://xdub:HUNTER2@127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"},
            "the MLflow server at $XDUB_MLFLOW__TRACKING_URI does not answer",
        ),
    ],
)
def test_what_does_not_answer_is_told_in_one_line(
    tmp_path: Path, command: str, environment: dict[str, str], said: str
) -> None:
    done = xdub(command, state=tmp_path / "state", **environment)
    assert done.returncode == 3, done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"xdub: {said}")
    assert "Traceback" not in done.stderr
    assert "HUNTER2" not in done.stderr


def test_a_benchmark_of_no_case_is_refused() -> None:
    told = CliRunner().invoke(app, ["benchmark", "--cases", "0"])
    assert told.exit_code == 2
    assert "--cases" in told.output


def test_a_text_file_is_no_footage(tmp_path: Path) -> None:
    note = tmp_path / "note.txt"
    note.write_text("hello", encoding="utf-8")
    done = xdub("ingest", str(note), state=tmp_path / "state")
    assert done.returncode == 2
    assert "has no video's suffix" in done.stderr


def test_the_plan_of_an_empty_state_lists_the_chain(tmp_path: Path) -> None:
    done = xdub("run", "--plan", state=tmp_path / "state", COLUMNS="160")
    assert done.returncode == 0, done.stderr
    assert "benchmark_scores" in done.stdout
    assert "never made" in done.stdout


def test_a_plan_takes_nothing_in(tmp_path: Path) -> None:
    incoming = tmp_path / "state" / "incoming"
    incoming.mkdir(parents=True)
    (incoming / "arriving.mp4").write_bytes(b"no vi")
    done = xdub("run", "--plan", state=tmp_path / "state", COLUMNS="160")
    assert done.returncode == 0, done.stderr
    assert f"new files in {incoming}: 1; a run takes them in" in done.stdout
    assert not list((tmp_path / "state").glob("shards/*"))
    assert "shard-00000" not in done.stdout
