"""Ablations without training: a chain that is there by name, and workers that leave a result at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from model_code.files import write_json
from model_code.seeding import rng_for
from xdub_platform.ablation import stages
from xdub_platform.resources.store import Dataset


class FakeWorkers:
    """Stands in for the chain's data and for workers.

    Attributes:
        launched: Jobs in order, as stage names.
        before: Called with each job's name before it is done; may raise.
        version: Of everything that the chain made.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.launched: list[str] = []
        self.before: Callable[[str], None] = lambda name: None
        self.version = "1"
        monkeypatch.setattr(stages, "committed", lambda store, name: self.dataset(name))
        monkeypatch.setattr(stages, "accepted", lambda store, name: self.dataset(name))
        monkeypatch.setattr(
            stages, "accepted_shards", lambda store, asset, variants=("",): self.shards(asset, variants)
        )
        monkeypatch.setattr(stages.Stages, "_launch", lambda own, name, worker: self.launch(own.folder / name))

    def dataset(self, name: str) -> Dataset:
        return Dataset(name, Path("chain") / name, self.version, 1, 1)

    def shards(self, asset: str, variants: tuple[str, ...]) -> list[Dataset]:
        return [self.dataset(f"{asset}/shard-0/{variant}") for variant in variants]

    def launch(self, folder: Path) -> None:
        stage = folder.name.rsplit("-", 1)[0]
        (folder / "worker.log").write_text("now worker: began\nnow worker: it broke\n", encoding="utf-8")
        self.before(stage)
        self.launched.append(stage)
        values = rng_for(folder.name).random(4).tolist()
        names = ("opening", "sync_c", "identity", "perceptual_distance")
        metrics = {"seconds": 2.0, "pucker": None, **dict(zip(names, values, strict=True))}
        write_json(folder / "output" / "result.json", {"metrics": metrics})
