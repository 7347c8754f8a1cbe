"""Links from an asset's or run's metadata to what other tools show of it; paths where no address is set."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import dagster as dg

from xdub_platform.settings import Settings


def file_link(path: Path, settings: Settings) -> dg.UrlMetadataValue | dg.PathMetadataValue:
    """A page under the state root, such as Data Docs or the report."""
    base = settings.automation.files_url
    if base and path.is_relative_to(settings.state_root):
        return dg.MetadataValue.url(f"{base.rstrip('/')}/{quote(path.relative_to(settings.state_root).as_posix())}")
    return dg.MetadataValue.path(str(path))


def mlflow_link(experiment_id: str, run_id: str, settings: Settings) -> dg.UrlMetadataValue | dg.TextMetadataValue:
    """A run in MLflow's UI."""
    base = settings.automation.mlflow_ui_url
    if base:
        return dg.MetadataValue.url(f"{base.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}")
    return dg.MetadataValue.text(run_id)
