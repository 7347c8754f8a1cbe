"""The job API."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from model_code.dubbing.speaker import Speaker
from model_code.errors import InputError
from xdub_platform.serving.inspection import Inspector
from xdub_platform.serving.keys import LOCAL, Keys
from xdub_platform.serving.metrics import Metrics
from xdub_platform.serving.multipart import MultipartJob
from xdub_platform.serving.queue import FINISHED, Job, JobQueue, Limits, QueueFullError, State
from xdub_platform.serving.shell import VERSION_HEADER, Shell
from xdub_platform.serving.store import DiskFullError, JobStore, JobWriter, TooLargeError, media_limits
from xdub_platform.serving.supervisor import Supervisor
from xdub_platform.settings import Settings

PAGE = Path(__file__).with_name("page")
LISTED = 100
"""Jobs in a list."""
JSON_LIMIT = 64 << 10
"""Bytes of a JSON submission."""
DRAIN = 5.0
"""Seconds that a refused upload is read on, so that its client gets to read the answer."""
RETRY_AFTER = "5"
WHICH_FACE = (
    "Which face: its number from the left in every shot, or `sync`, the one whose lips fit the video's own sound; "
    "none: the largest."
)
REQUEST_NAME = re.compile(r"[\x21-\x7e]{1,128}")
log = logging.getLogger("xdub.serve")


class ApiError(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, what: str, remedy: str = "", headers: dict[str, str] | None = None) -> None:
        super().__init__(what)
        self.status, self.what, self.remedy, self.headers = status, what, remedy, headers


class Problem(BaseModel):
    """Why a request was refused."""

    detail: str = Field(examples=["'video' lasts 10800 s, more than 300 s"])
    remedy: str = Field("", examples=["cut it into shorter files"])


class Progress(BaseModel):
    """How far a running job is."""

    stage: str = Field(examples=["dub"])
    done: int = Field(examples=[60])
    total: int = Field(examples=[240])


class JobAnswer(BaseModel):
    """One job."""

    id: str = Field(examples=["0f8fad5bd9cb469fa16570867728950e"])
    state: State
    progress: Progress
    seed: int = Field(examples=[0])
    speaker: Speaker = Field(description=WHICH_FACE, examples=[None])
    attempts: int = Field(description="How often it was begun.", examples=[1])
    model_version: str | None = Field(description="Version that makes or made it; null before.", examples=["7"])
    error: str | None = Field(description="Why it failed.", examples=[None])
    notes: list[str] = Field(examples=[["the video is longer than the audio: cut to 3.20 s"]])
    result: str | None = Field(description="Where the mp4 is.", examples=["/v1/jobs/0f8fad5bd9cb469f/result"])
    created: datetime
    started: datetime | None
    finished: datetime | None


class JobList(BaseModel):
    """The latest jobs of a key, newest first."""

    jobs: list[JobAnswer]


class NamedFiles(BaseModel):
    """A job whose files lie in the server's folder of inputs."""

    model_config = ConfigDict(extra="forbid")

    video: str = Field(min_length=1, max_length=1024, examples=["interviews/anna.mp4"])
    audio: str = Field(min_length=1, max_length=1024, examples=["spanish/anna.wav"])
    seed: int = Field(0, ge=0, lt=2**31, examples=[0])
    speaker: Speaker = Field(None, description=WHICH_FACE, examples=["sync"])


class Readiness(BaseModel):
    """Whether jobs are being made, and with what."""

    ready: bool
    model_version: str | None = Field(examples=["7"])
    problems: list[str] = Field(
        examples=[["version 8 of xdub-dubber: config.json is missing"]],
        description="Why a worker does not serve what the champion alias names; the version above serves on.",
    )
    workers: int = Field(examples=[1])
    jobs: dict[str, int] = Field(examples=[{"queued": 2, "running": 1}])


BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["video", "audio"],
                "properties": {
                    "video": {"type": "string", "format": "binary", "description": "The face that will speak."},
                    "audio": {"type": "string", "format": "binary", "description": "What it will say."},
                    "seed": {"type": "integer", "default": 0, "description": "Decides the noise."},
                    "speaker": {"anyOf": [{"type": "integer"}, {"const": "sync"}], "description": WHICH_FACE},
                },
            }
        },
        "application/json": {
            "schema": NamedFiles.model_json_schema(),
            "example": {"video": "interviews/anna.mp4", "audio": "spanish/anna.wav", "seed": 0},
        },
    },
}


def _refusals(*codes: int) -> dict[int | str, dict[str, Any]]:
    return {code: {"model": Problem} for code in codes}


