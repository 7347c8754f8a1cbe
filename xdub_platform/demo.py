"""The demo: a procedural corpus in the incoming folder, the whole chain, one page to look at."""

from __future__ import annotations

import json
import logging
import platform as machine
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from model_code.errors import InputError
from xdub_platform.chain import Status, Step
from xdub_platform.incoming import VIDEO_SUFFIXES, members_of, write_json
from xdub_platform.platform import Platform, build_platform
from xdub_platform.settings import Settings

log = logging.getLogger(__name__)


def prepare_corpus(settings: Settings, progress: Callable[[int, int], None]) -> None:
    """Writes the procedural corpus into the incoming folder, as a user would drop footage; once for each config."""
    marker, wanted = settings.path("corpus.json"), settings.corpus.model_dump(mode="json")
    if marker.is_file() and json.loads(marker.read_text(encoding="utf-8")) == wanted:
        return
    from model_code.avatars.corpus import write_corpus

    write_corpus(settings.incoming, settings.corpus, truth=settings.path("truth"), progress=progress)
    write_json(marker, wanted)


def drop(settings: Settings, files: Sequence[Path]) -> None:
    """Copies a user's footage into the incoming folder, the video last.

    Raises:
        InputError: A file is missing or no video.
    """
    for video in files:
        if not video.is_file():
            raise InputError(f"'{video}' does not exist", "check the path")
        if video.suffix.lower() not in VIDEO_SUFFIXES:
            raise InputError(f"'{video}' has no video's suffix", f"one of {', '.join(sorted(VIDEO_SUFFIXES))}")
        settings.incoming.mkdir(parents=True, exist_ok=True)
        for member in reversed(members_of(video)):
            part = settings.incoming / f".{member.name}.part"
            shutil.copyfile(member, part)
            part.replace(settings.incoming / member.name)
