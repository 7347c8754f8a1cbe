"""Registered models of a few bytes with planted scores, for everything that compares or serves versions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import RunInfo

from assets.benchmark_scores import VERSION
from model_code.metrics.scores import COPY, EXACT, CaseRecord, RowCase, save_records, summarise
from xdub_platform.platform import Platform, build_platform
from xdub_platform.resources.mlflow import MlflowRuns
from xdub_platform.scores import record_scores
from xdub_platform.settings import load_settings

FRAMES = 60
CASES = 10


@cache
def _migrated() -> TemporaryDirectory[str]:
    """Folder of a migrated MLflow database: takes seconds, so once for all tests."""
    folder = TemporaryDirectory(prefix="xdub-mlflow-")
    MlflowRuns(tracking_uri=f"sqlite:///{folder.name}/mlflow.db").client()
    return folder


def platform_on(root: Path, **more: Any) -> Platform:
    """Resources of a fresh state root with a migrated MLflow database."""
    (root / "mlflow").mkdir(parents=True)
    shutil.copy(Path(_migrated().name) / "mlflow.db", root / "mlflow" / "mlflow.db")
    return build_platform(load_settings(state_root=root, **more))


def register(
    platform: Platform, folder: Path, weights: str, tags: Mapping[str, str] | None = None, alias: str = "challenger"
) -> int:
    """Registers a model whose weights are `weights`."""
    model = folder / f"model-{weights}"
    (model / "transformer").mkdir(parents=True, exist_ok=True)
    (model / "config.json").write_text(json.dumps({"weights": weights}), encoding="utf-8")
    (model / "transformer" / "model.safetensors").write_bytes(weights.encode() * 1000)
    with platform.mlflow.run("dubber") as run:
        run.artifact(model, "model")
        return run.register(platform.settings.mlflow.model_name, "model", alias=alias, tags=tags)


def downloads(monkeypatch: pytest.MonkeyPatch, artifacts: Path) -> list[str]:
    """From now on a run's artifacts, which lie in `artifacts`, must be downloaded; the list gets each that is."""
    fetched: list[str] = []

    def download(self: object, run_id: str, path: str, into: str) -> str:
        fetched.append(path)
        Path(into).mkdir(parents=True, exist_ok=True)
        source, target = artifacts / path, Path(into) / path
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
        return str(target)

    monkeypatch.setattr(MlflowClient, "download_artifacts", download)
    monkeypatch.setattr(RunInfo, "artifact_uri", property(lambda self: "s3://bucket/run"))
    return fetched


def score(
    platform: Platform,
    version: int,
    folder: Path,
    *,
    noise: float,
    outside: float = 35.0,
    luck: Mapping[int, float] | None = None,
    config: Mapping[str, Any] | None = None,
) -> str:
    """Records the scores of a model whose lips follow the sound up to `noise`.

    Args:
        platform: Resources.
        version: Of the model.
        folder: For the benchmark's output.
        noise: Size of what is added to the true curves.
        outside: PSNR outside the face.
        luck: Case -> its own noise.
        config: The benchmark's config where it differs.
    """
    records = planted_records(noise, outside, luck or {})
    out = folder / f"benchmark-{version}"
    out.mkdir(parents=True, exist_ok=True)
    save_records(out / "records.jsonl", records)
    (out / "scores.json").write_text(json.dumps(summarise(records, final="texture")), encoding="utf-8")
    settings = platform.settings
    own = {key: getattr(settings, key).model_dump(mode="json") for key in ("benchmark", "corpus", "media")}
    return record_scores(platform, version, {"version": VERSION, **own, **(config or {})}, out)


def planted_records(noise: float, outside: float, luck: Mapping[int, float]) -> list[CaseRecord]:
    """The same cases each time, dubbed more or less well."""
    rng = np.random.default_rng(7)
    records = []
    for index in range(CASES):
        source, reference, error = rng.standard_normal((3, FRAMES, 3))
        dubbed = reference + luck.get(index, noise) * error
        records.append(
            CaseRecord(
                case_id=f"case{index}",
                head=index,
                kind="natural",
                condition="natural",
                language="en",
                sentence=f"Sentence {index}.",
                input_curves=source.tolist(),
                reference_curves=reference.tolist(),
                rows={
                    COPY: _row(source, 20.0, 45.0),
                    "texture": _row(dubbed, 25.0, outside),
                    EXACT: _row(reference, 40.0, 45.0),
                },
            )
        )
    return records


def _row(curves: np.ndarray, lips: float, outside: float) -> RowCase:
    return RowCase(
        curves=curves.tolist(), lip_psnr=lips, face_psnr=lips, outside_psnr=outside, psnr=lips, ssim=0.9, identity=0.95
    )
