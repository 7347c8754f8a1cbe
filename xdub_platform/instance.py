"""Dagster's home under the state root."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg
import yaml
from dagster._core.instance.ref import InstanceRef

from xdub_platform.settings import Settings

# Two runs in threads of one process may not both redirect its output; workers write logs of their own.
NO_CAPTURE = {"module": "dagster._core.storage.noop_compute_log_manager", "class": "NoOpComputeLogManager"}


def instance_config(settings: Settings) -> dict[str, Any]:
    """The ``dagster.yaml`` of a state root."""
    config: dict[str, Any] = {"telemetry": {"enabled": False}}
    if settings.database.url:
        config["storage"] = {"postgres": {"postgres_url": settings.database.url}}
    return config


def write_dagster_home(settings: Settings) -> Path:
    """Creates Dagster's home and its configuration; returns it."""
    home = settings.path("dagster")
    home.mkdir(parents=True, exist_ok=True)
    (home / "dagster.yaml").write_text(yaml.safe_dump(instance_config(settings)), encoding="utf-8")
    return home


def open_instance(settings: Settings) -> dg.DagsterInstance:
    """The instance that the UI shows, for runs inside this process."""
    home = write_dagster_home(settings)
    return dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(home), overrides={"compute_logs": NO_CAPTURE}))
