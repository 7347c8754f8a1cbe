"""The config that docs/automation.md gives for the jobs that act is theirs."""

from __future__ import annotations

import re
from pathlib import Path

import dagster as dg
import pytest
import yaml

from ops.promote import promote, roll_back
from ops.publish import publish

PAGE = Path(__file__).resolve().parents[2] / "docs" / "automation.md"
JOBS = {job.name: job for job in (promote, roll_back, publish)}


def documented() -> dict[str, str]:
    """The config of each job, as its row has it."""
    return dict(re.findall(r"^\| `(\w+)` \| `(ops: .*?)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE))


def test_every_job_that_acts_has_a_row() -> None:
    assert documented().keys() == JOBS.keys()


@pytest.mark.parametrize("name", JOBS)
def test_the_config_is_the_jobs(name: str) -> None:
    assert dg.validate_run_config(JOBS[name], yaml.safe_load(documented()[name]))
