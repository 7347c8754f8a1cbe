"""Worker: scores the base in both tasks, generator, editor and both experts on held-out or freshly drawn heads.

Output: `scores.json`, `records.jsonl`, `rows/`, `cases/<id>/` and `cases.png`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from model_code import base
from model_code.backbones.audio import SpeechEncoder
from model_code.backbones.load import load_audio
from model_code.config import BenchmarkConfig, CorpusConfig, FlowConfig, MediaConfig, WindowConfig
from model_code.dubbing.assemble import without_experts
from model_code.dubbing.model import DubbingPipelineModel, DubItem, Mode, read_config
from model_code.lifetime import process_pool
from model_code.media.video import from_mp4_bytes
from model_code.metrics.benchmark import Case, Dubber, Judges, build_cases, run_benchmark
from model_code.metrics.scores import verdicts
from model_code.metrics.syncnet import SyncNet, sync_scores
from model_code.seeding import seed_for
from model_code.workers.pictures import contact_sheet
from model_code.workers.run import Progress, WorkerConfig, main

logger = logging.getLogger(__name__)
FINAL = "texture"
EXPERTS: dict[str, tuple[str, ...]] = {"editor": (), "lip": ("lip",), "texture": ("lip", "texture")}
SHOWN = 4


class CasesConfig(WorkerConfig):
    """On which cases, and who judges."""

    syncnet: Path | None = Field(None, description="The chain's SyncNet; None leaves Sync-C and Sync-D out.")
    benchmark: BenchmarkConfig = BenchmarkConfig()
    corpus: CorpusConfig = CorpusConfig()
    media: MediaConfig = MediaConfig()
    processes: int = Field(1, description="Processes that render cases and, on a CPU, make rows; one a thread at most.")


class BenchmarkWorkerConfig(CasesConfig):
    """What is scored on which cases."""

    dubber: Path = Field(description="Folder of the dubbing model.")
    generator: Path | None = Field(None, description="Output of the generator phase; None leaves its row out.")
    flow: FlowConfig = FlowConfig()
    phase: WindowConfig = Field(WindowConfig(), description="The generator's; the base dubs with it too.")
    versions: dict[str, str] = Field(default_factory=dict, description="Model -> its version in the data registry.")
    version: str = Field("", description="Of the benchmark's code: what another one scored is another benchmark's.")


def work(config: BenchmarkWorkerConfig, progress: Progress) -> dict[str, Any]:
    """Builds the cases, dubs them with every model, scores them."""
    processes = min(config.processes, torch.get_num_threads())
    with process_pool(processes) as pool:
        cases = cases_of(config, pool, progress)
        rows = dubbers(config)
        done = iter(range(1, len(rows) + 3))
        scores = run_benchmark(
            cases,
            rows,
            judges(config),
            config.output,
            final=FINAL,
            versions={
                row: f"{config.versions} {config.flow.model_dump_json()} {config.phase} {config.base}" for row in rows
            },
            pool=None if config.device.startswith("cuda") or processes == 1 else pool,
            threads=torch.get_num_threads() // processes,
            progress=lambda row: progress(f"score {row}", next(done), len(rows) + 2, {}),
        )
    shown = [_videos(config.output / "cases" / case.case_id) for case in cases[:SHOWN]]
    contact_sheet(shown, config.output / "cases.png")
    final = scores["rows"][FINAL]
    return {
        "metrics": {name: estimate["value"] for name, estimate in final.items()},
        "scores": scores,
        "verdicts": verdicts(scores, "demo"),
        "pictures": ["cases.png"],
        "videos": [
            f"cases/{case.case_id}/{name}.mp4" for case in cases[:SHOWN] for name in ("input", "dub", "reference")
        ],
    }


def cases_of(config: CasesConfig, pool: Executor, progress: Progress) -> list[Case]:
    """The cases, from the cache where an earlier worker left them."""
    place = f"{seed_for(config.media.model_dump_json(), config.base):x}"
    return build_cases(
        config.benchmark,
        config.corpus,
        config.media,
        base.load("landmarker"),
        (config.cache or config.work) / "cases" / place,
        scratch=config.output / ".footage",
        pool=pool,
        progress=lambda done, total: progress("cases", done, total, {}),
    )


def dubbers(config: BenchmarkWorkerConfig) -> dict[str, Dubber]:
    """The table's rows from the base to the whole model; each loads its network when its turn comes.

    The shipped prior has no row where the latents or features are not those it knows.
    """
    rows: dict[str, Dubber] = {}
    if config.backbones.made_for_the_prior:
        prior = base.FOLDER / "prior"
        rows["base"] = partial(_alone, config, prior, "generator")
        rows["base_editor"] = partial(_alone, config, prior, "editor")
    if config.generator is not None:
        rows["generator"] = partial(_alone, config, config.generator / "transformer", "generator")
    return {**rows, **{name: partial(_edit, config, experts) for name, experts in EXPERTS.items()}}


def judges(config: CasesConfig) -> Judges:
    """The independent evaluators, and the chain's own SyncNet beside them."""
    sync = None
    if config.syncnet is not None:
        model = SyncNet.from_pretrained(config.syncnet).eval()
        sync = partial(_sync, model, load_audio(config.backbones, config.features))
    return Judges(base.load("mouth_reader"), base.load("identity_judge"), base.load("perceptual"), sync)


def _alone(config: BenchmarkWorkerConfig, folder: Path, mode: Mode, items: Sequence[DubItem]) -> Sequence[np.ndarray]:
    """Dubs with the shipped prior, or with the generator that was trained on it."""
    model = without_experts(mode, folder, config.backbones, config.flow, config.media, config.phase, config.features)
    return model.to(config.device).dub_many(items)


def _edit(config: BenchmarkWorkerConfig, experts: tuple[str, ...], items: Sequence[DubItem]) -> Sequence[np.ndarray]:
    """Dubs with the editor and some of its experts."""
    has = read_config(config.dubber).experts
    chosen = tuple(name for name in experts if name in has)
    model = DubbingPipelineModel.from_pretrained(config.dubber, experts=chosen, features=config.features)
    return model.to(config.device).dub_many(items)


def _sync(model: SyncNet, encoder: SpeechEncoder, frames: np.ndarray, samples: np.ndarray) -> tuple[float, float]:
    found = sync_scores(model, frames, encoder.encode(samples))
    return found.sync_c, found.sync_d


def _videos(folder: Path) -> list[np.ndarray]:
    return [from_mp4_bytes((folder / f"{name}.mp4").read_bytes()) for name in ("input", "dub", "reference")]


if __name__ == "__main__":
    sys.exit(main(BenchmarkWorkerConfig, work))
