"""``python -m benchmarks.serving``: many clients submit to a bounded queue; nothing is lost or doubled."""

from __future__ import annotations

import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from tests.xdub_platform.serving.world import Media, Server, make_media, make_parts, make_state, wait_for
from xdub_platform.serving.keys import LOCAL
from xdub_platform.serving.queue import JobQueue

PAUSE = 0.5
"""Seconds that a refused client waits: less than it is told, so that the bound is pressed hard."""


@dataclass(frozen=True)
class Load:
    """What a run saw.

    Attributes:
        submissions: Jobs that clients wanted made.
        accepted: Ids that they were given.
        made: Jobs in the queue's table that are done.
        states: All jobs in the table by state.
        begun: How often one of them was begun.
        most_active: Most jobs that were active at any look.
        answers: Answers to POST by status.
        latency: Seconds of each GET of a job under load.
        memory: Resident bytes of the server over time.
        seconds: From the first submission to the last result.
    """

    submissions: int
    accepted: list[str]
    made: int
    states: dict[str, int]
    begun: int
    most_active: int
    answers: Counter[int]
    latency: list[float]
    memory: list[int]
    seconds: float

    def table(self) -> str:
        """For the report."""
        cuts = [1e3 * seconds for seconds in statistics.quantiles(self.latency, n=100)]
        quarter = max(1, len(self.memory) // 4)
        early, late = (statistics.median(part) / 1e6 for part in (self.memory[:quarter], self.memory[-quarter:]))
        rows = {
            "submissions": self.submissions,
            "accepted (distinct ids)": len(set(self.accepted)),
            "made / begun": f"{self.made} / {self.begun}",
            "lost": self.submissions - self.made,
            "doubled": sum(self.states.values()) - len(set(self.accepted)),
            "most active at once": self.most_active,
            "answers to POST": ", ".join(f"{code}: {count}" for code, count in sorted(self.answers.items())),
            "GETs under load": len(self.latency),
            "GET p50 / p99 / max": f"{cuts[49]:.0f} / {cuts[98]:.0f} / {1e3 * max(self.latency):.0f} ms",
            "server memory, first / last quarter": f"{early:.0f} / {late:.0f} MB",
            "server memory, most": f"{max(self.memory) / 1e6:.0f} MB",
            "seconds": f"{self.seconds:.0f}",
        }
        width = max(map(len, rows))
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


class Crowd:
    """Clients that submit, retry when refused, and watch their jobs.

    Args:
        server: The running server.
        media: What they submit.
        bound: The queue's.
    """

    def __init__(self, server: Server, media: Media, bound: int) -> None:
        self._url, self._pid, self._bound = str(server.client.base_url), server.process.pid, bound
        self._video, self._audio = media.video.read_bytes(), media.audio.read_bytes()
        self._lock = threading.Lock()
        self.accepted: list[str] = []
        self.answers: Counter[int] = Counter()
        self.latency: list[float] = []
        self.memory: list[int] = []
        self.most_active = 0
        self.over = threading.Event()

    def client(self, number: int, jobs: int) -> None:
        """Submits `jobs` jobs, each until it is accepted, and once more as a client that missed the answer does."""
        with httpx.Client(base_url=self._url, timeout=120) as client:
            for index in range(jobs):
                name = {"Idempotency-Key": f"client{number}-job{index}"}
                first = self._submit(client, name)
                again = self._submit(client, name) if index % 5 == 0 else first
                with self._lock:
                    self.accepted += {first, again}
                self._get(client, first)

    def watch(self, jobs: int) -> None:
        """Looks at jobs and at the server until all is done."""
        process = psutil.Process(self._pid)
        with httpx.Client(base_url=self._url, timeout=120) as client:
            while not self.over.is_set():
                counts = client.get("/readyz").json()["jobs"]
                active = sum(counts[state] for state in ("receiving", "queued", "running"))
                self.most_active = max(self.most_active, active)
                self.memory.append(process.memory_info().rss)
                with self._lock:
                    last = self.accepted[-8:]
                for job_id in last:
                    self._get(client, job_id)
                if counts["done"] + counts["failed"] >= jobs:
                    self.over.set()
                time.sleep(0.1)

    def _submit(self, client: httpx.Client, name: dict[str, str]) -> str:
        while True:
            answer = client.post("/v1/jobs", files={"video": self._video, "audio": self._audio}, headers=name)
            with self._lock:
                self.answers[answer.status_code] += 1
            if answer.status_code == 202:
                return str(answer.json()["id"])
            assert answer.status_code in (409, 429), answer.text
            assert int(answer.headers["Retry-After"]) > 0
            time.sleep(PAUSE)

    def _get(self, client: httpx.Client, job_id: str) -> None:
        begin = time.perf_counter()
        assert client.get(f"/v1/jobs/{job_id}").status_code == 200
        with self._lock:
            self.latency.append(time.perf_counter() - begin)


def run(folder: Path, submissions: int = 200, clients: int = 20, bound: int = 50, seconds: float = 1200.0) -> Load:
    """Runs the load on a server of its own with a tiny model."""
    state, media = make_state(folder / "state", make_parts(folder)), make_media(folder)
    state.register()
    with state.serving(queue_limit=bound, queue_limit_per_key=bound) as server:
        crowd = Crowd(server, media, bound)
        begin = time.monotonic()
        with ThreadPoolExecutor(clients + 1) as pool:
            watching = pool.submit(crowd.watch, submissions)
            try:
                for future in [pool.submit(crowd.client, number, submissions // clients) for number in range(clients)]:
                    future.result()
                wait_for(watching.done, seconds, "all jobs to be done", server.log)
            finally:
                crowd.over.set()
            watching.result()
        taken = time.monotonic() - begin
    queue = JobQueue.open(state.settings)
    states = {str(name): count for name, count in queue.counts().items() if count}
    begun = sum(job.attempts for job in queue.mine(LOCAL, 2 * submissions))
    queue.engine.dispose()
    return Load(
        submissions,
        crowd.accepted,
        states.get("done", 0),
        states,
        begun,
        crowd.most_active,
        crowd.answers,
        crowd.latency,
        crowd.memory,
        taken,
    )


def main() -> None:
    """Prints the table; ends with 1 if a job was lost or doubled."""
    with tempfile.TemporaryDirectory() as folder:
        load = run(Path(folder))
    print(load.table())
    sys.exit(not load.submissions == len(set(load.accepted)) == load.made == load.begun == sum(load.states.values()))


if __name__ == "__main__":
    main()
