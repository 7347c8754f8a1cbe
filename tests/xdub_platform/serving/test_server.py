"""A real `xdub serve` on 127.0.0.1 with a tiny registered model."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import av
import httpx
import pytest

from tests.postgres import PostgresServer
from tests.xdub_platform.serving import tiny
from tests.xdub_platform.serving.world import Media, Parts, Server, State, make_state, wait_for
from xdub_platform.serving.keys import Keys
from xdub_platform.serving.queue import JobQueue

SHORT_LEASE = {"lease_seconds": 5}


@pytest.fixture(scope="module")
def shared_state(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> State:
    state = make_state(tmp_path_factory.mktemp("shared") / "state", parts)
    state.register()
    return state


@pytest.fixture(scope="module")
def shared(shared_state: State) -> Iterator[Server]:
    """One server for the tests that do it no harm; version 1 serves."""
    with shared_state.serving(max_upload_bytes=300_000) as server:
        yield server


def comment(mp4: bytes) -> str:
    with av.open(io.BytesIO(mp4)) as container:
        return str(container.metadata["comment"])


def form(**fields: str) -> bytes:
    """A body of these fields, with the boundary x."""
    parts = (f"--x\r\nContent-Disposition: form-data; name={name}\r\n\r\n{text}\r\n" for name, text in fields.items())
    return "".join([*parts, "--x--\r\n"]).encode()


def test_a_dub_from_upload_to_download(shared: Server, media: Media) -> None:
    submitted = shared.submit(media.video, media.audio)
    assert submitted.status_code == 202
    assert submitted.headers["X-Model-Version"] == "1"
    job_id = submitted.json()["id"]
    assert submitted.headers["Location"] == f"/v1/jobs/{job_id}"
    done = shared.until(job_id, "done", "failed")
    assert done["error"] is None
    assert done["model_version"] == "1"
    assert done["progress"]["done"] == done["progress"]["total"]
    result = shared.client.get(done["result"])
    assert result.headers["X-Model-Version"] == "1"
    assert result.headers["Content-Type"] == "video/mp4"
    assert "model xdub-dubber 1" in comment(result.content)
    part = shared.client.get(done["result"], headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, result.content[10:20])
    assert job_id in [job["id"] for job in shared.client.get("/v1/jobs").json()["jobs"]]
    assert shared.client.delete(f"/v1/jobs/{job_id}").status_code == 409, "it is done already"


def test_a_clients_retry_does_not_double_a_job(shared: Server, media: Media) -> None:
    first = shared.submit(media.video, media.audio, **{"Idempotency-Key": "take 1".replace(" ", "-")})
    again = shared.submit(media.video, media.audio, **{"Idempotency-Key": "take-1"})
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json()["id"] == again.json()["id"]
    shared.until(first.json()["id"], "done")


def test_an_upload_that_is_too_large_is_cut_off(shared: Server, media: Media) -> None:
    def endless() -> Iterator[bytes]:  # no Content-Length: only counting helps
        yield b'--x\r\nContent-Disposition: form-data; name="video"; filename="a"\r\n\r\n'
        for _ in range(20):
            yield bytes(100_000)

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    before = shared.client.get("/readyz").json()["jobs"]
    streamed = shared.client.post("/v1/jobs", content=endless(), headers=headers)
    declared = shared.client.post("/v1/jobs", content=bytes(400_000), headers=headers)
    for answer in (streamed, declared):
        assert answer.status_code == 413, answer.text
        assert "300000 bytes" in answer.json()["detail"]
    assert shared.client.get("/readyz").json()["jobs"] == before


@pytest.mark.parametrize(
    ("content", "kind", "status", "said"),
    [
        (b"{}", "application/json", 422, "video: Field required"),
        (b'{"video": "a", "audio": "b", "x": 1}', "application/json", 422, "x: Extra inputs"),
        (b'{"video": "/etc/passwd", "audio": "b"}', "application/json", 422, "no file in the folder of inputs"),
        (b'{"video": "../../etc/passwd", "audio": "b"}', "application/json", 422, "no file in the folder of inputs"),
        (b'{"video": "a\\u0000b", "audio": "b"}', "application/json", 422, "no file in the folder of inputs"),
        (b"hello", "text/plain", 415, "text/plain"),
        (b"hello", "multipart/form-data", 422, "no boundary"),
        (b"hello", "multipart/form-data; boundary=x", 422, "no multipart form"),
        (b"hello", "multipart/form-data; boundary=" + "x" * 257, 422, "boundary cannot be used"),
        (
            b"--x\r\nContent-Disposition: form-data; name=other\r\n\r\n1",
            "multipart/form-data; boundary=x",
            422,
            "`other`",
        ),
        (
            b"--x\r\nContent-Disposition: form-data; name=video\r\n\r\n1",
            "multipart/form-data; boundary=x",
            422,
            "cut off",
        ),
        (form(video="1"), "multipart/form-data; boundary=x", 422, "`audio` is missing"),
        (form(video="1", audio="1", seed="-1"), "multipart/form-data; boundary=x", 422, "seed '-1' is no number"),
        (b'{"video": "a", "audio": "b", "seed": -1}', "application/json", 422, "seed: Input should be greater"),
        (b'{"video": "a", "audio": "b", "speaker": "left"}', "application/json", 422, "speaker"),
        (b'{"video": "a", "audio": "b", "speaker": 0}', "application/json", 422, "speaker"),
        (
            form(video="1", audio="1", speaker="left"),
            "multipart/form-data; boundary=x",
            422,
            "speaker 'left' is neither",
        ),
    ],
)
def test_bodies_that_are_no_submission(shared: Server, content: bytes, kind: str, status: int, said: str) -> None:
    answer = shared.client.post("/v1/jobs", content=content, headers={"Content-Type": kind})
    assert answer.status_code == status, answer.text
    assert said in answer.json()["detail"]
    assert shared.ready()["jobs"]["receiving"] == 0


def test_what_operators_ask(shared: Server) -> None:
    assert shared.client.get("/healthz").json() == {"alive": True}
    ready = shared.ready()
    assert (ready["ready"], ready["model_version"], ready["problems"]) == (True, "1", [])
    metrics = shared.client.get("/metrics").text
    assert 'xdub_jobs{state="queued"}' in metrics
    assert "xdub_model_version{" in metrics
    assert "xdub_disk_free_bytes" in metrics
    spec = shared.client.get("/openapi.json").json()
    body = spec["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]
    assert set(body) == {"multipart/form-data", "application/json"}
    assert spec["components"]["schemas"]["JobAnswer"]["properties"]["id"]["examples"]


def test_the_pages_need_nothing_from_elsewhere(shared: Server) -> None:
    for path in ("/", "/docs"):
        page = shared.client.get(path)
        assert page.status_code == 200
        assert "default-src 'self'" in page.headers["Content-Security-Policy"]
        assert "//" not in page.text.replace("<!doctype html>", "")
    for name in ("app.js", "docs.js", "style.css", "docs.css"):
        file = shared.client.get(f"/page/{name}")
        assert file.status_code == 200
        assert "http://" not in file.text.replace("https and", "")


def test_other_web_pages_cannot_use_an_open_server(shared: Server) -> None:
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"}):
        assert shared.client.get("/v1/jobs", headers=headers).status_code == 403
    same = {"Origin": str(shared.client.base_url).rstrip("/")}
    assert shared.client.get("/v1/jobs", headers=same).status_code == 200


def test_running_and_waiting_jobs_are_cancelled(shared: Server, media: Media) -> None:
    long = media.long_audio.with_name("cut.wav")
    tiny.write_speech(long, seconds=8)
    running = shared.submit(media.video, long).json()["id"]
    waiting = shared.submit(media.video, media.audio).json()["id"]
    shared.until(running, "running")
    assert shared.client.delete(f"/v1/jobs/{waiting}").json()["state"] == "cancelled"
    assert shared.client.delete(f"/v1/jobs/{running}").status_code == 202
    assert shared.until(running, "cancelled", "done", "failed")["state"] == "cancelled"
    assert shared.client.get(f"/v1/jobs/{running}/result").status_code == 409


def test_files_named_in_the_store(shared_state: State, shared: Server, media: Media) -> None:
    inputs = shared_state.settings.path("serving", "inputs")
    (inputs / "day").mkdir(parents=True)
    (inputs / "day" / "face.mp4").write_bytes(media.video.read_bytes())
    (inputs / "speech.wav").write_bytes(media.audio.read_bytes())
    (inputs / "link.wav").symlink_to(media.audio)
    named = {"video": "day/face.mp4", "audio": "speech.wav", "seed": 5}
    job = shared.client.post("/v1/jobs", json=named)
    assert job.status_code == 202
    assert job.json()["seed"] == 5
    assert shared.until(job.json()["id"], "done", "failed")["state"] == "done"
    linked = shared.client.post("/v1/jobs", json={**named, "audio": "link.wav"})
    assert linked.status_code == 422, "it leads out of the folder"


def test_the_speaker_is_chosen_by_number_or_by_sync(shared: Server, media: Media) -> None:
    def submit(speaker: str) -> httpx.Response:
        files = {"video": media.video.read_bytes(), "audio": media.audio.read_bytes()}
        return shared.client.post("/v1/jobs", files=files, data={"speaker": speaker})

    assert submit("left").json()["detail"] == "the speaker 'left' is neither a number from 1 to 99 nor sync"
    first, second, synced = (submit(speaker) for speaker in ("1", "2", "sync"))
    assert [answer.json()["speaker"] for answer in (first, second, synced)] == [1, 2, "sync"]
    assert shared.until(first.json()["id"], "done", "failed")["state"] == "done"
    assert "never shows 2 faces at once" in shared.until(second.json()["id"], "failed", "done")["error"]
    assert "no SyncNet was accepted yet" in shared.until(synced.json()["id"], "failed", "done")["error"]


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_its_job_is_made(state: State, media: Media) -> None:
    state.register()
    with state.serving(**SHORT_LEASE) as server:
        job_id = server.submit(media.video, long_enough(media)).json()["id"]
        server.until(job_id, "running")
        os.kill(server.worker(), signal.SIGKILL)
        done = server.until(job_id, "done", "failed")
        assert (done["state"], done["attempts"]) == ("done", 2)
        assert 'xdub_worker_restarts{device="cpu"} 1.0' in server.client.get("/metrics").text


@pytest.mark.slow
def test_a_killed_server_takes_its_worker_along_and_goes_on_where_it_was(state: State, media: Media) -> None:
    state.register()
    with state.serving(**SHORT_LEASE) as server:
        running = server.submit(media.video, long_enough(media)).json()["id"]
        waiting = server.submit(media.video, media.audio).json()["id"]
        server.until(running, "running")
        worker = server.worker()
        server.process.kill()
        server.process.wait()
        wait_for(lambda: not _alive(worker), 30, "the worker to end with its server")
    with state.serving(**SHORT_LEASE) as server:
        assert server.until(running, "done", "failed")["attempts"] == 2
        assert server.until(waiting, "done", "failed")["state"] == "done"


@pytest.mark.slow
def test_a_server_that_is_told_to_end_puts_its_job_back(state: State, media: Media) -> None:
    state.register()
    with state.serving() as server:
        job_id = server.submit(media.video, long_enough(media)).json()["id"]
        server.until(job_id, "running")
    with state.serving() as server:
        done = server.until(job_id, "done", "failed")
        assert (done["state"], done["attempts"]) == ("done", 1), "the interrupted attempt does not count"


@pytest.mark.slow
def test_it_follows_the_champion_and_never_serves_a_damaged_one(state: State, media: Media) -> None:
    first, second, third = state.register(0), state.register(1, alias=None), state.register(2, alias=None)
    tiny.damage(state.runs, third)

    with state.serving(model_check_seconds=0.2) as server:

        def dub() -> str:
            submitted = server.submit(media.video, media.audio)
            done = server.until(submitted.json()["id"], "done", "failed")
            result = server.client.get(done["result"])
            assert f"model xdub-dubber {done['model_version']}" in comment(result.content)
            return str(done["model_version"])

        assert dub() == str(first)
        under_way = server.submit(media.video, long_enough(media)).json()["id"]
        server.until(under_way, "running")
        tiny.champion(state.runs, second)
        assert dub() == str(second), "without a restart"
        assert server.job(under_way)["model_version"] == str(first), "made by one model from beginning to end"
        tiny.champion(state.runs, third)
        assert dub() == str(second), "the damaged one is not served"
        wait_for(lambda: bool(server.ready()["problems"]), 60, "the problem to be told", server.log)
        ready = server.ready()
        assert (ready["ready"], ready["model_version"]) == (True, str(second))
        assert "sha256" in ready["problems"][0]
        assert "xdub_champion_refused{" in server.client.get("/metrics").text
        tiny.champion(state.runs, first)
        assert dub() == str(first)
        wait_for(lambda: server.ready()["problems"] == [], 60, "the problem to be gone")


def test_without_a_model_jobs_wait_until_there_is_one(state: State, media: Media) -> None:
    queue = JobQueue.open(state.settings)
    queue.report("a worker of an earlier server", "cpu", "9", None)
    queue.engine.dispose()
    with state.serving(ready=False, model_check_seconds=0.2) as server:
        job_id = server.submit(media.video, media.audio).json()["id"]
        wait_for(lambda: bool(server.ready()["problems"]), 60, "the worker")
        assert server.client.get("/readyz").status_code == 503
        assert server.job(job_id)["state"] == "queued"
        state.register()
        assert server.until(job_id, "done", "failed")["state"] == "done"


def test_keys(state: State, media: Media) -> None:
    keys = Keys.of(state.settings)
    anna, bert = keys.add("anna"), keys.add("bert")
    assert anna not in keys.file.read_text(encoding="utf-8")
    with state.serving(require_keys="true", key=anna, ready=False, queue_limit_per_key=1) as server:
        job_id = server.submit(media.video, media.audio).json()["id"]
        as_bert = {"Authorization": f"Bearer {bert}"}
        for method, path in (
            ("GET", f"/v1/jobs/{job_id}"),
            ("GET", f"/v1/jobs/{job_id}/result"),
            ("DELETE", f"/v1/jobs/{job_id}"),
        ):
            foreign = server.client.request(method, path, headers=as_bert)
            unknown = server.client.request(method, path.replace(job_id, "0" * 32), headers=as_bert)
            assert foreign.status_code == 404
            assert foreign.json() == unknown.json(), "whether it exists is not told"
        assert server.client.get("/v1/jobs", headers=as_bert).json() == {"jobs": []}
        for wrong in ("Bearer nonsense", f"Basic {anna}", "Bearer"):
            refused = server.client.get(f"/v1/jobs/{job_id}", headers={"Authorization": wrong})
            assert refused.status_code == 401
        assert httpx.get(server.client.base_url.join("/v1/jobs")).status_code == 401
        assert server.job(job_id)["id"] == job_id
        second = server.submit(media.video, media.audio)  # there is no model: the first one waits
        assert second.status_code == 429
        assert "all that one key may have" in second.json()["detail"]
        keys.revoke("anna")
        assert server.client.get(f"/v1/jobs/{job_id}").status_code == 401, "at once"


def test_the_queue_is_bounded(state: State, media: Media) -> None:
    with state.serving(ready=False, queue_limit=2) as server:  # no model: nothing leaves the queue
        assert [server.submit(media.video, media.audio).status_code for _ in range(3)] == [202, 202, 429]
        refused = server.submit(media.video, media.audio)
        assert int(refused.headers["Retry-After"]) > 0
        assert server.ready()["jobs"]["queued"] == 2
        for job in server.client.get("/v1/jobs").json()["jobs"]:
            server.client.delete(f"/v1/jobs/{job['id']}")
        assert server.submit(media.video, media.audio).status_code == 202


@pytest.mark.slow
def test_on_postgres_that_restarts_in_mid_run(
    state: State, media: Media, postgres: str, postgres_server: PostgresServer
) -> None:
    state.register()
    state.environment["XDUB_DATABASE__URL"] = postgres
    with state.serving(**SHORT_LEASE) as server:
        job_id = server.submit(media.video, long_enough(media)).json()["id"]
        waiting = server.submit(media.video, media.audio).json()["id"]
        server.until(job_id, "running")
        postgres_server.stop()
        try:
            assert server.client.get(f"/v1/jobs/{job_id}").status_code == 503
            assert server.client.get("/healthz").status_code == 200
            assert server.client.get("/readyz").status_code == 503
        finally:
            postgres_server.start()
        assert server.until(job_id, "done", "failed")["state"] == "done"
        assert server.until(waiting, "done", "failed")["state"] == "done"


def long_enough(media: Media) -> Path:
    """Speech whose dub takes some seconds."""
    path = media.audio.with_name("longer.wav")
    return path if path.is_file() else tiny.write_speech(path, seconds=4)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
