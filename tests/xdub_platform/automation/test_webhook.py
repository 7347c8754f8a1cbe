"""Messages to a real HTTP server: of failed runs and of gates that refused."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from model_code.errors import InputError
from xdub_platform.automation import sensors, webhook
from xdub_platform.automation.sensors import failures_to_webhook
from xdub_platform.automation.webhook import post
from xdub_platform.chain import Planner
from xdub_platform.instance import open_instance
from xdub_platform.settings import AutomationSettings, Settings, load_settings


@dataclass
class Receiver:
    """A server that answers with `statuses`, then with 204, and keeps what it took."""

    url: str = ""
    statuses: list[int] = field(default_factory=list)
    delay: float = 0.0
    paths: list[str] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    taken: list[dict[str, Any]] = field(default_factory=list)


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    told = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.paths.append(self.path)
            told.tokens.append(self.headers.get("Authorization"))
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            time.sleep(told.delay)
            status = told.statuses.pop(0) if told.statuses else 204
            if status == 204:
                told.taken.append(body)
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None:
            """Quiet."""

    monkeypatch.setattr(webhook, "FIRST_PAUSE", 0.01)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        told.url = f"http://127.0.0.1:{server.server_port}/hook"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield told
        server.shutdown()
        thread.join()


def automation(receiver: Receiver, **more: Any) -> AutomationSettings:
    return AutomationSettings(webhook_url=receiver.url, **more)


def test_a_message_and_its_secret(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    post({"reason": "für 'x'"}, automation(receiver))
    monkeypatch.setenv(webhook.SECRET, "s3cret")
    post({}, automation(receiver))
    assert receiver.taken == [{"reason": "für 'x'"}, {}]
    assert receiver.tokens == [None, "Bearer s3cret"]


def test_what_may_pass_is_tried_again(receiver: Receiver) -> None:
    receiver.statuses = [503, 429]
    post({"n": 1}, automation(receiver))
    assert receiver.taken == [{"n": 1}]
    receiver.statuses = [500] * 9
    with pytest.raises(InputError, match="status 500"):
        post({"n": 2}, automation(receiver, webhook_retries=2))
    assert len(receiver.paths) == 3 + 3


def test_what_stays_wrong_is_not(receiver: Receiver) -> None:
    receiver.statuses = [403]
    with pytest.raises(InputError, match="status 403"):
        post({}, automation(receiver))
    assert len(receiver.paths) == 1


def test_no_redirect_is_followed(receiver: Receiver) -> None:
    receiver.statuses = [302]
    with pytest.raises(InputError, match="status 302"):
        post({}, automation(receiver))
    assert receiver.paths == ["/hook"]


def test_a_slow_or_absent_server_costs_no_more_than_its_timeouts(receiver: Receiver) -> None:
    receiver.delay = 0.5
    start = time.monotonic()
    with pytest.raises(InputError, match="timed out"):
        post({}, automation(receiver, webhook_timeout=0.1, webhook_retries=1))
    assert time.monotonic() - start < 2
    absent = AutomationSettings(webhook_url="http://127.0.0.1:9/", webhook_retries=0)
    with pytest.raises(InputError, match="refused"):
        post({}, absent)


def test_only_web_addresses(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="WEBHOOK_URL"):
        load_settings(state_root=tmp_path, automation={"webhook_url": (tmp_path / "secret").as_uri()})


@dg.asset(check_specs=[dg.AssetCheckSpec("gate", asset="refused", blocking=True)])
def refused() -> dg.MaterializeResult:
    """Its gate fails."""
    return dg.MaterializeResult(
        check_results=[dg.AssetCheckResult(check_name="gate", passed=False, description="too few clips")]
    )


@dg.asset
def broken() -> None:
    """It breaks."""
    raise dg.Failure("no disk\nand more lines")


@dg.asset
def fine() -> None:
    """It is made."""


@pytest.fixture
def settings(tmp_path: Path, receiver: Receiver) -> Settings:
    automation = {"webhook_url": receiver.url, "webhook_retries": 0}
    return load_settings(state_root=tmp_path, automation=automation)


def look(instance: dg.DagsterInstance, settings: Settings, cursor: str | None) -> tuple[str | None, str | None]:
    """One tick, as the daemon makes it: the cursor afterwards, and why nothing was started."""
    result = failures_to_webhook(settings).evaluate_tick(dg.build_sensor_context(instance, cursor=cursor))
    return result.cursor, result.skip_message


def test_every_failure_is_told_once_and_a_gate_by_its_reason(settings: Settings, receiver: Receiver) -> None:
    planner_of = dg.Definitions(assets=[refused, broken, fine])
    with open_instance(settings) as instance:
        planner = Planner(planner_of, instance, started_by="test")
        planner.run("key:broken")
        cursor, _ = look(instance, settings, None)
        assert receiver.taken == []  # What failed before somebody listened is history.
        planner.run(plan="plan-1")
        receiver.statuses = [204, 500]
        cursor, told_of_it = look(instance, settings, cursor)
        assert "status 500" in str(told_of_it)
        assert len(receiver.taken) == 1
        for _ in range(2):
            cursor, _ = look(instance, settings, cursor)
    told = {message["kind"]: message for message in receiver.taken}
    assert len(receiver.taken) == 2
    assert told["gate_rejected"]["assets"] == ["refused"]
    assert told["gate_rejected"]["reason"] == "gate: too few clips"
    assert told["run_failed"]["assets"] == ["broken"]
    assert told["run_failed"]["reason"] == "no disk"
    assert (told["run_failed"]["started_by"], told["run_failed"]["plan"]) == ("test", "plan-1")


def test_a_slow_webhook_gets_the_rest_at_the_next_look(
    settings: Settings, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_instance(settings) as instance:
        cursor, _ = look(instance, settings, None)
        for number in range(3):
            instance.report_run_failed(instance.add_run(dg.DagsterRun(job_name="job", run_id=f"run-{number}")))
        monkeypatch.setattr(sensors, "LOOK_SECONDS", 0.0)
        for count in range(1, 4):
            cursor, told = look(instance, settings, cursor)
            assert told == "1 messages posted"
            assert [message["run_id"] for message in receiver.taken] == ["run-0", "run-1", "run-2"][:count]
