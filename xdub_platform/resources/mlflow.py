"""MLflow: one run for each materialisation, datasets by their DVC digest, models by alias.

Runs hold plain artifacts (safetensors, JSON, pictures): nothing that is loaded may execute code, so no
`log_model` flavour is used. Metrics are buffered, because one `log_metric` on sqlite costs 21 ms.
"""

# No `from __future__ import annotations`: Dagster must see what a dependency is annotated with.

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse

import dagster as dg

from xdub_platform.locks import held
from xdub_platform.resources.store import Dataset

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

BATCH = 1000
ATTEMPTS = 10
PARAM_BATCH = 100
PARAM_LENGTH = 500
TAG_LENGTH = 2000
NOT_THERE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""MLflow's answers for what is not registered; the second for an alias, and for what is no number."""
MANIFEST = "manifest.json"
MANIFEST_TAG = "manifest.sha256"
"""Version tag with the hash of the run's artifact `MANIFEST`, which names every file of the model."""

SYNCNET = "xdub-syncnet"
"""Registered model of the chain's SyncNet; its alias `challenger` names the last one that its gate accepted."""
BRIEF = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
"""What `briefly` sets where a user has not; MLflow's own are 7 retries and 120 s."""


@contextmanager
def briefly() -> Iterator[None]:
    """Inside, a tracking server that does not answer is given up after seconds.

    For a look that somebody waits for; what brings large files keeps MLflow's patience.
    """
    added = BRIEF.keys() - os.environ.keys()
    os.environ.update({name: BRIEF[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


class MlflowRun:
    """One open run; created by `MlflowRuns.run`."""

    def __init__(self, client: "MlflowClient", run_id: str, experiment_id: str) -> None:
        self._client = client
        self._buffer: list[Any] = []
        self._logged: dict[str, Path] = {}
        self.run_id = run_id
        self.experiment_id = experiment_id

    def metric(self, name: str, value: float, step: int = 0) -> None:
        """Buffers one value of a curve."""
        from mlflow.entities import Metric
        from mlflow.utils.time import get_current_time_millis

        self._buffer.append(Metric(name, float(value), get_current_time_millis(), step))
        if len(self._buffer) >= BATCH:
            self.flush()

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Buffers several values of one step."""
        for name, value in values.items():
            self.metric(name, value, step)

    def flush(self) -> None:
        """Writes what is buffered."""
        if self._buffer:
            self._client.log_batch(self.run_id, metrics=self._buffer)
            self._buffer = []

    def params(self, config: Mapping[str, Any]) -> None:
        """Logs a resolved configuration, nested keys joined by dots."""
        from mlflow.entities import Param

        flat = [Param(key, value[:PARAM_LENGTH]) for key, value in flatten(config)]
        for start in range(0, len(flat), PARAM_BATCH):
            self._client.log_batch(self.run_id, params=flat[start : start + PARAM_BATCH])

    def datasets(self, datasets: Sequence[Dataset], context: str) -> None:
        """Logs inputs with their hashes as digests.

        Two runs that start together on the same new data both look for it, find nothing and insert it. The one that
        comes second breaks MLflow's unique key, on sqlite and Postgres alike; when it looks again, the rows are there.

        Raises:
            mlflow.exceptions.MlflowException: MLflow refused them for another reason.
        """
        from mlflow.entities import Dataset as MlflowDataset
        from mlflow.entities import DatasetInput, InputTag
        from mlflow.exceptions import MlflowException

        tag = InputTag("mlflow.data.context", context)
        inputs = [
            DatasetInput(MlflowDataset(each.name, each.version, source_type=each.source, source=str(each.path)), [tag])
            for each in datasets
        ]
        for attempt in range(ATTEMPTS):
            try:
                return self._client.log_inputs(self.run_id, inputs)
            except MlflowException as error:
                if "unique" not in str(error).lower() or attempt == ATTEMPTS - 1:
                    raise

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Copies a file or a whole directory into the run."""
        if path.is_dir():
            self._client.log_artifacts(self.run_id, str(path), folder)
            self._logged[folder or ""] = path
        else:
            self._client.log_artifact(self.run_id, str(path), folder)

    def text(self, name: str, text: str) -> None:
        """Writes a small text artifact."""
        self._client.log_text(self.run_id, text, name)

    def tags(self, values: Mapping[str, str]) -> None:
        """Sets tags."""
        for key, value in values.items():
            self._client.set_tag(self.run_id, key, value)

    def register(
        self, name: str, folder: str, *, alias: str | None = None, tags: Mapping[str, str] | None = None
    ) -> int:
        """Registers the directory logged as `folder` as the next version of the model `name`; returns the version.

        A manifest of what was logged goes with it: the files as they were here, not as they arrived, so that a
        copy which went wrong shows.

        Raises:
            ValueError: This run logged no directory as `folder`.
        """
        from mlflow.exceptions import MlflowException

        if folder not in self._logged:
            raise ValueError(f"this run logged no directory as '{folder}'")
        manifest = json.dumps(manifest_of(self._logged[folder]), indent=1)
        self.text(MANIFEST, manifest)
        digest = hashlib.sha256(manifest.encode()).hexdigest()
        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        version = self._client.create_model_version(
            name,
            source=f"runs:/{self.run_id}/{folder}",
            run_id=self.run_id,
            tags={**(tags or {}), MANIFEST_TAG: digest},
        )
        if alias:
            self._client.set_registered_model_alias(name, alias, version.version)
        return int(version.version)


class MlflowRuns(dg.ConfigurableResource):
    """Opens runs and finds registered models.

    Args:
        tracking_uri: ``sqlite:///...``, ``postgresql://...`` or a server's address. A dependency and no config: it may
            hold a password, and Dagster publishes a resource's config.
        artifact_root: Folder or ``s3://`` prefix of the artifacts; empty where a server decides.
        experiment: Experiment of all runs.

    Example:
        >>> runs = MlflowRuns(tracking_uri="sqlite:////tmp/mlflow.db", artifact_root="/tmp/artifacts")
        >>> with runs.run("editor", tags={"partition": "-"}) as run:
        ...     run.metric("loss", 0.3, step=1)
    """

    tracking_uri: dg.ResourceDependency[str]
    artifact_root: str = ""
    experiment: str = "xdub"

    def client(self) -> "MlflowClient":
        """A client of the tracking server and registry; creates the database at first use."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient

        with self._locked():
            return MlflowClient(tracking_uri=self.tracking_uri, registry_uri=self.tracking_uri)

    @contextmanager
    def run(self, name: str, *, tags: Mapping[str, str] | None = None) -> Iterator[MlflowRun]:
        """Opens a run; it ends as FINISHED, or as FAILED when the block raises."""
        client = self.client()
        experiment_id = self._experiment_id(client)
        run = MlflowRun(
            client, client.create_run(experiment_id, run_name=name, tags=dict(tags or {})).info.run_id, experiment_id
        )
        try:
            yield run
        except BaseException:
            run.flush()
            client.set_terminated(run.run_id, "FAILED")
            raise
        run.flush()
        client.set_terminated(run.run_id, "FINISHED")

    def model_version(self, name: str, version: str) -> Any | None:
        """A registered version by number or ``@alias``; None if there is none.

        Raises:
            mlflow.exceptions.MlflowException: The registry does not answer: that says nothing about the version.
        """
        from mlflow.exceptions import MlflowException

        client = self.client()
        try:
            if version.startswith("@"):
                return client.get_model_version_by_alias(name, version[1:])
            return client.get_model_version(name, version)
        except MlflowException as error:
            if error.error_code not in NOT_THERE:
                raise
            return None

    def model_path(self, name: str, version: str = "@champion", into: Path | None = None) -> Path | None:
        """The folder of a registered model's files; None if there is no such version or its files are gone.

        Args:
            name: Registered model.
            version: Number or ``@alias``.
            into: Folder for what must be downloaded, unless it is there; None takes a temporary one that stays.
        """
        found = self.model_version(name, version)
        if found is None:
            return None
        try:
            return self.artifact_path(found.run_id, found.source.removeprefix(f"runs:/{found.run_id}/"), into)
        except FileNotFoundError:
            return None

    def artifact_path(self, run_id: str, path: str, into: Path | None = None) -> Path:
        """Where an artifact lies on this machine: in place for local artifacts, else downloaded, unless it was before.

        Raises:
            FileNotFoundError: There is no such artifact.
        """
        from mlflow.exceptions import MlflowException

        folder = local_path(self._artifacts(run_id))
        if folder is not None:
            found = folder / path
        elif into is not None and (into / path).exists():
            found = into / path
        else:
            try:
                found = Path(self.client().download_artifacts(run_id, path, str(into) if into else None))
            except (MlflowException, OSError) as error:
                raise FileNotFoundError(f"artifact {path} of run {run_id}: {error}") from error
        if not found.exists():
            raise FileNotFoundError(f"artifact {path} of run {run_id} is missing")
        return found

    def write(self, run_id: str, folder: str, name: str, text: str) -> None:
        """Writes a small text artifact of a run that may have ended long ago."""
        with TemporaryDirectory() as scratch:
            file = Path(scratch, name)
            file.write_text(text, encoding="utf-8")
            self._repository(run_id).log_artifact(str(file), folder)

    def size(self, run_id: str, path: str) -> int:
        """Bytes of a folder of artifacts."""
        found = self._repository(run_id).list_artifacts(path)
        return sum(self.size(run_id, each.path) if each.is_dir else each.file_size or 0 for each in found)

    def delete_artifacts(self, run_id: str, path: str) -> None:
        """Removes a folder of artifacts; the rest of the run stays."""
        self._repository(run_id).delete_artifacts(path)

    def versions(self, name: str) -> dict[int, dict[str, str]]:
        """Tags of every version of a registered model; empty if there is none."""
        found = self.client().search_model_versions(f"name='{name}'")
        return {int(version.version): dict(version.tags) for version in found}

    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Points `alias` at a version."""
        self.client().set_registered_model_alias(name, alias, str(version))

    def _artifacts(self, run_id: str) -> str:
        """URI of a run's artifacts.

        MLflow remembers absolute paths. A state root that was moved or copied has the files in its own folder, and what
        lies at the old place may be another one's.
        """
        uri, place = str(self.client().get_run(run_id).info.artifact_uri), self._place
        here = place / run_id / "artifacts" if place is not None and local_path(uri) is not None else None
        return here.as_uri() if here is not None and here.is_dir() else uri

    def _repository(self, run_id: str) -> "ArtifactRepository":
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        return get_artifact_repository(self._artifacts(run_id), tracking_uri=self.tracking_uri)

    @property
    def _place(self) -> Path | None:
        """Our own folder of artifacts; None where they lie in a bucket, or a server decides."""
        return Path(self.artifact_root).absolute() if self.artifact_root and "://" not in self.artifact_root else None

    @property
    def _database(self) -> Path | None:
        """The file that the tracking database is; None where it is none."""
        is_file = self.tracking_uri.startswith("sqlite:///")
        return Path(self.tracking_uri.removeprefix("sqlite:///")).absolute() if is_file else None

    def _experiment_id(self, client: "MlflowClient") -> str:
        place = self._place
        with self._locked():
            found = client.get_experiment_by_name(self.experiment)
            if found is None:
                if place is not None:
                    place.mkdir(parents=True, exist_ok=True)
                location = place.as_uri() if place is not None else self.artifact_root or None
                return str(client.create_experiment(self.experiment, artifact_location=location))
            if place is not None and self._left(str(found.artifact_location), place):
                self._settle(str(found.experiment_id), place)
            return str(found.experiment_id)

    def _left(self, location: str, place: Path) -> bool:
        """Whether new runs would write to where the state root was before it was moved or copied here.

        A database beside our folder came along with it. One elsewhere may serve several state roots, the folder of one
        of which all write to, while it is there.
        """
        old = local_path(location)
        if old is None or old.resolve() == place.resolve():
            return False
        database = self._database
        return (database is not None and database.parent == place.parent) or not old.is_dir()

    def _settle(self, experiment_id: str, place: Path) -> None:
        """Has new runs write to `place`; MLflow itself has no way to say that of an experiment."""
        from sqlalchemy import NullPool, create_engine, text

        with create_engine(self.tracking_uri, poolclass=NullPool).begin() as connection:
            connection.execute(
                text("UPDATE experiments SET artifact_location = :place WHERE experiment_id = :number"),
                {"place": place.as_uri(), "number": int(experiment_id)},
            )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Two processes may not migrate one database at once; a server sees to that itself."""
        beside = self._database or self._place
        if beside is None:
            yield
            return
        with held(beside.with_suffix(".lock")):
            yield


def local_path(uri: str) -> Path | None:
    """The path that a URI of artifacts names on this machine; None if it names none."""
    parts = urlparse(uri)
    return Path(unquote(parts.path)) if parts.scheme in ("", "file") else None


def manifest_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Hash and size of every file under `folder`, by its relative path."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as handle:
                digest = hashlib.file_digest(handle, "sha256").hexdigest()
            found[path.relative_to(folder).as_posix()] = {"sha256": digest, "size": path.stat().st_size}
    return found


def flatten(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Dotted keys and printed values of a nested mapping."""
    rows: list[tuple[str, str]] = []
    for key, value in config.items():
        if isinstance(value, Mapping):
            rows += flatten(value, f"{prefix}{key}.")
        elif isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 32:
            rows.append((f"{prefix}{key}", f"{len(value)} values"))
        else:
            rows.append((f"{prefix}{key}", str(value)))
    return rows
