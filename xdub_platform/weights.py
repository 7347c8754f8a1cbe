"""Weights that others published, converted and registered with their licence."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from xdub_platform.platform import Platform

if TYPE_CHECKING:
    from model_code.backbones.released import Kind

RUN = "weights import"


@dataclass(frozen=True)
class Imported:
    """What an import registered.

    Attributes:
        kind: xdub: the released checkpoint; wan: Wan2.2, a warm start that has to learn to listen.
        model: Registered model; its alias `kind` names this version.
        version: Its version.
        parameters: Weights, those that are new included.
    """

    kind: Kind
    model: str
    version: int
    parameters: int


def import_weights(platform: Platform, path: Path, licence: str, acknowledged: str = "") -> Imported:
    """Checks published weights, converts them to a `DubbingTransformer` folder and registers it.

    The version carries the tags that promotion looks at (`licence.required`, `licence.acknowledged`); a model
    made from these weights has to carry them on.

    Args:
        platform: Where to register.
        path: See `inspect_weights`.
        licence: The weights' licence as their publisher states it, or that there is none.
        acknowledged: Who read and accepted it; nobody yet if empty.

    Raises:
        InputError: Not published weights that we know, or not whole.
    """
    from model_code.backbones.released import inspect_weights

    found = inspect_weights(path)
    name = f"{platform.settings.mlflow.model_name}-weights"
    tags = {
        "licence": licence,
        "licence.required": "true",
        "licence.acknowledged": acknowledged,
        "weights.kind": found.kind,
        "weights.source": path.name,
        "weights.sha256": _digest(found.files),
    }
    model = found.load()
    parameters = model.num_parameters()
    work = platform.settings.path("work")
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="weights-", dir=work) as folder, platform.mlflow.run(RUN, tags=tags) as run:
        model.save_pretrained(folder)
        del model  # several GB, of no use while they are copied
        run.params({"transformer": found.config.model_dump(mode="json")})
        run.artifact(Path(folder), "transformer")
        version = run.register(name, "transformer", alias=found.kind, tags=tags)
    return Imported(found.kind, name, version, parameters)


def _digest(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as source:
            hashlib.file_digest(source, lambda: digest)
    return digest.hexdigest()
