"""The one way a worker's output becomes an asset: worker -> registry -> gate -> MLflow -> Dagster."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg

from assets.gates import GATE, check_result
from model_code.files import write_json
from model_code.workers.run import RESULT as RESULT_FILE
from xdub_platform import pictures
from xdub_platform.integrity import whole
from xdub_platform.licences import RECORD, carried, licences_of
from xdub_platform.links import file_link, mlflow_link
from xdub_platform.partitions import folder_of
from xdub_platform.platform import Platform
from xdub_platform.resources.mlflow import MlflowRun
from xdub_platform.resources.quality import GateResult
from xdub_platform.resources.store import Dataset
from xdub_platform.resources.workers import COMMITTED, WorkerRun, committed
from xdub_platform.settings import Settings

RESULT = "result"
CHALLENGER = "challenger"
INPUTS = "inputs"
"""Record beside a product: which versions of which datasets it was made from."""

Metadata = dict[str, Any]


@dataclass(frozen=True)
class Product:
    """A committed dataset and what its worker said about it."""

    dataset: Dataset
    result: dict[str, Any]


@dataclass(frozen=True)
class Gate:
    """A named judgement over a product.

    Attributes:
        check: Name of the asset's check.
        judge: The judgement.
        thresholds: What of the settings it compares with that decides nothing else about the asset. No code version
            holds it: when it changes, what is there is judged again (`judged_again`), not made again.
        model: Registered model whose alias `challenger` hangs on the verdict; None: there is none.
    """

    check: str
    judge: Callable[[Platform, Product], GateResult]
    thresholds: Callable[[Settings], dict[str, float]] = lambda settings: {}
    model: str | None = None


def dataset_name(context: dg.AssetExecutionContext) -> str:
    """Where the asset's data lies in the registry: asset, or asset/shard, or asset/shard/variant."""
    folder = folder_of(context.partition_key if context.has_partition_key else None)
    asset = context.asset_key.to_user_string()
    return f"{asset}/{folder}" if folder else asset


def produce(
    context: dg.AssetExecutionContext,
    platform: Platform,
    worker: str,
    config: Mapping[str, Any],
    *,
    inputs: Sequence[Dataset] = (),
    gate: Gate | None = None,
    register: str | None = None,
    describe: Callable[[Product], Metadata] | None = None,
) -> dg.MaterializeResult:
    """Runs a worker and turns what it made into a materialisation.

    Args:
        context: Of the asset.
        platform: Resources.
        worker: Module of `model_code.workers`.
        config: The worker's configuration without its output folder.
        inputs: Datasets that it reads, for lineage.
        gate: Judges the product; the verdict is recorded beside the data.
        register: Name of the registered model, for models; `challenger` is its last version that no gate refused.
        describe: Further metadata.

    Raises:
        dagster.Failure: The worker failed, or another run is making the same.
    """
    name, config = dataset_name(context), {**config, "features": str(platform.settings.features)}
    versions = {each.name: each.version for each in inputs}
    with platform.workers.alone(context):
        with platform.mlflow.run(name, tags=run_tags(context)) as run:
            platform.store.recover()
            run.params({"worker": worker, **config})
            run.datasets(inputs, context.asset_key.to_user_string())
            scratch = platform.workers.scratch(context, config, versions)
            product = unregistered(platform, name, scratch)
            if product is None:
                product = commit(platform, name, platform.workers.run(context, worker, config, versions))
            platform.store.record(name, RESULT, product.result)
            platform.store.record(name, INPUTS, {"datasets": versions})
            licences = licences_of(platform, inputs)
            if licences or platform.store.recorded(name, RECORD):  # an old one would outlive what it was written for
                platform.store.record(name, RECORD, {"weights": licences})
            verdict = judged(platform, gate, product) if gate else None
            metadata = {**lineage(product, inputs, run, platform), **(describe(product) if describe else {})}
            track(run, product)
            if register:
                version = register_model(run, register, product, platform, carried(licences))
                metadata["model_version"] = version
                if verdict is None or verdict.passed:
                    platform.mlflow.set_alias(register, CHALLENGER, version)
        shutil.rmtree(scratch, ignore_errors=True)  # last: what fails before must not cost the worker's work
    return dg.MaterializeResult(
        data_version=dg.DataVersion(product.dataset.version),
        metadata=metadata,
        check_results=[check_result(gate.check, verdict, platform.settings)] if gate and verdict else [],
    )


def judged(platform: Platform, gate: Gate, product: Product) -> GateResult:
    """Judges a product and records the verdict beside the data, with the thresholds that it hangs on."""
    verdict = gate.judge(platform, product)
    record = {
        **verdict.as_record(),
        "thresholds": gate.thresholds(platform.settings),
        "version": product.dataset.version,  # it speaks of these bytes, whatever came in their place meanwhile
    }
    platform.store.record(product.dataset.name, GATE, record)
    return verdict


