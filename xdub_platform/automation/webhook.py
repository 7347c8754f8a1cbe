"""Posts JSON to the webhook of `automation.webhook_url`."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any

from model_code.errors import InputError
from xdub_platform.settings import AutomationSettings

SECRET = "XDUB_WEBHOOK_SECRET"
FIRST_PAUSE = 0.5
PERMANENT = range(400, 500)
"""Statuses that another attempt would meet again, but for `TRANSIENT`."""
TRANSIENT = frozenset({408, 425, 429})


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected POST loses its body and would carry the secret to another place."""

    def redirect_request(self, *arguments: Any) -> None:
        return None


def post(message: Mapping[str, Any], settings: AutomationSettings) -> None:
    """Posts `message`; tries again after what may pass.

    Raises:
        InputError: No attempt was answered with a 2xx.
    """
    assert settings.webhook_url, "nothing to post to"
    body = json.dumps(message, ensure_ascii=False).encode()
    headers = {"Content-Type": "application/json", "User-Agent": "xdub"}
    if os.environ.get(SECRET):
        headers["Authorization"] = f"Bearer {os.environ[SECRET]}"
    opener = urllib.request.build_opener(_NoRedirect())
    reason = ""
    for attempt in range(settings.webhook_retries + 1):
        if attempt:
            time.sleep(FIRST_PAUSE * 2 ** (attempt - 1))
        request = urllib.request.Request(settings.webhook_url, data=body, headers=headers, method="POST")
        try:
            with opener.open(request, timeout=settings.webhook_timeout):
                return
        except urllib.error.HTTPError as error:
            reason = f"status {error.code}"
            error.close()
            if 300 <= error.code < 400 or (error.code in PERMANENT and error.code not in TRANSIENT):
                break
        except (OSError, HTTPException) as error:
            reason = str(error) or type(error).__name__
    raise InputError(f"the webhook did not take a message: {reason}", "check automation.webhook_url and its server")
