"""Shards: a WebDataset tar of media with its table; the table, written last, is the commit point."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from model_code.errors import InputError
from model_code.files import PARTIAL_FOLDER

TAR = "shard.tar"
MANIFEST = "manifest.parquet"


class ShardWriter:
    """Collects samples beside the shard's directory and puts the whole shard in place at `commit`.

    Nothing appears at `directory` before; an older shard there is replaced as a whole. The bytes depend only on the
    members and rows, not on time or on the order of `add`.

    Example:
        >>> with ShardWriter(folder / "0000") as writer:
        ...     writer.add("anna-0", {"crop.mp4": video, "audio.wav": sound})
        ...     writer.commit([{"clip_id": "anna-0", "n_frames": 75}])
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        self._partial = Path(tempfile.mkdtemp(PARTIAL_FOLDER, f".{self.directory.name}.", self.directory.parent))
        self._members = self._partial / "members"
        self._members.mkdir()
        self._names: set[str] = set()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self._partial, ignore_errors=True)

    def add(self, key: str, members: Mapping[str, bytes]) -> None:
        """Adds one sample.

        Args:
            key: The sample's name: no dots, no slashes (WebDataset cuts names at the first dot).
            members: Bytes by extension, such as `crop.mp4`.

        Raises:
            ValueError: If the key is not usable or was added before.
        """
        if not key or any(sign in key for sign in "./\\\0"):
            raise ValueError(f"shard key {key!r} is empty or holds a dot or slash: use letters, digits, '-' and '_'")
        for extension, data in members.items():
            name = f"{key}.{extension}"
            if name in self._names:
                raise ValueError(f"shard member {name!r} was added before: keys must be unique")
            self._names.add(name)
            (self._members / name).write_bytes(data)

    def commit(self, rows: Sequence[Mapping[str, Any]], schema: pa.Schema | None = None) -> Shard:
        """Writes tar and manifest (one row a sample, in the order given) and moves the shard into place."""
        with tarfile.open(self._partial / TAR, "w", format=tarfile.USTAR_FORMAT) as tar:
            for name in sorted(self._names):
                data = (self._members / name).read_bytes()
                info = tarfile.TarInfo(name)
                info.size, info.mtime, info.mode = len(data), 0, 0o644
                tar.addfile(info, io.BytesIO(data))
        shutil.rmtree(self._members)
        pq.write_table(pa.Table.from_pylist([dict(row) for row in rows], schema=schema), self._partial / MANIFEST)
        self._partial.chmod(0o755)
        old = self._partial.with_name(f"{self._partial.stem}.old{PARTIAL_FOLDER}")
        if self.directory.exists():
            os.replace(self.directory, old)
        os.replace(self._partial, self.directory)
        shutil.rmtree(old, ignore_errors=True)
        return Shard(self.directory)


class Shard:
    """A committed shard.

    Raises:
        InputError: If the directory has no manifest: such a shard does not exist.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        if not self.exists(self.directory):
            raise InputError(f"'{self.directory}' is no shard: it has no {MANIFEST}", "materialise the shard again")

    @staticmethod
    def exists(directory: str | Path) -> bool:
        """Whether a committed shard stands at `directory`."""
        return (Path(directory) / MANIFEST).is_file()

    @property
    def tar(self) -> Path:
        """The WebDataset tar."""
        return self.directory / TAR

    @cached_property
    def table(self) -> pa.Table:
        """The manifest."""
        return pq.read_table(self.directory / MANIFEST)

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The manifest as dictionaries."""
        return self.table.to_pylist()

    @cached_property
    def _index(self) -> dict[str, dict[str, tuple[int, int]]]:
        index: dict[str, dict[str, tuple[int, int]]] = {}
        with tarfile.open(self.tar) as tar:
            for info in tar:
                key, _, extension = info.name.partition(".")
                index.setdefault(key, {})[extension] = (info.offset_data, info.size)
        return index

    @property
    def keys(self) -> list[str]:
        """Samples in the tar, sorted."""
        return list(self._index)

    def read(self, key: str, extensions: Sequence[str] | None = None) -> dict[str, bytes]:
        """Bytes of a sample's members by extension (all, or those asked for)."""
        spans = self._index[key]
        members = {}
        with self.tar.open("rb") as file:
            for extension in spans if extensions is None else extensions:
                offset, size = spans[extension]
                file.seek(offset)
                members[extension] = file.read(size)
        return members
