"""MLflow as compose and the manifests start it, really started: clients reach it by its name, others do not."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

VALUES = {"POSTGRES_PASSWORD": "p", "S3_ACCESS_KEY": "k", "S3_SECRET_KEY": "s"}


def arguments(deploy: Any, name: str) -> list[str]:
    if name == "compose.yaml":
        return list(yaml.safe_load(deploy.interpolated(deploy.text(name), VALUES))["services"]["mlflow"]["command"])
    deployment = next(each for each in deploy.documents(name) if each["kind"] == "Deployment")
    return list(deployment["spec"]["template"]["spec"]["containers"][0]["args"])


def status(port: int, host: str, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", path, headers={"Host": host})
        return connection.getresponse().status
    finally:
        connection.close()


def answers(port: int) -> bool:
    try:
        return status(port, "10.1.2.3:5000", "/health") == 200  # a probe comes with the pod's address
    except OSError:
        return False


def test_the_cluster_starts_it_alike(deploy: Any) -> None:
    compose, cluster = (
        dict(each.split("=", 1) for each in arguments(deploy, name))
        for name in ("compose.yaml", "kubernetes/mlflow.yaml")
    )
    assert set(compose) == set(cluster)
    assert "mlflow:5000" in cluster["--allowed-hosts"].split(",")


@pytest.mark.slow
def test_hosts(deploy: Any, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    replaced = {"--port": str(port), "--host": "127.0.0.1", "--artifacts-destination": str(tmp_path), "--workers": "1"}
    given = dict(each.split("=", 1) for each in arguments(deploy, "compose.yaml"))
    assert set(replaced) < set(given)
    command = [f"{option}={replaced.get(option, value)}" for option, value in given.items()]
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("mlflow")), "server", *command],
        env={**os.environ, "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{tmp_path}/mlflow.db"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + 300
        while not answers(port):
            assert process.poll() is None, "MLflow ended"
            assert time.monotonic() < until, "MLflow does not answer"
            time.sleep(0.5)
        page = "/api/2.0/mlflow/experiments/search?max_results=1"
        assert status(port, "mlflow:5000", page) == 200
        assert status(port, "elsewhere.example", page) == 403
    finally:
        process.terminate()
        process.wait(60)
