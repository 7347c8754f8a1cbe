"""Gathers what the registry knows into the report's page."""

from __future__ import annotations

import json
import os
import platform as host
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from model_code.base import cards
from model_code.report.data import (
    BaseCard,
    Calibration,
    CaseVideos,
    Curve,
    Histogram,
    Link,
    ReportData,
    Stage,
    deviations,
)
from model_code.report.page import write_report
from model_code.speech.espeak import SILENCE, synthesize
from xdub_platform.chain import Planner, Status, Step
from xdub_platform.platform import Platform
from xdub_platform.settings import Settings

RESULT = "result"
CJK = ("zh", "yue", "ja")
CURVES = ("loss", "flow", "sync", "identity", "perceptual", "validation_loss")
STATES = {
    Status.FRESH: "reused",
    Status.DONE: "done",
    Status.REJECTED: "failed",
    Status.BLOCKED: "missing",
    Status.FAILED: "failed",
}


def write_chain_report(
    platform: Platform, planner: Planner, steps: Sequence[Step], seconds: float, command: str
) -> Path:
    """Writes ``report/index.html``, ``scores.json`` and the benchmark's cases under the state root."""
    settings, folder = platform.settings, platform.settings.path("report")
    folder.mkdir(parents=True, exist_ok=True)
    scores = copy_benchmark(platform, folder)
    data = ReportData(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        commit=commit(),
        machine=f"{host.machine()}, {host.system()} {host.release()}, Python {host.python_version()}",
        profile=settings.profile,
        total_seconds=seconds,
        stages=stages(planner, steps),
        scores=scores,
        scale="bench" if settings.profile == "embedded-full" else "demo",
        curves=tuple(training_curves(platform, planner)),
        histograms=tuple(histograms(platform)),
        calibrations=tuple(calibrations(platform)),
        cases=tuple(cases(folder, scores.get("final", ""))),
        base=tuple(base_cards()),
        links=links(settings),
        pictures=tuple(sample_pictures(platform)),
        deviations=deviations(settings),
    )
    return write_report(data, folder)


def copy_benchmark(platform: Platform, folder: Path) -> dict[str, Any]:
    """Copies scores and cases beside the page; empty scores where there is no benchmark."""
    dataset = platform.store.get("benchmark_scores")
    if dataset is None:
        return {}
    shutil.rmtree(folder / "cases", ignore_errors=True)
    shutil.copytree(dataset.path / "cases", folder / "cases", copy_function=shutil.copyfile)
    for name in ("scores.json", "records.jsonl"):
        (folder / name).unlink(missing_ok=True)
        shutil.copyfile(dataset.path / name, folder / name)
    return dict(json.loads((folder / "scores.json").read_text(encoding="utf-8")))


def stages(planner: Planner, steps: Sequence[Step]) -> tuple[Stage, ...]:
    """The chain with the times of this run."""
    found = []
    for name in dict.fromkeys(step.node.asset for step in steps):
        own = [step for step in steps if step.node.asset == name]
        state = STATES[max((step.status for step in own), key=list(STATES).index)]
        found.append(
            Stage(
                name=name,
                title=name.replace("_", " "),
                depends=tuple(sorted({parent.asset for step in own for parent in planner.parents(step.node)})),
                seconds=sum(step.seconds for step in own) or None,
                state=state,
                detail=f"{len(own)} partitions" if own[0].node.partition else "",
            )
        )
    return tuple(found)


def training_curves(platform: Platform, planner: Planner) -> list[Curve]:
    """Loss curves of everything that trained."""
    found = []
    for key in planner.graph.toposorted_asset_keys:
        stage = key.to_user_string()
        rows = (platform.store.recorded(stage, RESULT) or {}).get("curves", [])
        for name in CURVES:
            points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
            # `loss` is the sum of the parts; where they are recorded it says nothing more.
            if points and not (name == "loss" and "flow" in rows[0]):
                steps, values = zip(*points, strict=True)
                found.append(Curve(stage=stage, name=name, steps=steps, values=values))
    return found


def histograms(platform: Platform) -> list[Histogram]:
    """What the pair gate measured, over all shards, for each variant."""
    filters, rows = platform.settings.pairs.filters, []
    for name in platform.store.names("companion_pairs"):
        rows += pq.read_table(platform.store.path(name) / "manifest.parquet").to_pylist()
    found = []
    for variant in dict.fromkeys(row["variant"] for row in rows):
        for measure in ("identity_cosine", "mouth_distance", "aspect_mean"):
            values = [
                (row[measure], row["accepted"])
                for row in rows
                if row["variant"] == variant and row[measure] is not None
            ]
            found.append(
                Histogram(
                    gate=f"pairs, {variant}",
                    measure=measure,
                    accepted=tuple(value for value, ok in values if ok),
                    rejected=tuple(value for value, ok in values if not ok),
                    threshold=getattr(filters, measure),
                )
            )
    return found


