"""The planner: runs what is stale, in the right order and the right partitions.

Assets with different partitions cannot share one Dagster job. So the planner walks Dagster's own asset graph,
one node for each asset and partition, and gives every stale node a run of its own. A node is stale when it was
never materialised, its code version (which hashes its settings) changed, a name in its settings stands for something
else now, an input's gate has changed its mind, or the data version of an input is not the one it was made from. It
knows no asset by name; demo, command line, jobs and schedules all use it.
"""

from __future__ import annotations

import logging
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluation
from dagster._core.definitions.asset_selection import DagsterInvalidAssetSelectionError
from dagster._core.definitions.data_version import (
    CODE_VERSION_TAG,
    extract_data_provenance_from_entry,
    extract_data_version_from_entry,
)
from dagster._core.definitions.partitions.context import partition_loading_context
from dagster._core.event_api import EventLogRecord
from dagster._core.execution.plan.objects import ErrorSource

from model_code.errors import InputError
from xdub_platform.failures import database_is_away

log = logging.getLogger(__name__)

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
STARTED_BY_TAG = "xdub/started_by"
PLAN_TAG = "xdub/plan"
KIND_TAG = "xdub/kind"
"""Kinds of runs: those that plan and start others, those that make an asset, and those that act."""
PLAN, MAKE, ACT = "plan", "make", "act"
LOOK_EVERY = 2.0
"""Seconds between two looks at what running workers say."""


@dataclass(frozen=True, order=True)
class Node:
    """One partition of one asset; `partition` is None where the asset has none."""

    asset: str
    partition: str | None = None

    def __str__(self) -> str:
        return f"{self.asset}[{self.partition}]" if self.partition else self.asset


class Status(StrEnum):
    """What became of a node; a rejected one was made, and its gate says that nothing may be built on it."""

    FRESH = "fresh"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    REJECTED = "rejected"
    BLOCKED = "blocked"


@dataclass(frozen=True)
class Step:
    """One node of a plan and what happened to it.

    Attributes:
        node: Asset and partition.
        status: Where it stands.
        reason: Why it runs, why it failed, or what blocks it; one line.
        seconds: How long it ran.
        run_id: Dagster's run.
        refused: Whether what blocks it is a gate that refused its shard: the chain at work, and nothing that broke.
    """

    node: Node
    status: Status
    reason: str = ""
    seconds: float = 0.0
    run_id: str | None = None
    refused: bool = False


def why_broken(steps: Sequence[Step]) -> str | None:
    """One line on the steps that broke; a shard without pairs because a gate refused its clips is the chain at work."""
    broken = [step for step in steps if step.status is Status.FAILED]
    broken += [step for step in steps if step.status is Status.BLOCKED and not step.refused]
    if not broken:
        return None
    more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
    return f"{broken[0].node} {broken[0].status}: {broken[0].reason}{more}"


Submit = Callable[[Node, dict[str, str], str], "Future[Step]"]
"""Starts the run of a node with tags and under a run id."""


@dataclass(frozen=True)
class Rules:
    """What the planner cannot read off the graph.

    Attributes:
        wanted: Whether a partition is to exist at all (held-out shards have no pairs).
        rejected: Why a materialised node's data must not be built upon (its gate failed), or None.
        committed: The version that lies in the store, or None; a node whose data is not there is missing.
        held: Whether a node, once made, stays as it is while its inputs change.
        moved: Why what settings name for a node is no longer what it was made from, or None.
        judged: Of a node, whether the gate of an input has changed its mind since the node was made; the input itself
            is as it was.
    """

    wanted: Callable[[Node], bool] = lambda node: True
    rejected: Callable[[Node], str | None] = lambda node: None
    committed: Callable[[Node], str | None] | None = None
    held: Callable[[Node], bool] = lambda node: False
    moved: Callable[[Node], str | None] = lambda node: None
    judged: Callable[[Node], Callable[[Node], bool]] = lambda node: lambda parent: False


