"""What libraries and we log, on stderr."""

from __future__ import annotations

import logging
import os


def log_as_told() -> None:
    """Shows messages from XDUB_LOG's level on."""
    logging.basicConfig(level=os.environ.get("XDUB_LOG", "WARNING"), format="%(levelname)s %(name)s: %(message)s")
