"""What a row has to train, as worker jobs whose folders are named by what decides them.

The chain of a state root gives clips, pairs, SyncNet, identity encoder and generator. Everything after that is made
here, without Dagster: a job's name holds a hash of its settings and of its inputs' versions, so that two rows share
what they have in common, a changed setting makes anew what it changes, and a killed run goes on where it was: a
finished job has its result, and a worker resumes its own checkpoints. Rows may be made side by side: a lock beside
each job's folder lets the second wait for the first.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Event
from types import ModuleType
from typing import Any

import assets.benchmark_scores
import assets.editor
import assets.generator
import assets.lip_expert
import assets.texture_expert
from assets.gates import accepted, accepted_shards, committed
from assets.training import training_inputs, weights_for
from model_code.dubbing.model import DubberConfig
from model_code.files import write_json
from model_code.lifetime import THREADS
from model_code.workers.run import RESULT
from xdub_platform.ablation.rows import Row, long_frames
from xdub_platform.locks import held
from xdub_platform.platform import Platform
from xdub_platform.resources.store import Dataset
from xdub_platform.resources.workers import command_of, started
from xdub_platform.settings import Settings

VERSION = "1"
"""Part of every score's name: raise it when the meaning of a row changes without its settings."""
LOOK_EVERY = 2.0
EXPERTS = {"lip": assets.lip_expert, "texture": assets.texture_expert}
Tell = Callable[[str, str], None]
"""Told (job, its worker's latest line)."""
Result = dict[str, Any]


class JobFailed(RuntimeError):
    """A worker ended without a result; the message names its log."""