def calibrations(platform: Platform) -> list[Calibration]:
    """Where the pair filters bite on graded bad pairs, pooled over all partitions."""
    pooled: dict[str, dict[str, list[float]]] = {}
    in_force: dict[str, float] = {}
    for name in platform.store.names("companion_pairs"):
        for measure, found in (platform.store.recorded(name, RESULT) or {}).get("calibration", {}).items():
            in_force[measure] = found["in_force"]
            for grade, values in {"good pairs": found["good"], **found["bad"]}.items():
                pooled.setdefault(measure, {}).setdefault(grade, []).extend(values)
    return [_calibration(measure, in_force[measure], grades) for measure, grades in pooled.items()]


def _calibration(measure: str, in_force: float, grades: Mapping[str, Sequence[float]]) -> Calibration:
    every = [value for values in grades.values() for value in values] + [in_force]
    thresholds = np.linspace(min(every), max(every), 61)
    shares = {grade: (np.asarray(values)[:, None] >= thresholds).mean(0) for grade, values in grades.items()}
    return Calibration(
        measure=measure,
        threshold=in_force,
        thresholds=tuple(thresholds.tolist()),
        accepted={grade: tuple(share.tolist()) for grade, share in shares.items()},
    )


def cases(folder: Path, final: str) -> list[CaseVideos]:
    """The benchmark's cases, with what the independent reader saw."""
    records = folder / "records.jsonl"
    if not records.is_file():
        return []
    found = []
    for line in records.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        place, row = f"cases/{record['case_id']}", record["rows"].get(final)
        if row is None or not (folder / place / "case.json").is_file():
            continue
        found.append(
            CaseVideos(
                case_id=record["case_id"],
                labels=tuple(dict.fromkeys((record["kind"], record["condition"]))),
                language=record["language"],
                sentence=record["sentence"],
                spoken=spoken(record["sentence"], record["language"]),
                input=f"{place}/input.mp4",
                dub=f"{place}/dub.mp4",
                reference=f"{place}/reference.mp4",
                scores={
                    name: row[name] for name in ("lip_psnr", "outside_psnr", "identity") if row.get(name) is not None
                },
                true_opening=tuple(curve[0] for curve in record["reference_curves"]),
                read_opening=tuple(curve[0] for curve in row["curves"]),
            )
        )
    return found


def spoken(sentence: str, language: str) -> str:
    """The sounds of a sentence in a script that many machines have no font for; else nothing."""
    if language not in CJK:
        return ""
    symbols = (phoneme.symbol for phoneme in synthesize(sentence, language).phonemes)
    return "".join(symbols).replace(SILENCE, " ").strip()


def base_cards() -> list[BaseCard]:
    """The shipped networks."""
    return [
        BaseCard(name=name, purpose=str(card.get("purpose", "")), facts=_facts(card)) for name, card in cards().items()
    ]


def _facts(card: Mapping[str, Any]) -> dict[str, str]:
    scores = card.get("scores", {})
    numbers = {key: f"{value:.4g}" for key, value in scores.items() if isinstance(value, int | float)}
    told = {key: str(card[key]) for key in ("parameters", "seed", "seconds", "command") if key in card}
    return {**told, **numbers}


def links(settings: Settings) -> tuple[Link, ...]:
    """Ways into the tools."""
    docs, registry = settings.path("docs"), settings.mlflow_shown
    return (
        Link(title="Dagster", url="http://127.0.0.1:3000", note="start it with `make ui`"),
        Link(title="MLflow", url="http://127.0.0.1:5000", note=f"mlflow ui --backend-store-uri {registry}"),
        Link(title="Data Docs", url=docs.as_uri(), note="one page for each gate"),
    )


def sample_pictures(platform: Platform) -> list[tuple[str, str]]:
    """Sheets that the workers left."""
    found = []
    for name in ("generator", "editor", "lip_expert", "texture_expert", "benchmark_scores"):
        result, dataset = platform.store.recorded(name, RESULT) or {}, platform.store.get(name)
        for picture in result.get("pictures", []):
            if dataset and picture != "loss.png" and (dataset.path / picture).is_file():
                found.append((f"{name.replace('_', ' ')}: {Path(picture).stem}", str(dataset.path / picture)))
    return found


def commit() -> str:
    """The code's commit, where it runs from a git checkout."""
    here = Path(__file__).resolve().parent
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else ""


def machine() -> str:
    """What results were measured on."""
    return f"{os.cpu_count()} CPU cores, {host.machine()}, Python {host.python_version()}"
