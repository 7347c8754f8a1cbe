"""Benchmark scores of registered versions: what a promotion compares.

The shipped row's values are in a tag of the version, so that a model whose files are damaged can still be compared;
the whole table and every case are an artifact of the version's run, named by the benchmark's digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from xdub_platform.base import base_digest
from xdub_platform.platform import Platform

FOLDER = "scores"
LATEST = "scores.benchmark"
"""Version tag: digest of the benchmark that scored it last."""
JUDGES = ("landmarker", "mouth_reader", "identity_judge", "perceptual")
"""Networks of the base that cut cases or score them."""


@dataclass(frozen=True)
class Scored:
    """What one benchmark said about one version.

    Attributes:
        benchmark: Digest of the benchmark: cases, seed, cutting, judges and the version of its code.
        values: The shipped row.
        detail: ``{"benchmark", "scores", "records"}``; None where the artifact is lost.
    """

    benchmark: str
    values: dict[str, float]
    detail: dict[str, Any] | None


def benchmark_identity(config: Mapping[str, Any], records: list[dict[str, Any]]) -> dict[str, Any]:
    """What two models must share to be compared.

    How a model is sampled is its own business and no part of this; nor are the clips' SyncNet scores, whose judge
    every retrain replaces.
    """
    return {
        **{key: config[key] for key in ("version", "benchmark", "corpus", "media")},
        "judges": base_digest(*JUDGES),
        "cases": [[record["case_id"], record["sentence"]] for record in records],
    }


def record_scores(platform: Platform, version: int, config: Mapping[str, Any], folder: Path) -> str:
    """Writes a benchmark's output to the version that it scored; returns the benchmark's digest.

    Args:
        platform: Resources.
        version: Of the dubber.
        config: The benchmark worker's config; `version` is that of the code that scored.
        folder: Its output: ``scores.json`` and ``records.jsonl``.
    """
    scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text(encoding="utf-8").splitlines()]
    identity = benchmark_identity(config, records)
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:16]
    text = json.dumps({"benchmark": identity, "scores": scores, "records": records}, default=str)
    values = {name: estimate["value"] for name, estimate in scores["rows"][scores["final"]].items()}
    tag = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "values": values}
    name, client = platform.settings.mlflow.model_name, platform.mlflow.client()
    run_id = str(client.get_model_version(name, str(version)).run_id)
    platform.mlflow.write(run_id, FOLDER, f"{digest}.json", text)
    # Tags last: scores without one do not exist.
    client.set_model_version_tag(name, str(version), f"{FOLDER}.{digest}", json.dumps(tag))
    client.set_model_version_tag(name, str(version), LATEST, digest)
    return digest


def recorded_scores(platform: Platform, version: int, benchmark: str | None = None) -> Scored | None:
    """The scores of a version on a benchmark, or on the one that scored it last; None if there are none.

    A version with the same bytes has the same scores: a model that was registered anew need not be scored anew.
    """
    name, versions = platform.settings.mlflow.model_name, platform.mlflow.versions(platform.settings.mlflow.model_name)
    data = versions.get(version, {}).get("dvc.version")
    same = [each for each, tags in versions.items() if data is not None and tags.get("dvc.version") == data]
    for each in dict.fromkeys([version, *sorted(same, reverse=True)]):
        tags = versions.get(each, {})
        digest = benchmark or tags.get(LATEST, "")
        if f"{FOLDER}.{digest}" in tags:
            tag = json.loads(tags[f"{FOLDER}.{digest}"])
            return Scored(digest, tag["values"], _detail(platform, name, each, digest, tag["sha256"]))
    return None


def _detail(platform: Platform, name: str, version: int, digest: str, sha256: str) -> dict[str, Any] | None:
    found = platform.mlflow.model_version(name, str(version))
    with TemporaryDirectory() as scratch:
        try:
            path = platform.mlflow.artifact_path(found.run_id, f"{FOLDER}/{digest}.json", Path(scratch))  # type: ignore[union-attr]
            text = path.read_bytes()
        except FileNotFoundError:
            return None
    return dict(json.loads(text)) if hashlib.sha256(text).hexdigest() == sha256 else None
