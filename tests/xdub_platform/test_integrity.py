"""Every way in which a registered model's files can stop being what was registered."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from assets.produce import Product, register_model
from tests.xdub_platform.planted import platform_on, register
from xdub_platform.integrity import DamagedModelError, verified, whole
from xdub_platform.platform import Platform
from xdub_platform.resources.mlflow import MANIFEST, manifest_of
from xdub_platform.resources.store import Dataset


@pytest.fixture
def platform(tmp_path: Path) -> Platform:
    platform = platform_on(tmp_path / "state")
    register(platform, tmp_path, "one")
    return platform


def test_a_whole_version_gives_its_folder(platform: Platform, tmp_path: Path) -> None:
    assert whole(platform, 1) is None
    assert whole(platform, "@challenger") is None
    folder = verified(platform, 1, into=tmp_path)
    assert json.loads((folder / "config.json").read_text(encoding="utf-8")) == {"weights": "one"}
    assert sorted(manifest_of(folder)) == ["config.json", "transformer/model.safetensors"]


def flip(folder: Path) -> None:
    weights = folder / "transformer" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[100] ^= 1
    weights.write_bytes(data)


def cut(folder: Path) -> None:
    weights = folder / "transformer" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


def forge(folder: Path) -> None:
    """Changes the weights and the manifest with them."""
    flip(folder)
    (folder.parent / MANIFEST).write_text(json.dumps(manifest_of(folder), indent=1), encoding="utf-8")


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (flip, "transformer/model.safetensors is not the file that was registered"),
        (cut, "transformer/model.safetensors has 2999 bytes instead of 3000"),
        (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
        (lambda folder: (folder / "extra.safetensors").touch(), "extra.safetensors was never registered"),
        (lambda folder: shutil.rmtree(folder), "its files are missing"),
        (lambda folder: (folder.parent / MANIFEST).unlink(), "manifest.json"),
        (forge, "its manifest was changed"),
    ],
    ids=["one bit", "cut short", "missing", "added", "all gone", "no manifest", "forged"],
)
def test_damage_is_named(platform: Platform, tmp_path: Path, act: Callable[[Path], object], said: str) -> None:
    act(verified(platform, 1, into=tmp_path))
    reason = whole(platform, 1)
    assert reason is not None
    assert reason.startswith("version 1 of xdub-dubber: ")
    assert said in reason
    with pytest.raises(DamagedModelError, match="xdub promote --rollback"):
        verified(platform, 1, into=tmp_path)


def test_a_version_that_is_not_there_or_has_no_manifest_is_not_whole(platform: Platform) -> None:
    assert whole(platform, 7) == "there is no version 7 of xdub-dubber"
    assert whole(platform, "@champion") == "there is no version @champion of xdub-dubber"
    platform.mlflow.client().delete_model_version_tag("xdub-dubber", "1", "manifest.sha256")
    assert "without a manifest" in str(whole(platform, 1))


def test_only_what_this_run_logged_is_registered(platform: Platform) -> None:
    with (
        pytest.raises(ValueError, match="logged no directory as 'elsewhere'"),
        platform.mlflow.run("dubber") as run,
    ):
        run.register("xdub-dubber", "elsewhere")


def test_the_same_bytes_are_registered_again_only_where_no_version_holds_them_whole(
    platform: Platform, tmp_path: Path
) -> None:
    data = Dataset("dubber", tmp_path / "model-one", "abc.dir", 3000, 2)

    def registered() -> int:
        with platform.mlflow.run("dubber") as run:
            return register_model(run, "xdub-dubber", Product(data, {}), platform)

    assert registered() == 2
    register(platform, tmp_path, "other")
    assert registered() == 2
    flip(verified(platform, 2, into=tmp_path))
    assert registered() == 4
    assert whole(platform, 4) is None
