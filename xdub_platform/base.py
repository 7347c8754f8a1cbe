"""Versions of the shipped base, for code versions."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import model_code.base


@cache
def base_digest(*names: str) -> str:
    """Hash of the weights of the named networks; a retrained base makes what was built on it stale."""
    digest = hashlib.sha256()
    for name in names:
        for path in sorted((Path(model_code.base.FOLDER) / name).glob("*.safetensors")):
            digest.update(path.name.encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
