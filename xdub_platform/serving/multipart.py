"""Multipart uploads that go to the disk as they arrive."""

from __future__ import annotations

from collections.abc import Callable

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from model_code.dubbing.speaker import Speaker, parse_speaker
from model_code.errors import InputError
from xdub_platform.serving.store import PARTS, JobWriter

LONGEST_FIELD = 32
FIELDS = ("seed", "speaker")
REMEDY = "send the fields `video`, `audio` and, if you like, `seed` and `speaker`"


class MultipartJob:
    """Parses the body of one submission.

    Args:
        content_type: The request's header.
        writer: Takes the files.

    Raises:
        InputError: The header names no boundary, or one that is too long.
    """

    def __init__(self, content_type: str, writer: JobWriter) -> None:
        _, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if not boundary:
            raise InputError("the body's type has no boundary", REMEDY)
        self._writer = writer
        self._header, self._value = b"", b""
        self._disposition: dict[bytes, bytes] = {}
        self._field: str | None = None
        self._seen: set[str] = set()
        self._values = dict.fromkeys(FIELDS, b"")
        self._complete = False
        handlers: dict[str, Callable[..., None]] = {
            "on_part_begin": self._on_part_begin,
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_part_data": self._on_part_data,
            "on_part_end": self._on_part_end,
            "on_end": self._on_end,
        }
        try:
            self._parser = MultipartParser(boundary, handlers)  # type: ignore[arg-type]
        except FormParserError as error:
            raise InputError(f"the body's boundary cannot be used: {error}", REMEDY) from None

    def feed(self, data: bytes) -> None:
        """Takes the next bytes.

        Raises:
            InputError: They are no multipart body, or hold other fields.
            TooLargeError: The files exceed the limit.
            DiskFullError: The disk does not take them.
        """
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise InputError(f"the body is no multipart form: {error}", REMEDY) from None

    def finish(self) -> tuple[int, Speaker]:
        """Checks that everything arrived; returns seed and speaker.

        Raises:
            InputError: A part is missing, the body is cut off, or a field holds something else.
        """
        if not self._complete:
            raise InputError("the body is cut off", "send it again")
        missing = [part for part in PARTS if part not in self._seen]
        if missing:
            raise InputError(f"the field `{missing[0]}` is missing", REMEDY)
        seed, speaker = (self._values[name].decode(errors="replace") for name in FIELDS)
        return parse_seed(seed or "0"), parse_speaker(speaker)

    def _on_part_begin(self) -> None:
        self._disposition, self._field = {}, None

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = parse_options_header(self._value)[1]
        self._header, self._value = b"", b""

    def _on_headers_finished(self) -> None:
        name = self._disposition.get(b"name", b"").decode(errors="replace")
        if name not in (*PARTS, *FIELDS):
            raise InputError(f"the field `{name[:40]}` is unknown", REMEDY)
        if name in self._seen:
            raise InputError(f"the field `{name}` is there twice", REMEDY)
        self._field = name
        self._seen.add(name)
        if name in PARTS:
            self._writer.begin(name)

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._field in PARTS:
            self._writer.write(data[start:end])
            return
        assert self._field is not None
        self._values[self._field] += data[start:end]
        if len(self._values[self._field]) > LONGEST_FIELD:
            raise InputError(f"the field `{self._field}` is too long", REMEDY)

    def _on_part_end(self) -> None:
        self._writer.end()

    def _on_end(self) -> None:
        self._complete = True


def parse_seed(value: str) -> int:
    """The seed that a client gave.

    Raises:
        InputError: It is none.
    """
    if not value.isascii() or not value.isdigit() or int(value) >= 2**31:
        raise InputError(f"the seed '{value}' is no number from 0 to {2**31 - 1}", "give such a number, or none")
    return int(value)
