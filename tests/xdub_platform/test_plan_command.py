"""`xdub plan` as a user gives it."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from xdub_platform.cli import plan

COMMAND = [sys.executable, "-c", "from xdub_platform.cli import main; main()", "plan"]


def xdub_plan(*arguments: str, columns: int = 170) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": str(columns)}
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, env=environment, check=False)


@pytest.mark.slow
def test_the_clusters_plan_is_shown_and_written(tmp_path: Path) -> None:
    done = xdub_plan("--profile", "cluster", "--precision", "bf16", "--json", str(tmp_path / "plan.json"))
    assert done.returncode == 0, done.stderr
    for said in ("NVIDIA H100 SXM", "about 0.5", "with it", "FSDP", "companion pairs", "600 hours of footage"):
        assert said in done.stdout
    written = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))
    assert written["assumptions"]["accelerators"] == 32
    assert written["paper_days"] == {"generator": 1.0, "pairs": 2.0, "editor": 0.5}
    assert len(written["stages"]) == 7


def test_fp32_is_told(tmp_path: Path) -> None:
    written = tmp_path / "missing" / "plan.json"
    done = xdub_plan("--profile", "embedded", "--hours", "1", "--json", str(written))
    assert written.is_file()
    assert done.returncode == 0, done.stderr
    assert "--precision bf16" in done.stdout
    assert "Frozen networks: codec base; sound base; text none." in done.stdout


def test_an_unknown_accelerator_ends_in_one_line() -> None:
    done = xdub_plan("--profile", "embedded", "--accelerator", "abacus")
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "xdub: accelerator 'abacus' is not known (one of a100, h100, h200, b200, l40s, mi300x)"
    )


def test_the_commands_defaults_are_the_plans() -> None:
    """Written twice, because the command answers --help without loading torch."""
    from model_code.planning.accelerators import ACCELERATORS
    from model_code.planning.plan import Assumptions

    told = {name: value.default for name, value in inspect.signature(plan).parameters.items()}
    for name, value in Assumptions().model_dump().items():
        assert told[name] == value, name
    options = inspect.signature(plan, eval_str=True).parameters["accelerator"].annotation.__metadata__[0].help
    assert all(key in options for key in ACCELERATORS)
