"""What the tests of serving share."""

from __future__ import annotations

from tests.postgres import postgres, postgres_server
from tests.xdub_platform.serving.world import media, parts, state

__all__ = ["media", "parts", "postgres", "postgres_server", "state"]
