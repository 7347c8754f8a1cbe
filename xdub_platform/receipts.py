"""Receipts: what `dvc repro` tracks instead of the data, which has a registry of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from model_code.files import write_json
from xdub_platform.chain import Step
from xdub_platform.incoming import files_at_rest
from xdub_platform.platform import build_platform
from xdub_platform.running import dataset_of
from xdub_platform.settings import Settings


def write_receipt(settings: Settings, steps: Sequence[Step], path: Path) -> None:
    """Dataset -> version in the registry, for every selected asset and partition."""
    store = build_platform(settings).store
    found = {name: store.get(name) for name in (dataset_of(step.node) for step in steps)}
    write_json(path, {name: dataset.version if dataset else None for name, dataset in found.items()})


def write_corpus_receipt(settings: Settings, path: Path) -> None:
    """Names and sizes of the incoming videos."""
    files = files_at_rest(settings.incoming, 0.0)
    write_json(path, {file.name: file.size for file in files})
