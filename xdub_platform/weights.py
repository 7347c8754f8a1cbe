"""Weights that others published, converted and registered with their licence."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from model_code.errors import InputError
from xdub_platform.integrity import DamagedModelError, digest_of, kept, verified
from xdub_platform.licences import carried
from xdub_platform.locks import seized
from xdub_platform.platform import Platform
from xdub_platform.resources.store import Dataset
from xdub_platform.settings import Settings

if TYPE_CHECKING:
    from model_code.backbones.released import Kind

RUN = "weights import"


def model_of(settings: Settings) -> str:
    """The registered model that imported weights are versions of."""
    return f"{settings.mlflow.model_name}-weights"


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
    from model_code.backbones.released import inspect_weights, listening_as

    found = inspect_weights(path, listening_as(platform.settings.transformer))
    name = model_of(platform.settings)
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
    with _scratch(platform.settings, "import") as folder, platform.mlflow.run(RUN, tags=tags) as run:
        model.save_pretrained(folder)
        del model  # several GB, of no use while they are copied
        run.params({"transformer": found.config.model_dump(mode="json")})
        run.artifact(folder, "transformer")
        version = run.register(name, "transformer", alias=found.kind, tags=tags)
    return Imported(found.kind, name, version, parameters)


@dataclass(frozen=True)
class Assembled:
    """A dubber made of imported weights.

    Attributes:
        model: Registered model; the alias `released` names this version.
        version: Its version.
        weights: Version of the imported weights.
        acknowledged: Who accepted their licence; nobody if empty.
    """

    model: str
    version: int
    weights: int
    acknowledged: str


def assemble_dubber(platform: Platform, version: str = "@xdub") -> Assembled:
    """Makes a dubber of imported weights and the settings' backbones, and registers it with the weights' licence.

    It dubs as the settings say: flow, crop, window and how windows are joined. The cluster profile's are the release's.

    Args:
        platform: Resources.
        version: Number or ``@alias`` of the imported weights.

    Raises:
        InputError: There are no such weights, they are damaged or cannot hear, or a backbone does not fit.
    """
    from model_code.dubbing.assemble import assemble
    from model_code.dubbing.model import DubberConfig

    settings = platform.settings
    name = model_of(settings)
    found = platform.mlflow.model_version(name, version)
    if found is None:
        raise InputError(f"no version {version} of {name} is registered", "run `xdub weights import` first")
    if found.tags.get("weights.kind") == "wan":
        raise InputError(f"version {found.version} of {name} is Wan, which hears nothing", "give X-Dub's weights")
    origin = {key: value for key, value in found.tags.items() if key.startswith("weights.")}
    tags = {**origin, **carried({f"{name}/{found.version}": dict(found.tags)})}
    config = DubberConfig(
        mode="editor",
        flow=settings.flow,
        crop_size=settings.media.crop_size,
        crop_scale=settings.media.crop_scale,
        window_frames=settings.phases.editor.clip_frames,
        overlap_frames=settings.phases.editor.motion_frames,
        stitching=settings.dubbing.stitching,
    )
    with _scratch(settings, "assemble") as scratch:
        # Not right below it, where config.json would make it a worker's folder, whose unfinished work stays.
        copied, folder = scratch / "parts" / "weights", scratch / "parts" / "model"
        copied.mkdir(parents=True)
        transformer = verified(platform, str(found.version), name, into=copied)
        config = assemble(transformer, settings.backbones, config, folder, settings.features)
        with platform.mlflow.run("weights assemble", tags=tags) as run:
            run.params(
                {"backbones": settings.backbones.model_dump(mode="json"), "dubber": config.model_dump(mode="json")}
            )
            run.artifact(folder, "model")
            number = run.register(settings.mlflow.model_name, "model", alias="released", tags=tags)
    return Assembled(settings.mlflow.model_name, number, int(found.version), tags.get("licence.acknowledged", ""))


def starting_weights(platform: Platform, asset: str) -> Dataset | None:
    """The registered weights that an asset's training starts from, every file checked; None where settings name none.

    Raises:
        InputError: They are not registered, or damaged.
    """
    named = platform.settings.start.named(asset)
    if named is None:
        return None
    model, version = model_and_version(platform.settings, named)
    found = platform.mlflow.model_version(model, version)
    wanted = f"start.{asset} '{named}'"
    if found is None:
        raise InputError(
            f"{wanted}: no version {version} of {model} is registered",
            f"run `xdub weights import PATH` with this profile, or set XDUB_START__{asset.upper()}; bench and ablate "
            "have a registry for each seed: let them share one, XDUB_MLFLOW__TRACKING_URI",
        )
    try:
        folder = kept(platform, found)
    except DamagedModelError as error:
        raise InputError(f"{wanted}: {error.what}", "run `xdub weights import PATH` again") from error
    inside = folder / "transformer"  # of a model that the chain made; imported weights are the transformer alone
    files = [path for path in folder.rglob("*") if path.is_file()]
    return Dataset(
        name=f"{model}/{found.version}",
        path=inside if inside.is_dir() else folder,
        version=digest_of(found),
        size=sum(path.stat().st_size for path in files),
        n_files=len(files),
        source="mlflow",
    )


def moved(platform: Platform, asset: str, made_from: Mapping[str, str]) -> str | None:
    """Why an asset would start from other registered weights than it did; None if from the same, or from none.

    Args:
        platform: Resources.
        asset: What training makes.
        made_from: The inputs that the present one was made from: name -> version.
    """
    named = platform.settings.start.named(asset)
    if named is None:
        return None
    model, version = model_and_version(platform.settings, named)
    found = platform.mlflow.model_version(model, version)
    if found is None or digest_of(found) in made_from.values():
        return None
    return f"start.{asset} '{named}' is version {found.version} of {model} now"


def model_and_version(settings: Settings, named: str) -> tuple[str, str]:
    """A registered model, and its version's number or ``@alias``."""
    model, at, alias = named.partition("@")
    if at:
        return model or model_of(settings), f"@{alias}"
    model, _, number = named.rpartition("/")
    return model or model_of(settings), number


@contextmanager
def _scratch(settings: Settings, name: str) -> Iterator[Path]:
    """A folder for the time of the block; `xdub doctor --repair` clears it when its lock is nobody's."""
    work = settings.path("work", name)
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work) as folder, seized(Path(f"{folder}.lock")):
        yield Path(folder)


def _digest(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as source:
            hashlib.file_digest(source, lambda: digest)
    return digest.hexdigest()
