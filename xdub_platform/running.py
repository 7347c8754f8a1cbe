"""The planner on a state root: what demo, commands, jobs and schedules all call."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import dagster as dg

from assets.gates import GATE
from model_code.errors import InputError
from xdub_platform.chain import Node, Planner, Rules, Step
from xdub_platform.definitions import build_definitions
from xdub_platform.instance import open_instance
from xdub_platform.partitions import SHARDS_NAME, folder_of, is_heldout, split_pair_key
from xdub_platform.platform import Platform, build_platform
from xdub_platform.processes import RunProcesses
from xdub_platform.settings import Settings


def dataset_of(node: Node) -> str:
    """Where a node's data lies in the registry."""
    folder = folder_of(node.partition)
    return f"{node.asset}/{folder}" if folder else node.asset


def rules(platform: Platform) -> Rules:
    """What the chain's planner cannot read off Dagster's graph."""
    variants = platform.settings.variants

    def wanted(node: Node) -> bool:
        if node.partition is None or "|" not in node.partition:
            return True
        shard, variant = split_pair_key(node.partition)
        return not is_heldout(shard) and variant in variants

    def rejected(node: Node) -> str | None:
        gate = platform.store.recorded(dataset_of(node), GATE)
        return None if gate is None or gate["passed"] else "; ".join(gate["failures"])

    def committed(node: Node) -> str | None:
        dataset = platform.store.get(dataset_of(node))
        return dataset.version if dataset else None

    return Rules(wanted, rejected, committed)


def take_in(settings: Settings, instance: dg.DagsterInstance, rest_seconds: float = 0.0) -> list[str]:
    """Makes shards of what lies at rest in the incoming folder; returns the new ones."""
    ledger = build_platform(settings).ledger
    new = ledger.take(settings.incoming, settings.clips_per_shard, rest_seconds)
    instance.add_dynamic_partitions(SHARDS_NAME, ledger.shards())
    return new


@contextmanager
def exclusive(settings: Settings) -> Iterator[None]:
    """Two planners on one state root would make everything twice.

    Raises:
        InputError: Another one is at work.
    """
    settings.state_root.mkdir(parents=True, exist_ok=True)
    with settings.path(".planner.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"another run is at work on {settings.state_root}", "wait for it, or set XDUB_STATE_ROOT"
            ) from error
        yield


def chain_planner(settings: Settings, instance: dg.DagsterInstance, started_by: str) -> Planner:
    """The planner over the whole chain of `settings`."""
    return Planner(build_definitions(settings), instance, rules(build_platform(settings)), started_by)


def run_chain(
    settings: Settings,
    *,
    selection: str = "*",
    started_by: str = "command line",
    watch: Callable[[Step], None] = lambda step: None,
) -> list[Step]:
    """Takes in new footage and makes everything selected that is stale.

    Raises:
        InputError: Another run is at work on the same state root.
    """
    parallel = settings.processes.parallel_runs
    with exclusive(settings), open_instance(settings) as instance:
        take_in(settings, instance)
        planner = chain_planner(settings, instance, started_by)
        if parallel == 1:
            return planner.run(selection, watch=watch)
        with RunProcesses(settings) as processes:
            return planner.run(selection, parallel=parallel, submit=processes.submit, watch=watch)
