"""A client that asks a server for the same dub again and again, and what its answers must look like."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from xdub_platform.serving.queue import FINISHED
from xdub_platform.serving.shell import VERSION_HEADER

PAUSE = 2
"""Seconds between two jobs; the readiness is asked for in each of them."""


@dataclass(frozen=True)
class Answer:
    """One dub that the client got: when, by which version, and the hash of its bytes."""

    submitted: float
    finished: float
    version: int
    digest: str


@dataclass(frozen=True)
class Reign:
    """A whole version that was made champion: it may answer from `begin` on, and alone from `settled` on."""

    version: int
    begin: float
    settled: float


def strangers(answers: Sequence[Answer], reigns: Sequence[Reign]) -> list[str]:
    """Answers that did not come from the one whole version that was champion.

    The client always asks for the same dub, so that one version has one answer, byte for byte.
    """
    found, digests = [], dict[int, str]()
    for answer in answers:
        ends = [reign.settled for reign in reigns[1:]] + [float("inf")]
        may = {
            reign.version
            for reign, end in zip(reigns, ends, strict=True)
            if reign.begin <= answer.finished and answer.submitted <= end
        }
        if answer.version not in may:
            found.append(f"version {answer.version} answered where {sorted(may)} was champion")
        if digests.setdefault(answer.version, answer.digest) != answer.digest:
            found.append(f"version {answer.version} answered with other bytes than before")
    return found


class Customer(threading.Thread):
    """Asks the server for the same dub again and again, and for its readiness in between."""

    def __init__(self, url: str, video: Path, audio: Path) -> None:
        super().__init__(daemon=True)
        self._url = url
        self._files = {"video": video.read_bytes(), "audio": audio.read_bytes()}
        self.answers: list[Answer] = []
        self.faults: list[str] = []
        self.problems: set[str] = set()
        self.statuses: Counter[str] = Counter()
        self.over = threading.Event()

    def run(self) -> None:
        """Until it is over; the job in hand is waited for."""
        with httpx.Client(base_url=self._url, timeout=120) as client:
            while not self.over.is_set():
                try:
                    self._dub(client)
                    for _ in range(PAUSE):
                        self._ready(client)
                        self.over.wait(1.0)
                except (httpx.HTTPError, LookupError, ValueError) as error:
                    self.faults.append(f"{type(error).__name__}: {error}")
                    self.over.wait(1.0)

    def _dub(self, client: httpx.Client) -> None:
        submitted = time.monotonic()
        job = self._told(client.post("/v1/jobs", files=self._files)).json()
        while job["state"] not in FINISHED:
            self._ready(client)
            time.sleep(0.3)
            job = self._told(client.get(f"/v1/jobs/{job['id']}")).json()
        result = self._told(client.get(f"/v1/jobs/{job['id']}/result"))
        if result.status_code != 200 or result.headers[VERSION_HEADER] != job["model_version"]:
            self.faults.append(f"job {job['state']}: {job['error']}, result {result.status_code}")
            return
        digest = hashlib.sha256(result.content).hexdigest()[:12]
        self.answers.append(Answer(submitted, time.monotonic(), int(job["model_version"]), digest))

    def _ready(self, client: httpx.Client) -> None:
        told = self._told(client.get("/readyz")).json()
        self.problems.update(told["problems"])
        if not told["ready"]:
            self.faults.append(f"not ready: {told}")

    def _told(self, response: httpx.Response) -> httpx.Response:
        self.statuses[f"{response.request.method} {response.status_code}"] += 1
        if response.status_code >= 400:
            self.faults.append(f"{response.request.url.path}: {response.status_code} {response.text[:200]}")
        return response
