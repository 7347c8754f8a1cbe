"""The planner on a state root: what demo, commands, jobs and schedules all call."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluation

from assets.gates import check_result, refusal, verdict
from assets.produce import INPUTS, judged_again
from model_code.errors import InputError
from xdub_platform.chain import Node, Planner, Rules, Step
from xdub_platform.definitions import STAGES, build_definitions, stage_name
from xdub_platform.instance import open_instance
from xdub_platform.kubernetes import SubmittedRuns
from xdub_platform.locks import held
from xdub_platform.partitions import SHARDS_NAME, folder_of, is_heldout, shard_of, split_pair_key
from xdub_platform.platform import Platform, build_platform
from xdub_platform.processes import RunProcesses
from xdub_platform.settings import Settings
from xdub_platform.weights import moved

log = logging.getLogger(__name__)

HELD = ("syncnet", "identity_encoder", "generator")
"""What is made of the clips alone. New ones leave it as it is, or every shard that arrives would have all pairs made
again, unless its own gate refused it; changed settings do not, and `rebase_generator` makes it anew from all clips."""


def dataset_of(node: Node) -> str:
    """Where a node's data lies in the registry."""
    folder = folder_of(node.partition)
    return f"{node.asset}/{folder}" if folder else node.asset


def rules(platform: Platform, rebase: bool = False) -> Rules:
    """What the chain's planner cannot read off Dagster's graph; `rebase` lets go of what is held."""
    variants = platform.settings.variants

    def wanted(node: Node) -> bool:
        if node.partition is None or "|" not in node.partition:
            return True
        shard, variant = split_pair_key(node.partition)
        return not is_heldout(shard) and variant in variants

    def rejected(node: Node) -> str | None:
        return refusal(platform.store, dataset_of(node))

    def committed(node: Node) -> str | None:
        dataset = platform.store.get(dataset_of(node))
        return dataset.version if dataset else None

    def stays(node: Node) -> bool:
        return node.asset in HELD and not rebase and rejected(node) is None

    def other_weights(node: Node) -> str | None:
        made_from = (platform.store.recorded(dataset_of(node), INPUTS) or {}).get("datasets", {})
        return moved(platform, node.asset, made_from)

    def judged_otherwise(node: Node) -> Callable[[Node], bool]:
        # Only an asset without partitions chooses among those of an input.
        made_from = None if node.partition else platform.store.recorded(dataset_of(node), INPUTS)

        def changed(parent: Node) -> bool:
            if made_from is None or parent.partition is None:
                return False
            name = dataset_of(parent)
            if name in made_from["datasets"]:
                return refusal(platform.store, name) is not None
            return not is_heldout(shard_of(parent.partition)) and verdict(platform.store, name) is None

        return changed

    return Rules(wanted, rejected, committed, stays, other_weights, judged_otherwise)


def judge_again(platform: Platform, instance: dg.DagsterInstance) -> None:
    """Lets every gate whose thresholds have changed judge again what is there; Dagster's checks show its verdicts."""
    for asset, gate in {stage_name(stage): stage.gate for stage in STAGES if hasattr(stage, "gate")}.items():
        for name in platform.store.names(asset) or [asset]:
            found = judged_again(platform, gate, name)
            if found is None:
                continue
            log.info("%s is judged by other thresholds: %s", name, "; ".join(found.failures) or "accepted")
            shown = check_result(gate.check, found, platform.settings)
            instance.report_runless_asset_event(
                AssetCheckEvaluation(
                    asset_key=dg.AssetKey(asset),
                    check_name=gate.check,
                    passed=shown.passed,
                    metadata=shown.metadata,
                    severity=shown.severity,
                    description=f"{name}: {shown.description}",
                    blocking=True,
                )
            )


def take_in(settings: Settings, instance: dg.DagsterInstance, rest_seconds: float = 0.0) -> list[str]:
    """Makes shards of what lies at rest in the incoming folder; returns the new ones."""
    ledger = build_platform(settings).ledger
    new = ledger.take(settings.incoming, settings.clips_per_shard, rest_seconds)
    instance.add_dynamic_partitions(SHARDS_NAME, ledger.shards())
    return new


@contextmanager
def exclusive(settings: Settings, wait_seconds: float = 0.0) -> Iterator[None]:
    """Two planners on one state root would make everything twice.

    Args:
        settings: Of the state root.
        wait_seconds: How long to wait for another one.

    Raises:
        InputError: Another one is at work, and still was when the time was up.
    """
    with held(settings.path(".planner.lock"), wait_seconds) as free:
        if not free:
            raise InputError(f"another run is at work on {settings.state_root}", "wait for it, or set XDUB_STATE_ROOT")
        yield


def chain_planner(settings: Settings, instance: dg.DagsterInstance, started_by: str, rebase: bool = False) -> Planner:
    """The planner over the whole chain of `settings`."""
    return Planner(build_definitions(settings), instance, rules(build_platform(settings), rebase), started_by)


def run_chain(
    settings: Settings,
    *,
    selection: str = "*",
    shards: Collection[str] | None = None,
    rebase: bool = False,
    started_by: str = "command line",
    parent: dg.DagsterRun | None = None,
    instance: dg.DagsterInstance | None = None,
    wait_seconds: float = 0.0,
    watch: Callable[[Step], None] = lambda step: None,
) -> list[Step]:
    """Takes in new footage, judges again what was judged by other thresholds, and makes all selected that is stale.

    Args:
        settings: Of the state root.
        selection: Assets in Dagster's selection syntax.
        shards: Takes nothing in, and restricts the partitions to those of these shards; None means all.
        rebase: Also makes the held assets again whose inputs changed.
        started_by: Goes into the tags of every run.
        parent: The Dagster run that this happens in; its id joins the runs.
        instance: The open instance of that run.
        wait_seconds: How long to wait for another run on the same state root.
        watch: Told each step.

    Raises:
        InputError: Another run is at work on the same state root.
    """
    parallel = settings.processes.parallel_runs
    opened = nullcontext(instance) if instance else open_instance(settings)
    with exclusive(settings, wait_seconds), opened as home:
        if shards is None:
            take_in(settings, home)
        judge_again(build_platform(settings), home)
        planner = chain_planner(settings, home, started_by, rebase)

        def only(node: Node) -> bool:
            return shards is None or node.partition is None or shard_of(node.partition) in shards

        on_cluster = settings.processes.launcher == "kubernetes"
        if parallel == 1 and parent is None and not on_cluster:
            return planner.run(selection, only=only, watch=watch)
        with SubmittedRuns(settings, planner.defs, home) if on_cluster else RunProcesses(settings) as processes:
            return planner.run(
                selection,
                only=only,
                plan=parent.run_id if parent else None,
                parallel=parallel,
                submit=processes.submit,
                watch=watch,
            )
