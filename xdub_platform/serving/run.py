"""Runs the server."""

from __future__ import annotations

import logging

import uvicorn

from xdub_platform.serving.app import check_exposure, create_app
from xdub_platform.settings import Settings

LEAVE = 10
"""Seconds that open requests have when the server ends."""


def run_server(settings: Settings, host: str, port: int) -> None:
    """Serves until a signal ends it.

    Raises:
        InputError: It would be open to anybody.
    """
    check_exposure(settings, host)
    logging.getLogger("xdub").setLevel(logging.INFO)
    uvicorn.run(
        create_app(settings),
        host=host,
        port=port,
        log_level="info",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=LEAVE,
    )
