"""Old models and data that nothing needs any more: every retrain adds some, and nothing else takes them away."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from model_code.errors import InputError
from xdub_platform.instance import UNFINISHED, open_instance
from xdub_platform.locks import seized
from xdub_platform.platform import Platform
from xdub_platform.promotion import WITHDRAWN, promotion_lock
from xdub_platform.resources.workers import lock_path
from xdub_platform.running import exclusive
from xdub_platform.weights import model_and_version

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

REGISTERING = ("syncnet", "identity_encoder", "generator", "editor", "lip_expert", "texture_expert", "dubber")
"""Assets whose runs register a model, or name one that has the same bytes."""


@dataclass(frozen=True)
class Pruned:
    """What was removed, or would be, and how many bytes that frees."""

    what: str
    size: int


def prune(platform: Platform, keep: int, dry_run: bool = False) -> list[Pruned]:
    """Removes registered versions that nothing needs, and then the data that no present or published dataset holds.

    Kept are the `keep` newest of each model, those with an alias or that the settings name, those that were withdrawn
    (only their number brings them back), and those whose bytes the data registry holds now or under a tag. So are
    all that no run of this state root has made: imported and assembled ones, and other state roots' in one MLflow.

    Args:
        platform: Resources.
        keep: How many of each registered model.
        dry_run: Only says what would go.

    Raises:
        InputError: There is no data registry, a run has not ended, or somebody else is at work.
    """
    store, client = platform.store, platform.mlflow.client()
    if not (store.folder / ".dvc").is_dir():
        raise InputError(f"there is no data registry in {store.folder}", "nothing was made here yet")
    with _alone(platform) as instance, store.locked():
        store.undo()
        needed, unneeded = store.usage()
        old = list(_old_versions(platform, instance, keep, needed))
        found = [
            Pruned(f"{each.name} version {each.version}", platform.mlflow.size(str(each.run_id), _place(each)))
            for each in old
        ]
        # Versions first: the data say which of them are needed.
        for version in () if dry_run else old:
            platform.mlflow.delete_artifacts(str(version.run_id), _place(version))
            client.delete_model_version(version.name, version.version)
        if unneeded and not dry_run:
            store.collect_garbage()
    return [*found, Pruned("data in DVC's cache", unneeded)] if unneeded else found


@contextmanager
def _alone(platform: Platform) -> Iterator[dg.DagsterInstance]:
    """No planner, promotion or run works meanwhile, nor has one stopped in the middle."""
    settings, work = platform.settings, Path(platform.workers.work_root)
    with exclusive(settings), promotion_lock(settings), ExitStack() as stack:
        for asset in REGISTERING:
            if not stack.enter_context(seized(lock_path(work, asset))):
                raise InputError(f"{asset} is being made", "wait until that run has ended")
        instance = stack.enter_context(open_instance(settings))
        for run in instance.get_runs(dg.RunsFilter(statuses=UNFINISHED), limit=1):
            told = f"run {run.run_id[:8]} of {run.job_name} has not ended"
            raise InputError(told, "wait for it; `xdub doctor --repair` ends one whose process was killed")
        yield instance


def _old_versions(
    platform: Platform, instance: dg.DagsterInstance, keep: int, needed: set[str]
) -> Iterator[ModelVersion]:
    settings, client = platform.settings, platform.mlflow.client()
    start = {model_and_version(settings, named) for named in (settings.start.generator, settings.start.editor) if named}
    for model in client.search_registered_models(max_results=1000):
        known = client.search_model_versions(f"name='{model.name}'")
        ours = [each for each in known if _made_here(client, instance, each)]
        named = {str(version) for version in model.aliases.values()}
        named |= {number for name, number in start if name == model.name}
        named |= {str(each.version) for each in known if WITHDRAWN in each.tags}
        named |= {str(each.version) for each in known if each.tags.get("dvc.version") in needed}
        old = [each for each in sorted(ours, key=_number)[:-keep] if str(each.version) not in named]
        numbers = {each.version for each in old}
        stays = {each.tags.get("dvc.version") for each in known if each.version not in numbers}
        # The same bytes registered anew may have their scores in the older version.
        yield from (each for each in old if each.tags["dvc.version"] not in stays)


def _made_here(client: MlflowClient, instance: dg.DagsterInstance, version: ModelVersion) -> bool:
    if "dvc.version" not in version.tags:
        return False
    run = client.get_run(str(version.run_id)).data.tags.get("dagster.run_id")
    return run is not None and instance.has_run(run)


def _number(version: ModelVersion) -> int:
    return int(version.version)


def _place(version: ModelVersion) -> str:
    """Folder of a version's files among its run's artifacts."""
    return str(version.source).removeprefix(f"runs:/{version.run_id}/")
