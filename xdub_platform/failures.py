"""How bad input fails a Dagster run, and what only says that the database or MLflow's server is away."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from model_code.errors import InputError

NO_ANSWER = re.compile(r"API request to .* failed with (timeout )?exception", re.DOTALL)


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


def database_is_away(error: BaseException | None) -> bool:
    """Whether an error only says so; told by name, because importing SQLAlchemy would slow every command down."""
    while error is not None:
        if type(error).__name__ in ("DagsterPostgresException", "OperationalError", "InterfaceError"):
            return True
        error = error.__cause__
    return False


def mlflow_is_away(error: BaseException) -> bool:
    """Whether MLflow only says that its server gave no answer; told by its words: it has no class or code for that."""
    return type(error).__name__ == "MlflowException" and bool(NO_ANSWER.match(str(error)))