class Server:
    """What the routes share.

    Args:
        settings: Of the state root.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings, self.limits = settings, settings.serving
        self.queue, self.store, self.keys = JobQueue.open(settings), JobStore(settings), Keys.of(settings)
        self.inspector = Inspector(settings.media.model_copy(update=media_limits(settings)))
        self.supervisor = Supervisor(settings, self.queue, lambda: self.store.clean(self.queue))
        self.metrics = Metrics(self.queue, self.supervisor, self.store.root)
        self._looking = asyncio.Lock()

    def owner(self, credentials: HTTPAuthorizationCredentials | None) -> str:
        """Whose request this is."""
        if not self.limits.require_keys:
            return LOCAL
        owner = self.keys.owner(credentials.credentials) if credentials else None
        if owner is None:
            what = "the API key is wrong" if credentials else "an API key is needed"
            remedy = "send `Authorization: Bearer KEY`; `xdub serve --new-key NAME` makes one"
            raise ApiError(401, what, remedy, {"WWW-Authenticate": "Bearer"})
        return owner

    async def submit(self, request: Request, owner: str, request_name: str | None) -> tuple[Job, bool]:
        """Takes a job in: a place in the queue first, then its files, then a look at them."""
        if request_name is not None and not REQUEST_NAME.fullmatch(request_name):
            raise ApiError(422, "the Idempotency-Key is no name", "use up to 128 visible ASCII characters")
        receive = self._receiver(request)
        self.store.check_room(_declared_length(request))
        limits = Limits(self.limits.queue_limit, self.limits.queue_limit_per_key)
        job, new = await run_in_threadpool(self.queue.reserve, owner, limits, self.limits.upload_seconds, request_name)
        if not new:
            if job.state == State.RECEIVING:
                raise ApiError(409, "this request is still arriving", "wait for it", {"Retry-After": "1"})
            return job, False
        try:
            seed, speaker = await self._take_in(job, request, receive)
            folder = self.store.folder(job.id)
            async with self._looking:  # uploads wait for it here, not in the threads that answer everybody
                await run_in_threadpool(self.inspector.check, folder / "video", folder / "audio")
            queued = await run_in_threadpool(self.queue.enqueue, job.id, seed, speaker)
            if queued is None:
                raise ApiError(409, "the job was cancelled while its files arrived")
        except BaseException:
            await asyncio.shield(run_in_threadpool(self._forget, job.id))
            raise
        return queued, True

    async def _take_in(self, job: Job, request: Request, receive: Receiver) -> tuple[int, Speaker]:
        await run_in_threadpool(self.store.create, job.id)
        writer = self.store.writer(job.id)
        try:
            async with asyncio.timeout(self.limits.upload_seconds):
                return await receive(request, writer)
        except TimeoutError:
            raise ApiError(408, f"the upload took more than {self.limits.upload_seconds:.0f} s") from None
        finally:
            writer.close()

    def _receiver(self, request: Request) -> Receiver:
        kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
        if kind == "multipart/form-data":
            return self._multipart
        if kind == "application/json":
            return self._named
        raise ApiError(415, f"a body of type '{kind[:60]}' is not taken", "send multipart/form-data or JSON")

    async def _multipart(self, request: Request, writer: JobWriter) -> tuple[int, Speaker]:
        form = MultipartJob(request.headers["content-type"], writer)
        async for chunk in request.stream():
            await run_in_threadpool(form.feed, chunk)
        return form.finish()

    async def _named(self, request: Request, writer: JobWriter) -> tuple[int, Speaker]:
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > JSON_LIMIT:
                raise ApiError(413, f"the JSON has more than {JSON_LIMIT} bytes", "name two files")
        try:
            named = NamedFiles.model_validate_json(body)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "JSON"
            raise ApiError(
                422, f"{where}: {first['msg']}", "send video, audio and, if you like, seed and speaker"
            ) from None
        for part, name in (("video", named.video), ("audio", named.audio)):
            await run_in_threadpool(writer.copy, part, self.store.named(name))
        return named.seed, named.speaker

    def _forget(self, job_id: str) -> None:
        if self.queue.drop(job_id):
            self.store.remove(job_id)


Receiver = Callable[[Request, JobWriter], Awaitable[tuple[int, Speaker]]]


BEARER = HTTPBearer(auto_error=False, description="An API key.")


def _owner(request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)]) -> str:
    server: Server = request.app.state.server
    return server.owner(credentials)


Owner = Annotated[str, Depends(_owner)]


def create_app(settings: Settings) -> FastAPI:
    """The server of a state root; its workers start and end with it."""
    server = Server(settings)
    app = FastAPI(
        title="xdub",
        summary="Dub a face to new speech.",
        description=(
            "Submit a video and a sound, follow the job, fetch the mp4. Every answer carries the version of the model "
            f"in the header `{VERSION_HEADER}`: that of the job where it is about one, else the one that serves now."
        ),
        version="1",
        docs_url=None,
        redoc_url=None,
        lifespan=_lifespan(server),
    )
    app.state.server = server
    _add_errors(app)
    _add_jobs(app, server)
    _add_state(app, server)
    _add_page(app)
    app.add_middleware(
        Shell, metrics=server.metrics, supervisor=server.supervisor, open_to_all=not settings.serving.require_keys
    )
    return app


def check_exposure(settings: Settings, host: str) -> None:
    """Refuses to start a server that anybody could use.

    Raises:
        InputError: Keys are off where they must not be, or there are none.
    """
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if not settings.serving.require_keys:
        if settings.profile not in ("embedded", "embedded-full") or not local:
            raise InputError(
                f"without keys the server runs only in the embedded profile and on 127.0.0.1, not as "
                f"{settings.profile} on {host}",
                "unset XDUB_SERVING__REQUIRE_KEYS",
            )
    elif not len(Keys.of(settings)):
        raise InputError(
            "there is no API key",
            "`xdub serve --new-key NAME` makes one; on your own machine XDUB_SERVING__REQUIRE_KEYS=false does without",
        )


def _lifespan(server: Server) -> Callable[[FastAPI], contextlib.AbstractAsyncContextManager[None]]:
    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(server.supervisor.run())
        try:
            yield
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
            await run_in_threadpool(server.inspector.close)
            server.queue.engine.dispose()

    return lifespan


def _add_errors(app: FastAPI) -> None:
    def answer(status: int, what: str, remedy: str = "", headers: dict[str, str] | None = None) -> JSONResponse:
        return JSONResponse({"detail": what, "remedy": remedy}, status, headers)

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> JSONResponse:
        return answer(error.status, error.what, error.remedy, error.headers)

    @app.exception_handler(InputError)
    async def bad_input(request: Request, error: InputError) -> JSONResponse:
        return answer(422, error.what, error.remedy)

    @app.exception_handler(SQLAlchemyError)
    async def no_database(request: Request, error: SQLAlchemyError) -> JSONResponse:
        log.error("the queue's database: %s", " ".join(str(error).split())[:300])
        return answer(503, "the queue's database does not answer", "try again soon", {"Retry-After": RETRY_AFTER})


def _add_jobs(app: FastAPI, server: Server) -> None:
    def found(job: Job | None) -> Job:
        if job is None or job.state == State.RECEIVING:
            raise ApiError(404, "there is no such job", "see GET /v1/jobs")
        return job

    @app.post(
        "/v1/jobs",
        status_code=202,
        response_model=JobAnswer,
        responses=_refusals(401, 408, 409, 413, 415, 422, 429, 503, 507),
        openapi_extra={"requestBody": BODY},
        summary="Submit a job",
    )
    async def submit(
        request: Request,
        owner: Owner,
        idempotency_key: Annotated[
            str | None, Header(description="Your name for this request: sent again, it gives the same job.")
        ] = None,
    ) -> Response:
        """Answers at once with the job's id; the files are on disk then."""
        try:
            job, new = await server.submit(request, owner, idempotency_key)
        except ClientDisconnect:
            server.metrics.submissions.labels("disconnected").inc()
            return Response(status_code=400)
        except (ApiError, InputError, QueueFullError, TooLargeError, DiskFullError) as error:
            refusal = _refusal(error, server)
            server.metrics.submissions.labels(str(refusal.status)).inc()
            await _drain(request)
            raise refusal from None
        server.metrics.submissions.labels("accepted" if new else "repeated").inc()
        if not new:
            await _drain(request)
        return _answer(job, 202, Location=f"/v1/jobs/{job.id}")

    @app.get("/v1/jobs", response_model=JobList, responses=_refusals(401), summary="Your jobs")
    def jobs(owner: Owner) -> JobList:
        """The latest hundred, newest first."""
        mine = server.queue.mine(owner, LISTED)
        return JobList(jobs=[_described(job) for job in mine if job.state != State.RECEIVING])

    @app.get("/v1/jobs/{job_id}", response_model=JobAnswer, responses=_refusals(401, 404), summary="One job")
    def job(job_id: str, owner: Owner) -> Response:
        """State, progress, model version, and why it failed."""
        return _answer(found(server.queue.get(owner, job_id)))

    @app.get(
        "/v1/jobs/{job_id}/result",
        response_class=FileResponse,
        responses={200: {"content": {"video/mp4": {}}}, 206: {}, **_refusals(401, 404, 409, 410)},
        summary="The dubbed mp4",
    )
    def result(job_id: str, owner: Owner) -> Response:
        """Ranges are answered."""
        job = found(server.queue.get(owner, job_id))
        if job.state != State.DONE or job.result is None:
            what = job.error or f"the job is {job.state}"
            raise ApiError(409, what, "", {VERSION_HEADER: job.model_version or "none"})
        file = server.store.folder(job.id) / job.result
        if not file.is_file():
            raise ApiError(410, "the result was removed", "submit the job again")
        headers = {VERSION_HEADER: str(job.model_version)}
        return FileResponse(file, media_type="video/mp4", filename=f"dub-{job.id[:8]}.mp4", headers=headers)

    @app.delete(
        "/v1/jobs/{job_id}",
        status_code=202,
        response_model=JobAnswer,
        responses=_refusals(401, 404, 409),
        summary="Cancel a job",
    )
    def cancel(job_id: str, owner: Owner) -> Response:
        """A waiting job ends at once, a running one at its next frame or step of sampling."""
        before = found(server.queue.get(owner, job_id))
        if before.state in FINISHED:
            raise ApiError(409, f"the job is {before.state} already")
        return _answer(found(server.queue.cancel(owner, job_id)), 202)


