"""API keys: random, shown once, kept as hashes.

A key has 256 random bits, so that a plain SHA-256 cannot be guessed back; a slow hash would only slow requests.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import time
from contextlib import AbstractContextManager
from pathlib import Path

from model_code.errors import InputError
from model_code.files import write_json
from xdub_platform.locks import held
from xdub_platform.settings import Settings

PREFIX = "xdub_"
LOCAL = "local"
"""Owner of all jobs where keys are off."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class Keys:
    """The file of hashed keys; a change of it counts at once.

    Args:
        file: JSON; need not exist yet.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._read_at: tuple[int, int] | None = None
        self._owners: dict[str, str] = {}

    @classmethod
    def of(cls, settings: Settings) -> Keys:
        """The keys of a state root."""
        return cls(settings.serving.keys_file or settings.path("serving", "keys.json"))

    def add(self, name: str) -> str:
        """Makes a key for `name` and returns it: it is not kept and cannot be shown again.

        Raises:
            InputError: The name is taken or no name.
        """
        if not NAME.fullmatch(name) or name == LOCAL:
            raise InputError(f"'{name}' cannot name a key", "use letters, digits, dot, dash and underscore")
        key = PREFIX + secrets.token_urlsafe(32)
        with self._locked():
            rows = self._rows()
            if any(row["name"] == name for row in rows):
                raise InputError(f"there is a key named '{name}'", "choose another name, or revoke it first")
            self._write([*rows, {"name": name, "sha256": _digest(key), "created": int(time.time())}])
        return key

    def revoke(self, name: str) -> None:
        """Makes the key of `name` worthless.

        Raises:
            InputError: There is none.
        """
        with self._locked():
            rows = self._rows()
            if all(row["name"] != name for row in rows):
                raise InputError(f"there is no key named '{name}'", "see the names in the keys file")
            self._write([row for row in rows if row["name"] != name])

    def owner(self, key: str) -> str | None:
        """Whose key it is; None if nobody's. Found by the hash, so that timing tells nothing of the keys."""
        self._refresh()
        return self._owners.get(_digest(key))

    def __len__(self) -> int:
        self._refresh()
        return len(self._owners)

    def _refresh(self) -> None:
        try:
            stat = self.file.stat()
        except FileNotFoundError:
            self._read_at, self._owners = None, {}
            return
        if self._read_at != (stat.st_mtime_ns, stat.st_ino):
            self._owners = {str(row["sha256"]): str(row["name"]) for row in self._rows()}
            self._read_at = (stat.st_mtime_ns, stat.st_ino)

    def _rows(self) -> list[dict[str, str | int]]:
        if not self.file.is_file():
            return []
        try:
            return list(json.loads(self.file.read_text(encoding="utf-8"))["keys"])
        except (ValueError, KeyError, TypeError):
            raise InputError(f"'{self.file}' is no keys file", "move it away and make new keys") from None

    def _write(self, rows: list[dict[str, str | int]]) -> None:
        write_json(self.file, {"keys": rows}, mode=0o600)

    def _locked(self) -> AbstractContextManager[bool]:
        return held(self.file.with_name(f"{self.file.name}.lock"))


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
