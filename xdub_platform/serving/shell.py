"""What surrounds every request: timing, headers, and protection of an open server against other web pages."""

from __future__ import annotations

import time
from urllib.parse import urlparse

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from xdub_platform.serving.metrics import Metrics
from xdub_platform.serving.supervisor import Supervisor

VERSION_HEADER = "X-Model-Version"
LOCAL_HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})
METHODS = frozenset({"GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT", "PATCH"})
"""A client may invent others; a metric for each would be its way to fill the memory."""
PAGE_RULES = (
    "default-src 'self'; media-src 'self' blob:; img-src 'self' data:; object-src 'none'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)


class Shell:
    """ASGI middleware.

    Args:
        app: What it surrounds.
        metrics: Gets the times.
        supervisor: Knows the version that serves.
        open_to_all: Whether keys are off. Then any web page that a user of this machine opens could send requests
            here, so that those from other origins and for other host names are refused.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, supervisor: Supervisor, open_to_all: bool) -> None:
        self._app, self._metrics, self._supervisor, self._open = app, metrics, supervisor, open_to_all

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers.setdefault(VERSION_HEADER, self._supervisor.version or "none")
                headers.setdefault("X-Content-Type-Options", "nosniff")
                headers.setdefault("Content-Security-Policy", PAGE_RULES)
                headers.setdefault("Referrer-Policy", "no-referrer")
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            if self._open and _from_elsewhere(Headers(scope=scope)):
                refusal = JSONResponse({"detail": "requests of other web pages are refused while keys are off"}, 403)
                await refusal(scope, receive, told)
            else:
                await self._app(scope, receive, told)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if scope["method"] in METHODS else "other"
            self._metrics.requests.labels(method, route, status).observe(time.perf_counter() - started)


def _from_elsewhere(headers: Headers) -> bool:
    host = headers.get("host", "")
    name = host if host.endswith("]") else host.rsplit(":", 1)[0]
    origin = headers.get("origin")
    return name not in LOCAL_HOSTS or (origin is not None and urlparse(origin).netloc != host)
