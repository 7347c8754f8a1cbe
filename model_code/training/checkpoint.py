"""Checkpoints without pickle: safetensors for tensors, JSON for the rest, renamed into place when complete."""

from __future__ import annotations

import json
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


@dataclass
class Checkpoint:
    """What a run needs to go on exactly where it stopped.

    Attributes:
        step: Steps done.
        weights: Trained parameters by name.
        average: Their exponential moving average.
        optimizer: AdamW's moments by `<moment>.<parameter name>`.
        state: JSON-able rest (curves, counters).
    """

    step: int
    weights: dict[str, Tensor]
    average: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int = 1) -> Path:
    """Writes `folder/step_NNNNNN`, commits it by rename and removes all but the `keep` newest."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step_{checkpoint.step:06d}"
    partial = folder / f".{target.name}.{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for name in ("weights", "average", "optimizer"):
        tensors = {key: value.detach().cpu().contiguous() for key, value in getattr(checkpoint, name).items()}
        save_file(tensors, partial / f"{name}.safetensors")
    write_json(partial / STATE, {"step": checkpoint.step, "state": checkpoint.state})
    if target.exists():
        shutil.rmtree(target)
    partial.replace(target)
    for old in _steps(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest complete checkpoint below `folder`, or None."""
    steps = _steps(folder)
    if not steps:
        return None
    newest = steps[-1]
    header = json.loads((newest / STATE).read_text(encoding="utf-8"))
    parts = {name: load_file(newest / f"{name}.safetensors") for name in ("weights", "average", "optimizer")}
    return Checkpoint(step=int(header["step"]), state=header["state"], **parts)


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


def _steps(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.glob("step_*") if (path / STATE).is_file())
