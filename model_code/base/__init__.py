"""The shipped base: half-precision weights with their cards, one folder each."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

from model_code.errors import InputError

FOLDER = Path(__file__).resolve().parent

#: name -> module and class that reads its folder.
CLASSES: dict[str, tuple[str, str]] = {
    "audio_encoder": ("model_code.backbones.audio", "AudioEncoder"),
    "codec": ("model_code.backbones.codec", "BlockCodec"),
    "landmarker": ("model_code.faces.landmarker", "Landmarker"),
    "perceptual": ("model_code.backbones.perceptual", "PerceptualEncoder"),
    "prior": ("model_code.backbones.transformer", "DubbingTransformer"),
    "mouth_reader": ("model_code.metrics.evaluators.mouth_reader", "MouthReader"),
    "identity_judge": ("model_code.metrics.evaluators.identity_judge", "IdentityJudge"),
}


def load(name: str, folder: Path | None = None) -> Any:
    """One network of the base, in single precision and evaluation mode.

    Args:
        name: A key of `CLASSES`.
        folder: Another base than the shipped one.

    Raises:
        InputError: if the folder does not hold it.
    """
    path = (folder or FOLDER) / name
    if not (path / "config.json").is_file():
        raise InputError(f"{path} holds no config.json", "restore the folder from git, or train it (`make pretrain`)")
    module, class_name = CLASSES[name]
    return getattr(import_module(module), class_name).from_pretrained(path).float().eval()


def missing() -> list[str]:
    """Networks that the shipped base lacks."""
    return [name for name in CLASSES if not (FOLDER / name / "config.json").is_file()]


def cards() -> dict[str, dict[str, Any]]:
    """The card of every network of the base that is there."""
    paths = sorted(FOLDER.glob("*/card.json"))
    return {path.parent.name: json.loads(path.read_text()) for path in paths}
