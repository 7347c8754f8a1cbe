"""Files that are complete or not there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any, mode: int = 0o666) -> None:
    """Writes JSON as `write_text` does.

    Raises:
        ValueError: A number is not finite, which JSON cannot say.
    """
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n", mode)


def write_text(path: Path, text: str, mode: int = 0o666) -> None:
    """Writes a file so that a reader sees the old one or the new one, never a part; makes the folder if need be.

    Args:
        path: The file.
        text: All of it.
        mode: Permissions, of which the process's umask takes some away.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w", encoding="utf-8") as file:
        file.write(text)
    partial.replace(path)
