"""Worker: scores one ablated dubber on the benchmark's cases.

Output: what `run_benchmark` writes, without videos.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from model_code.dubbing.assemble import on_backbones
from model_code.dubbing.model import DubberConfig, DubItem, add_expert, load_transformer
from model_code.files import write_text
from model_code.lifetime import process_pool
from model_code.metrics.benchmark import Case, run_benchmark
from model_code.metrics.scores import COPY, EXACT
from model_code.pairs.generate import composite
from model_code.pairs.relight import draw_relighting, relight
from model_code.seeding import rng_for, seed_for
from model_code.workers.benchmark import CasesConfig, cases_of, judges
from model_code.workers.run import Progress, main


class AblationWorkerConfig(CasesConfig):
    """One row of the ablations: the model as it is taken apart, and how it is asked."""

    row: str = Field(description="The row's name.")
    version: str = Field(description="Changes with the model and with how it is asked.")
    judged_by: str = Field("", description="Version of the SyncNet.")
    transformer: Path = Field(description="Folder of the transformer.")
    experts: dict[str, Path] = Field(default_factory=dict, description="Expert -> its folder.")
    dubber: DubberConfig
    composited: bool = Field(False, description="Only the face is taken from the dub, as constructed data are made.")
    changing_light: bool = Field(False, description="Cases under one drawn, moving light, input and reference alike.")


def work(config: AblationWorkerConfig, progress: Progress) -> dict[str, Any]:
    """Builds the cases or finds them, dubs them, scores them."""
    processes = min(config.processes, torch.get_num_threads())
    with process_pool(processes) as pool:
        cases = cases_of(config, pool, progress)
    if config.changing_light:
        cases = [under_changing_light(case) for case in cases]
    drawn = (each.model_dump_json() for each in (config.benchmark, config.corpus, config.media, config.backbones))
    condition = f"{' '.join(drawn)} {config.judged_by} {config.base} {config.changing_light}"
    shared = (config.cache or config.work) / "ablation" / f"{seed_for(condition):x}"
    # What every row stands beside is scored once; the rest is this row's own, since others are scored meanwhile.
    for row in (COPY, EXACT):
        if (shared / f"{row}.json").is_file():
            write_text(config.output / "rows" / f"{row}.json", (shared / f"{row}.json").read_text(encoding="utf-8"))
    done = iter(range(1, 4))
    scores = run_benchmark(
        cases,
        {config.row: partial(dub, config)},
        judges(config),
        config.output,
        final=config.row,
        versions={COPY: condition, EXACT: condition, config.row: config.version},
        progress=lambda row: progress(f"score {row}", next(done), 3, {}),
        videos=False,
    )
    for row in (COPY, EXACT):
        write_text(shared / f"{row}.json", (config.output / "rows" / f"{row}.json").read_text(encoding="utf-8"))
    return {"metrics": {name: estimate["value"] for name, estimate in scores["rows"][config.row].items()}}


def dub(config: AblationWorkerConfig, items: Sequence[DubItem]) -> Sequence[np.ndarray]:
    """Dubs with the row's model."""
    transformer = load_transformer(config.transformer)
    for name, folder in config.experts.items():
        add_expert(transformer, name, folder)
    model = on_backbones(config.dubber, config.backbones, transformer, config.features)
    dubbed = model.to(config.device).dub_many(items)
    if not config.composited:
        return dubbed
    made = []
    for item, frames in zip(items, dubbed, strict=True):
        assert item.landmarks is not None
        assert isinstance(item.frames, np.ndarray)
        made.append(composite(frames, item.frames, item.landmarks, item.occluder))
    return made


def under_changing_light(case: Case) -> Case:
    """The case under a moving light, drawn by its name: the input, the reference and that of silence alike."""
    draws = (draw_relighting(rng_for("light", case.case_id, n), len(case.frames)) for n in range(100))
    light = next(one for one in draws if one.kind == "dynamic")
    quiet = len(case.silent_reference)
    return replace(
        case,
        frames=relight(case.frames, light),
        reference=relight(case.reference, light),
        silent_reference=relight(case.silent_reference, light.first(quiet)),
    )


if __name__ == "__main__":
    sys.exit(main(AblationWorkerConfig, work))
