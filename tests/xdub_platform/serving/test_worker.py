"""The worker: a job can be stopped wherever it is, and several processes may sample."""

from __future__ import annotations

import os
import shutil
import threading
import time
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model_code.dubbing.dub import DubReport
from model_code.dubbing.sampling import Crew
from model_code.errors import InputError
from model_code.media.video import read_audio, read_video, write_video
from model_code.metrics.syncnet import SyncNet, SyncNetConfig
from model_code.team import Member
from tests.xdub_platform.serving import tiny
from tests.xdub_platform.serving.world import Media, State, wait_for
from xdub_platform.dubbing import RegisteredDubber, dub_with_registered
from xdub_platform.platform import build_platform
from xdub_platform.resources.mlflow import BRIEF
from xdub_platform.serving import worker
from xdub_platform.serving.queue import JobQueue, Limits
from xdub_platform.serving.queue import State as JobState
from xdub_platform.serving.store import PARTS, JobStore
from xdub_platform.settings import load_settings


def waiting_job(queue: JobQueue, store: JobStore, media: Media) -> str:
    """A job of Anna's, ready to be claimed."""
    arriving, _ = queue.reserve("anna", Limits(9, 9), 60, None)
    folder = store.create(arriving.id)
    for part, source in zip(PARTS, (media.video, media.audio), strict=True):
        shutil.copy(source, folder / part)
    queue.enqueue(arriving.id, 0)
    return arriving.id


