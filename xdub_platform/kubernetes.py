"""Steps as pods of a cluster: which executor, which resources, and runs that the planner submits there.

A step's pod runs the step itself, and the step starts its worker as a process beside it, as it does anywhere:
so the accelerators belong to the step's pod.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import dagster as dg
from dagster._core.definitions.op_definition import OpDefinition

from xdub_platform.chain import Node, Step, ended
from xdub_platform.failures import database_is_away
from xdub_platform.instance import UNFINISHED
from xdub_platform.settings import Settings

if TYPE_CHECKING:
    from dagster_graphql import DagsterGraphQLClient

log = logging.getLogger(__name__)
T = TypeVar("T")

CONFIG_TAG = "dagster-k8s/config"
USER_ID = 10001
"""The images' user; a file system group of the same number makes volumes writable for it."""
KEPT_SECONDS = 24 * 3600
"""How long a finished job's pod can be looked at."""
SHARED_MEMORY = "shared-memory"
LOOK_EVERY = 2.0
TAINT_TOLERATED = {"operator": "Exists", "effect": "NoSchedule"}


def executor(settings: Settings) -> dg.ExecutorDefinition:
    """How the steps of a run are executed: in its process, or each in a pod of its own."""
    if settings.processes.launcher == "local":
        return dg.in_process_executor
    from dagster_k8s import k8s_job_executor

    config: dict[str, Any] = {"step_k8s_config": step_config(settings)}
    if settings.kubernetes.worker_image:
        config["job_image"] = settings.kubernetes.worker_image
    return k8s_job_executor.configured(config)


def step_config(settings: Settings) -> dict[str, Any]:
    """What every step's pod has; those of large assets have more, by `step_tags`.

    Kubernetes retries nothing (``backoff_limit`` 0): a preempted pod's replacement could end well while Dagster
    still waits for the first; Dagster retries instead. The deadline counts the wait for a node too, which nothing
    else bounds.
    """
    cluster = settings.kubernetes
    return {
        "container_config": {
            "resources": _resources(cluster.small_cpu, cluster.small_memory),
            "security_context": {"allow_privilege_escalation": False, "capabilities": {"drop": ["ALL"]}},
        },
        "pod_spec_config": {
            "security_context": {
                "run_as_non_root": True,
                "run_as_user": USER_ID,
                "fs_group": USER_ID,
                "seccomp_profile": {"type": "RuntimeDefault"},
            },
        },
        "job_spec_config": {
            "backoff_limit": 0,
            "ttl_seconds_after_finished": KEPT_SECONDS,
            "active_deadline_seconds": cluster.max_seconds,
        },
    }


def _resources(cpu: str, memory: str) -> dict[str, dict[str, str]]:
    return {"requests": {"cpu": cpu, "memory": memory}, "limits": {"memory": memory}}


def step_tags(asset: str, settings: Settings) -> dict[str, Any]:
    """Op tags by which the pod of an asset's step gets its accelerators, and more than a small step's resources."""
    cluster = settings.kubernetes
    count = cluster.gpus.get(asset, 0)
    if settings.processes.launcher == "local" or not (count or asset in cluster.large):
        return {}
    container: dict[str, Any] = {"resources": _resources(cluster.cpu, cluster.memory)}
    pod: dict[str, Any] = {}
    if count:
        container["resources"]["limits"][cluster.gpu_resource] = str(count)
        pod["tolerations"] = [{"key": cluster.gpu_resource, **TAINT_TOLERATED}]
    if count > 1:  # what they exchange goes through shared memory, of which a pod has 64 MB
        container["volume_mounts"] = [{"name": SHARED_MEMORY, "mount_path": "/dev/shm"}]
        pod["volumes"] = [{"name": SHARED_MEMORY, "empty_dir": {"medium": "Memory"}}]
    return {CONFIG_TAG: {"container_config": container, "pod_spec_config": pod}}


def with_step_tags(asset: dg.AssetsDefinition, settings: Settings) -> dg.AssetsDefinition:
    """The same asset with the tags of its step; Dagster has no public way to add them after the definition."""
    op = asset.op
    tags = step_tags(asset.key.to_user_string(), settings)
    if not tags:
        return asset
    tagged = OpDefinition.dagster_internal_init(
        name=op.name,
        ins={each.name: dg.In.from_definition(each) for each in op.input_defs},
        outs={each.name: dg.Out.from_definition(each) for each in op.output_defs},
        compute_fn=op.compute_fn,
        config_schema=op.config_schema,
        description=op.description,
        tags={**op.tags, **tags},
        required_resource_keys=op.required_resource_keys,
        code_version=op.version,
        retry_policy=op.retry_policy,
        version=None,
        pool=op.pool,
    )
    return dg.AssetsDefinition.dagster_internal_init(**{**asset.get_attributes_dict(), "node_def": tagged})


