"""Footage in a bucket: the real client against a server that speaks S3's list and get and checks signatures."""

from __future__ import annotations

import hashlib
import hmac
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from xml.sax.saxutils import escape

import dagster as dg
import pytest

from model_code.errors import InputError
from xdub_platform.automation.bucket import Bucket, flat_name
from xdub_platform.automation.jobs import fetch_footage
from xdub_platform.automation.sensors import look_for_footage
from xdub_platform.instance import open_instance
from xdub_platform.platform import build_platform
from xdub_platform.settings import Settings, load_settings

ACCESS, SECRET, REGION = "access", "right secret", "us-east-1"
OLD = datetime(2020, 1, 1, tzinfo=UTC)


class Objects(dict[str, tuple[bytes, datetime]]):
    """What the server holds: key -> bytes and time; it lists those in `denied` and does not give them."""

    denied: frozenset[str] = frozenset()
    seconds = 0.0
    """How long it takes to give one."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[str] = []

    def write(self, key: str, data: bytes, at: datetime = OLD) -> None:
        self[key] = (data, at)


class S3(BaseHTTPRequestHandler):
    """List (version 2), head and get of one bucket; everything else is refused."""

    objects: Objects

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        if not self.signed(address.path, address.query):
            return self.answer(403, b"<Error><Code>SignatureDoesNotMatch</Code><Message>no</Message></Error>")
        query = dict(parse_qsl(address.query, keep_blank_values=True))
        key = unquote(address.path).partition("/")[2].partition("/")[2]
        if query.get("list-type") == "2":
            return self.answer(200, self.listing(query.get("prefix", "")).encode())
        if key not in self.objects:
            return self.answer(404, b"<Error><Code>NoSuchKey</Code><Message>no</Message></Error>")
        if key in self.objects.denied:
            return self.answer(403, b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>")
        data, at = self.objects[key]
        if self.command == "GET":
            self.objects.given.append(key)
            time.sleep(self.objects.seconds)
        return self.answer(200, data, at)

    do_HEAD = do_GET

    def listing(self, prefix: str) -> str:
        rows = "".join(
            f"<Contents><Key>{escape(quote(key))}</Key><LastModified>{at:%Y-%m-%dT%H:%M:%S.000Z}</LastModified>"
            f"<ETag>&quot;{hashlib.md5(data).hexdigest()}&quot;</ETag><Size>{len(data)}</Size></Contents>"
            for key, (data, at) in sorted(self.objects.items())
            if key.startswith(prefix)
        )
        return (
            '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>footage</Name><Prefix>{escape(quote(prefix))}</Prefix><EncodingType>url</EncodingType><IsTruncated>false</IsTruncated>{rows}</ListBucketResult>"
        )

    def answer(self, status: int, body: bytes, at: datetime | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.md5(body).hexdigest()}"')
        self.send_header("Last-Modified", (at or OLD).strftime("%a, %d %b %Y %H:%M:%S GMT"))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def signed(self, path: str, query: str) -> bool:
        """AWS Signature Version 4 over headers."""
        _, _, told = self.headers.get("Authorization", "").partition(" ")
        fields = dict(part.strip().split("=", 1) for part in told.split(","))
        access, scope = fields["Credential"].split("/", 1)
        day, region, service, _ = scope.split("/")
        names = fields["SignedHeaders"].split(";")
        headers = "".join(f"{name}:{self.headers[name].strip()}\n" for name in names)
        content = self.headers["x-amz-content-sha256"]
        asked = "\n".join((self.command, path, query, headers, ";".join(names), content))
        digest = hashlib.sha256(asked.encode()).hexdigest()
        text = "\n".join(("AWS4-HMAC-SHA256", self.headers["x-amz-date"], scope, digest))
        key = f"AWS4{SECRET}".encode()
        for part in (day, region, service, "aws4_request", text):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        return access == ACCESS and hmac.compare_digest(key.hex(), fields["Signature"])

    def log_message(self, format: str, *arguments: Any) -> None:
        """Quiet."""


@pytest.fixture
def objects() -> Objects:
    return Objects()


@pytest.fixture
def settings(tmp_path: Path, objects: Objects, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    handler = type("Handler", (S3,), {"objects": objects})
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_REGION", REGION)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield load_settings(
            state_root=tmp_path,
            store={"s3_endpoint": f"http://127.0.0.1:{server.server_port}"},
            automation={"incoming_url": "s3://footage/drop", "rest_seconds": 60.0},
        )
        server.shutdown()
        thread.join()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_objects_at_rest_arrive_once_with_what_belongs_to_them(settings: Settings, objects: Objects) -> None:
    objects.write("drop/a.mp4", b"video")
    objects.write("drop/a.json", b"{}")
    objects.write("drop/day 1/ünï.mp4", b"other")
    objects.write("drop/late.mp4", b"video")
    objects.write("drop/late.json", b"{", datetime.now(UTC))
    objects.write("drop/notes.txt", b"no footage")
    objects.write("dropped/b.mp4", b"another prefix")
    bucket = Bucket(settings)
    assert {file.name for file in bucket.fetch()} == {"a.json", "a.mp4", "day 1__ünï.mp4"}
    assert names(settings.incoming) == ["a.json", "a.mp4", "day 1__ünï.mp4"]
    assert (settings.incoming / "a.mp4").read_bytes() == b"video"
    assert time.time() - (settings.incoming / "a.mp4").stat().st_mtime < 60
    assert bucket.fetch() == []
    objects.write("drop/a.mp4", b"replaced")
    assert [file.name for file in bucket.fetch()] == ["a.mp4"]
    assert (settings.incoming / "a.mp4").read_bytes() == b"replaced"


def test_a_video_that_is_replaced_inherits_nothing(settings: Settings, objects: Objects) -> None:
    for key in ("a.mp4", "a.json", "a.wav", "b.mp4"):
        objects.write(f"drop/{key}", b"old")
    Bucket(settings).fetch()
    del objects["drop/a.wav"]
    for key in ("a.mp4", "a.json", "b.mp4"):
        objects.write(f"drop/{key}", b"new")
    with pytest.raises(InputError, match=r"drop/a\.mp4: 'a\.wav' lies in"):
        Bucket(settings).fetch()
    found = {path.name: path.read_bytes() for path in settings.incoming.iterdir()}
    assert found == {"a.mp4": b"old", "a.json": b"old", "a.wav": b"old", "b.mp4": b"new"}
    (settings.incoming / "a.wav").unlink()
    assert [file.name for file in Bucket(settings).fetch()] == ["a.json", "a.mp4"]


@pytest.mark.parametrize("key", ["../a.mp4", "x/../../a.mp4", ".hidden.mp4", "/a.mp4", "a\n.mp4", "a.sh", ""])
def test_no_key_climbs_out_of_the_incoming_folder(key: str) -> None:
    assert flat_name(key) is None
    assert flat_name("day/a.mp4") == "day__a.mp4"


def test_a_wrong_secret_is_told_and_stops_nothing_else(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(InputError, match="SignatureDoesNotMatch"):
        Bucket(settings).waiting()
    settings.incoming.mkdir()
    (settings.incoming / "local.mp4").write_bytes(b"x")
    os.utime(settings.incoming / "local.mp4", (1, 1))
    with open_instance(settings) as instance:
        result = look_for_footage(dg.build_sensor_context(instance), build_platform(settings))
    assert [request.job_name for request in result.run_requests or ()] == ["take_in_footage"]


def test_the_sensor_asks_once_and_the_job_copies(settings: Settings, objects: Objects) -> None:
    objects.write("drop/a.mp4", b"video")
    platform = build_platform(settings)
    with open_instance(settings) as instance:
        looks = [look_for_footage(dg.build_sensor_context(instance), platform) for _ in range(2)]
        requests = [request for result in looks for request in result.run_requests or ()]
        assert {request.job_name for request in requests} == {"fetch_footage"}
        assert len({request.run_key for request in requests}) == 1
        assert fetch_footage.execute_in_process(instance=instance, resources={"platform": platform}).success
        assert names(settings.incoming) == ["a.mp4"]
        after = look_for_footage(dg.build_sensor_context(instance), platform)
    assert not after.run_requests
    assert "0 new objects" in str(after.skip_reason)


def test_what_cannot_be_copied_stops_nothing_but_its_own_video(settings: Settings, objects: Objects) -> None:
    for key in ("a.mp4", "b.json", "b.mp4", "c.occluder.mp4", "c.mp4", "d.json", "d.mp4"):
        objects.write(f"drop/{key}", key.encode())
    objects.denied = frozenset({"drop/a.mp4", "drop/b.json", "drop/c.occluder.mp4"})
    platform = build_platform(settings)
    with open_instance(settings) as instance:
        done = fetch_footage.execute_in_process(
            instance=instance, resources={"platform": platform}, raise_on_error=False
        )
        assert not done.success
        (failure,) = [event.step_failure_data for event in done.all_events if event.is_step_failure]
    assert failure.user_failure_data
    told = str(failure.user_failure_data.description)
    assert all(key in told for key in objects.denied)
    assert "drop/d" not in told
    assert names(settings.incoming) == ["d.json", "d.mp4"]
    objects.denied = frozenset()
    assert len(Bucket(settings).fetch()) == 5


def test_one_run_at_a_time_copies(settings: Settings, objects: Objects) -> None:
    for key in ("a.mp4", "b.mp4"):
        objects.write(f"drop/{key}", key.encode())
    platform = build_platform(settings)
    with open_instance(settings) as instance:

        def ask() -> list[str | None]:
            found = look_for_footage(dg.build_sensor_context(instance), platform).run_requests or ()
            return [request.job_name for request in found]

        assert ask() == ["fetch_footage"]
        run = instance.create_run_for_job(fetch_footage)
        objects.denied = frozenset({"drop/b.mp4"})
        with pytest.raises(InputError, match="not everything was copied"):
            Bucket(settings).fetch()
        assert ask() == [], "what waits is less by now, and the same run is at work"
        instance.report_run_failed(run)
        assert ask() == ["fetch_footage"]


def test_who_comes_second_copies_nothing_again(settings: Settings, objects: Objects) -> None:
    objects.seconds = 0.5
    keys = [f"drop/{name}.mp4" for name in "abc"]
    for key in keys:
        objects.write(key, key.encode())
    with ThreadPoolExecutor(2) as pool:
        copied = [done.result() for done in [pool.submit(Bucket(settings).fetch) for _ in range(2)]]
    assert sorted(len(files) for files in copied) == [0, 3]
    assert objects.given == keys


def test_a_failed_copy_is_asked_for_again_after_a_pause(settings: Settings, objects: Objects) -> None:
    objects.write("drop/a.mp4", b"video")
    with open_instance(settings) as instance:

        def ask(again_after: float) -> list[dg.RunRequest]:
            automation = settings.automation.model_copy(update={"again_after_seconds": again_after})
            platform = build_platform(settings.model_copy(update={"automation": automation}))
            return list(look_for_footage(dg.build_sensor_context(instance), platform).run_requests or ())

        (first,) = ask(3600.0)
        run = instance.create_run_for_job(fetch_footage, tags=first.tags)
        assert ask(0.0) == [], "a run is at work"
        instance.report_run_failed(run)
        assert ask(3600.0) == []
        (second,) = ask(0.0)
        assert second.run_key != first.run_key
        (again,) = ask(0.0)
        assert again.run_key == second.run_key
        instance.report_run_failed(instance.create_run_for_job(fetch_footage, tags=second.tags))
        (third,) = ask(0.0)
        assert third.run_key not in (first.run_key, second.run_key)
