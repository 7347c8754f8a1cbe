"""What arrived, untouched: the first asset of the chain."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import dagster as dg

from assets.produce import dataset_name, files_in, run_tags
from model_code.files import write_json
from xdub_platform import pictures
from xdub_platform.incoming import IncomingFile, as_it_lies, members_of
from xdub_platform.links import file_link, mlflow_link
from xdub_platform.partitions import shards
from xdub_platform.platform import Platform
from xdub_platform.settings import Settings

VERSION = "1"
SHOWN = 40
REPLACED = ".replaced.json"
"""Beside a shard's footage: names of videos that were replaced before they were copied."""


def config(settings: Settings) -> dict[str, object]:
    """Nothing but the files decides what a raw shard is."""
    return {}


@dg.asset(
    partitions_def=shards,
    group_name="footage",
    kinds={"dvc", "video"},
    owners=["team:footage"],
    tags={"xdub/stage": "1"},
)
def raw_corpus(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult:
    """Footage of one shard as it lay in the incoming folder.

    Video, sound, sidecar with licence and consent, occluder masks.
    """
    settings, name = platform.settings, dataset_name(context)
    listed = platform.ledger.files(context.partition_key)
    with platform.workers.alone(context):
        platform.store.recover()
        folder, files = copied(settings, context.partition_key, listed)
        replaced = [file.name for file in listed if file not in files]
        if replaced:
            context.log.warning(f"replaced since they were listed, left to a later shard: {', '.join(replaced)}")
            write_json(folder / REPLACED, replaced)
        dataset = platform.store.put(name, folder)
    rows = [sidecar_row(dataset.path / file.name) for file in files]
    # Nothing has looked into these files yet, so that the picture does not either.
    megabytes = {file.name: file.size / 1e6 for file in files[:SHOWN]}
    with platform.mlflow.run(name, tags=run_tags(context)) as run:
        run.metrics({"files": len(files), "bytes": dataset.size})
        run.tags({"dvc.version": dataset.version})
        mlflow_run = mlflow_link(run.experiment_id, run.run_id, settings)
    return dg.MaterializeResult(
        data_version=dg.DataVersion(dataset.version),
        metadata={
            "videos": len(files),
            "replaced": replaced,
            "files": len(files_in(dataset.path)),
            "bytes": dataset.size,
            "speakers": len({row["speaker"] for row in rows}),
            "sources": pictures.table(rows),
            "sizes": pictures.inline(pictures.bars(megabytes, "MB"), "sizes of the videos"),
            "report": file_link(settings.path("report", "index.html"), settings),
            "path": dg.MetadataValue.path(str(dataset.path)),
            "dvc_version": dataset.version,
            "mlflow_run": mlflow_run,
        },
    )


def copied(settings: Settings, shard: str, files: Sequence[IncomingFile]) -> tuple[Path, list[IncomingFile]]:
    """A folder with copies of the shard's videos and all that belongs to them, and which videos those are.

    One that was replaced since is left out: the ledger does not know it and takes it in again.

    Raises:
        dagster.Failure: A file is no longer in the incoming folder.
    """
    scratch, found = settings.path("work", "raw_corpus", shard), list[IncomingFile]()
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    for file in files:
        video = settings.incoming / file.name
        if not video.is_file():
            raise dg.Failure(
                f"{video} has left the incoming folder before it was taken in: put it back", allow_retries=False
            )
        for member in members_of(video):
            shutil.copyfile(member, scratch / member.name)
        if file in as_it_lies(video).rows:  # looked at last: it may be replaced while it is copied
            found.append(file)
        else:
            (scratch / video.name).unlink()
    return scratch, found


def sidecar_row(video: Path) -> dict[str, str]:
    """Who a video shows and under what terms, as its sidecar says."""
    try:
        sidecar = json.loads(video.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        sidecar = {}
    named = {
        "speaker": "speaker_id",
        "language": "language",
        "licence": "licence",
        "consent": "consent",
        "split": "split",
    }
    return {"file": video.name, **{name: str(sidecar.get(key, "")) for name, key in named.items()}}
