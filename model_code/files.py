"""Files that are complete or not there."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

from model_code.errors import InputError


def unfinished(path: Path) -> Path:
    """Where a file is written until it is whole: beside it, under a name that no other process writes to.

    Pods that share a disk have process numbers of their own, so it takes the machine's name too.
    """
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.part")


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
    partial = unfinished(path)
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w", encoding="utf-8") as file:
        file.write(text)
    partial.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object that came from outside.

    Raises:
        InputError: It is none.
    """
    try:
        given: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"'{path}' is no JSON ({error})", "fetch it again") from None
    return given
