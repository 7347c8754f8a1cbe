"""The images' entry point, really started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

SHOW = [sys.executable, "-c", "import os; print(os.environ['DAGSTER_HOME'])"]


def start(deploy: Any, command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    # Not on an installed package: in the image the script finds it in the same way.
    return subprocess.run(
        [sys.executable, str(deploy.folder / "entrypoint.py"), *command],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_it_writes_dagsters_home_and_becomes_the_command(deploy: Any, tmp_path: Path) -> None:
    url = "postgresql://xdub:p1@postgres:5432/xdub"
    done = start(deploy, SHOW, XDUB_STATE_ROOT=str(tmp_path), XDUB_DATABASE__URL=url)
    assert done.returncode == 0, done.stderr
    home = Path(done.stdout.strip())
    assert home == tmp_path / "dagster"
    written = yaml.safe_load((home / "dagster.yaml").read_text(encoding="utf-8"))
    assert written["storage"] == {"postgres": {"postgres_url": url}}


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
