"""What Prometheus scrapes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from xdub_platform.serving.queue import JobQueue
from xdub_platform.serving.supervisor import Supervisor


class Metrics:
    """Counters of this server, and gauges that are read when asked for.

    Args:
        queue: Jobs.
        supervisor: Workers.
        folder: On the disk that jobs fill.
    """

    def __init__(self, queue: JobQueue, supervisor: Supervisor, folder: Path) -> None:
        self.registry = CollectorRegistry()
        self.requests = Histogram(
            "xdub_request_seconds",
            "Time until the answer is complete.",
            ["method", "route", "status"],
            registry=self.registry,
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60),
        )
        self.submissions = Counter(
            "xdub_submissions", "Submissions by their outcome.", ["outcome"], registry=self.registry
        )
        self.registry.register(_Gauges(queue, supervisor, folder))


class _Gauges(Collector):
    def __init__(self, queue: JobQueue, supervisor: Supervisor, folder: Path) -> None:
        self._queue, self._supervisor, self._folder = queue, supervisor, folder

    def collect(self) -> Iterator[Metric]:
        """One family each."""
        jobs = GaugeMetricFamily("xdub_jobs", "Jobs by state.", labels=["state"])
        for state, count in self._queue.counts().items():
            jobs.add_metric([state], count)
        yield jobs
        serving = GaugeMetricFamily("xdub_model_version", "Version that a worker serves.", labels=["device", "worker"])
        problem = GaugeMetricFamily(
            "xdub_champion_refused", "1 where a worker does not serve what the champion alias names.", labels=["worker"]
        )
        for report in self._supervisor.reports:
            if report.model_version:
                serving.add_metric([report.device, report.name], float(report.model_version))
            problem.add_metric([report.name], float(report.problem is not None))
        yield serving
        yield problem
        restarts = GaugeMetricFamily("xdub_worker_restarts", "Deaths of the worker on a device.", labels=["device"])
        for slot in self._supervisor.slots:
            restarts.add_metric([slot.device], slot.restarts)
        yield restarts
        free = shutil.disk_usage(self._folder).free
        yield GaugeMetricFamily("xdub_disk_free_bytes", "Free space where jobs are kept.", value=free)

    def describe(self) -> list[Metric]:
        """Nothing: registering must not ask the database."""
        return []