def judged_again(platform: Platform, gate: Gate, name: str) -> GateResult | None:
    """The new verdict over what is committed as `name`; None if the present one was found with these thresholds.

    The data stay as they are. A model that is accepted now becomes challenger.
    """
    store = platform.store
    before = store.recorded(name, GATE)
    if before is None or before.get("thresholds") == gate.thresholds(platform.settings):
        return None
    dataset, result = store.get(name), store.recorded(name, RESULT)
    if dataset is None or result is None:
        return None  # its own run has not come so far
    verdict = judged(platform, gate, Product(dataset, result))
    version = registered(platform, gate.model, dataset) if gate.model and verdict.passed else None
    if gate.model and version:
        platform.mlflow.set_alias(gate.model, CHALLENGER, version)
    return verdict


def commit(platform: Platform, name: str, done: WorkerRun) -> Product:
    """Moves a worker's output into the registry, and notes that in its scratch folder.

    ``result.json`` holds times; it is kept as a record beside the data, so that the same data has the same hash.
    """
    (done.output / RESULT_FILE).unlink()
    dataset = platform.store.put(name, done.output)
    write_json(done.scratch / COMMITTED, {"version": dataset.version, "result": done.result})
    return Product(dataset, done.result)


def unregistered(platform: Platform, name: str, scratch: Path) -> Product | None:
    """What an earlier run with this scratch folder committed, but failed to register; None: nothing.

    Where another version is in its place by now, what is left of it is removed.
    """
    told, dataset = committed(scratch), platform.store.get(name)
    if told and dataset and told["version"] == dataset.version:
        return Product(dataset, told["result"])
    if told:
        shutil.rmtree(scratch)
    return None


def run_tags(context: dg.AssetExecutionContext) -> dict[str, str]:
    """What links an MLflow run to Dagster."""
    partition = context.partition_key if context.has_partition_key else ""
    return {
        "dagster.run_id": context.run_id,
        "dagster.asset": context.asset_key.to_user_string(),
        "dagster.partition": partition,
    }


def lineage(product: Product, inputs: Sequence[Dataset], run: MlflowRun, platform: Platform) -> Metadata:
    """Where the data lies, what it was made from, and how it was measured."""
    dataset = product.dataset
    found: Metadata = {
        "dvc_version": dataset.version,
        "path": dg.MetadataValue.path(str(dataset.path)),
        "bytes": dataset.size,
        "mlflow_run": mlflow_link(run.experiment_id, run.run_id, platform.settings),
        "inputs": pictures.table([{"dataset": each.name, "version": each.version} for each in inputs]),
        "report": file_link(platform.settings.path("report", "index.html"), platform.settings),
        "settings": dg.MetadataValue.json(platform.resolved),
    }
    found.update(
        {key: value for key, value in product.result.get("metrics", {}).items() if isinstance(value, int | float)}
    )
    rows = product.result.get("curves", [])
    if rows:
        names = [key for key in ("loss", "flow", "accuracy", "validation_loss") if any(key in row for row in rows)]
        found["curves"] = pictures.inline(pictures.curves(rows, names), "training curves")
    for picture in product.result.get("pictures", []):
        path = dataset.path / picture
        if path.is_file():
            # A number may have the same name: the count of pairs, the last loss.
            found[f"{path.stem}_picture"] = pictures.picture_file(path)
    for video in product.result.get("videos", []):
        found[f"{'_'.join(Path(video).with_suffix('').parts)}_video"] = file_link(
            dataset.path / video, platform.settings
        )
    return found


def track(run: MlflowRun, product: Product) -> None:
    """Scores, curves, pictures and sample videos for MLflow."""
    run.tags({"dvc.version": product.dataset.version, "dvc.dataset": product.dataset.name})
    run.metrics(
        {key: value for key, value in product.result.get("metrics", {}).items() if isinstance(value, int | float)}
    )
    for row in product.result.get("curves", []):
        numbers = {key: value for key, value in row.items() if key != "step" and isinstance(value, int | float)}
        run.metrics(numbers, int(row["step"]))
    for media in (*product.result.get("pictures", []), *product.result.get("videos", [])):
        if (product.dataset.path / media).is_file():
            run.artifact(product.dataset.path / media, "samples")


def register_model(
    run: MlflowRun, name: str, product: Product, platform: Platform, more: Mapping[str, str] | None = None
) -> int:
    """Registers the product as the next version of a model, unless a whole version with the same bytes is there.

    Args:
        run: Receives the files.
        name: Of the registered model.
        product: What was made.
        platform: Resources.
        more: Tags of the new version, beside those that name its parts.
    """
    known = registered(platform, name, product.dataset)
    if known:
        return known
    run.artifact(product.dataset.path, "model")
    parts = {f"part.{part}": str(version) for part, version in product.result.get("versions", {}).items()}
    return run.register(name, "model", tags={"dvc.version": product.dataset.version, **parts, **(more or {})})


def registered(platform: Platform, name: str, dataset: Dataset) -> int | None:
    """The last whole version of a registered model with a dataset's bytes; None if there is none."""
    known = platform.mlflow.versions(name)
    same = [version for version, tags in known.items() if tags.get("dvc.version") == dataset.version]
    return next((version for version in sorted(same, reverse=True) if whole(platform, version, name) is None), None)


def files_in(folder: Path) -> list[Path]:
    """Files of a dataset, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file())
