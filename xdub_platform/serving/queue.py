"""The durable queue: two tables in Postgres or in a sqlite file, shared by servers and workers.

A job that is running is leased to a worker. The worker renews the lease; when it falls silent, another takes the job
from its beginning. Whatever a worker writes names its attempt, so that one that lost its lease changes nothing. All
times are the database's, because several machines may share it.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine, RowMapping, make_url

from model_code.dubbing.speaker import Speaker, parse_speaker
from xdub_platform.settings import Settings

SQLITE_WAIT = 30.0
LOCK = 0x78647562
"""Number of the advisory lock that serialises submissions on Postgres."""
FORGET = 3600.0
"""A worker that was silent for so long is gone."""
WRITE = "xdub_write"
ID = re.compile("[0-9a-f]{32}")


class State(StrEnum):
    """Where a job stands."""

    RECEIVING = "receiving"
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


ACTIVE = (State.RECEIVING, State.QUEUED, State.RUNNING)
FINISHED = (State.DONE, State.FAILED, State.CANCELLED)


class Order(StrEnum):
    """What a worker's heartbeat is answered."""

    GO_ON = "go on"
    CANCEL = "cancel"
    LOST = "lost"


class QueueFullError(Exception):
    """No room for another job."""


@dataclass(frozen=True)
class Limits:
    """How many jobs may be active."""

    total: int
    per_key: int


@dataclass(frozen=True)
class Job:
    """One job.

    Attributes:
        id: Names it everywhere.
        owner: Name of the key that submitted it.
        state: Where it stands.
        seed: Of the model's noise.
        speaker: Which face is dubbed.
        attempts: How often it was begun.
        stage: What is being done now.
        done: Steps of the stage that are done.
        total: Steps of the stage.
        model_version: Version that makes or made it; None before it begins.
        error: Why it failed.
        notes: What the result's user should know.
        result: File name of the result in the job's folder.
        result_bytes: Its size.
        worker: Who has it.
        cancel: Its owner wants it stopped.
        created: Seconds since 1970, as the times below.
        started: Begin of the last attempt.
        finished: When it came to an end.
    """

    id: str
    owner: str
    state: State
    seed: int
    speaker: Speaker
    attempts: int
    stage: str
    done: int
    total: int
    model_version: str | None
    error: str | None
    notes: tuple[str, ...]
    result: str | None
    result_bytes: int
    worker: str | None
    cancel: bool
    created: float
    started: float | None
    finished: float | None


@dataclass(frozen=True)
class WorkerReport:
    """What a worker said last.

    Attributes:
        name: Host, process and device.
        device: Where its model is.
        model_version: Version it serves; None before it has one.
        problem: Why it does not serve what the champion alias names, or None.
        seen: Seconds since 1970.
    """

    name: str
    device: str
    model_version: str | None
    problem: str | None
    seen: float


_metadata = sa.MetaData()
_jobs = sa.Table(
    "serving_jobs",
    _metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column("request", sa.String(128)),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("speaker", sa.String(8), nullable=False, server_default=""),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("stage", sa.String(64), nullable=False, default=""),
    sa.Column("done", sa.Integer, nullable=False, default=0),
    sa.Column("total", sa.Integer, nullable=False, default=0),
    sa.Column("model_version", sa.String(32)),
    sa.Column("error", sa.Text),
    sa.Column("notes", sa.Text, nullable=False, default="[]"),
    sa.Column("result", sa.String(64)),
    sa.Column("result_bytes", sa.BigInteger, nullable=False, default=0),
    sa.Column("worker", sa.String(128)),
    sa.Column("cancel", sa.Boolean, nullable=False, default=False),
    sa.Column("lease_until", sa.Double),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("started", sa.Double),
    sa.Column("finished", sa.Double),
    sa.UniqueConstraint("owner", "request", name="serving_jobs_request"),
    sa.Index("serving_jobs_state", "state", "created"),
)
_workers = sa.Table(
    "serving_workers",
    _metadata,
    sa.Column("name", sa.String(128), primary_key=True),
    sa.Column("device", sa.String(32), nullable=False),
    sa.Column("model_version", sa.String(32)),
    sa.Column("problem", sa.Text),
    sa.Column("seen", sa.Double, nullable=False),
)
_columns = [column for column in _jobs.columns if column.name not in ("request", "lease_until")]


