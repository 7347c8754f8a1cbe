"""Starts a container's command: Dagster's home is written from the settings first, so that they have no second copy."""

import os
import sys

from model_code.errors import InputError
from xdub_platform.instance import dagster_environment
from xdub_platform.settings import load_settings


def main(command: list[str]) -> None:
    """Becomes `command`, with ``DAGSTER_HOME`` and the database's address set."""
    if not command:
        raise SystemExit("entrypoint.py: no command given")
    try:
        needed = dagster_environment(load_settings())
    except InputError as error:
        raise SystemExit(f"entrypoint.py: {error}") from error
    os.execvpe(command[0], command, {**os.environ, **needed})


if __name__ == "__main__":
    main(sys.argv[1:])