def test_a_cancel_while_noise_is_made_again_is_answered(
    state: State, media: Media, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first window never comes right, so that no frame is ever done; the process stays."""
    state.register()
    settings = state.settings
    dubber = RegisteredDubber(build_platform(settings), "@champion", "cpu")
    dubber._model.config = dubber._model.config.model_copy(update={"noise_retries": 3000})
    tries, killed = [], []
    monkeypatch.setattr("model_code.dubbing.model.noisiness", lambda *_: tries.append(1) or 2.0)
    monkeypatch.setattr(os, "_exit", killed.append)
    queue, store = JobQueue.open(settings), JobStore(settings)
    job_id = waiting_job(queue, store, media)
    folder = store.folder(job_id)
    job = queue.claim("w", dubber.version, 600, 1)
    assert job is not None

    def cancel() -> None:
        while len(tries) < 3:
            time.sleep(0.01)
        queue.cancel("anna", job.id)

    thread = threading.Thread(target=cancel, daemon=True)
    thread.start()
    worker.make(job, dubber, queue, store, settings, threading.Event())
    thread.join()
    ended = queue.get("anna", job.id)
    assert ended is not None
    assert (ended.state, ended.stage, ended.done) == (JobState.CANCELLED, "dub", 0)
    assert len(tries) < 3000
    assert not killed
    assert not folder.exists()


def test_a_job_that_takes_too_long_fails(state: State, media: Media) -> None:
    state.register()
    settings = load_settings(state_root=state.settings.state_root, serving={"job_seconds": 0.1})
    queue, store = JobQueue.open(settings), JobStore(settings)
    job_id = waiting_job(queue, store, replace(media, audio=media.long_audio))
    dubber = RegisteredDubber(build_platform(settings), "@champion", "cpu")
    job = queue.claim("w", dubber.version, 600, 1)
    assert job is not None
    assert worker.make(job, dubber, queue, store, settings, threading.Event())
    ended = queue.get("anna", job_id)
    assert ended is not None
    assert (ended.state, ended.error) == (JobState.FAILED, "it took more than 0 s")
    assert not store.folder(job_id).exists()


def test_xdub_dub_samples_in_two_processes_what_one_does(state: State, media: Media, tmp_path: Path) -> None:
    state.register()
    made = []
    for count in (1, 2):
        settings = load_settings(state_root=state.settings.state_root, processes={"sampling_processes": count})
        out = tmp_path / f"{count}.mp4"
        told = dub_with_registered(settings, media.video, media.audio, out, "@champion", 0, None)
        assert told[-1].endswith("model version 1")
        made.append(read_video(out).frames.astype(int))
    assert made[0].shape == made[1].shape
    assert np.abs(made[0] - made[1]).mean() < 0.1


def test_the_speaker_is_found_by_the_registered_syncnet(state: State, media: Media, tmp_path: Path) -> None:
    """As on a server of its own: models are registered, there is no data registry, and the hub cannot be reached."""

    def dub(dubber: RegisteredDubber) -> int:
        return dubber.dub(video, media.audio, tmp_path / "out.mp4", speaker="sync").dubbed

    state.register()
    video, speech = tmp_path / "face.mp4", tiny.write_speech(tmp_path / "own.wav", seconds=1.0)
    write_video(video, read_video(tiny.write_face(video, frames=20)).frames, audio=read_audio(speech))
    settings = load_settings(state_root=state.settings.state_root, backbones={"audio": [str(tmp_path / "nowhere")]})
    dubber, fresh = (RegisteredDubber(build_platform(settings), "@champion", "cpu") for _ in range(2))
    with pytest.raises(InputError, match="no SyncNet was accepted yet"):
        dub(dubber)
    SyncNet(SyncNetConfig(audio_features=8)).save_pretrained(tmp_path / "syncnet")  # as many as the dubber's encoder
    with state.runs.run("syncnet") as run:
        run.artifact(tmp_path / "syncnet", "model")
        run.register("xdub-syncnet", "model", alias="challenger")
    assert dub(dubber) == 6
    assert not state.settings.path("registry").exists()
    folder = state.runs.model_path("xdub-syncnet", "1")
    assert folder is not None
    (folder / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match=r"version 1 of xdub-syncnet: config\.json has .* \(make the asset `syncnet`"):
        dub(fresh)


def test_a_job_that_breaks_the_crew_is_given_up(state: State, media: Media) -> None:
    """Every attempt leaves a crew that can do nothing more, as a worker's restart finds it."""

    def breaks(*_: object) -> None:
        raise RuntimeError("out of memory")

    state.register()
    settings = state.settings
    queue, store = JobQueue.open(settings), JobStore(settings)
    job_id = waiting_job(queue, store, media)
    for attempt in (1, 2):
        crew = Crew(Member(), torch.device("cpu"))
        dubber = RegisteredDubber(build_platform(settings), "@champion", "cpu", crew=crew)
        dubber._model._sampler.transformer.register_forward_pre_hook(breaks)
        job = queue.claim(f"w{attempt}", dubber.version, 600, 2)
        assert job is not None
        assert job.attempts == attempt
        worker.make(job, dubber, queue, store, settings, threading.Event(), crew)
        assert crew.broken
    assert queue.claim("w3", dubber.version, 600, 2) is None
    ended = queue.get("anna", job_id)
    assert ended is not None
    assert (ended.state, ended.attempts) == (JobState.FAILED, 2)


def test_a_worker_whose_accelerator_is_lost_takes_no_further_job(
    state: State, media: Media, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is none here: a failing `synchronize` stands in for a context that an earlier error has spoilt."""

    class Failing(RegisteredDubber):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            self.device = "cuda:0"

        def dub(self, *_: object, **__: object) -> DubReport:
            raise RuntimeError("CUDA error: device-side assert triggered")

    def spoilt(device: str) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    def states() -> list[tuple[JobState, int]]:
        return [(job.state, job.attempts) for job in map(partial(queue.get, "anna"), ids) if job]

    state.register()
    queue, store = JobQueue.open(state.settings), JobStore(state.settings)
    ids = [waiting_job(queue, store, media) for _ in range(2)]
    monkeypatch.setattr(worker, "RegisteredDubber", Failing)
    monkeypatch.setattr(torch.cuda, "synchronize", spoilt)
    leaving = threading.Event()
    worker.serve(state.settings, "w1", "cpu", leaving)
    assert states() == [(JobState.QUEUED, 1), (JobState.QUEUED, 0)], "both wait for another process"
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: leaving.set())
    worker.serve(state.settings, "w2", "cpu", leaving)
    assert states() == [(JobState.FAILED, 2), (JobState.QUEUED, 0)], "an error that spoils nothing is the job's own"


def test_a_registry_that_does_not_answer_holds_no_job_up(state: State, tmp_path: Path) -> None:
    asked: list[str] = []

    class Away(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(503)

        def log_message(self, format: str, *arguments: object) -> None:
            """Quiet."""

    state.register()
    dubber = RegisteredDubber(build_platform(state.settings), "@champion", "cpu")
    with ThreadingHTTPServer(("127.0.0.1", 0), Away) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        champion = worker.Champion(
            build_platform(load_settings(state_root=tmp_path, mlflow={"tracking_uri": address})), "cpu"
        )
        champion.dubber = dubber
        assert champion.follow() is dubber
        assert len(asked) == 2
        assert "503" in str(champion.problem)
        assert champion.follow() is dubber
        assert len(asked) == 2, "one look holds for a while"
        champion._asks_from = 0.0
        champion.follow()
        assert len(asked) == 4
        server.shutdown()
    assert BRIEF.keys().isdisjoint(os.environ), "a model's files may take their time"


def test_a_damaged_champion_rests_longer_each_time(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where an attempt, which downloads all of a large model, outlasts the first pause."""
    tried: list[float] = []

    def slowly(*given: Any, **named: Any) -> RegisteredDubber:
        tried.append(time.monotonic())
        time.sleep(0.3)
        return RegisteredDubber(*given, **named)

    monkeypatch.setattr(worker, "RegisteredDubber", slowly)
    monkeypatch.setattr(worker, "RECHECK", 0.2)
    tiny.damage(state.runs, state.register())
    champion = worker.Champion(build_platform(state.settings), "cpu")
    while len(tried) < 4:
        assert champion.follow() is None
        assert "sha256" in str(champion.problem)
    assert all(np.diff(tried) > 0.3 + np.array([0.2, 0.4, 0.8])), "counted from the attempt's end"
    tiny.champion(state.runs, state.register(1))
    assert champion.follow() is not None, "another version is looked at at once"


@pytest.mark.slow
def test_a_server_samples_in_two_processes(state: State, media: Media) -> None:
    """It makes a job, ends another in the middle, follows a new champion, and makes one with that."""
    state.register()
    state.environment["XDUB_PROCESSES__SAMPLING_PROCESSES"] = "2"
    long = media.long_audio.with_name("together.wav")
    tiny.write_speech(long, seconds=8)
    with state.serving(model_check_seconds=0.5) as server:
        assert server.until(server.submit(media.video, media.audio).json()["id"], "done", "failed")["state"] == "done"
        running = server.submit(media.video, long).json()["id"]
        server.until(running, "running")
        server.client.delete(f"/v1/jobs/{running}")
        assert server.until(running, "cancelled", "done", "failed")["state"] == "cancelled"
        state.register(1)
        wait_for(lambda: server.ready()["model_version"] == "2", 120, "version 2", server.log)
        last = server.until(server.submit(media.video, media.audio).json()["id"], "done", "failed")
        assert (last["state"], last["model_version"], last["attempts"]) == ("done", "2", 1)


def test_workers_of_their_own_and_processes_that_sample_together_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"serving\.devices .* with processes\.sampling_processes 2"):
        load_settings(
            state_root=tmp_path,
            processes={"sampling_processes": 2},
            serving={"devices": ("cuda:0", "cuda:1")},
        )
