"""Small networks that live in a folder: config.json (their arguments) and model.safetensors (half precision)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Generic, Self, TypeVar

import torch
from pydantic import BaseModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model_code.errors import InputError
from model_code.files import unfinished

ConfigT = TypeVar("ConfigT", bound=BaseModel)


class SavedModule(nn.Module, Generic[ConfigT]):
    """A network built from one pydantic config, saved and loaded like any Hugging Face model folder.

    Subclasses set `config_type` and take the config as the constructor's only argument.
    """

    config_type: type[ConfigT]

    def __init__(self, config: ConfigT) -> None:
        super().__init__()
        self.config = config

    @property
    def parameter_count(self) -> int:
        """Trainable and frozen parameters, without buffers."""
        return sum(parameter.numel() for parameter in self.parameters())

    def save_pretrained(self, folder: Path | str) -> None:
        """Writes `folder`/config.json and `folder`/model.safetensors, floats as float16."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {
            name: (value.half() if value.is_floating_point() else value).detach().cpu().contiguous()
            for name, value in self.state_dict().items()
        }
        save_file(state, folder / "model.safetensors")
        (folder / "config.json").write_text(self.config.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> Self:
        """Reads what `save_pretrained` wrote: float32, evaluation mode, gradients of the weights off.

        Raises:
            InputError: The folder holds no such network.
        """
        folder = Path(folder)
        if not (folder / "config.json").is_file() or not (folder / "model.safetensors").is_file():
            raise InputError(f"{folder} holds no {cls.__name__}", "expected config.json and model.safetensors")
        config = cls.config_type.model_validate(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        module = cls(config)
        state = load_file(folder / "model.safetensors")
        module.load_state_dict({k: v.float() if v.dtype == torch.float16 else v for k, v in state.items()})
        return module.eval().requires_grad_(False)


def fingerprint(module: nn.Module) -> str:
    """Short hash of a module's weights: part of every cache key that depends on them."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes a safetensors file that is complete or not there, though several processes write it; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with unfinished(path) as partial:
        save_file(dict(tensors), partial)
