"""Training that starts from registered weights: which ones, of which licence, and when it is stale."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file, save_file

from assets.dubber import dubber
from assets.editor import editor
from assets.gates import GATE
from assets.generator import config, generator
from assets.lip_expert import lip_expert
from assets.produce import INPUTS
from assets.texture_expert import texture_expert
from model_code.config import MediaConfig, PairsConfig
from model_code.dubbing.model import load_transformer
from model_code.media.shards import ShardWriter
from model_code.pairs.rendered import draw_rendered, render_pairs
from model_code.workers.train import TrainConfig
from tests.published import save_umt5, save_vae, save_wav2vec2, save_whisper
from tests.xdub_platform.planted import downloads, platform_on
from xdub_platform.chain import Node, failure_line
from xdub_platform.platform import Platform, build_platform
from xdub_platform.promotion import promote
from xdub_platform.resources.mlflow import MANIFEST_TAG
from xdub_platform.resources.workers import WorkerRun, Workers
from xdub_platform.running import rules
from xdub_platform.settings import RELEASED_FLOW, Settings, load_settings
from xdub_platform.weights import import_weights, starting_weights

PUBLISHED = Path(__file__).resolve().parents[1] / "golden" / "plain" / "tiny_model.safetensors"
WEIGHTS = "xdub-dubber-weights"
SHAPE = {
    "dim": 12, "num_layers": 2, "num_heads": 2, "ffn_dim": 16, "freq_dim": 16, "in_channels": 4, "out_channels": 4,
    "text_dim": 8, "audio_dim": 10, "audio_window": 8, "audio_inner_dim": 8, "audio_heads": 2, "audio_layers": 1,
    "positions": 0, "audio_modulation": False, "residual": False, "context_fill": "grey", "refiner_layers": 0,
    "precondition": 0.0,
}  # fmt: skip
"""Of the published file."""
OWN = {"transformer": SHAPE, "flow": RELEASED_FLOW, "start": {"generator": "@xdub"}}
PHASE = {"steps": 2, "batch_size": 2, "cells": None, "own_estimates": 0.0, "pixel_weighting": False}


def platform_at(root: Path, **more: Any) -> Platform:
    """A registry with the published file, whose licence nobody acknowledged, and a generator that starts from it."""
    platform = platform_on(root, **{**OWN, **more})
    import_weights(platform, PUBLISHED, "none published")
    return platform


def plant(platform: Platform, name: str) -> None:
    """A dataset that passed its gate."""
    folder = platform.settings.path("work", "planted")
    folder.mkdir(parents=True)
    (folder / "data.txt").write_text(name, encoding="utf-8")
    platform.store.put(name, folder)
    platform.store.record(name, GATE, {"passed": True, "failures": []})


def make(asset: dg.AssetsDefinition, platform: Platform) -> dg.ExecuteInProcessResult:
    with dg.DagsterInstance.ephemeral() as instance:
        return dg.materialize([asset], instance=instance, resources={"platform": platform}, raise_on_error=False)


class Workless:
    """Stands in for workers: writes the config that a worker gets, and a file that depends on it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.configs: dict[str, dict[str, Any]] = {}

    def run(self, context: dg.AssetExecutionContext, worker: str, config: Mapping[str, Any]) -> WorkerRun:
        name = context.asset_key.to_user_string()
        self.configs[name] = dict(config)
        output = self.root / name / "output"
        output.mkdir(parents=True)
        (output / "config.json").write_text(json.dumps(config, default=str), encoding="utf-8")
        (output / "result.json").write_text("{}", encoding="utf-8")
        return WorkerRun(output, {}, output.parent, dict(config))


@pytest.fixture
def workless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workless:
    made = Workless(tmp_path / "state" / "work" / "workless")
    monkeypatch.setattr(Workers, "run", lambda self, context, worker, config, inputs: made.run(context, worker, config))
    return made


