"""How bad input fails a Dagster run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from model_code.errors import InputError


@contextmanager
def input_error_fails_the_run() -> Iterator[None]:
    """An `InputError` inside becomes Dagster's failure, and no retry: the same input would fail again.

    Raises:
        dagster.Failure: With the error's one line.
    """
    try:
        yield
    except InputError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
