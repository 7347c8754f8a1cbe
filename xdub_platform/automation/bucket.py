"""Footage that arrives in a bucket: objects at rest are copied into the incoming folder, each once.

What was copied is remembered by name and entity tag, so that an object which is replaced is copied again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from urllib.parse import urlparse

import urllib3
from minio import Minio
from minio.credentials import AWSConfigProvider, ChainedProvider, EnvAWSProvider
from minio.error import MinioException
from urllib3.exceptions import HTTPError

from model_code.errors import InputError
from model_code.files import write_json
from model_code.media.names import VIDEO_SUFFIXES, is_video
from xdub_platform.incoming import stranger_beside
from xdub_platform.locks import held
from xdub_platform.settings import Settings

BESIDE = frozenset({".wav", ".json"})
"""Suffixes of what may belong to a video."""


@dataclass(frozen=True)
class BucketFile:
    """One object below the prefix.

    Attributes:
        key: Its name in the bucket.
        tag: Entity tag; other bytes have another one.
        size: Bytes.
        modified: When it was written.
        name: What it is called in the incoming folder.
    """

    key: str
    tag: str
    size: int
    modified: datetime
    name: str

    @property
    def footage(self) -> str:
        """What a video shares with everything that belongs to it."""
        return self.name.split(".")[0]


class Bucket:
    """The bucket prefix of `automation.incoming_url`.

    Args:
        settings: Of the state root. Credentials come from ``AWS_ACCESS_KEY_ID`` and ``AWS_SECRET_ACCESS_KEY`` or
            AWS's own files.
    """

    def __init__(self, settings: Settings) -> None:
        url = urlparse(settings.automation.incoming_url or "")
        self.settings = settings
        self.bucket = url.netloc
        self.prefix = f"{url.path.strip('/')}/".lstrip("/")
        self.ledger = settings.path("fetched")

    def waiting(self) -> list[BucketFile]:
        """Objects to copy: whole videos, at rest with everything that belongs to them, not copied before.

        Raises:
            InputError: The bucket cannot be listed.
        """
        return [file for file in self._at_rest() if not self._fetched(file)]

    def _at_rest(self) -> list[BucketFile]:
        groups: dict[str, list[BucketFile]] = defaultdict(list)
        try:
            for file in self._listed():
                groups[file.footage].append(file)
        except (MinioException, HTTPError) as error:
            reason = " ".join(str(error).split())
            remedy = "check automation.incoming_url, store.s3_endpoint and the AWS_* variables"
            raise InputError(f"cannot list {self.settings.automation.incoming_url}: {reason}", remedy) from error
        now, rest = datetime.now(UTC), self.settings.automation.rest_seconds
        found: list[BucketFile] = []
        for files in groups.values():
            has_video = any(PurePosixPath(file.name).suffix.lower() in VIDEO_SUFFIXES for file in files)
            if has_video and all((now - file.modified).total_seconds() >= rest for file in files):
                found += files
        return sorted(found, key=lambda file: file.name)

    def fetch(self) -> list[BucketFile]:
        """Copies what waits into the incoming folder, videos last; returns it. A second call waits for the first.

        What cannot be copied stops nothing but the video that it belongs to: that one may not arrive without it, nor
        beside what is not its own.

        Raises:
            InputError: The bucket cannot be listed, or not everything was copied; the next call tries the rest again.
        """
        with held(self.ledger / ".lock"):
            return self._fetch()

    def _fetch(self) -> list[BucketFile]:
        there, left = self._at_rest(), dict[str, str]()
        files, names = [file for file in there if not self._fetched(file)], {file.name for file in there}
        self.settings.incoming.mkdir(parents=True, exist_ok=True)
        for file in filter(lambda file: is_video(PurePosixPath(file.name)), files):
            stranger = stranger_beside(self.settings.incoming / file.name, names)
            if stranger:
                left[file.footage] = f"{file.key}: {stranger}: remove it, or put its own into the bucket"
        for file in sorted(files, key=lambda file: is_video(PurePosixPath(file.name))):
            if file.footage in left:
                continue
            try:
                self._copy(file)
            except (MinioException, HTTPError, OSError) as error:
                left[file.footage] = f"{file.key}: {' '.join(str(error).split())}"
        if left:
            raise InputError(f"not everything was copied: {'; '.join(left.values())}", "it is tried again later")
        return files

    def _copy(self, file: BucketFile) -> None:
        part = self.settings.incoming / f".{file.name}.part"
        self._client().fget_object(self.bucket, file.key, str(part), tmp_file_path=f"{part}.tmp")
        os.utime(part)  # The client keeps the object's time; at rest is what this machine says.
        part.replace(self.settings.incoming / file.name)
        write_json(self._record(file), {"key": file.key, "tag": file.tag, "size": file.size})

    def _listed(self) -> Iterable[BucketFile]:
        for item in self._client().list_objects(self.bucket, prefix=self.prefix, recursive=True):
            name = flat_name(str(item.object_name).removeprefix(self.prefix))
            if name and item.last_modified:
                yield BucketFile(str(item.object_name), item.etag or "", item.size or 0, item.last_modified, name)

    def _fetched(self, file: BucketFile) -> bool:
        try:
            return bool(json.loads(self._record(file).read_text(encoding="utf-8"))["tag"] == file.tag)
        except FileNotFoundError:
            return False

    def _record(self, file: BucketFile) -> Path:
        return self.ledger / f"{hashlib.sha256(file.key.encode()).hexdigest()}.json"

    def _client(self) -> Minio:
        endpoint = urlparse(self.settings.store.s3_endpoint or "https://s3.amazonaws.com")
        return Minio(
            endpoint.netloc,
            secure=endpoint.scheme == "https",
            region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
            credentials=ChainedProvider([EnvAWSProvider(), AWSConfigProvider()]),
            # The client's own patience is five minutes, a sensor's one.
            http_client=urllib3.PoolManager(timeout=urllib3.Timeout(connect=5, read=20), retries=urllib3.Retry(1)),
        )


def flat_name(key: str) -> str | None:
    """The name in the incoming folder of a key below the prefix; None for what is no footage or names no plain file."""
    parts = key.split("/")
    if any(part in ("", ".", "..") or part.startswith(".") for part in parts) or not key.isprintable():
        return None
    return "__".join(parts) if PurePosixPath(key).suffix.lower() in VIDEO_SUFFIXES | BESIDE else None


def digest(files: Sequence[BucketFile]) -> str:
    """Names exactly these objects with these bytes."""
    return hashlib.sha256(json.dumps([[file.key, file.tag] for file in files]).encode()).hexdigest()[:16]