def test_a_licence_goes_with_the_weights_into_all_that_is_made_of_them(tmp_path: Path, workless: Workless) -> None:
    platform = platform_at(tmp_path / "state")
    for name in ("clips/shard-00000", "companion_pairs/shard-00000/rendered", "syncnet", "identity_encoder"):
        plant(platform, name)
    for asset in (generator, editor, lip_expert, texture_expert, dubber):
        assert make(asset, platform).success
    registered = ("xdub-generator", "xdub-editor", "xdub-lip-expert", "xdub-texture-expert", "xdub-dubber")
    for name in registered:
        tags = platform.mlflow.versions(name)[1]
        assert (tags["licence"], tags["licence.required"], tags["licence.acknowledged"]) == (
            "none published",
            "true",
            "",
        ), name
        assert tags["part.weights"] == f"{WEIGHTS}/1"
    refused = promote(platform)
    assert not refused.accepted
    assert "set the tag licence.acknowledged of version 1" in refused.reason

    platform.mlflow.client().set_model_version_tag(WEIGHTS, "1", "licence.acknowledged", "A. Person")
    shutil.rmtree(platform.settings.path("registry", "data", "lip_expert"))
    plant(platform, "lip_expert")  # another one, so that the dubber is another too
    assert make(dubber, platform).success
    assert platform.mlflow.versions("xdub-dubber")[2]["licence.acknowledged"] == "A. Person"


def test_what_starts_from_no_such_weights_has_no_licence_to_carry(tmp_path: Path, workless: Workless) -> None:
    platform = platform_at(tmp_path / "state", start={})
    plant(platform, "clips/shard-00000")
    assert make(generator, platform).success
    assert "licence" not in platform.mlflow.versions("xdub-generator")[1]
    assert "weights" not in workless.configs["generator"]
    assert not platform.settings.path("registry", "records", "generator", "licences.json").exists()


@pytest.mark.parametrize("named", ["@xdub", f"{WEIGHTS}@xdub", "/1", f"{WEIGHTS}/1"])
def test_version_and_digest_stand_in_the_workers_config_and_in_the_lineage(
    tmp_path: Path, workless: Workless, named: str
) -> None:
    platform = platform_at(tmp_path / "state", start={"editor": named})
    for name in ("clips/shard-00000", "companion_pairs/shard-00000/rendered"):
        plant(platform, name)
    result = make(editor, platform)
    assert result.success
    digest = platform.mlflow.versions(WEIGHTS)[1]["manifest.sha256"][:32]
    told = workless.configs["editor"]
    assert "init" not in told
    assert (told["start"], told["weights"]["name"], told["weights"]["digest"]) == (named, f"{WEIGHTS}/1", digest)
    assert TrainConfig.model_validate({**told, "output": tmp_path}).weights is not None
    assert (platform.store.recorded("editor", INPUTS) or {})["datasets"][f"{WEIGHTS}/1"] == digest
    run_id = platform.mlflow.model_version("xdub-editor", "1").run_id  # type: ignore[union-attr]
    inputs = platform.mlflow.client().get_run(run_id).inputs.dataset_inputs
    assert ("mlflow", digest) in {(each.dataset.source_type, each.dataset.digest) for each in inputs}


def test_a_moved_alias_makes_the_generator_stale(tmp_path: Path, workless: Workless) -> None:
    platform = platform_at(tmp_path / "state")
    plant(platform, "clips/shard-00000")
    assert make(generator, platform).success
    moved = rules(platform).moved
    assert [moved(Node(asset)) for asset in ("generator", "editor", "clips")] == [None, None, None]
    import_weights(platform, PUBLISHED, "none published")
    assert moved(Node("generator")) is None, "the same bytes"
    other = tmp_path / "other.safetensors"
    save_file({name: value + 1 for name, value in load_file(PUBLISHED).items()}, other)
    shutil.copy(PUBLISHED.with_name("config.json"), tmp_path)
    import_weights(platform, other, "none published")
    assert moved(Node("generator")) == f"start.generator '@xdub' is version 3 of {WEIGHTS} now"


def test_missing_and_damaged_weights_are_told_with_what_to_do(tmp_path: Path) -> None:
    platform = platform_at(tmp_path / "state", start={"generator": "@wan"})
    plant(platform, "clips/shard-00000")
    line = failure_line(make(generator, platform).all_events)
    assert line.startswith(f"start.generator '@wan': no version @wan of {WEIGHTS} is registered")
    assert "`xdub weights import PATH`" in line
    folder = platform.mlflow.model_path(WEIGHTS, "1")
    assert folder is not None
    (folder / "config.json").write_text("{}", encoding="utf-8")
    named = {**OWN, "start": {"generator": "/1"}}
    damaged = build_platform(load_settings(state_root=platform.settings.state_root, **named))
    line = failure_line(make(generator, damaged).all_events)
    assert line.startswith("start.generator '/1': version 1 of xdub-dubber-weights: config.json has 2 bytes")


