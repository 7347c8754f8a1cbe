"""A state root with a registered tiny model, and a real server on it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.xdub_platform.serving import tiny
from xdub_platform.resources.mlflow import MlflowRuns
from xdub_platform.settings import Settings, load_settings

READY = 300.0
"""Seconds that a server and its worker may take on a busy machine."""


@dataclass(frozen=True)
class Media:
    """A face and speech that dub in a second, and speech that takes long."""

    video: Path
    audio: Path
    long_audio: Path


@dataclass(frozen=True)
class Parts:
    """What every state root starts from, made once."""

    database: Path
    models: tuple[Path, Path, Path]


@dataclass
class Server:
    """A running `xdub serve`."""

    process: subprocess.Popen[bytes]
    client: httpx.Client
    log: Path

    def ready(self) -> dict[str, Any]:
        """What /readyz says."""
        return dict(self.client.get("/readyz").json())

    def submit(self, video: Path, audio: Path, **headers: str) -> httpx.Response:
        """Uploads a job."""
        with video.open("rb") as first, audio.open("rb") as second:
            files = {"video": (video.name, first), "audio": (audio.name, second)}
            return self.client.post("/v1/jobs", files=files, headers=headers)

    def job(self, job_id: str) -> dict[str, Any]:
        """One job."""
        return dict(self.client.get(f"/v1/jobs/{job_id}").json())

    def until(self, job_id: str, *states: str, seconds: float = 240.0) -> dict[str, Any]:
        """Waits until the job is in one of `states`."""
        wait_for(lambda: self.job(job_id)["state"] in states, seconds, f"job {job_id} to be {states}", self.log)
        return self.job(job_id)

    def worker(self) -> int:
        """Process of the only worker."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        mine = [int(pid) for pid in children if b"serving.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert len(mine) == 1, mine
        return mine[0]


@dataclass
class State:
    """A state root of one test."""

    settings: Settings
    runs: MlflowRuns
    models: tuple[Path, Path, Path]
    environment: dict[str, str] = field(default_factory=dict)

    def register(self, model: int = 0, alias: str | None = "champion") -> int:
        """Registers one of the tiny models."""
        return tiny.register(self.runs, self.models[model], alias)

    @contextmanager
    def serving(self, *, ready: bool = True, key: str | None = None, **settings: object) -> Iterator[Server]:
        """Runs the server as users do, ended by SIGTERM."""
        given = {f"XDUB_SERVING__{name.upper()}": str(value) for name, value in settings.items()}
        environment = {
            **os.environ,
            "XDUB_STATE_ROOT": str(self.settings.state_root),
            "XDUB_SERVING__REQUIRE_KEYS": "false",
            "XDUB_LOG": "INFO",
            **self.environment,
            **given,
        }
        port, log = free_port(), self.settings.path("server.log")
        command = [sys.executable, "-c", "from xdub_platform.cli import main; main()", "serve", "--port", str(port)]
        with log.open("ab") as output:
            process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60.0, headers=headers)
        server = Server(process, client, log)
        try:
            wait_for(lambda: _answers(client, "/readyz" if ready else "/healthz"), READY, "the server", log)
            yield server
        finally:
            client.close()
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(60)


def _answers(client: httpx.Client, path: str) -> bool:
    try:
        return client.get(path).status_code == 200
    except httpx.TransportError:
        return False


def wait_for(condition: Callable[[], bool], seconds: float, what: str, log: Path | None = None) -> None:
    """Polls; on failure shows the end of the server's log."""
    ends = time.monotonic() + seconds
    while not condition():
        told = "\n".join(log.read_text(errors="replace").splitlines()[-15:]) if log else ""
        assert time.monotonic() < ends, f"waited {seconds:.0f} s for {what}\n{told}"
        time.sleep(0.05)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_parts(folder: Path) -> Parts:
    """A migrated MLflow database and three tiny models."""
    MlflowRuns(tracking_uri=f"sqlite:///{folder}/mlflow.db").client()
    first, second, third = (tiny.write_model(folder / f"model{seed}", seed) for seed in range(3))
    return Parts(folder / "mlflow.db", (first, second, third))


def make_media(folder: Path) -> Media:
    """The face and the speech."""
    return Media(
        tiny.write_face(folder / "face.mp4"),
        tiny.write_speech(folder / "speech.wav"),
        tiny.write_speech(folder / "long.wav", seconds=60.0),
    )


def make_state(root: Path, parts: Parts) -> State:
    """A state root with nothing registered."""
    settings = load_settings(state_root=root)
    database = settings.path("mlflow", "mlflow.db")
    database.parent.mkdir(parents=True)
    shutil.copy(parts.database, database)
    runs = MlflowRuns(tracking_uri=settings.mlflow_uri, artifact_root=str(settings.path("mlflow", "artifacts")))
    return State(settings, runs, parts.models)


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """Made once."""
    return make_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="session")
def media(tmp_path_factory: pytest.TempPathFactory) -> Media:
    """Made once."""
    return make_media(tmp_path_factory.mktemp("media"))


@pytest.fixture
def state(parts: Parts, tmp_path: Path) -> State:
    """A fresh state root."""
    return make_state(tmp_path / "state", parts)
