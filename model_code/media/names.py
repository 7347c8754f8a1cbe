"""What footage is called: videos, and what belongs to one."""

from __future__ import annotations

from pathlib import PurePath

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mts", ".mpg", ".mpeg", ".3gp"})
OCCLUDER_SUFFIX = ".occluder.mp4"
"""NAME.occluder.mp4 is white where something stands before the face in NAME.mp4."""


def is_video(path: PurePath) -> bool:
    """Whether a file is called like a video, and not like an occluder mask."""
    return path.suffix.lower() in VIDEO_SUFFIXES and not path.name.endswith(OCCLUDER_SUFFIX)
