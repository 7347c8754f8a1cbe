"""Starts a container's command: Dagster's home is written from the settings first, so that they have no second copy."""

import os
import sys

from model_code.errors import InputError
from xdub_platform.instance import write_dagster_home
from xdub_platform.settings import load_settings


def main(command: list[str]) -> None:
    """Becomes `command`, with ``DAGSTER_HOME`` set."""
    if not command:
        raise SystemExit("entrypoint.py: no command given")
    try:
        home = write_dagster_home(load_settings())
    except InputError as error:
        raise SystemExit(f"entrypoint.py: {error}") from error
    os.execvpe(command[0], command, {**os.environ, "DAGSTER_HOME": str(home)})


if __name__ == "__main__":
    main(sys.argv[1:])