class Planner:
    """Plans and runs the assets of `defs` on `instance`.

    Args:
        defs: Dagster definitions with assets.
        instance: Where materialisations are recorded.
        rules: See `Rules`.
        started_by: Goes into the tags of every run.
    """

    def __init__(
        self,
        defs: dg.Definitions,
        instance: dg.DagsterInstance,
        rules: Rules | None = None,
        started_by: str = "planner",
    ) -> None:
        self.defs = defs
        self.instance = instance
        self.rules = rules or Rules()
        self.started_by = started_by
        self.graph = defs.resolve_asset_graph()

    @cached_property
    def job(self) -> dg.JobDefinition:
        """The job of all assets, of which every run takes one."""
        return self.defs.resolve_implicit_global_asset_job_def()

    def nodes(self, selection: str | dg.AssetSelection = "*") -> list[Node]:
        """All wanted nodes of the selected assets in topological order.

        Raises:
            InputError: The selection cannot be read, or selects no asset.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", dg.BetaWarning)  # a part of `*` that we do not use
                chosen = dg.AssetSelection.from_string(selection) if isinstance(selection, str) else selection
            keys = chosen.resolve(self.graph)
        except (DagsterInvalidAssetSelectionError, dg.DagsterInvalidSubsetError):
            keys = set()
        if not keys:
            there = sorted(key.to_user_string() for key in self.graph.materializable_asset_keys)
            raise InputError(
                f"'{selection}' selects no asset", f"write key:NAME; the assets are {', '.join(there)}"
            ) from None
        ordered = [
            key for key in self.graph.toposorted_asset_keys if key in keys and self.graph.get(key).is_materializable
        ]
        return [node for key in ordered for node in self._nodes_of(key)]

    def parents(self, node: Node) -> list[Node]:
        """The nodes that `node` is made from."""
        found: list[Node] = []
        key = dg.AssetKey(node.asset)
        for parent in sorted(self.graph.get(key).parent_keys):
            name = parent.to_user_string()
            if self.graph.get(parent).partitions_def is None:
                found.append(Node(name))
            elif node.partition is None:
                found += self._nodes_of(parent)
            else:
                with partition_loading_context(dynamic_partitions_store=self.instance):
                    mapped = self.graph.get_parent_partition_keys_for_child(node.partition, parent, key)
                    found += [Node(name, each) for each in sorted(mapped.partitions_subset.get_partition_keys())]
        return [parent_node for parent_node in found if self.rules.wanted(parent_node)]

    def stale(self, node: Node) -> str | None:
        """Why `node` has to be made (again), or None where it is fresh."""
        record = self._latest(node)
        if record is None:
            return "never made"
        version = extract_data_version_from_entry(record.event_log_entry)
        if self.rules.committed and self.rules.committed(node) != (version.value if version else None):
            return "its data is not in the store"
        tags = (record.asset_materialization.tags if record.asset_materialization else None) or {}
        if self.graph.get(dg.AssetKey(node.asset)).code_version != tags.get(CODE_VERSION_TAG):
            return "its settings or code changed"
        moved = self.rules.moved(node)
        if moved:
            return moved
        if self.rules.held(node):
            return None
        provenance = extract_data_provenance_from_entry(record.event_log_entry)
        pointers = provenance.input_storage_ids if provenance else {}
        judged_otherwise = self.rules.judged(node)
        for parent in self.parents(node):
            if self._changed_since(parent, pointers.get(dg.AssetKey(parent.asset))):
                return f"{parent} changed"
            if judged_otherwise(parent):
                return f"{parent} was judged otherwise"
        return None

    def plan(self, selection: str | dg.AssetSelection = "*") -> list[Step]:
        """What a run would do if every stale node came out different; runs nothing."""
        steps: list[Step] = []
        running: set[Node] = set()
        for node in self.nodes(selection):
            reason = self.stale(node)
            upstream = next((parent for parent in self.parents(node) if parent in running), None)
            if reason is None and upstream and not self.rules.held(node):
                reason = f"{upstream} will be made again"
            if reason:
                running.add(node)
            steps.append(Step(node, Status.RUNNING if reason else Status.FRESH, reason or ""))
        return steps

    def run(
        self,
        selection: str | dg.AssetSelection = "*",
        *,
        only: Callable[[Node], bool] = lambda node: True,
        plan: str | None = None,
        parallel: int = 1,
        submit: Submit | None = None,
        watch: Callable[[Step], None] = lambda step: None,
    ) -> list[Step]:
        """Runs every stale node whose inputs are in order; a failure blocks only what is made from it.

        Whether a node is stale is decided when its inputs are done, so that an input which comes out the same
        stops the wave there.

        Args:
            selection: Assets in Dagster's selection syntax.
            only: Which of their nodes; the others are neither made nor told of.
            plan: Tag that joins the runs; the id of the run that plans, where there is one.
            parallel: Runs that may go on at once.
            submit: Starts a run elsewhere; None runs it here and now. Not in threads of this process: two Dagster
                runs in one process end in a deadlock over Python's logging locks.
            watch: Called from this thread with every step as it starts and ends, and meanwhile with its run's latest
                message as the reason.

        Returns:
            One step for each selected node, in topological order.
        """
        order = [node for node in self.nodes(selection) if only(node)]
        tags = {STARTED_BY_TAG: self.started_by, PLAN_TAG: plan or uuid.uuid4().hex[:12], KIND_TAG: MAKE}
        steps: dict[Node, Step] = {}
        pending = list(order)
        parents = {node: self.parents(node) for node in order}
        running: dict[Future[Step], Step] = {}
        while pending or running:
            unsettled = {*pending, *(step.node for step in running.values())}
            for node in [node for node in pending if unsettled.isdisjoint(parents[node])][: parallel - len(running)]:
                pending.remove(node)
                step = self._decide(node, parents[node], steps)
                watch(step)
                if step.run_id:
                    running[(submit or self._run_here)(node, tags, step.run_id)] = step
                else:
                    steps[node] = step
            for future in [*wait(running, timeout=LOOK_EVERY, return_when=FIRST_COMPLETED).done]:
                step = future.result()
                del running[future]
                steps[step.node] = step
                watch(step)
            for step in running.values():
                watch(replace(step, reason=self._latest_message(step) or step.reason))
        return [steps[node] for node in order]

    def _decide(self, node: Node, parents: Sequence[Node], steps: dict[Node, Step]) -> Step:
        blocked = self._blocked(node, parents, steps)
        if blocked:
            return blocked
        reason = self.stale(node)
        return Step(node, Status.RUNNING, reason, run_id=str(uuid.uuid4())) if reason else Step(node, Status.FRESH)

    def _latest_message(self, step: Step) -> str | None:
        """What the step's worker said last; nothing while the database is away, which must not end the plan."""
        try:
            records = self.instance.get_records_for_run(str(step.run_id), limit=3, ascending=False).records
        except Exception as error:
            if not database_is_away(error):
                raise
            return None
        entries = (record.event_log_entry for record in records)
        return next((entry.user_message for entry in entries if not entry.is_dagster_event), None)

    def _run_here(self, node: Node, tags: dict[str, str], run_id: str) -> Future[Step]:
        done: Future[Step] = Future()
        done.set_result(execute(self.job, self.instance, node, tags, run_id))
        return done

    def _blocked(self, node: Node, parents: Sequence[Node], steps: dict[Node, Step]) -> Step | None:
        """The step of a node that cannot be made now, and why.

        An asset without partitions gathers what its partitioned inputs have; it decides itself whether that is
        enough. Everything else needs each of its inputs.
        """
        for parent in parents:
            if node.partition is None and parent.partition is not None:
                continue
            step = steps.get(parent)
            own_shard = parent.partition is not None
            if step and step.status in (Status.FAILED, Status.BLOCKED, Status.REJECTED):
                refused = own_shard and (step.status is Status.REJECTED or step.refused)
                return Step(node, Status.BLOCKED, f"{parent} {step.status}", refused=refused)
            if self._latest(parent) is None:
                return Step(node, Status.BLOCKED, f"{parent} was never made")
            rejected = self.rules.rejected(parent)
            if rejected:
                return Step(node, Status.BLOCKED, f"{parent}: {rejected}", refused=own_shard)
        return None

    def _nodes_of(self, key: dg.AssetKey) -> list[Node]:
        name, partitions = key.to_user_string(), self.graph.get(key).partitions_def
        keys: Iterable[str | None] = [None]
        if partitions is not None:
            with partition_loading_context(dynamic_partitions_store=self.instance):
                keys = sorted(str(each) for each in partitions.get_partition_keys())
        return [node for node in (Node(name, each) for each in keys) if self.rules.wanted(node)]

    def _latest(self, node: Node, before: int | None = None) -> EventLogRecord | None:
        return self.instance.get_latest_data_version_record(
            dg.AssetKey(node.asset), False, node.partition, before_cursor=before
        )

    def _changed_since(self, parent: Node, pointer: int | None) -> bool:
        latest = self._latest(parent)
        if latest is None or (pointer is not None and latest.storage_id <= pointer):
            return False
        before = self._latest(parent, before=pointer + 1) if pointer is not None else None
        if before is None:
            return True
        versions = [extract_data_version_from_entry(record.event_log_entry) for record in (before, latest)]
        return versions[0] != versions[1]


