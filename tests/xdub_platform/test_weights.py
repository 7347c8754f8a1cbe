"""Published weights in the registry."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from model_code.dubbing.model import load_transformer
from tests.xdub_platform.planted import platform_on
from xdub_platform.cli import app
from xdub_platform.repair import leftovers
from xdub_platform.resources.mlflow import MlflowRun
from xdub_platform.weights import import_weights

PLAIN = Path(__file__).resolve().parents[1] / "golden" / "plain"
NAME = "xdub-dubber-weights"


def test_a_checkpoint_is_registered_with_its_licence(tmp_path: Path) -> None:
    platform = platform_on(tmp_path / "state")
    done = import_weights(platform, PLAIN / "tiny_model.safetensors", "none published", "A. Person")
    assert (done.kind, done.model, done.version) == ("xdub", NAME, 1)
    version = platform.mlflow.model_version(NAME, "@xdub")
    assert version is not None
    assert version.tags["licence"] == "none published"
    assert version.tags["licence.required"] == "true"
    assert version.tags["licence.acknowledged"] == "A. Person"
    folder = platform.mlflow.model_path(NAME, "1")
    assert folder is not None
    ours, theirs = load_transformer(folder), load_file(PLAIN / "tiny_model.safetensors")
    assert {name: value.shape for name, value in ours.state_dict().items()} == {
        name: value.shape for name, value in theirs.items()
    }
    assert all(torch.equal(value, theirs[name]) for name, value in ours.state_dict().items())
    assert not any(platform.settings.path("work", "import").iterdir())


def test_repair_clears_what_a_killed_import_left_and_leaves_a_living_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = platform_on(tmp_path / "state")
    work, copy = platform.settings.path("work", "import"), MlflowRun.artifact

    def while_repaired(run: MlflowRun, folder: Path, name: str | None = None) -> None:
        assert folder.parent == work
        shutil.copytree(folder, work / "killed")
        assert [leftover.what for leftover in leftovers(platform.settings, repair=True)] == ["work/import/killed"]
        assert [path for path in work.iterdir() if path.is_dir()] == [folder]
        copy(run, folder, name)

    monkeypatch.setattr(MlflowRun, "artifact", while_repaired)
    assert import_weights(platform, PLAIN / "tiny_model.safetensors", "none published").version == 1
    assert not any(work.iterdir())


KILLED_IMPORT = """
import os, signal, sys
from pathlib import Path
from xdub_platform.platform import build_platform
from xdub_platform.resources.mlflow import MlflowRun
from xdub_platform.settings import load_settings
from xdub_platform.weights import import_weights

MlflowRun.artifact = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
import_weights(build_platform(load_settings()), Path(sys.argv[1]), "none published")
"""


@pytest.mark.slow
def test_a_killed_import_is_listed_and_cleared(tmp_path: Path) -> None:
    platform = platform_on(tmp_path / "state")
    work = platform.settings.path("work")
    command = [sys.executable, "-c", KILLED_IMPORT, str(PLAIN / "tiny_model.safetensors")]
    environment = {**os.environ, "XDUB_STATE_ROOT": str(platform.settings.state_root)}
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    (left,) = work.rglob("config.json")
    listed = [(leftover.kind, leftover.what) for leftover in leftovers(platform.settings)]
    place = f"work/import/{left.parent.name}"
    assert listed == [("scratch", place), ("lock", f"{place}.lock")]
    leftovers(platform.settings, repair=True)
    assert [path for path in work.rglob("*") if path.is_file()] == []


def test_the_command_asks_for_the_licence_and_refuses_a_partial_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDUB_STATE_ROOT", str(tmp_path / "state"))
    file = PLAIN / "tiny_model.safetensors"
    asked = CliRunner().invoke(app, ["weights", "import", str(file)], input="Apache-2.0\n")
    assert asked.exit_code == 0, asked.output
    assert "Licence of these weights" in asked.output
    assert f"{NAME} version 1 (@xdub)" in asked.output
    assert "licence not acknowledged" in asked.output
    partial = tmp_path / "partial.safetensors"
    save_file({name: value for name, value in load_file(file).items() if "norm4" not in name}, partial)
    (tmp_path / "config.json").write_text(json.dumps(json.loads((PLAIN / "config.json").read_text())))
    refused = CliRunner().invoke(app, ["weights", "import", str(partial), "--licence", "x"])
    assert refused.exit_code != 0
    assert "lacks blocks.0.norm4.weight, blocks.0.norm4.bias, blocks.1.norm4.weight" in str(refused.exception)
    nothing = CliRunner().invoke(app, ["weights", "import", str(file), "--licence", " "])
    assert "no licence is stated" in str(nothing.exception)
