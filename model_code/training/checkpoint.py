"""Checkpoints without pickle: safetensors for tensors, JSON for the rest, renamed into place when complete.

The JSON holds a hash of every other file. A checkpoint that is not as it was written is passed over
for the one before, and does not count when old ones are removed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model_code.files import write_json
from model_code.training.parallel import filled_like

STATE = "state.json"
PARTS = ("weights", "average", "optimizer")

logger = logging.getLogger(__name__)


@dataclass
class Checkpoint:
    """What a run needs to go on exactly where it stopped.

    Attributes:
        step: Steps done.
        weights: Trained parameters by name.
        average: Their exponential moving average.
        optimizer: AdamW's moments by `<moment>.<parameter name>`; none before the first update.
        state: JSON-able rest (curves, counters).
    """

    step: int
    weights: dict[str, Tensor]
    average: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int = 1) -> Path:
    """Writes `folder/step_NNNNNN`, commits it by rename and removes those before the `keep` newest that are whole."""
    folder.mkdir(parents=True, exist_ok=True)
    target = _place(folder, checkpoint.step)
    partial = folder / f".{target.name}.{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    hashes = {}
    for name in PARTS:
        tensors = {key: value.detach().cpu().contiguous() for key, value in getattr(checkpoint, name).items()}
        save_file(tensors, partial / f"{name}.safetensors")
        hashes[name] = _hash(partial / f"{name}.safetensors")
    write_json(partial / STATE, {"step": checkpoint.step, "sha256": hashes, "state": checkpoint.state})
    if target.exists():
        shutil.rmtree(target)
    partial.replace(target)
    _prune(folder, keep, target)
    return target


def load_checkpoint(folder: Path, below: int | None = None) -> Checkpoint | None:
    """The newest checkpoint under `folder` that loads, or None; `below` asks for one of fewer steps."""
    for path in _committed(folder):
        if (below is None or _step(path) < below) and _is_whole(path):
            header = json.loads((path / STATE).read_text(encoding="utf-8"))
            parts = {name: load_file(path / f"{name}.safetensors") for name in PARTS}
            return Checkpoint(step=_step(path), state=header["state"], **parts)
    return None


def go_back_to(folder: Path, checkpoint: Checkpoint) -> None:
    """Makes an earlier checkpoint the newest, with the state that it has now; a kill on the way loses nothing."""
    path = _place(folder, checkpoint.step)
    header = json.loads((path / STATE).read_text(encoding="utf-8"))
    write_json(path / STATE, {**header, "state": checkpoint.state})
    for later in _committed(folder):
        if _step(later) > checkpoint.step:
            shutil.rmtree(later)


def remove_checkpoints(folder: Path) -> None:
    """Removes a finished run's checkpoints."""
    shutil.rmtree(folder, ignore_errors=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: dict[Tensor, str]) -> dict[str, Tensor]:
    """AdamW's per-parameter state as flat named tensors."""
    flat = {}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            flat[f"{key}.{names[parameter]}"] = torch.as_tensor(value)
    return flat


def restore_optimizer(optimizer: torch.optim.Optimizer, flat: dict[str, Tensor], names: dict[Tensor, str]) -> None:
    """Puts back what `optimizer_tensors` took out."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            suffix = f".{names[parameter]}"
            state = {key[: -len(suffix)]: value for key, value in flat.items() if key.endswith(suffix)}
            state = {key: value for key, value in state.items() if "." not in key}
            optimizer.state[parameter] = {
                key: value.clone() if key == "step" else filled_like(parameter, value) for key, value in state.items()
            }


def _place(folder: Path, step: int) -> Path:
    return folder / f"step_{step:06d}"


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step_"))


def _committed(folder: Path) -> list[Path]:
    """Checkpoints, newest first."""
    found = [path for path in folder.glob("step_*") if (path / STATE).is_file()] if folder.is_dir() else []
    return sorted(found, key=_step, reverse=True)


def _is_whole(path: Path) -> bool:
    """Whether its files are as they were written."""
    try:
        hashes = json.loads((path / STATE).read_text(encoding="utf-8"))["sha256"]
        changed = [name for name in PARTS if _hash(path / f"{name}.safetensors") != hashes[name]]
    except (OSError, ValueError, KeyError) as error:
        changed = [repr(error)]
    if changed:
        logger.warning("checkpoint '%s' is damaged and passed over: %s", path, ", ".join(changed))
    return not changed


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _prune(folder: Path, keep: int, written: Path) -> None:
    """Removes what is older than the `keep` newest checkpoints that load; `written` was just now.

    A later one than that is damaged: it was passed over when the run began.
    """
    sound = 1
    for path in _committed(folder):
        if path == written:
            continue
        if sound >= keep or _step(path) > _step(written):
            shutil.rmtree(path, ignore_errors=True)
        else:
            sound += _is_whole(path)