class SubmittedRuns:
    """Runs of the planner's nodes that Dagster launches as it launches those of the UI; takes `RunProcesses`' place.

    The planner must not execute nodes itself on a cluster: its own pod has no accelerator, and run monitoring ends
    a run that has no job of its own.

    Args:
        settings: Of the state root; names the webserver and says how many runs may wait at once.
        defs: Definitions whose assets the nodes are.
        instance: Where the runs' events arrive.
    """

    def __init__(self, settings: Settings, defs: dg.Definitions, instance: dg.DagsterInstance) -> None:
        self.settings = settings
        self.job = defs.resolve_implicit_global_asset_job_def()
        self.graph = defs.resolve_asset_graph()
        self.instance = instance
        self.pool = ThreadPoolExecutor(settings.processes.parallel_runs)
        self.leaving = threading.Event()
        self.at_work: set[str] = set()

    def __enter__(self) -> SubmittedRuns:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.leaving.set()
        self.pool.shutdown(cancel_futures=True)
        if error is not None and self.at_work:
            self._end(sorted(self.at_work))

    def submit(self, node: Node, tags: dict[str, str], run_id: str) -> Future[Step]:
        """Makes a node in a run of its own, of which Dagster chooses the id; waits for one that is at it already."""
        return self.pool.submit(self._wait_for, node, tags)

    def _wait_for(self, node: Node, tags: dict[str, str]) -> Step:
        start = time.monotonic()
        run_id = self._patiently(lambda: self._begun(node, tags))
        while True:
            run = self._patiently(lambda: self.instance.get_run_by_id(run_id))
            if run is not None and run.is_finished:
                break
            self._rest()
        self.at_work.discard(run_id)
        records = self._patiently(lambda: self.instance.get_records_for_run(run_id).records)
        entries = (record.event_log_entry for record in records)
        events = [entry.dagster_event for entry in entries if entry.dagster_event]
        return ended(node, run_id, run.is_success, events, time.monotonic() - start)

    def _patiently(self, ask: Callable[[], T]) -> T:
        """What `ask` gives, in the end: database and webserver may be away for a while, as when one starts again."""
        from dagster_graphql import DagsterGraphQLClientError

        deadline = time.monotonic() + self.settings.kubernetes.patience_seconds
        while True:
            try:
                return ask()
            except Exception as error:
                away = database_is_away(error) or isinstance(error, DagsterGraphQLClientError)
                if not away or time.monotonic() >= deadline:
                    raise
                log.warning("asked again in %.0f s: %s", LOOK_EVERY, " ".join(str(error).split())[:200])
                self._rest()

    def _rest(self) -> None:
        """Until the next look; raises `CancelledError` when there is none, as the planner leaves."""
        if self.leaving.wait(LOOK_EVERY):
            raise CancelledError

    def _begun(self, node: Node, tags: dict[str, str]) -> str:
        """The run that makes a node already, as a planner whose pod died leaves it behind, or else a new one."""
        key = dg.AssetKey(node.asset)
        partitions = self.graph.get(key).partitions_def
        own = {}
        if node.partition is not None and partitions is not None:
            own = dict(partitions.get_tags_for_partition_key(node.partition))
        for run in self.instance.get_runs(dg.RunsFilter(statuses=UNFINISHED, tags=own)):
            if run.asset_selection == {key}:
                return run.run_id
        run_id = self._client().submit_job_execution(self.job.name, tags={**tags, **own}, asset_selection=[key])
        self.at_work.add(run_id)
        return run_id

    def _end(self, run_ids: list[str]) -> None:
        """Who ends the planner's run means everything that it started; not what it found at work."""
        from dagster_graphql import DagsterGraphQLClientError

        try:
            self._client().terminate_runs(run_ids)
        except DagsterGraphQLClientError as error:
            log.warning("not all of the runs %s could be ended: %s", ", ".join(run_ids), " ".join(str(error).split()))

    def _client(self) -> DagsterGraphQLClient:
        from dagster_graphql import DagsterGraphQLClient

        address = urlsplit(self.settings.kubernetes.webserver)
        return DagsterGraphQLClient(
            str(address.hostname), port_number=address.port, use_https=address.scheme == "https"
        )