def changed(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """The settings with some values replaced, nested as they are."""
    return Settings.model_validate(_merged(settings.model_dump(mode="json"), changes))


def _merged(values: Any, changes: Any) -> Any:
    if not isinstance(values, dict) or not isinstance(changes, Mapping):
        return changes
    return {**values, **{key: _merged(values.get(key), value) for key, value in changes.items()}}


class Stages:
    """The work of rows on one state root whose chain is made up to its pairs.

    Args:
        platform: Of the state root.
        tell: Progress of the workers.
        ended: Set when nobody waits for the rows any more: workers end, nothing is begun.

    Attributes:
        results: What every job said that the rows so far needed.
        launched: Jobs that were not done yet.
    """

    def __init__(self, platform: Platform, tell: Tell, ended: Event) -> None:
        self.platform, self.tell, self.ended = platform, tell, ended
        self.settings = platform.settings
        self.folder = self.settings.path("ablation")
        self.results: dict[str, Result] = {}
        self.launched = 0

    def scored(self, row: Row) -> Result:
        """The scores of a row, after making whatever it needs.

        Raises:
            JobFailed: A worker failed.
            dagster.Failure: The chain lacks something that the row needs.
        """
        settings = changed(self.settings, row.changes(self.settings))
        model = self._generator(settings) if row.model == "generator" else self._editor(settings)
        experts = {name: self._expert(name, settings, model) for name in row.experts}
        syncnet = accepted(self.platform.store, "syncnet")
        asked = {
            "dubber": self._dubber(row).model_dump(mode="json"),
            "composited": row.composited,
            "changing_light": row.changing_light,
        }
        cases = assets.benchmark_scores.config(self.settings)
        deciding = {**asked, **{name: cases[name] for name in ("benchmark", "corpus", "media", "backbones", "base")}}
        inputs = {"transformer": model, "syncnet": syncnet, **experts}
        code = f"{VERSION} {assets.benchmark_scores.VERSION}"
        name = self._name(f"score-{row.name}", code, deciding, inputs)
        where = {
            "row": row.name,
            "version": name,
            "judged_by": syncnet.version,
            "transformer": str(model.path / "transformer"),
            "experts": {expert: str(data.path / "expert") for expert, data in experts.items()},
            "syncnet": str(syncnet.path),
            "device": settings.processes.device,
            "cache": str(settings.path("cache")),
            "processes": settings.processes.parallel_runs,
        }
        return self._made(name, "ablation", {**deciding, **where})

    def seconds(self) -> float:
        """What the workers took for all that the rows so far needed, each job counted once."""
        return float(sum(result["metrics"]["seconds"] for result in self.results.values()))

    def _dubber(self, row: Row) -> DubberConfig:
        flow = self.settings.flow.model_dump()
        if row.composited:
            pairs = self.settings.pairs
            flow |= {"sampling_steps": pairs.sampling_steps, "audio_guidance": pairs.audio_guidance}
        phase = getattr(self.settings.phases, row.model)
        values = {
            "mode": row.model,
            "flow": {**flow, **row.sampling},
            "crop_size": self.settings.media.crop_size,
            "window_frames": long_frames(self.settings) if row.long else phase.clip_frames,
            "overlap_frames": phase.motion_frames,
            "reference": row.reference,
            "experts": row.experts,
        }
        return DubberConfig.model_validate(values)

    def _generator(self, settings: Settings) -> Dataset:
        if assets.generator.config(settings) == assets.generator.config(self.settings):
            return committed(self.platform.store, "generator")
        start = weights_for(self.platform, "generator")
        return self._trained("generator", assets.generator, settings, start, shards=self._clips())

    def _editor(self, settings: Settings) -> Dataset:
        start = weights_for(self.platform, "editor") or {"init": committed(self.platform.store, "generator")}
        return self._trained("editor", assets.editor, settings, start, pairs=self._pairs(settings))

    def _expert(self, name: str, settings: Settings, model: Dataset) -> Dataset:
        store, asset = self.platform.store, EXPERTS[name]
        if name == "lip":
            teacher = {"syncnet": accepted(store, "syncnet")}
        else:
            teacher = {"identity": committed(store, "identity_encoder")}
        models = {"init": model, **teacher}
        if getattr(settings.phases, name).inpaints:
            return self._trained(name, asset, settings, models, shards=self._clips())
        return self._trained(name, asset, settings, models, pairs=self._pairs(settings))

    def _clips(self) -> list[Dataset]:
        return accepted_shards(self.platform.store, "clips")

    def _pairs(self, settings: Settings) -> list[Dataset]:
        return accepted_shards(self.platform.store, "companion_pairs", settings.variants)

    def _trained(
        self,
        stage: str,
        asset: ModuleType,
        settings: Settings,
        models: Mapping[str, Dataset],
        *,
        shards: Sequence[Dataset] = (),
        pairs: Sequence[Dataset] = (),
    ) -> Dataset:
        config = asset.config(settings)
        read = {dataset.name: dataset for dataset in (*shards, *pairs)}
        name = self._name(stage, asset.VERSION, config, {**read, **models})
        self._made(name, "train", training_inputs(self.platform, config, models, shards=shards, pairs=pairs))
        return Dataset(name, self.folder / name / "output", name, 0, 0)

    def _name(self, stage: str, code: str, config: Mapping[str, Any], inputs: Mapping[str, Dataset]) -> str:
        versions = {name: dataset.version for name, dataset in inputs.items()}
        text = json.dumps([code, config, versions], sort_keys=True, default=str)
        return f"{stage}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def _made(self, name: str, worker: str, config: Mapping[str, Any]) -> Result:
        folder = self.folder / name
        done = folder / "output" / RESULT
        with held(self.folder / f"{name}.lock"):
            if not done.is_file() and not self.ended.is_set():
                kept = {"features": str(self.settings.features)}
                write_json(folder / "config.json", {**config, **kept, "output": str(folder / "output")})
                self.launched += 1
                self._launch(name, worker)
        if not done.is_file():
            if self.ended.is_set():
                raise JobFailed(f"{name}: ended with the run")
            lines = (folder / "worker.log").read_text(encoding="utf-8", errors="replace").splitlines()
            raise JobFailed(f"{name}: {lines[-1] if lines else 'no output'} (see {folder / 'worker.log'})")
        result: Result = json.loads(done.read_text(encoding="utf-8"))
        self.results[name] = result
        return result

    def _launch(self, name: str, worker: str) -> None:
        """Runs a worker to its end, whatever that is; it ends with this process, and when nobody waits for it."""
        folder, processes = self.folder / name, self.settings.processes
        threads = processes.threads if processes.parallel_runs > 1 else processes.training_threads
        log = folder / "worker.log"
        command = command_of(worker, folder / "config.json")
        with log.open("ab") as file, started(command, dict.fromkeys(THREADS, str(threads)), file) as process:
            while process.poll() is None and not self.ended.is_set():
                self.tell(name, latest_line(log))
                with suppress(subprocess.TimeoutExpired):
                    process.wait(LOOK_EVERY)


def latest_line(log: Path) -> str:
    """What a worker said last, without the time and its logger's name."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return lines[-1].split(": ", 1)[-1] if lines else ""
