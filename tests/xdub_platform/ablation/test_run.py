"""What rows share, that a killed run goes on where it was, and the whole of it once at the smallest numbers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from model_code.errors import InputError
from tests.graph.test_whole_chain import EASY, SMALL
from tests.shipped import need_base
from tests.xdub_platform.ablation.fake import FakeWorkers
from xdub_platform.ablation import run, stages
from xdub_platform.ablation.rows import ROWS
from xdub_platform.ablation.run import Wanted, run_ablations
from xdub_platform.ablation.stages import JobFailed, Stages, changed
from xdub_platform.chain import Status, Step
from xdub_platform.locks import held
from xdub_platform.platform import build_platform
from xdub_platform.settings import Settings, load_settings

BY_NAME = {row.name: row for row in ROWS}
LAUNCH = Stages._launch


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> FakeWorkers:
    monkeypatch.setattr(run, "make_chain", lambda *arguments: None)
    return FakeWorkers(monkeypatch)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(state_root=tmp_path / "state")


def rows_of(settings: Settings, ended: threading.Event | None = None) -> Stages:
    return Stages(build_platform(settings), lambda job, line: None, ended or threading.Event())


def test_a_row_makes_only_what_no_other_has_made(settings: Settings, workers: FakeWorkers) -> None:
    stages = rows_of(settings)
    expected = {
        "full": ["editor", "lip", "texture", "score-full"],
        "constructed": ["score-constructed"],
        "channel_concat": ["editor", "lip", "texture", "score-channel_concat"],
        "uniform": ["editor", "score-uniform"],
        "no_lip": ["score-no_lip"],
        "generator_short": ["score-generator_short"],
        "generator_long": ["generator", "score-generator_long"],
        "lip_shift_3": ["lip", "score-lip_shift_3"],
        "texture_shift_08": ["texture", "score-texture_shift_08"],
        "lip_always": ["score-lip_always"],
        "inpainting": ["generator", "lip", "texture", "score-inpainting"],
        "pairs_relit": ["editor", "score-pairs_relit"],
        "light_relit": ["score-light_relit"],
    }
    for name, jobs in expected.items():
        workers.launched.clear()
        stages.scored(BY_NAME[name])
        assert workers.launched == jobs, name
    assert stages.seconds() == 2.0 * sum(len(jobs) for jobs in expected.values())


def test_new_pairs_or_settings_make_anew_what_was_made_of_them(settings: Settings, workers: FakeWorkers) -> None:
    rows_of(settings).scored(BY_NAME["full"])
    workers.launched.clear()
    rows_of(settings).scored(BY_NAME["full"])
    assert workers.launched == []
    longer = changed(settings, {"phases": {"texture": {"steps": 99}}})
    rows_of(longer).scored(BY_NAME["full"])
    assert workers.launched == ["texture", "score-full"]
    workers.version = "2"
    workers.launched.clear()
    rows_of(settings).scored(BY_NAME["full"])
    assert workers.launched == ["editor", "lip", "texture", "score-full"]


def test_a_worker_without_a_result_is_told_with_its_last_line(settings: Settings, workers: FakeWorkers) -> None:
    def leave_nothing(folder: Path) -> None:
        (folder / "worker.log").write_text("now worker: the loss is not finite\n", encoding="utf-8")

    workers.launch = leave_nothing  # type: ignore[method-assign]
    with pytest.raises(JobFailed, match="the loss is not finite"):
        rows_of(settings).scored(BY_NAME["full"])


def test_two_rows_at_once_make_what_they_share_once(settings: Settings, workers: FakeWorkers) -> None:
    together = threading.Barrier(2, timeout=60)

    def wait_for_the_other(stage: str) -> None:
        if stage == "texture":  # made by the first row to come; the other one waits for it, or has its own lip expert
            time.sleep(0.5)

    workers.before = wait_for_the_other

    def made(name: str) -> None:
        together.wait()
        rows_of(settings).scored(BY_NAME[name])

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(made, ("full", "no_lip")))
    assert sorted(workers.launched) == ["editor", "lip", "score-full", "score-no_lip", "texture"]


def test_who_leaves_ends_the_workers_and_begins_no_other(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(run, "make_chain", lambda *arguments: None)
    FakeWorkers(monkeypatch)
    monkeypatch.setattr(Stages, "_launch", LAUNCH)
    pids = tmp_path / "pids"
    code = f"import os, time; open({str(pids)!r}, 'a').write(f'{{os.getpid()}} '); time.sleep(600)"
    monkeypatch.setattr(stages, "command_of", lambda worker, config: [sys.executable, "-c", code])

    def leave(step: Step) -> None:
        if step.status is Status.RUNNING and pids.is_file() and pids.read_text(encoding="utf-8"):
            raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_ablations(settings, Wanted(("5",), (0, 1)), lambda own: None, leave, tmp_path / "a.json")
    assert time.monotonic() - began < 300, "the worker would have slept for ten minutes"
    begun = pids.read_text(encoding="utf-8").split()
    assert 1 <= len(begun) <= settings.processes.parallel_runs
    for pid in begun:
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


def ablate(settings: Settings, output: Path, watched: list[Step]) -> tuple[dict[str, object], list[str]]:
    result, failures = run_ablations(settings, Wanted(("5",), (0, 1)), lambda own: None, watched.append, output)
    return result.model_dump(mode="json"), failures


def test_a_run_killed_between_rows_goes_on_there(settings: Settings, workers: FakeWorkers, tmp_path: Path) -> None:
    settings = changed(settings, {"processes": {"parallel_runs": 1}})
    output = tmp_path / "new" / "ablations.json"

    def kill(stage: str) -> None:
        if len(workers.launched) == 9:
            raise KeyboardInterrupt

    workers.before = kill
    with pytest.raises(KeyboardInterrupt):
        ablate(settings, output, [])
    partial = json.loads(output.read_text(encoding="utf-8"))
    assert [row["name"] for row in partial["rows"] if row["values"]] == ["full"]
    workers.before = lambda stage: None
    before, watched = list(workers.launched), list[Step]()
    result, failures = ablate(settings, output, watched)
    assert failures == []
    assert len(workers.launched) == 2 * (4 + 4 + 4 + 2 + 1 + 1)
    assert workers.launched[len(before)] == "lip", "the second row's editor was done"
    assert [step.status for step in watched[:3]] == [Status.FRESH, Status.FRESH, Status.DONE]
    assert json.loads(output.read_text(encoding="utf-8")) == result
    assert output.with_suffix(".html").is_file()
    again, _ = ablate(settings, output, [])
    assert {**again, "created": ""} == {**result, "created": ""}
    assert all(len(row["values"]["sync_c"]["seeds"]) == 2 for row in again["rows"])  # type: ignore[attr-defined]


def test_a_row_that_fails_stops_no_other(settings: Settings, workers: FakeWorkers, tmp_path: Path) -> None:
    output, watched = tmp_path / "a.json", list[Step]()

    def break_uniform(stage: str) -> None:
        if stage == "score-uniform":
            raise JobFailed("it broke")

    workers.before = break_uniform
    result, failures = ablate(settings, output, watched)
    assert sorted(failures) == ["seed 0, uniform: it broke", "seed 1, uniform: it broke"]
    assert [row["name"] for row in result["rows"] if not row["values"]] == ["uniform"]  # type: ignore[attr-defined]
    assert sum(step.status is Status.FAILED for step in watched) == 2
    verdicts = {one["name"]: one["verdict"] for one in result["orderings"]}  # type: ignore[attr-defined]
    assert verdicts["phases_over_uniform"] == "open"
    workers.before = lambda stage: None
    workers.launched.clear()
    _, failures = ablate(settings, output, [])
    assert (failures, workers.launched) == ([], ["score-uniform", "score-uniform"])


def test_two_runs_do_not_share_a_state_root(settings: Settings, workers: FakeWorkers, tmp_path: Path) -> None:
    with held(settings.path("ablate", ".lock")), pytest.raises(InputError, match="another `xdub ablate`"):
        ablate(settings, tmp_path / "a.json", [])


@pytest.mark.slow
def test_the_whole_of_it_killed_once_at_the_smallest_numbers(tmp_path: Path) -> None:
    need_base()
    small = {**SMALL, "pairs": {**SMALL["pairs"], "filters": EASY}}  # type: ignore[dict-item]
    small["flow"] = {"sampling_steps": 5}
    told = {f"XDUB_{name.upper()}": json.dumps(value) for name, value in small.items()}
    environment = {**os.environ, **told, "XDUB_STATE_ROOT": str(tmp_path / "state")}
    output = tmp_path / "results" / "ablations.json"
    code = "from xdub_platform.cli import main; main()"
    command = [sys.executable, "-c", code, "ablate", "--tables", "4", "--seeds", "1", "-o", str(output)]
    with subprocess.Popen(command, env=environment) as first:
        while not output.is_file() and first.poll() is None:
            time.sleep(0.2)
        first.send_signal(signal.SIGKILL)
    work = tmp_path / "state" / "ablate" / "seed-0" / "ablation"
    done = {path: path.stat().st_mtime_ns for path in work.glob("*/output/result.json")}
    assert any(path.parents[1].name.startswith("score-") for path in done), "the result is written after a row"
    subprocess.run(command, env=environment, check=True)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    rows = {row["name"]: row["values"] for row in json.loads(output.read_text(encoding="utf-8"))["rows"]}
    assert set(rows) == {"full", "constructed"}
    for values in rows.values():
        assert {"opening", "sync_c", "identity", "perceptual_distance", "perceptual_frechet"} <= set(values)
    assert rows["full"]["lip_gain"]["mean"] != rows["constructed"]["lip_gain"]["mean"]
    assert "Editor against its own constructed training data" in output.with_suffix(".html").read_text(encoding="utf-8")
