"""Dagster's home under the state root."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg
import yaml
from dagster._core.instance.ref import InstanceRef
from dagster._core.storage.dagster_run import ACTIVE_RUN_STATUSES

from model_code.files import write_text
from xdub_platform.chain import KIND_TAG, MAKE, PLAN
from xdub_platform.settings import Settings

# Two runs in threads of one process may not both redirect its output; workers write logs of their own.
NO_CAPTURE = {"module": "dagster._core.storage.noop_compute_log_manager", "class": "NoOpComputeLogManager"}
DATABASE = "XDUB_DATABASE__URL"
UNFINISHED = [dg.DagsterRunStatus.QUEUED, *ACTIVE_RUN_STATUSES]
"""Of runs that wait or are at work; one that was never queued is not among them: nobody would start it."""


def instance_config(settings: Settings) -> dict[str, Any]:
    """The ``dagster.yaml`` of a state root."""
    parallel = settings.processes.parallel_runs
    config: dict[str, Any] = {
        "telemetry": {"enabled": False},
        "run_coordinator": {
            "module": "xdub_platform.automation.origin",
            "class": "AttributedRunCoordinator",
            "config": {
                # Two planners would wait for each other's lock. What a planner starts is counted, though not queued:
                # a run by hand waits for a free place, and one that acts, such as a promotion, for nothing.
                "max_concurrent_runs": parallel + 3,
                "tag_concurrency_limits": [
                    {"key": KIND_TAG, "value": PLAN, "limit": 1},
                    {"key": KIND_TAG, "value": MAKE, "limit": parallel},
                ],
            },
        },
        # Only what lost its process starts again by itself; what failed would fail again.
        "run_retries": {"enabled": True, "max_retries": 0, "retry_on_asset_or_op_failure": False},
        "freshness": {"enabled": True},
        # Loading takes seconds, but on a machine whose cores train it can take minutes.
        "code_servers": {"local_startup_timeout": 600},
    }
    if settings.database.url:
        # By name: others may read the file, and the command lines of Dagster's processes, which quote it.
        config["storage"] = _storage({"env": DATABASE})
    return config


def dagster_environment(settings: Settings) -> dict[str, str]:
    """Creates Dagster's home; what Dagster's own commands need in their environment to open it."""
    found = {"DAGSTER_HOME": str(_write_home(settings))}
    return {**found, DATABASE: settings.database.url} if settings.database.url else found


def open_instance(settings: Settings) -> dg.DagsterInstance:
    """The instance that the UI shows, for runs inside this process."""
    overrides: dict[str, Any] = {"compute_logs": NO_CAPTURE}
    if settings.database.url:
        overrides["storage"] = _storage(settings.database.url)
    return dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(_write_home(settings)), overrides=overrides))


def _write_home(settings: Settings) -> Path:
    home = settings.path("dagster")
    # Whole at every moment: other processes read it while runs of this state root open their instances.
    write_text(home / "dagster.yaml", yaml.safe_dump(instance_config(settings)))
    return home


def _storage(url: str | dict[str, str]) -> dict[str, Any]:
    return {"postgres": {"postgres_url": url}}
