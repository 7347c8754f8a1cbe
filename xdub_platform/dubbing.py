"""Using a registered model from the command line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from assets.benchmark_scores import config as benchmark_config
from model_code.errors import InputError
from xdub_platform.incoming import write_json
from xdub_platform.platform import Platform, build_platform
from xdub_platform.settings import Settings


def registered(platform: Platform, version: str) -> tuple[Path, str]:
    """Folder and version number of a registered dubber.

    Raises:
        InputError: There is no such version.
    """
    name = platform.settings.mlflow.model_name
    folder, found = platform.mlflow.model_path(name, version), platform.mlflow.model_version(name, version)
    if folder is None or found is None or not folder.is_dir():
        raise InputError(
            f"no version {version} of {name} is registered in {platform.settings.state_root}",
            "run `xdub demo` first, or choose another --version",
        )
    return folder, str(found.version)


def dub_with_registered(
    settings: Settings, video: Path, audio: Path, output: Path, version: str, seed: int
) -> list[str]:
    """Dubs a file; returns lines for the user."""
    from rich.console import Console
    from rich.progress import Progress, TaskID

    folder, number = registered(build_platform(settings), version)
    for path in (video, audio):
        if not path.is_file():
            raise InputError(f"'{path}' does not exist", "check the path")
    from model_code import base
    from model_code.dubbing.dub import dub_file
    from model_code.dubbing.model import DubbingPipelineModel

    model = DubbingPipelineModel.from_pretrained(folder).to(settings.processes.device)
    with Progress(console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done)

        landmarker = base.load("landmarker")
        report = dub_file(
            video, audio, output, model, landmarker, settings.media, version=number, seed=seed, progress=show
        )
    return [*report.notes, f"{output}: {report.seconds:.2f} s, model version {number}"]


def benchmark_registered(
    settings: Settings, heads_seed: int | None, version: str, cases: int | None, output: Path | None
) -> tuple[Path, dict[str, Any]]:
    """Scores a registered dubber; returns the folder of the results and the scores."""
    folder, number = registered(build_platform(settings), version)
    name = f"v{number}-{'heldout' if heads_seed is None else f'heads{heads_seed}'}"
    out = (output or settings.path("benchmarks", name)).absolute()
    chosen = settings.benchmark.model_copy(
        update={"heads_seed": heads_seed, **({"cases": cases} if cases is not None else {})}
    )
    config = {
        **benchmark_config(settings),
        "benchmark": chosen.model_dump(mode="json"),
        "dubber": str(folder),
        "output": str(out),
        "cache": str(settings.path("cache")),
        "processes": settings.processes.parallel_runs,
        "device": settings.processes.device,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    path = out.parent / f"{out.name}.config.json"
    if not path.is_file() or json.loads(path.read_text(encoding="utf-8")) != config:
        shutil.rmtree(out, ignore_errors=True)
    write_json(path, config)
    command = [sys.executable, "-m", "model_code.workers.benchmark", "--config", str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(settings.processes.threads)}
    if subprocess.run(command, check=False, env=environment).returncode:
        raise InputError(f"the benchmark of version {number} failed", "see the lines above")
    return out, json.loads((out / "scores.json").read_text(encoding="utf-8"))