def _add_state(app: FastAPI, server: Server) -> None:
    @app.get("/healthz", summary="Is the server alive?")
    async def healthz() -> dict[str, bool]:
        """Asks nothing else."""
        return {"alive": True}

    @app.get("/readyz", response_model=Readiness, responses={503: {"model": Readiness}}, summary="Are jobs being made?")
    def readyz() -> JSONResponse:
        """503 until a worker has a whole model, and while the database does not answer."""
        reports = server.supervisor.reports
        version = server.supervisor.version
        problems = sorted({report.problem for report in reports if report.problem})
        try:
            jobs = {str(state): count for state, count in server.queue.counts().items()}
        except SQLAlchemyError:
            version, jobs = None, {}
            problems = ["the queue's database does not answer"]
        told = Readiness(
            ready=version is not None, model_version=version, problems=problems, workers=len(reports), jobs=jobs
        )
        return JSONResponse(told.model_dump(mode="json"), 200 if told.ready else 503)

    @app.get("/metrics", response_class=Response, summary="Prometheus metrics")
    def metrics() -> Response:
        """Numbers only; no names of users or files."""
        return Response(generate_latest(server.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _add_page(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    @app.get("/docs", include_in_schema=False)
    def docs() -> FileResponse:
        return FileResponse(PAGE / "docs.html")

    app.mount("/page", StaticFiles(directory=PAGE), name="page")


def _described(job: Job) -> JobAnswer:
    return JobAnswer(
        id=job.id,
        state=job.state,
        progress=Progress(stage=job.stage, done=job.done, total=job.total),
        seed=job.seed,
        speaker=job.speaker,
        attempts=job.attempts,
        model_version=job.model_version,
        error=job.error,
        notes=list(job.notes),
        result=f"/v1/jobs/{job.id}/result" if job.state == State.DONE else None,
        created=_time(job.created),
        started=None if job.started is None else _time(job.started),
        finished=None if job.finished is None else _time(job.finished),
    )


def _answer(job: Job, status: int = 200, **headers: str) -> Response:
    if job.model_version is not None:
        headers[VERSION_HEADER] = job.model_version
    body = json.dumps(_described(job).model_dump(mode="json"))
    return Response(body, status, headers, media_type="application/json")


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _declared_length(request: Request) -> int:
    length = request.headers.get("content-length", "0")
    return int(length) if length.isdigit() else 0


def _refusal(error: Exception, server: Server) -> ApiError:
    """The answer that a refused submission gets."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, InputError):
        return ApiError(422, error.what, error.remedy)
    if isinstance(error, QueueFullError):
        return ApiError(429, str(error), "try again when one has ended", {"Retry-After": RETRY_AFTER})
    if isinstance(error, TooLargeError):
        most = server.limits.max_upload_bytes
        return ApiError(413, f"the files have more than {most} bytes together", "send smaller files")
    return ApiError(507, "the server's disk is full", "try again later", {"Retry-After": RETRY_AFTER})


async def _drain(request: Request) -> None:
    """Reads what is still arriving, for a while: a client that is cut off in mid-upload never sees the answer."""
    with contextlib.suppress(TimeoutError, ClientDisconnect, RuntimeError):
        async with asyncio.timeout(DRAIN):
            async for _ in request.stream():
                pass
