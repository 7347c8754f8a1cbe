"""The images' own scripts, really started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from model_code.errors import InputError
from tests.postgres import postgres, postgres_server  # noqa: F401
from xdub_platform.instance import open_instance
from xdub_platform.serving.app import check_exposure
from xdub_platform.settings import load_settings

SHOW = [sys.executable, "-c", "import os; print(os.environ['DAGSTER_HOME'], os.environ['XDUB_DATABASE__URL'])"]


def start(
    deploy: Any, command: list[str], script: str = "entrypoint.py", **environment: str
) -> subprocess.CompletedProcess[str]:
    # Not on an installed package: in the image the script finds it in the same way.
    return subprocess.run(
        [sys.executable, str(deploy.folder / script), *command],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_it_writes_dagsters_home_and_becomes_the_command(deploy: Any, tmp_path: Path) -> None:
    url = "postgres://xdub:HUNTER2@postgres:5432/xdub"
    done = start(deploy, SHOW, XDUB_STATE_ROOT=str(tmp_path), XDUB_DATABASE=json.dumps({"url": url}))
    assert done.returncode == 0, done.stderr
    home, given = done.stdout.split()
    assert home == str(tmp_path / "dagster")
    assert given == url.replace("postgres:", "postgresql+psycopg2:", 1)
    written = (tmp_path / "dagster" / "dagster.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(written)["storage"] == {"postgres": {"postgres_url": {"env": "XDUB_DATABASE__URL"}}}
    assert "HUNTER2" not in written


def test_dagsters_own_commands_open_the_database_that_ours_do(
    deploy: Any,
    tmp_path: Path,
    postgres: str,  # noqa: F811
) -> None:
    with open_instance(load_settings(state_root=tmp_path, database={"url": postgres})) as instance:
        instance.add_run(dg.DagsterRun(job_name="job", run_id="ours"))
    look = [sys.executable, "-c", "import dagster; print(dagster.DagsterInstance.get().get_runs()[0].run_id)"]
    done = start(deploy, look, XDUB_STATE_ROOT=str(tmp_path), XDUB_DATABASE__URL=postgres)
    assert done.stdout.strip() == "ours", done.stderr


def test_a_wrong_setting_ends_in_one_line(deploy: Any, tmp_path: Path) -> None:
    done = start(deploy, SHOW, XDUB_STATE_ROOT=str(tmp_path), XDUB_PROCESSES__LAUNCHER="swarm")
    assert done.returncode == 1
    assert "PROCESSES__LAUNCHER" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "dagster").exists()


def test_no_command_is_refused(deploy: Any, tmp_path: Path) -> None:
    assert "no command" in start(deploy, [], XDUB_STATE_ROOT=str(tmp_path)).stderr


def test_the_control_plane_needs_no_torch() -> None:
    """Its image has none: whatever the code location imports must do without, on either launcher."""
    code = """
import sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, NoTorch())
import xdub_platform.definitions as definitions
import xdub_platform.cli
assert definitions.defs.executor.name == "k8s", definitions.defs.executor.name
"""
    environment = {**os.environ, "XDUB_PROCESSES__LAUNCHER": "kubernetes"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_first_key_is_made_before_anything_runs(
    deploy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `docker compose run --rm server xdub serve --new-key me` does: without a key the server would not start."""
    text = deploy.interpolated(deploy.text("compose.yaml"), dict.fromkeys(deploy.required(), "x"))
    server = yaml.safe_load(text)["services"]["server"]
    environment = {**server["environment"], "XDUB_STATE_ROOT": str(tmp_path)}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    host = server["command"][server["command"].index("--host") + 1]
    with pytest.raises(InputError, match="there is no API key"):
        check_exposure(load_settings(), host)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    done = start(deploy, ["xdub", "serve", "--new-key", "me"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("xdub_")
    check_exposure(load_settings(), host)


class Buckets(BaseHTTPRequestHandler):
    """Says of each bucket whether it was put, and puts it: all of S3 that the script asks for."""

    put: list[str]

    def do_HEAD(self) -> None:
        self.answer(200 if self.path in self.put else 404)

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.put.append(self.path)
        self.answer(200)

    def answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Silent."""


def test_the_bucket_is_made_once(deploy: Any, tmp_path: Path) -> None:
    handler = type("Handler", (Buckets,), {"put": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {
        "XDUB_STATE_ROOT": str(tmp_path),
        "XDUB_STORE__URL": "s3://xdub/registry",
        "XDUB_STORE__S3_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "k",
        "AWS_SECRET_ACCESS_KEY": "s",
    }
    try:
        for _ in range(2):
            done = start(deploy, [], script="make_bucket.py", **environment)
            assert done.returncode == 0, done.stderr
    finally:
        server.shutdown()
        server.server_close()
    assert [path.strip("/") for path in handler.put] == ["xdub"]


def test_a_store_that_is_no_bucket_is_refused(deploy: Any, tmp_path: Path) -> None:
    done = start(deploy, [], script="make_bucket.py", XDUB_STATE_ROOT=str(tmp_path), XDUB_STORE__URL=str(tmp_path))
    assert done.returncode == 1
    assert "XDUB_STORE__URL=s3://" in done.stderr
