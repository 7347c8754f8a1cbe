"""Is a registered model still the files that were registered?

Registration writes a manifest of hashes beside the files and the manifest's own hash into the registry's
database. Promotion and serving ask here before a model may speak to anybody.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from model_code.errors import InputError
from xdub_platform.locks import held
from xdub_platform.platform import Platform
from xdub_platform.resources.mlflow import MANIFEST, MANIFEST_TAG, manifest_of

REMEDY = "roll back to a whole version with `xdub promote --rollback VERSION`, or materialise `dubber` again"
DIGEST_LENGTH = 32
"""Hexadecimal digits of a manifest's hash that name a version's files: MLflow takes 36 at most of an input's."""


class DamagedModelError(InputError):
    """A registered version whose files must not be loaded."""


def whole(platform: Platform, version: int | str, name: str | None = None) -> str | None:
    """Why a version's files must not be served; None if every one is as it was registered.

    Args:
        platform: Resources.
        version: Number or ``@alias``.
        name: Registered model; None is the dubber.
    """
    with TemporaryDirectory() as scratch:
        try:
            verified(platform, version, name, into=Path(scratch))
        except DamagedModelError as error:
            return error.what
    return None


def verified(platform: Platform, version: int | str, name: str | None = None, *, into: Path) -> Path:
    """The folder of a version's files after checking every one: what is loaded is what was checked.

    Args:
        platform: Resources.
        version: Number or ``@alias``.
        name: Registered model; None is the dubber.
        into: Folder for what must be downloaded; a registry on this machine is read in place.

    Raises:
        DamagedModelError: A file is missing, changed or was never registered; or there is no such version.
    """
    name = name or platform.settings.mlflow.model_name
    found = platform.mlflow.model_version(name, str(version))
    if found is None:
        raise DamagedModelError(f"there is no version {version} of {name}", "see `xdub status`")
    told = f"version {found.version} of {name}"
    if MANIFEST_TAG not in found.tags:
        raise DamagedModelError(f"{told} was registered without a manifest of its files", REMEDY)
    try:
        manifest = platform.mlflow.artifact_path(found.run_id, MANIFEST, into).read_bytes()
        folder = platform.mlflow.model_path(name, str(found.version), into)
    except FileNotFoundError as error:
        raise DamagedModelError(f"{told}: {error}", REMEDY) from error
    if hashlib.sha256(manifest).hexdigest() != found.tags[MANIFEST_TAG]:
        raise DamagedModelError(f"{told}: its manifest was changed", REMEDY)
    damage = difference(json.loads(manifest), manifest_of(folder)) if folder else "its files are missing"
    if damage or folder is None:
        raise DamagedModelError(f"{told}: {damage}", REMEDY)
    return folder


def digest_of(version: Any) -> str:
    """Names the files of a registered version, wherever they lie; empty where it has no manifest of them."""
    return str(version.tags.get(MANIFEST_TAG, ""))[:DIGEST_LENGTH]


def kept(platform: Platform, version: Any) -> Path:
    """As `verified`; what must be downloaded stays under `cache/weights`, where whoever comes again finds it.

    Args:
        platform: Resources.
        version: As `MlflowRuns.model_version` gave it.

    Raises:
        DamagedModelError: A file is missing or changed, also when downloaded anew, or was never registered.
    """
    digest = digest_of(version)
    if not digest:
        raise DamagedModelError(f"version {version.version} of {version.name} has no manifest of its files", REMEDY)
    folder = platform.settings.path("cache", "weights", digest)
    with held(folder.with_suffix(".lock")):
        try:
            return verified(platform, version.version, version.name, into=folder)
        except DamagedModelError:
            if not folder.is_dir():
                raise
            shutil.rmtree(folder)
            return verified(platform, version.version, version.name, into=folder)


def difference(registered: Mapping[str, Any], there: Mapping[str, Any]) -> str | None:
    """The first thing in which two manifests differ, in words; None if they are the same."""
    for path, wanted in registered.items():
        if path not in there:
            return f"{path} is missing"
        if there[path]["size"] != wanted["size"]:
            return f"{path} has {there[path]['size']} bytes instead of {wanted['size']}"
        if there[path]["sha256"] != wanted["sha256"]:
            return f"{path} is not the file that was registered (its sha256 differs)"
    return next((f"{path} was never registered" for path in there if path not in registered), None)
