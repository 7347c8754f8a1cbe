"""Fixtures that every room's tests share."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings

from xdub_platform.settings import KNOWN_ENVIRONMENT

REPOSITORY = Path(__file__).resolve().parent.parent

for name in [name for name in os.environ if name.upper().startswith("XDUB_")]:
    if name not in KNOWN_ENVIRONMENT - {"XDUB_WEBHOOK_SECRET"}:
        del os.environ[name]  # a setting of whoever runs the tests
os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DAGSTER_DISABLE_TELEMETRY", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
settings.register_profile("patient", deadline=None)  # a busy machine is no failure
settings.load_profile("patient")

SYSTEM_PACKAGE = "needs the system package"
"""How the reason of a skip begins where only an administrator can install what is missing."""
OUTSIDE_FOLDER = "needs the folder"
"""How it begins where data that the repository does not hold are absent, and nobody said that they are there."""


def _outside_folder(variable: str, default: str) -> Path:
    folder = Path(os.environ.get(variable, REPOSITORY / default))
    if not folder.is_dir():
        if variable in os.environ:
            pytest.fail(f"{variable} names {folder}, which is no folder")
        pytest.skip(f"{OUTSIDE_FOLDER} {folder}; point {variable} at it")
    return folder


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Tensors made with the released X-Dub code; XDUB_GOLDEN_DIR names another folder of the same form."""
    return _outside_folder("XDUB_GOLDEN_DIR", "../shared/golden/xdub_public")


@pytest.fixture(scope="session")
def clips_dir() -> Path:
    """Real talking clips and other speech; XDUB_CLIPS_DIR names another folder."""
    return _outside_folder("XDUB_CLIPS_DIR", "../shared/clips")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Under XDUB_NO_SKIP=1 a skip is a failure, unless it is for something that `make` cannot install."""
    report = yield
    optional = report.skipped and any(what in str(report.longrepr) for what in (SYSTEM_PACKAGE, OUTSIDE_FOLDER))
    if report.skipped and not optional and not hasattr(report, "wasxfail") and os.environ.get("XDUB_NO_SKIP") == "1":
        report.outcome = "failed"
        report.longrepr = f"skipped although XDUB_NO_SKIP=1: {report.longrepr}"
    return report
