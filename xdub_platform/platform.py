"""What every asset gets: settings and the resources that hold data, runs, gates and workers."""

# No `from __future__ import annotations`: Dagster must see what a dependency is annotated with.

from typing import Any

import dagster as dg

from xdub_platform.incoming import ShardLedger
from xdub_platform.resources.mlflow import MlflowRuns
from xdub_platform.resources.quality import QualityGates
from xdub_platform.resources.store import DvcStore
from xdub_platform.resources.workers import Workers
from xdub_platform.settings import Settings


class Platform(dg.ConfigurableResource):
    """One state root with everything on it.

    Args:
        settings: The typed settings. A dependency and no config: Dagster publishes a resource's config, and runs in
            other processes build their own from the environment.
        resolved: The same without secrets, as the UI shows them and every run records them.
        store: Data registry.
        mlflow: Runs and models.
        quality: Gates.
        workers: Long steps.
    """

    settings: dg.ResourceDependency[Settings]
    resolved: dict[str, Any]
    store: DvcStore
    mlflow: MlflowRuns
    quality: QualityGates
    workers: Workers

    @property
    def ledger(self) -> ShardLedger:
        """Which incoming files make which shard."""
        return ShardLedger(self.settings.path("shards"))


def build_platform(settings: Settings) -> Platform:
    """The resources of one state root; touches nothing on disk."""
    return Platform(
        settings=settings,
        resolved=settings.without_secrets(),
        store=DvcStore(
            root=str(settings.path("registry")),
            remote_url=settings.store.url or "",
            s3_endpoint=settings.store.s3_endpoint or "",
        ),
        mlflow=MlflowRuns(
            tracking_uri=settings.mlflow_uri,
            # A server decides itself; a bare database has nothing to say, and MLflow would write where we stand.
            artifact_root="" if settings.mlflow_uri.startswith("http") else str(settings.path("mlflow", "artifacts")),
            experiment=settings.mlflow.experiment,
        ),
        quality=QualityGates(docs_root=str(settings.path("docs"))),
        workers=Workers(
            work_root=str(settings.path("work")),
            threads=settings.processes.threads,
            training_threads=settings.processes.training_threads,
            training_processes=settings.processes.training_processes,
            trained_together=list(settings.processes.trained_together),
        ),
    )