class JobQueue:
    """Jobs and workers in a database.

    Args:
        url: ``postgresql://...`` or ``sqlite:////...``.
    """

    def __init__(self, url: str) -> None:
        self.engine = _engine(url)
        with self._write() as connection:
            _alone(connection)
            _metadata.create_all(connection)
            _add_columns(connection)

    @classmethod
    def open(cls, settings: Settings) -> JobQueue:
        """The queue of a state root."""
        if settings.database.url:
            return cls(settings.database.url)
        file = settings.path("serving", "queue.db")
        file.parent.mkdir(parents=True, exist_ok=True)
        return cls(f"sqlite:///{file}")

    # --- what clients do ---------------------------------------------------------------------------------------------

    def reserve(self, owner: str, limits: Limits, seconds: float, request: str | None) -> tuple[Job, bool]:
        """Takes a place in the queue for a job whose files are about to arrive.

        Args:
            owner: Name of the key.
            limits: How many may be active; counted and taken in one transaction.
            seconds: How long the files may take; then the place is free again.
            request: The client's name for this request: its second use gives the first one's job.

        Returns:
            The job, and whether it is new.

        Raises:
            QueueFullError: There is no place.
        """
        with self._write() as connection:
            _alone(connection)
            now = _now(connection)
            late = (_jobs.c.state == State.RECEIVING) & (_jobs.c.lease_until < now)
            connection.execute(_jobs.delete().where(late))
            if request is not None:
                same = (_jobs.c.owner == owner) & (_jobs.c.request == request)
                row = connection.execute(sa.select(*_columns).where(same)).mappings().first()
                if row:
                    return _job(row), False
            active = _jobs.c.state.in_(ACTIVE)
            count = sa.select(sa.func.count()).select_from(_jobs)
            if connection.execute(count.where(active)).scalar_one() >= limits.total:
                raise QueueFullError(f"{limits.total} jobs are active, which is all that the queue holds")
            if connection.execute(count.where(active, _jobs.c.owner == owner)).scalar_one() >= limits.per_key:
                raise QueueFullError(f"{limits.per_key} of your jobs are active, which is all that one key may have")
            values = {
                "id": uuid.uuid4().hex,
                "owner": owner,
                "request": request,
                "state": State.RECEIVING,
                "seed": 0,
                "created": now,
                "lease_until": now + seconds,
            }
            connection.execute(_jobs.insert().values(values))
            return self._one(connection, str(values["id"])), True

    def enqueue(self, job_id: str, seed: int, speaker: Speaker = None) -> Job | None:
        """Puts a job whose files are complete into the queue; None if it took too long or was cancelled."""
        with self._write() as connection:
            mine = (_jobs.c.id == job_id) & (_jobs.c.state == State.RECEIVING)
            change = (
                _jobs.update()
                .where(mine)
                .values(
                    state=State.QUEUED, seed=seed, speaker="" if speaker is None else str(speaker), lease_until=None
                )
            )
            return self._one(connection, job_id) if connection.execute(change).rowcount else None

    def drop(self, job_id: str) -> bool:
        """Forgets a job whose files did not arrive; False if it is queued after all, or unknown."""
        with self._write() as connection:
            this = _jobs.delete().where(_jobs.c.id == job_id, _jobs.c.state == State.RECEIVING)
            return bool(connection.execute(this).rowcount)

    def get(self, owner: str, job_id: str) -> Job | None:
        """A job, if it belongs to `owner`."""
        if not ID.fullmatch(job_id):  # Postgres would raise at some strings
            return None
        with self._read() as connection:
            mine = (_jobs.c.id == job_id) & (_jobs.c.owner == owner)
            row = connection.execute(sa.select(*_columns).where(mine)).mappings().first()
            return _job(row) if row else None

    def mine(self, owner: str, limit: int) -> list[Job]:
        """The latest jobs of `owner`, newest first."""
        with self._read() as connection:
            chosen = sa.select(*_columns).where(_jobs.c.owner == owner)
            rows = connection.execute(chosen.order_by(_jobs.c.created.desc(), _jobs.c.id).limit(limit)).mappings()
            return [_job(row) for row in rows]

    def cancel(self, owner: str, job_id: str) -> Job | None:
        """Ends a waiting job; a running one is stopped by its worker soon. Finished ones stay as they are."""
        with self._write() as connection:
            mine = (_jobs.c.id == job_id) & (_jobs.c.owner == owner)
            row = connection.execute(sa.select(*_columns).where(mine).with_for_update()).mappings().first()
            if row is None:
                return None
            held = sa.select(_jobs.c.id).where(mine, _jobs.c.lease_until >= _now(connection))
            running = row["state"] == State.RUNNING and connection.execute(held).first() is not None
            if row["state"] in ACTIVE and not running:
                ended = {"state": State.CANCELLED, "finished": _now(connection), "lease_until": None}
                connection.execute(_jobs.update().where(mine).values(ended))
            elif running:
                connection.execute(_jobs.update().where(mine).values(cancel=True))
            return self._one(connection, job_id)

    # --- what workers do ---------------------------------------------------------------------------------------------

    def waiting(self) -> bool:
        """Whether `claim` may find a job; asks without writing."""
        with self._read() as connection:
            silent = (_jobs.c.state == State.RUNNING) & (_jobs.c.lease_until < _now(connection))
            found = sa.select(_jobs.c.id).where((_jobs.c.state == State.QUEUED) | silent).limit(1)
            return connection.execute(found).first() is not None

    def claim(self, worker: str, model_version: str, lease: float, max_attempts: int) -> Job | None:
        """Leases the oldest job that waits or whose worker fell silent; None if there is none."""
        with self._write() as connection:
            while True:
                now = _now(connection)
                silent = (_jobs.c.state == State.RUNNING) & (_jobs.c.lease_until < now)
                oldest = (
                    sa.select(*_columns)
                    .where((_jobs.c.state == State.QUEUED) | silent)
                    .order_by(_jobs.c.created, _jobs.c.id)
                    .limit(1)
                    .with_for_update(skip_locked=True)
                )
                row = connection.execute(oldest).mappings().first()
                if row is None:
                    return None
                job, this = _job(row), _jobs.c.id == row["id"]
                ended = _ended_instead(job, max_attempts)
                if ended:
                    connection.execute(_jobs.update().where(this).values(**ended, finished=now, lease_until=None))
                    continue
                begun = {
                    "state": State.RUNNING,
                    "worker": worker,
                    "model_version": model_version,
                    "attempts": job.attempts + 1,
                    "started": now,
                    "lease_until": now + lease,
                    "stage": "begin",
                    "done": 0,
                    "total": 0,
                }
                connection.execute(_jobs.update().where(this).values(begun))
                return self._one(connection, job.id)

    def beat(self, job: Job, stage: str, done: int, total: int, lease: float) -> Order:
        """Renews a lease and records progress; says whether to go on."""
        with self._write() as connection:
            told = {"stage": stage[:64], "done": done, "total": total, "lease_until": _now(connection) + lease}
            if not connection.execute(_jobs.update().where(_held(job)).values(told)).rowcount:
                return Order.LOST
            wanted = connection.execute(sa.select(_jobs.c.cancel).where(_jobs.c.id == job.id)).scalar_one()
            return Order.CANCEL if wanted else Order.GO_ON

    def finish(
        self,
        job: Job,
        state: State,
        *,
        error: str | None = None,
        notes: Sequence[str] = (),
        result: str | None = None,
        result_bytes: int = 0,
    ) -> bool:
        """Ends a job; False if it is no longer this worker's, and nothing was changed.

        It may be said again when the database fell silent before it answered.
        """
        with self._write() as connection:
            ended = {
                "state": state,
                "error": error,
                "notes": json.dumps(list(notes)),
                "result": result,
                "result_bytes": result_bytes,
                "finished": _now(connection),
                "lease_until": None,
                **({"done": _jobs.c.total} if state == State.DONE else {}),
            }
            if connection.execute(_jobs.update().where(_held(job)).values(ended)).rowcount:
                return True
            said = _attempt(job) & (_jobs.c.state == state)
            return connection.execute(sa.select(_jobs.c.id).where(said)).first() is not None

    def hand_back(self, job: Job, *, counts: bool = False) -> None:
        """Puts a job back; an attempt that was interrupted in good order does not count."""
        with self._write() as connection:
            attempts = job.attempts if counts else job.attempts - 1
            back = {"state": State.QUEUED, "attempts": attempts, "lease_until": None, "stage": ""}
            connection.execute(_jobs.update().where(_held(job)).values(back))

    def release(self, worker: str) -> int:
        """Puts back what a dead worker had; returns how many jobs."""
        with self._write() as connection:
            connection.execute(_workers.delete().where(_workers.c.name == worker))
            theirs = (_jobs.c.worker == worker) & (_jobs.c.state == State.RUNNING)
            change = _jobs.update().where(theirs).values(lease_until=_now(connection) - 1.0)
            return int(connection.execute(change).rowcount)

    def report(self, worker: str, device: str, model_version: str | None, problem: str | None) -> None:
        """Records that a worker lives and what it serves."""
        with self._write() as connection:
            values = {"device": device, "model_version": model_version, "problem": problem, "seen": _now(connection)}
            if not connection.execute(_workers.update().where(_workers.c.name == worker).values(values)).rowcount:
                connection.execute(_workers.insert().values(name=worker, **values))

    # --- what the server watches -------------------------------------------------------------------------------------

    def workers(self, silent_after: float) -> list[WorkerReport]:
        """Workers that were heard of lately; forgets those long gone."""
        with self._write() as connection:
            now = _now(connection)
            connection.execute(_workers.delete().where(_workers.c.seen < now - FORGET))
            heard = sa.select(_workers).where(_workers.c.seen >= now - silent_after).order_by(_workers.c.name)
            return [WorkerReport(**row) for row in connection.execute(heard).mappings()]

    def counts(self) -> dict[str, int]:
        """Number of jobs in every state."""
        with self._read() as connection:
            rows = connection.execute(sa.select(_jobs.c.state, sa.func.count()).group_by(_jobs.c.state))
            return {**dict.fromkeys(State, 0), **{State(state): int(count) for state, count in rows}}

    def known(self, ids: Sequence[str]) -> dict[str, State]:
        """Those of `ids` that are jobs, with their states."""
        with self._read() as connection:
            rows = connection.execute(sa.select(_jobs.c.id, _jobs.c.state).where(_jobs.c.id.in_(ids)))
            return {job_id: State(state) for job_id, state in rows}

    def remove_old(self, hours: float, size: int) -> list[str]:
        """Forgets finished jobs that are too old, and the oldest while their results exceed `size` bytes."""
        with self._write() as connection:
            oldest_kept = _now(connection) - hours * 3600
            finished = sa.select(_jobs.c.id, _jobs.c.finished, _jobs.c.result_bytes).where(_jobs.c.state.in_(FINISHED))
            removed, kept = [], 0
            for job_id, ended, result_bytes in connection.execute(finished.order_by(_jobs.c.finished.desc())):
                kept += result_bytes
                if ended < oldest_kept or kept > size:
                    removed.append(job_id)
            for start in range(0, len(removed), 500):
                part = removed[start : start + 500]
                connection.execute(_jobs.delete().where(_jobs.c.id.in_(part), _jobs.c.state.in_(FINISHED)))
            return removed

    def _one(self, connection: Connection, job_id: str) -> Job:
        return _job(connection.execute(sa.select(*_columns).where(_jobs.c.id == job_id)).mappings().one())

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        with self.engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        """A transaction that writes: on sqlite alone from its beginning."""
        with self.engine.connect().execution_options(**{WRITE: True}) as connection, connection.begin():
            yield connection