def test_weights_without_a_manifest_are_refused_and_cost_no_others(tmp_path: Path) -> None:
    platform = platform_at(tmp_path / "state")
    plant(platform, "clips/shard-00000")
    kept = platform.settings.path("cache", "weights", "another") / "model"
    kept.mkdir(parents=True)
    client = MlflowClient(platform.settings.mlflow_uri)
    client.delete_model_version_tag(WEIGHTS, "1", MANIFEST_TAG)
    line = failure_line(make(generator, platform).all_events)
    assert line.startswith(f"start.generator '@xdub': version 1 of {WEIGHTS} has no manifest")
    assert kept.is_dir()


def test_downloads_are_kept_and_fetched_again_when_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    platform = platform_at(tmp_path / "state")
    artifacts = platform.mlflow.model_path(WEIGHTS, "1")
    assert artifacts is not None
    fetched = downloads(monkeypatch, artifacts.parent)
    first, again = (starting_weights(platform, "generator") for _ in range(2))
    assert first == again
    assert first is not None
    assert first.path.is_relative_to(platform.settings.path("cache", "weights"))
    assert fetched == ["manifest.json", "transformer"]
    (first.path / "config.json").write_text("{", encoding="utf-8")
    assert starting_weights(platform, "generator") == first
    assert len(fetched) == 4


def test_only_settings_that_name_weights_change_the_code_version(tmp_path: Path) -> None:
    def told(settings: Settings) -> dict[str, Any]:
        return config(settings)

    plain = told(load_settings(state_root=tmp_path))
    assert "start" not in plain
    assert told(load_settings(state_root=tmp_path, start={"editor": "@xdub"})) == plain
    assert told(load_settings(state_root=tmp_path, start={"generator": "@xdub"})) == {**plain, "start": "@xdub"}
    assert load_settings(profile="cluster").start.generator == "@wan"


@pytest.mark.slow
def test_a_generator_starts_from_published_weights(tmp_path: Path) -> None:
    """By its asset, in a worker of its own, on tiny networks of the published classes."""
    networks = tmp_path / "networks"
    save_vae(networks / "wan", 4)
    save_umt5(networks / "wan", 8)
    heard = [str(save_whisper(networks / "whisper", 4)), str(save_wav2vec2(networks / "wav2vec2", 6))]
    own: dict[str, Any] = {
        "backbones": {"codec": str(networks / "wan"), "audio": heard, "text": str(networks / "wan")},
        "phases": {"generator": {**PHASE, "learning_rate": 1e-3}},
    }
    platform = platform_at(tmp_path / "state", **own)
    spec = draw_rendered("w", 0, PairsConfig(rendered_seconds=1.3))
    clips = [pair.target for pair in render_pairs(spec, "w", MediaConfig())]
    folder = platform.settings.path("work", "clips")
    with ShardWriter(folder) as writer:
        for clip in clips:
            writer.add(clip.clip_id, clip.to_members())
        writer.commit([{**clip.row, "split": "train"} for clip in clips])
    platform.store.put("clips/shard-00000", folder)
    platform.store.record("clips/shard-00000", GATE, {"passed": True, "failures": []})
    result = make(generator, platform)
    assert result.success, failure_line(result.all_events)
    made = load_transformer(platform.store.path("generator") / "transformer").state_dict()
    start = starting_weights(platform, "generator")
    assert start is not None
    begun = load_transformer(start.path).state_dict()
    assert made["patch_embedding.weight"].shape[1] == 8
    begun["patch_embedding.weight"] = torch.cat(
        [torch.zeros_like(begun["patch_embedding.weight"]), begun["patch_embedding.weight"]], dim=1
    )
    for name, value in begun.items():
        torch.testing.assert_close(made[name], value, rtol=0, atol=0.01)
    assert any(not torch.equal(made[name], value) for name, value in begun.items())

    wider = {**own, **OWN, "transformer": {**SHAPE, "dim": 24}}
    wrong = build_platform(load_settings(state_root=platform.settings.state_root, **wider))
    line = failure_line(make(generator, wrong).all_events)
    assert f"{WEIGHTS}/1 has dim 12 instead of 24" in line