def execute(job: dg.JobDefinition, instance: dg.DagsterInstance, node: Node, tags: dict[str, str], run_id: str) -> Step:
    """Makes one node in a Dagster run of its own, in this process.

    Raises:
        KeyboardInterrupt: A signal told this process to end, and the run has failed of it; Dagster would go on.
    """
    start = time.monotonic()
    result = job.execute_in_process(
        instance=instance,
        asset_selection=[dg.AssetKey(node.asset)],
        partition_key=node.partition,
        raise_on_error=False,
        run_config=QUIET,
        tags=tags,
        run_id=run_id,
    )
    failures = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    if any(failure.error_source is ErrorSource.INTERRUPT for failure in failures):
        raise KeyboardInterrupt
    return ended(node, result.run_id, result.success, result.all_events, time.monotonic() - start)


def ended(node: Node, run_id: str, success: bool, events: Sequence[dg.DagsterEvent], seconds: float) -> Step:
    """What became of a node, by the events of its run: one that a blocking gate failed is told from one that broke."""
    refused = failed_gates(events)
    if success:
        return Step(node, Status.DONE, "", seconds, run_id)
    if refused:
        return Step(node, Status.REJECTED, "; ".join(str(gate.description) for gate in refused), seconds, run_id)
    return Step(node, Status.FAILED, failure_line(events), seconds, run_id)


def failed_gates(events: Sequence[dg.DagsterEvent]) -> list[AssetCheckEvaluation]:
    """The blocking checks that turned away what a run made."""
    checks = [
        event.asset_check_evaluation_data
        for event in events
        if event.event_type is dg.DagsterEventType.ASSET_CHECK_EVALUATION
    ]
    return [
        check
        for check in checks
        if not check.passed and check.blocking and check.severity is dg.AssetCheckSeverity.ERROR
    ]


def failure_line(events: Sequence[dg.DagsterEvent]) -> str:
    """One line on why a run failed; empty if it did not."""
    for event in events:
        if event.is_step_failure:
            data = event.step_failure_data
            if data.user_failure_data and data.user_failure_data.description:
                return data.user_failure_data.description.splitlines()[0]
            if data.error:
                deepest = data.error.cause or data.error
                return " ".join(deepest.message.split())
    return next((" ".join((event.message or "").split()) for event in events if event.is_failure), "")
