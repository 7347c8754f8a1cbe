"""The demo: a procedural corpus in the incoming folder, the whole chain, one page to look at."""

from __future__ import annotations

import filecmp
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from model_code.errors import InputError
from model_code.files import write_json
from model_code.media.names import VIDEO_SUFFIXES, is_video
from xdub_platform.chain import Step
from xdub_platform.incoming import members_of, stranger_beside
from xdub_platform.instance import open_instance
from xdub_platform.platform import Platform, build_platform
from xdub_platform.promotion import promote
from xdub_platform.reporting import write_chain_report
from xdub_platform.running import chain_planner
from xdub_platform.settings import Settings

log = logging.getLogger(__name__)


def prepare_corpus(settings: Settings, progress: Callable[[int, int], None]) -> None:
    """Writes the procedural corpus into the incoming folder, as a user would drop footage; once.

    Raises:
        InputError: This state root has another one, whose training heads may be held out in this.
    """
    marker, wanted = settings.path("corpus.json"), settings.corpus.model_dump(mode="json")
    if marker.is_file():
        if json.loads(marker.read_text(encoding="utf-8")) != wanted:
            raise InputError(
                f"'{settings.state_root}' has a corpus of other settings",
                "set XDUB_STATE_ROOT to another folder: heads that were trained on there may be held out here",
            )
        return
    from model_code.avatars.corpus import write_corpus

    write_corpus(settings.incoming, settings.corpus, truth=settings.path("truth"), progress=progress)
    write_json(marker, wanted)


def drop(settings: Settings, paths: Sequence[Path]) -> None:
    """Copies a user's footage, or folders of it, into the incoming folder, the video last.

    What lies there already is left alone: copied again it would count as replaced, and be taken in once more.

    Raises:
        InputError: A file is missing or no video, a folder has none, two videos bear one name, or what an earlier video
            left would count as a new one's own; nothing was copied.
    """
    videos = [video for path in paths for video in _videos_of(path)]
    taken: dict[str, Path] = {}
    for video in videos:
        other = taken.setdefault(video.name, video)
        if other is not video:
            raise InputError(
                f"'{other}' and '{video}' bear one name", "rename one: the incoming folder holds one of them"
            )
        place = settings.incoming / video.name
        stranger = stranger_beside(place, {member.name for member in members_of(video)})
        # Beside the same video it is its own: put there afterwards.
        if stranger and not (place.is_file() and filecmp.cmp(video, place, shallow=False)):
            raise InputError(stranger, "remove it there, put the new video's own beside it, or rename the new video")
    settings.incoming.mkdir(parents=True, exist_ok=True)
    for video in videos:
        for member in reversed(members_of(video)):
            place, part = settings.incoming / member.name, settings.incoming / f".{member.name}.part"
            if place.is_file() and filecmp.cmp(member, place, shallow=False):
                continue
            shutil.copyfile(member, part)
            part.replace(place)


def _videos_of(path: Path) -> list[Path]:
    """The video that this is, or those that lie in this folder."""
    suffixes = ", ".join(sorted(VIDEO_SUFFIXES))
    if path.is_dir():
        found = sorted(each for each in path.iterdir() if each.is_file() and is_video(each))
        if not found:
            raise InputError(
                f"'{path}' holds no video", f"one has the suffix {suffixes}; folders in it are not searched"
            )
        return found
    if not path.is_file():
        raise InputError(f"'{path}' does not exist", "check the path")
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        raise InputError(f"'{path}' has no video's suffix", f"one of {suffixes}")
    return [path]


def champion_if_none(platform: Platform) -> None:
    """The first model is promoted at once; from then on only whoever runs the promotion changes the champion."""
    name = platform.settings.mlflow.model_name
    if platform.mlflow.model_version(name, "@challenger") and not platform.mlflow.model_version(name, "@champion"):
        decision = promote(platform)
        if not decision.accepted:
            log.warning("no champion yet: %s", decision.reason)


def write_run_report(settings: Settings, steps: Sequence[Step], seconds: float, command: str) -> Path:
    """Makes the first model champion and writes the page of what `command` has made."""
    platform = build_platform(settings)
    champion_if_none(platform)
    with open_instance(settings) as instance:
        planner = chain_planner(settings, instance, "report")
        return write_chain_report(platform, planner, steps, seconds, command)
