"""Whose face is dubbed, as users say it; here nothing heavy is imported."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from model_code.errors import InputError

Speaker = Annotated[int, Field(ge=1, le=99)] | Literal["sync"] | None
"""A face's number from the left in every shot; `sync`: whoever's lips fit the video's own sound; None: the largest."""


def parse_speaker(text: str) -> Speaker:
    """What a user wrote; nothing means the largest face.

    Raises:
        InputError: It is neither.
    """
    try:
        return TypeAdapter[Speaker](Speaker).validate_python(text if text == "sync" else text or None)
    except ValidationError:
        what = f"the speaker '{text[:40]}' is neither a number from 1 to 99 nor sync"
        raise InputError(what, "count the faces from the left, or write sync") from None
