"""Using a registered model: from the command line and in the server's workers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from model_code.dubbing.speaker import Speaker
from model_code.errors import InputError
from model_code.files import write_json
from xdub_platform.integrity import DamagedModelError, digest_of, kept, verified
from xdub_platform.platform import Platform, build_platform
from xdub_platform.resources.mlflow import SYNCNET, briefly
from xdub_platform.settings import Settings

if TYPE_CHECKING:
    from model_code.dubbing.dub import DubReport
    from model_code.dubbing.listener import Listener
    from model_code.dubbing.sampling import Crew
    from model_code.dubbing.who import Progress

BENCHMARK = "benchmark.json"
"""In the folder of a benchmark's results: what was benchmarked. Without it the folder is somebody else's."""
RESULTS = ("result.json", "scores.json", "records.jsonl", "rows", "cases", "cases.png")
"""What a benchmark leaves there; the first says that the others are whole."""


def registered(platform: Platform, version: str) -> Any:
    """A registered dubber's version as the registry has it.

    Args:
        platform: Resources.
        version: Number or ``@alias``.

    Raises:
        InputError: There is no such version.
    """
    name = platform.settings.mlflow.model_name
    found = platform.mlflow.model_version(name, version)
    if found is None:
        raise InputError(
            f"no version {version} of {name} is registered in {platform.settings.state_root}",
            "make one with `xdub run` and name it champion with `xdub promote`, or choose another --version",
        )
    return found


class RegisteredDubber:
    """One whole version of the registered model, loaded: what it dubs is made by this version alone.

    Args:
        platform: Resources.
        version: Number or ``@alias``.
        device: Where the networks go.
        features: Folder in which a published audio encoder's features are kept; None: nothing stays.
        crew: Processes that sample with this one, for this dubber alone from now on; None: there are none.

    Raises:
        InputError: There is no such version, it is damaged, or has heads for another number of processes.
    """

    def __init__(
        self, platform: Platform, version: str, device: str, features: Path | None = None, crew: Crew | None = None
    ) -> None:
        from model_code import base
        from model_code.dubbing.model import DubbingPipelineModel

        self.version = str(registered(platform, version).version)
        with TemporaryDirectory() as scratch:
            folder = verified(platform, self.version, into=Path(scratch))
            self._landmarker = base.load("landmarker")
            self._model = DubbingPipelineModel.from_pretrained(folder, features=features).to(device)
            if crew is not None:
                self._model.sample_with(crew, folder)  # last: from now on the crew has nobody else's networks
        self._platform, self.device = platform, device
        self._listens: Listener | None = None
        own = self._model.config.model_dump(include={"crop_size", "crop_scale"}, exclude_none=True)
        self._media = platform.settings.media.model_copy(update=own)

    def dub(
        self,
        video: Path,
        audio: Path,
        output: Path,
        *,
        seed: int = 0,
        speaker: Speaker = None,
        progress: Progress | None = None,
        limits: Mapping[str, Any] | None = None,
    ) -> DubReport:
        """Dubs a file.

        Args:
            video: Any video.
            audio: The new speech.
            output: The mp4 to write.
            seed: Of the noise.
            speaker: Which face.
            progress: Told (stage, done, in all) at every frame; what it raises ends the dub.
            limits: Fields of `MediaConfig` that are narrower here.

        Raises:
            InputError: Files that cannot be used, no such face in any frame, or nothing to tell who speaks by.
        """
        from model_code.dubbing.dub import dub_file

        return dub_file(
            video,
            audio,
            output,
            self._model,
            self._landmarker,
            self._media.model_copy(update=dict(limits or {})),
            version=self.version,
            seed=seed,
            speaker=self._listener() if speaker == "sync" else speaker,
            progress=progress,
        )

    def _listener(self) -> Listener:
        """With the chain's SyncNet as it is registered when first asked for: the server may have no data registry.

        It hears by the dubber's own encoder, which is here: the server may not reach the hub either.
        """
        if self._listens is not None:
            return self._listens
        from model_code.dubbing.listener import Listener
        from model_code.metrics.syncnet import SyncNet

        remedy = "make the asset `syncnet` (`xdub run --select key:syncnet+`), or name the speaker by number"
        with briefly():
            found = self._platform.mlflow.model_version(SYNCNET, "@challenger")
        if found is None:
            raise InputError("no SyncNet was accepted yet: nothing tells who speaks", remedy)
        try:
            with TemporaryDirectory() as scratch:
                syncnet = SyncNet.from_pretrained(verified(self._platform, found.version, SYNCNET, into=Path(scratch)))
        except DamagedModelError as error:
            raise InputError(error.what, remedy) from error
        self._listens = Listener(syncnet, self._model.audio_encoder)
        return self._listens


def dub_with_registered(
    settings: Settings, video: Path, audio: Path, output: Path, version: str, seed: int, speaker: Speaker
) -> list[str]:
    """Dubs a file; returns lines for the user."""
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from model_code.dubbing.crew import sampling_crew

    features, device = settings.features, settings.processes.device
    with (
        sampling_crew(settings.processes.sampling_processes, device) as crew,
        Bars(console=Console(stderr=True)) as bars,
    ):
        dubber = RegisteredDubber(build_platform(settings), version, device, features, crew)
        tasks: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        report = dubber.dub(video, audio, output, seed=seed, speaker=speaker, progress=show)
    return [*report.notes, f"{output}: {report.seconds:.2f} s, model version {dubber.version}"]


def benchmark_registered(
    settings: Settings, heads_seed: int | None, version: str, cases: int | None, output: Path | None
) -> tuple[Path, dict[str, Any]]:
    """Scores a registered dubber; returns the folder of the results and the scores.

    Args:
        settings: Of the state root.
        heads_seed: Draws fresh heads; None takes the held-out ones.
        version: Number or ``@alias``.
        cases: How many; None is the settings' number.
        output: Folder for the results; None is one in the state root. Those of another benchmark make way there.

    Raises:
        InputError: The folder holds something else, there is no such version, or the benchmark failed.
    """
    from assets.benchmark_scores import VERSION
    from assets.benchmark_scores import config as benchmark_config

    platform = build_platform(settings)
    found = registered(platform, version)
    name = f"v{found.version}-{'heldout' if heads_seed is None else f'heads{heads_seed}'}"
    out = (output or settings.path("benchmarks", name)).absolute()
    chosen = settings.benchmark.model_copy(
        update={"heads_seed": heads_seed, **({"cases": cases} if cases is not None else {})}
    )
    config = {
        **benchmark_config(settings),
        "version": VERSION,
        "benchmark": chosen.model_dump(mode="json"),
        "dubber": str(kept(platform, found)),
        "versions": {"dubber": f"{found.version} {digest_of(found)}"},
        "output": str(out),
        "cache": str(settings.path("cache")),
        "processes": settings.processes.parallel_runs,
        "device": settings.processes.device,
    }
    path = _make_way(out, config)
    command = [sys.executable, "-m", "model_code.workers.benchmark", "--config", str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(settings.processes.threads)}
    if subprocess.run(command, check=False, env=environment).returncode:
        raise InputError(f"the benchmark of version {found.version} failed", "see the lines above")
    return out, json.loads((out / "scores.json").read_text(encoding="utf-8"))


def _make_way(out: Path, config: Mapping[str, Any]) -> Path:
    """Readies a benchmark's folder: results of another config go, nothing else does; returns the config's file there.

    Where the dubber's files lie does not matter: `versions` says which they are.

    Raises:
        InputError: There is something that no benchmark made.
    """
    path = out / BENCHMARK
    if path.is_file():
        if {**json.loads(path.read_text(encoding="utf-8")), "dubber": config["dubber"]} != config:
            for old in (out / name for name in RESULTS):
                shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
    elif out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"'{out}' is no benchmark's folder", "give -o a new or an empty one")
    write_json(path, config)
    return path
