"""The incoming folder: files at rest become shards, each file once.

The ledger is one small JSON file for each shard, written atomically. It says as which one the shard arrived, and lists
the videos by name, size and modification time, with a digest of those of what lies beside them: a video is taken in
again when other bytes replace it, and when its sidecar, sound or mask arrives or changes.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from model_code.files import write_json
from model_code.media.names import OCCLUDER_SUFFIX, is_video
from xdub_platform.locks import held
from xdub_platform.partitions import HELDOUT_PREFIX


@dataclass(frozen=True)
class IncomingFile:
    """One video as it lay in the incoming folder.

    Attributes:
        name: Of the video.
        size: Of the video, in bytes.
        modified_ns: When the video was written to.
        beside: Digest of the same of each file that belongs to it; None where an earlier version wrote the row.
    """

    name: str
    size: int
    modified_ns: int
    beside: str | None = None

    @property
    def rows(self) -> set[IncomingFile]:
        """What the ledger may say of it: earlier versions looked at the video alone."""
        return {self, replace(self, beside=None)}


class ShardLedger:
    """Which files make which shard.

    Args:
        folder: Where the ledger's files lie, one for each shard.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def shards(self) -> list[str]:
        """Names of all shards, sorted."""
        return sorted(path.stem for path in self.folder.glob("*.json"))

    def files(self, shard: str) -> list[IncomingFile]:
        """Files of one shard, sorted by name."""
        return [IncomingFile(**row) for row in self._entry(shard)["files"]]

    def before(self, shard: str) -> list[str]:
        """Shards that arrived before `shard`, held-out ones too; first come, first."""
        arrived = {name: self._arrival(name) for name in self.shards()}
        return sorted((name for name in arrived if arrived[name] < arrived[shard]), key=lambda name: arrived[name])

    def take(self, incoming: Path, clips_per_shard: int, rest_seconds: float = 0.0) -> list[str]:
        """Groups new files at rest into shards and returns the new shards' names.

        Args:
            incoming: Folder that footage is dropped into.
            clips_per_shard: Most videos in one shard.
            rest_seconds: A video is at rest when neither it nor what belongs to it was written to for this long.
        """
        with held(self.folder / ".lock"):
            # The sensor and a command may look at the same moment; no file may end in two shards.
            return self._take(incoming, clips_per_shard, rest_seconds)

    def waiting(self, incoming: Path, rest_seconds: float = 0.0) -> list[IncomingFile]:
        """Files at rest that no shard lists, sorted by name: what `take` would take."""
        known = {file for shard in self.shards() for file in self.files(shard)}
        return [file for file in files_at_rest(incoming, rest_seconds) if known.isdisjoint(file.rows)]

    def _take(self, incoming: Path, clips_per_shard: int, rest_seconds: float) -> list[str]:
        arrivals = (self._entry(shard)["arrival"] for shard in self.shards())
        arrival = max((number for number in arrivals if number is not None), default=-1)
        fresh = self.waiting(incoming, rest_seconds)
        taken = []
        for prefix, heldout in (("shard-", False), (HELDOUT_PREFIX, True)):
            group = [file for file in fresh if (declared_split(incoming / file.name) == "heldout") == heldout]
            for batch in _batches(group, clips_per_shard):
                shard, arrival = f"{prefix}{self._next_index(prefix):05d}", arrival + 1
                write_json(self._path(shard), {"arrival": arrival, "files": [asdict(file) for file in batch]})
                taken.append(shard)
        return taken

    def _next_index(self, prefix: str) -> int:
        return (
            max((int(name.removeprefix(prefix)) for name in self.shards() if name.startswith(prefix)), default=-1) + 1
        )

    def _path(self, shard: str) -> Path:
        return self.folder / f"{shard}.json"

    def _entry(self, shard: str) -> dict[str, Any]:
        """A shard's `files` and the number of its `arrival`; None where an earlier version wrote the files alone."""
        found: Any = json.loads(self._path(shard).read_text(encoding="utf-8"))
        return {"arrival": None, "files": found} if isinstance(found, list) else dict(found)

    def _arrival(self, shard: str) -> tuple[bool, int, str]:
        """Sorts shards by arrival; those without a number come first, by when their file was written."""
        number = self._entry(shard)["arrival"]
        return (number is not None, self._path(shard).stat().st_mtime_ns if number is None else number, shard)


def files_at_rest(incoming: Path, rest_seconds: float) -> list[IncomingFile]:
    """Videos in `incoming` that nobody is writing, sorted by name."""
    if not incoming.is_dir():
        return []
    latest = time.time_ns() - int(rest_seconds * 1e9)

    def at_rest(file: IncomingFile) -> bool:
        return all(member.stat().st_mtime_ns <= latest for member in members_of(incoming / file.name))

    return sorted((file for file in _videos(incoming) if at_rest(file)), key=lambda file: file.name)


def _videos(incoming: Path) -> Iterator[IncomingFile]:
    for path in incoming.iterdir():
        if is_video(path) and path.is_file() and not path.is_symlink() and not path.name.startswith("."):
            yield as_it_lies(path)


def as_it_lies(video: Path) -> IncomingFile:
    """What the ledger would say of a video now."""
    stats = [(path.name, path.stat()) for path in members_of(video)]
    (name, size, modified_ns), *beside = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    return IncomingFile(name, size, modified_ns, hashlib.sha256(json.dumps(beside).encode()).hexdigest()[:16])


def members_of(video: Path) -> list[Path]:
    """A video and the files that belong to it: sound, sidecar, occluder mask."""
    beside = (video.with_suffix(".wav"), video.with_suffix(".json"), video.with_name(video.stem + OCCLUDER_SUFFIX))
    return [video, *(path for path in beside if path.is_file() and path != video)]


def stranger_beside(video: Path, arriving: Collection[str]) -> str | None:
    """One line on a file that would count as a video's own once that is put in its place; None if there is none.

    Args:
        video: The place.
        arriving: Names of what arrives with the video.
    """
    strangers = [member.name for member in members_of(video)[1:] if member.name not in arriving]
    if not strangers:
        return None
    return f"'{strangers[0]}' lies in '{video.parent}' already and would count as that of the new '{video.name}'"


def declared_split(video: Path) -> str:
    """The split that a video's sidecar declares; `train` where it says nothing or cannot be read."""
    try:
        sidecar = json.loads(video.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "train"
    return str(sidecar.get("split", "train")) if isinstance(sidecar, dict) else "train"


def _batches(files: list[IncomingFile], size: int) -> Iterable[list[IncomingFile]]:
    return (files[start : start + size] for start in range(0, len(files), size))
