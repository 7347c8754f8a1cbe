"""Answers of the job API that need no worker: the app in this process, on the real queue and disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx

from xdub_platform.serving.app import create_app
from xdub_platform.serving.keys import LOCAL
from xdub_platform.serving.queue import JobQueue, Limits, State
from xdub_platform.settings import Settings, load_settings

FORM = {"Content-Type": "multipart/form-data; boundary=x"}


def open_settings(root: Path, **serving: Any) -> Settings:
    """Keys are off."""
    return load_settings(state_root=root, serving={"require_keys": False, **serving})


def client(settings: Settings) -> httpx.AsyncClient:
    """Asks an app without its workers, which start with a server."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(create_app(settings)), base_url="http://127.0.0.1")


def test_a_slow_upload_is_cut_off_and_known_while_it_arrives(tmp_path: Path) -> None:
    settings = open_settings(tmp_path, upload_seconds=5.0)

    async def twice() -> tuple[httpx.Response, httpx.Response]:
        begun = asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            yield b"--x\r\nContent-Disposition: form-data; name=video\r\n\r\n"
            begun.set()
            await asyncio.sleep(60)

        headers = {**FORM, "Idempotency-Key": "take-1"}
        async with client(settings) as asking:
            first = asyncio.create_task(asking.post("/v1/jobs", content=body(), headers=headers))
            await begun.wait()
            second = await asking.post("/v1/jobs", content=b"", headers=headers)
            return await first, second

    slow, repeated = asyncio.run(twice())
    assert (slow.status_code, slow.json()["detail"]) == (408, "the upload took more than 5 s")
    assert (repeated.status_code, repeated.json()["detail"]) == (409, "this request is still arriving")
    assert repeated.headers["Retry-After"] == "1"
    assert JobQueue.open(settings).counts()[State.RECEIVING] == 0, "its place is free again"
    assert not list(settings.path("serving", "jobs").iterdir())


def test_a_disk_that_is_almost_full_takes_no_upload(tmp_path: Path) -> None:
    async def submit() -> httpx.Response:
        async with client(open_settings(tmp_path, min_free_bytes=1 << 60)) as asking:
            return await asking.post("/v1/jobs", content=b"", headers=FORM)

    refused = asyncio.run(submit())
    assert (refused.status_code, refused.json()["detail"]) == (507, "the server's disk is full")
    assert int(refused.headers["Retry-After"]) > 0


def test_a_result_that_is_gone_from_the_disk_is_told_from_one_that_never_was(tmp_path: Path) -> None:
    settings = open_settings(tmp_path)
    queue = JobQueue.open(settings)
    arriving, _ = queue.reserve(LOCAL, Limits(1, 1), 60, None)
    queue.enqueue(arriving.id, 0)
    job = queue.claim("w", "7", 60, 1)
    assert job is not None
    assert queue.finish(job, State.DONE, result="result-1.mp4")

    async def ask() -> list[httpx.Response]:
        async with client(settings) as asking:
            paths = (f"/v1/jobs/{job.id}", f"/v1/jobs/{job.id}/result", f"/v1/jobs/{'0' * 32}/result")
            return [await asking.get(path) for path in paths]

    known, gone, never = asyncio.run(ask())
    assert (known.status_code, known.json()["state"]) == (200, "done")
    assert (gone.status_code, gone.json()["detail"]) == (410, "the result was removed")
    assert never.status_code == 404