def _ended_instead(job: Job, max_attempts: int) -> dict[str, Any] | None:
    """What becomes of a job that waits but must not be begun."""
    if job.cancel:
        return {"state": State.CANCELLED}
    if job.attempts >= max_attempts:
        what = f"given up: its worker died in each of {job.attempts} attempts"
        return {"state": State.FAILED, "error": what}
    return None


def _held(job: Job) -> sa.ColumnElement[bool]:
    """The job is still in the attempt that `job` was claimed for."""
    return _attempt(job) & (_jobs.c.state == State.RUNNING)


def _attempt(job: Job) -> sa.ColumnElement[bool]:
    return (_jobs.c.id == job.id) & (_jobs.c.worker == job.worker) & (_jobs.c.attempts == job.attempts)


def _job(row: RowMapping) -> Job:
    job = Job(**row)
    speaker = parse_speaker(row["speaker"])
    return replace(job, state=State(job.state), speaker=speaker, notes=tuple(json.loads(row["notes"])))


def _now(connection: Connection) -> float:
    sqlite = connection.dialect.name == "sqlite"
    text = "(julianday('now') - 2440587.5) * 86400.0" if sqlite else "extract(epoch from clock_timestamp())"
    return float(connection.exec_driver_sql(f"SELECT {text}").scalar_one())


def _engine(url: str) -> Engine:
    address = make_url(url)
    if address.get_backend_name() == "sqlite":
        engine = sa.create_engine(address, connect_args={"timeout": SQLITE_WAIT, "check_same_thread": False})
        sa.event.listen(engine, "connect", _prepare_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
        return engine
    return sa.create_engine(address, pool_pre_ping=True, connect_args={"connect_timeout": 10})


def _prepare_sqlite(connection: Any, record: object) -> None:
    connection.isolation_level = None
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(WRITE)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _add_columns(connection: Connection) -> None:
    """Gives a table that an earlier version made the columns that it does not know."""
    there = {column["name"] for column in sa.inspect(connection).get_columns(_jobs.name)}
    for column in _jobs.columns:
        if column.name not in there:
            clause = sa.schema.CreateColumn(column).compile(dialect=connection.dialect)
            connection.execute(sa.text(f"ALTER TABLE {_jobs.name} ADD COLUMN {clause}"))


def _alone(connection: Connection) -> None:
    """No other transaction that calls this runs beside it; sqlite's writers are alone anyway."""
    if connection.dialect.name != "sqlite":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))
