"""Files that are complete or not there."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model_code.errors import InputError

UNFINISHED = re.compile(r"\..+\.\d+\.part")
"""Names that `unfinished` gives, on any machine."""

PARTIAL_FOLDER = ".xdub-partial"
"""How hidden folders end that are to take another's place: no user's has such a name."""


@contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """Where a file is written until it is whole: beside it, under a name that no other process writes to.

    It takes the file's place afterwards, or is removed if the writing failed. Pods that share a disk have process
    numbers of their own, so the name takes the machine's too.
    """
    partial = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.part")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def clear_unfinished(folder: Path) -> None:
    """Removes what killed processes left of `unfinished` below a folder; the caller sees to it that nobody writes."""
    for path in folder.rglob(".*.part"):
        if UNFINISHED.fullmatch(path.name) and path.is_file():
            path.unlink()


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
    with unfinished(path) as partial:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)


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
