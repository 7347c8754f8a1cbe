"""The durable queue, on sqlite and on Postgres."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy.exc import SQLAlchemyError

from model_code.dubbing.speaker import Speaker
from tests.postgres import PostgresServer
from xdub_platform.serving.queue import Job, JobQueue, Limits, Order, QueueFullError, State

ROOMY = Limits(1000, 1000)
OVER = -1.0
"""A time span that is over at once: no test here waits for a clock."""


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres"))
    return f"sqlite:///{tmp_path}/queue.db"


@pytest.fixture
def queue(url: str) -> Iterator[JobQueue]:
    queue = JobQueue(url)
    yield queue
    queue.engine.dispose()


def put(queue: JobQueue, owner: str = "anna", request: str | None = None) -> Job:
    job, _ = queue.reserve(owner, ROOMY, 60, request)
    queued = queue.enqueue(job.id, seed=3)
    assert queued is not None
    return queued


def test_a_job_from_submission_to_result(queue: JobQueue) -> None:
    first, second = put(queue), put(queue)
    assert first.state == State.QUEUED
    assert queue.waiting()
    claimed = queue.claim("w1", "7", 30, 3)
    assert claimed is not None
    assert (claimed.id, claimed.state, claimed.model_version) == (first.id, State.RUNNING, "7")
    assert (claimed.attempts, claimed.seed) == (1, 3)
    assert queue.beat(claimed, "paste", 2, 5, 30) is Order.GO_ON
    seen = queue.get("anna", first.id)
    assert seen is not None
    assert (seen.stage, seen.done, seen.total) == ("paste", 2, 5)
    for _ in range(2):  # the second time because the first answer was lost
        assert queue.finish(claimed, State.DONE, notes=["cut"], result="result-1.mp4", result_bytes=9)
    assert not queue.finish(claimed, State.FAILED, error="late")
    done = queue.get("anna", first.id)
    assert done is not None
    assert (done.state, done.notes, done.result, done.model_version) == (State.DONE, ("cut",), "result-1.mp4", "7")
    assert [job.id for job in queue.mine("anna", 10)] == [second.id, first.id]
    assert queue.counts()[State.DONE] == queue.counts()[State.QUEUED] == 1


def test_jobs_survive_a_new_connection(queue: JobQueue, url: str) -> None:
    job = put(queue)
    queue.engine.dispose()
    again = JobQueue(url)
    assert again.get("anna", job.id) == job
    again.engine.dispose()


@pytest.mark.parametrize("speaker", [None, 2, "sync"])
def test_the_speaker_arrives(queue: JobQueue, speaker: Speaker) -> None:
    job, _ = queue.reserve("anna", ROOMY, 60, None)
    assert queue.enqueue(job.id, 0, speaker) is not None
    claimed = queue.claim("w1", "7", 30, 3)
    assert claimed is not None
    assert claimed.speaker == speaker


def test_an_earlier_versions_table_gets_what_it_lacks(queue: JobQueue, url: str) -> None:
    job = put(queue)
    with queue.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE serving_jobs DROP COLUMN speaker")
    for _ in range(2):  # and it is done once
        again = JobQueue(url)
        assert again.get("anna", job.id) == job
        again.engine.dispose()


def test_others_see_nothing_of_it(queue: JobQueue) -> None:
    job = put(queue)
    assert queue.get("bert", job.id) is None
    assert queue.cancel("bert", job.id) is None
    assert queue.mine("bert", 10) == []
    assert queue.get("anna", "a\0b") is None
    assert queue.get("anna", job.id) == job


def test_the_bound_holds_under_concurrent_submissions(queue: JobQueue) -> None:
    def submit(number: int) -> bool:
        try:
            queue.reserve(f"client{number % 8}", Limits(10, 1000), 60, None)
        except QueueFullError:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        taken = list(pool.map(submit, range(60)))
    assert sum(taken) == 10
    assert queue.counts()[State.RECEIVING] == 10


def test_one_key_cannot_fill_the_queue(queue: JobQueue) -> None:
    for _ in range(2):
        queue.reserve("anna", Limits(10, 2), 60, None)
    with pytest.raises(QueueFullError, match="2 of your jobs"):
        queue.reserve("anna", Limits(10, 2), 60, None)
    queue.reserve("bert", Limits(10, 2), 60, None)


def test_finished_jobs_and_late_uploads_make_room(queue: JobQueue) -> None:
    put(queue)
    claimed = queue.claim("w", "1", 30, 3)
    assert claimed is not None
    with pytest.raises(QueueFullError):
        queue.reserve("anna", Limits(1, 1), 60, None)
    queue.finish(claimed, State.FAILED, error="no face")
    late, _ = queue.reserve("anna", Limits(1, 1), OVER, None)
    queue.reserve("anna", Limits(1, 1), 60, None)
    assert queue.enqueue(late.id, 0) is None, "its place is another's now"


def test_a_repeated_request_gives_the_same_job(queue: JobQueue) -> None:
    def submit(_: int) -> tuple[str, bool]:
        job, new = queue.reserve("anna", ROOMY, 60, "take 1")
        return job.id, new

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(submit, range(24)))
    assert len({job_id for job_id, _ in answers}) == 1
    assert sum(new for _, new in answers) == 1
    _, other = queue.reserve("bert", ROOMY, 60, "take 1")
    assert other, "the name is its owner's"


def test_no_job_is_claimed_twice(queue: JobQueue) -> None:
    jobs = {put(queue).id for _ in range(30)}

    def work(number: int) -> list[str]:
        mine = []
        while job := queue.claim(f"w{number}", "1", 30, 3):
            mine.append(job.id)
        return mine

    with ThreadPoolExecutor(6) as pool:
        claimed = [job_id for each in pool.map(work, range(6)) for job_id in each]
    assert len(claimed) == 30
    assert set(claimed) == jobs


def test_a_silent_worker_loses_its_job_and_cannot_touch_it(queue: JobQueue) -> None:
    put(queue)
    first = queue.claim("w1", "1", OVER, 3)
    assert first is not None
    second = queue.claim("w2", "2", 30, 3)
    assert second is not None
    assert (second.id, second.attempts, second.model_version) == (first.id, 2, "2")
    assert queue.beat(first, "paste", 1, 2, 30) is Order.LOST
    assert not queue.finish(first, State.DONE, result="result-1.mp4")
    assert queue.finish(second, State.DONE, result="result-2.mp4")
    done = queue.get("anna", first.id)
    assert done is not None
    assert (done.result, done.model_version) == ("result-2.mp4", "2")


def test_a_beating_worker_keeps_its_job(queue: JobQueue) -> None:
    put(queue)
    job = queue.claim("w1", "1", OVER, 3)
    assert job is not None
    assert queue.beat(job, "dub", 0, 1, 600) is Order.GO_ON
    assert queue.claim("w2", "1", 30, 3) is None
    assert not queue.waiting()


def test_a_job_that_kills_its_workers_is_given_up(queue: JobQueue) -> None:
    job = put(queue)
    for attempt in (1, 2):
        claimed = queue.claim(f"w{attempt}", "1", 30, max_attempts=2)
        assert claimed is not None
        assert claimed.attempts == attempt
        assert queue.release(f"w{attempt}") == 1
    assert queue.claim("w3", "1", 30, max_attempts=2) is None
    failed = queue.get("anna", job.id)
    assert failed is not None
    assert failed.state == State.FAILED
    assert "2 attempts" in str(failed.error)


def test_an_interrupted_attempt_does_not_count(queue: JobQueue) -> None:
    put(queue)
    for _ in range(5):
        claimed = queue.claim("w", "1", 30, max_attempts=1)
        assert claimed is not None
        assert claimed.attempts == 1
        queue.hand_back(claimed)
    claimed = queue.claim("w", "1", 30, max_attempts=1)
    assert claimed is not None
    queue.hand_back(claimed, counts=True)
    assert queue.claim("w", "1", 30, max_attempts=1) is None


def test_cancelling(queue: JobQueue) -> None:
    waiting, running, orphan = put(queue), put(queue), put(queue)
    cancelled = queue.cancel("anna", waiting.id)
    assert cancelled is not None
    assert cancelled.state == State.CANCELLED
    claimed = queue.claim("w", "1", 30, 3)
    assert claimed is not None
    assert claimed.id == running.id
    asked = queue.cancel("anna", running.id)
    assert asked is not None
    assert (asked.state, asked.cancel) == (State.RUNNING, True)
    assert queue.beat(claimed, "dub", 0, 1, 30) is Order.CANCEL
    assert queue.finish(claimed, State.CANCELLED)
    assert queue.claim("w", "1", OVER, 3) is not None
    ended = queue.cancel("anna", orphan.id)
    assert ended is not None
    assert ended.state == State.CANCELLED, "nobody is left to stop it"
    assert queue.claim("w", "1", 30, 3) is None
    assert queue.counts()[State.CANCELLED] == 3


def test_retention_by_age_and_size(queue: JobQueue) -> None:
    ids = []
    for _ in range(4):
        ids.append(put(queue).id)
        claimed = queue.claim("w", "1", 30, 3)
        assert claimed is not None
        queue.finish(claimed, State.DONE, result="r.mp4", result_bytes=100)
        time.sleep(0.002)
    waiting = put(queue)
    assert queue.remove_old(hours=1, size=250) == [ids[1], ids[0]]
    assert queue.remove_old(hours=1, size=250) == []
    assert set(queue.remove_old(hours=OVER, size=1000)) == {ids[2], ids[3]}
    assert [job.id for job in queue.mine("anna", 10)] == [waiting.id]


def test_workers_are_known_while_they_report(queue: JobQueue) -> None:
    queue.report("w1", "cpu", None, "no model is loaded yet")
    queue.report("w1", "cpu", "4", None)
    (worker,) = queue.workers(silent_after=600)
    assert (worker.name, worker.model_version, worker.problem) == ("w1", "4", None)
    assert queue.workers(silent_after=OVER) == []


def test_postgres_restarts_under_an_open_queue(postgres_server: PostgresServer, postgres: str) -> None:
    queue = JobQueue(postgres)
    job = put(queue)
    postgres_server.stop()
    try:
        with pytest.raises(SQLAlchemyError):
            queue.counts()
    finally:
        postgres_server.start()
    assert queue.get("anna", job.id) == job
    assert queue.claim("w", "1", 30, 3) is not None
    queue.engine.dispose()
