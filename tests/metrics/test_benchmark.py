"""The benchmark on rendered cases: what is written, what copying and the exact dub score, and that it resumes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model_code import base
from model_code.avatars.clipspec import ClipSpec, fresh_specs, other_speech, render_spec
from model_code.backbones.perceptual import PerceptualEncoder
from model_code.config import BenchmarkConfig, CorpusConfig, MediaConfig
from model_code.dubbing.model import DubItem
from model_code.errors import InputError
from model_code.faces.crop import crop, to_crop
from model_code.faces.landmarker import Landmarker
from model_code.faces.track import crop_boxes
from model_code.lifetime import process_pool
from model_code.media.sample import ClipSample
from model_code.media.video import read_video
from model_code.metrics import benchmark
from model_code.metrics.benchmark import Case, Judges, build_cases, case_specs, run_benchmark, score_row
from model_code.metrics.evaluators.identity_judge import IdentityJudge
from model_code.metrics.evaluators.mouth_reader import MouthReader
from model_code.metrics.scores import COPY, EXACT
from model_code.speech.espeak import Utterance

SIZE, FRAMES = 96, 25


def _case(spec: ClipSpec) -> Case:
    own, sound = render_spec(spec, 128)
    reference, driving = render_spec(spec, 128, other_speech(spec, "test"))
    silent, _ = render_spec(spec, 128, Utterance(np.zeros(640 * spec.n_frames, np.float32), ()))
    boxes = crop_boxes(own.landmarks)
    return Case(
        case_id=spec.name,
        head=spec.head_seed,
        kind=spec.kind,
        condition=spec.kind,
        language=spec.language,
        sentence=spec.text,
        seed=1,
        frames=crop(own.frames, boxes, SIZE),
        input_audio=sound.samples,
        samples=driving.samples,
        landmarks=to_crop(own.landmarks, boxes, SIZE),
        occluder=np.zeros((spec.n_frames, SIZE, SIZE), bool),
        reference=crop(reference.frames, boxes, SIZE),
        silent_reference=crop(silent.frames[:9], boxes[:9], SIZE),
        input_curves=own.mouth,
        reference_curves=reference.mouth,
        input_truth=to_crop(own.landmarks, boxes, SIZE),
        reference_truth=to_crop(reference.landmarks, boxes, SIZE),
    )


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return [_case(spec) for spec in fresh_specs(3, 2, seconds=(1.0, 1.0))]


@pytest.fixture(scope="module")
def judges() -> Judges:
    torch.manual_seed(0)
    return Judges(MouthReader().eval(), IdentityJudge().eval())


class _HalfWay:
    """A real, if poor, dubber: fades the input towards grey; counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, items: Sequence[DubItem]) -> list[np.ndarray]:
        self.calls += 1
        return [(item.frames // 2 + 64).astype(np.uint8) for item in items]


def test_a_run_writes_everything_and_resumes(cases: list[Case], judges: Judges, tmp_path: Path) -> None:
    dubber = _HalfWay()
    versions = {"editor": "1"}
    scores = run_benchmark(cases, {"editor": dubber}, judges, tmp_path, final="editor", versions=versions)
    rows = scores["rows"]
    assert list(rows) == ["copy", "editor", "exact"]
    assert rows["copy"]["lip_gain"]["value"] == 0
    assert rows["exact"]["lip_psnr"]["value"] == 100
    assert rows["exact"]["identity_ratio"]["value"] == pytest.approx(1)
    assert rows["copy"]["outside_psnr"]["value"] > rows["copy"]["lip_psnr"]["value"]
    assert rows["editor"]["outside_psnr"]["value"] < 30
    assert json.loads((tmp_path / "scores.json").read_text()) == scores

    assert dubber.calls == 1
    again = run_benchmark(cases, {"editor": dubber}, judges, tmp_path, final="editor", versions=versions)
    assert dubber.calls == 1
    assert again == scores
    run_benchmark(cases, {"editor": dubber}, judges, tmp_path, final="editor", versions={"editor": "2"})
    assert dubber.calls == 2


def test_rows_of_other_cases_are_not_read_back(cases: list[Case], judges: Judges, tmp_path: Path) -> None:
    """The same settings may make other cases, by other code or in other light: their names stay the same."""
    dubber, versions = _HalfWay(), dict.fromkeys((COPY, "editor", EXACT), "1")

    def run(of: list[Case]) -> dict[str, Any]:
        return run_benchmark(of, {"editor": dubber}, judges, tmp_path, final="editor", versions=versions)

    first = run(cases)
    others = [replace(case, reference=case.reference // 2) for case in cases]
    second = run(others)
    assert dubber.calls == 2
    for row in versions:
        assert (second["rows"][row]["psnr"] == first["rows"][row]["psnr"]) == (row == EXACT)
    assert second["rows"][EXACT]["identity"] != first["rows"][EXACT]["identity"]
    cases[0].save(tmp_path / "case.npz")
    assert run([Case.load(tmp_path / "case.npz"), *cases[1:]]) == first
    run(cases)
    assert dubber.calls == 3, "what comes back from the disk is the same case"


@pytest.fixture
def pool() -> Iterator[Executor]:
    with process_pool(2) as started:
        yield started


def test_two_processes_score_as_one_does(cases: list[Case], judges: Judges, pool: Executor, tmp_path: Path) -> None:
    rows = {"generator": _HalfWay(), "editor": _HalfWay()}
    told: list[str] = []
    one = run_benchmark(cases, rows, judges, tmp_path / "one", final="editor")
    two = run_benchmark(
        cases, rows, judges, tmp_path / "two", final="editor", pool=pool, threads=1, progress=told.append
    )
    assert two == one
    assert told == ["exact", "editor", "generator", "copy"], "those with most to do first"
    assert [dubber.calls for dubber in rows.values()] == [1, 1], "the second run's dubbers were other processes'"
    assert sorted(path.name for path in (tmp_path / "two" / "rows").iterdir()) == [
        f"{row}.json" for row in sorted(told)
    ]
    assert (tmp_path / "two" / "cases" / cases[0].case_id / "dub.mp4").is_file()


def test_two_processes_go_on_where_a_killed_run_ended(
    cases: list[Case], judges: Judges, pool: Executor, tmp_path: Path
) -> None:
    versions = dict.fromkeys((COPY, "generator", "editor", EXACT), "1")

    def run() -> dict[str, Any]:
        rows = {"generator": _HalfWay(), "editor": _HalfWay()}
        return run_benchmark(cases, rows, judges, tmp_path, final="editor", versions=versions, pool=pool, threads=1)

    def written() -> dict[str, int]:
        return {row: (tmp_path / "rows" / f"{row}.json").stat().st_mtime_ns for row in versions}

    whole, before = run(), written()
    (tmp_path / "rows" / "generator.json").unlink()
    (tmp_path / "scores.json").unlink()
    assert run() == whole
    assert [row for row, when in written().items() if when != before[row]] == ["generator"]


def test_the_frechet_distances_interval_draws_heads(cases: list[Case], judges: Judges, tmp_path: Path) -> None:
    torch.manual_seed(0)
    seeing = replace(judges, perceptual=PerceptualEncoder().eval())
    for heads, drawn in ((5, True), (1, False)):
        clips = [replace(cases[index % 2], head=index % heads) for index in range(5)]
        found = score_row(clips, COPY, None, seeing, tmp_path, False, None)["frechet"]
        assert (found["low"] is not None) == drawn


def test_case_folders_let_anyone_score(cases: list[Case], judges: Judges, tmp_path: Path) -> None:
    run_benchmark(cases, {"editor": _HalfWay()}, judges, tmp_path, final="editor")
    for case in cases:
        folder = tmp_path / "cases" / case.case_id
        truth = json.loads((folder / "case.json").read_text(encoding="utf-8"))
        x0, y0, x1, y1 = truth["mouth_box"]
        assert 0 <= x0 < x1 <= SIZE
        assert 0 <= y0 < y1 <= SIZE
        lips = case.input_truth[:, 48:68]
        assert x0 <= lips[..., 0].min()
        assert lips[..., 0].max() <= x1
        for name in ("input", "reference"):
            assert {curve: len(values) for curve, values in truth[name].items()} == {
                "opening": FRAMES,
                "width": FRAMES,
                "pucker": FRAMES,
            }
        np.testing.assert_allclose(truth["reference"]["opening"], case.reference_curves[:, 0], atol=1e-5)
        for name in ("input", "dub", "reference"):
            video = read_video(folder / f"{name}.mp4")
            assert video.frames.shape == (FRAMES, SIZE, SIZE, 3)
            assert video.audio is not None
            assert len(video.audio) == pytest.approx(FRAMES * 640, abs=2048)


def test_a_dub_of_another_length_is_refused(cases: list[Case], judges: Judges, tmp_path: Path) -> None:
    def short(items: Sequence[DubItem]) -> list[np.ndarray]:
        return [item.frames[:-1] for item in items]

    with pytest.raises(ValueError, match="the dub is"):
        run_benchmark(cases, {"editor": short}, judges, tmp_path, final="editor")


def test_a_case_survives_the_disk(cases: list[Case], tmp_path: Path) -> None:
    cases[0].save(tmp_path / "case.npz")
    loaded = Case.load(tmp_path / "case.npz")
    assert loaded.sentence == cases[0].sentence
    assert loaded.head == cases[0].head
    np.testing.assert_array_equal(loaded.reference, cases[0].reference)


def test_the_exact_dub_differs_from_the_input_at_the_mouth_only(cases: list[Case]) -> None:
    for case in cases:
        difference = np.abs(case.frames.astype(int) - case.reference).max(-1)
        assert difference[case.lips()].mean() > 5 * difference[~case.face()].mean()


def test_heldout_specs_take_every_head_before_any_twice() -> None:
    corpus = CorpusConfig(training_heads=1, heldout_heads=3, clips_per_head=2, seconds=(1.0, 1.2))
    specs = case_specs(BenchmarkConfig(cases=6), corpus)
    assert len({spec.head_seed for spec in specs[:3]}) == 3
    assert len({spec.name for spec in specs}) == 6
    assert {spec.split for spec in specs} == {"heldout"}
    with pytest.raises(InputError, match="7 benchmark cases"):
        case_specs(BenchmarkConfig(cases=7), corpus)


@pytest.mark.parametrize("seed", [7, 8, 9])
def test_eight_cases_show_every_kind_and_condition(seed: int) -> None:
    corpus = CorpusConfig(training_heads=1, seconds=(1.0, 1.2), seed=seed)
    for heads_seed in (None, seed):
        config = BenchmarkConfig(heads_seed=heads_seed, seconds=1.0)
        specs = case_specs(config, corpus)
        assert len({spec.head_seed for spec in specs}) == 8
        assert {spec.kind for spec in specs} == {"natural", "stylised", "nonhuman"}
        conditions = [spec.condition for spec in specs]
        assert set(conditions) == {"plain", "occluded", "changing_light", "profile"}
        assert conditions.count("plain") >= 4
        assert specs == case_specs(config, corpus)


def test_fresh_heads_are_others_for_another_seed() -> None:
    corpus = CorpusConfig()
    first, second = (case_specs(BenchmarkConfig(cases=2, heads_seed=seed, seconds=1.0), corpus) for seed in (1, 2))
    assert not {spec.head_seed for spec in first} & {spec.head_seed for spec in second}


def test_a_clip_cut_after_its_silent_frames_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A case that nobody can dub to silence would end the benchmark of all the others."""
    starts = iter((4, 5))

    def taken_in(*_: object) -> ClipSample:
        start = next(starts)
        count = FRAMES - start
        return ClipSample(
            clip_id="clip",
            row={"start_frame": start},
            frames=np.zeros((count, 64, 64, 3), np.uint8),
            landmarks=np.zeros((count, 68, 2), np.float32),
            confidence=np.ones(count, np.float32),
            audio=np.zeros(640 * count, np.float32),
            boxes=np.tile(np.array([0, 0, 64, 64], np.float32), (count, 1)),
        )

    monkeypatch.setattr(benchmark, "_taken_in", taken_in)
    config, corpus = BenchmarkConfig(cases=2, heads_seed=3, seconds=1.0, silent_frames=5), CorpusConfig(frame_size=64)
    with ThreadPoolExecutor(1) as pool:
        built = build_cases(
            config, corpus, MediaConfig(), Landmarker(), tmp_path / "cases", scratch=tmp_path / "footage", pool=pool
        )
    assert [len(case.frames) for case in built] == [FRAMES - 4]
    assert [len(case.silent_item().frames) for case in built] == [1]


@pytest.mark.slow
def test_cases_go_through_the_ordinary_ingest(pool: Executor, tmp_path: Path) -> None:
    if not (base.FOLDER / "landmarker" / "config.json").is_file():
        pytest.skip("the shipped landmarker is not there: restore it from git")
    config = BenchmarkConfig(cases=1, heads_seed=5, seconds=1.2, silent_frames=5)
    landmarker = base.load("landmarker")

    def built_with(seed: int) -> list[Case]:
        asked, scratch = config.model_copy(update={"seed": seed}), tmp_path / f"footage{seed}"
        return build_cases(asked, CorpusConfig(), MediaConfig(), landmarker, tmp_path, scratch=scratch, pool=pool)

    built = built_with(0)
    assert len(built) == 1
    case = built[0]
    assert case.frames.shape == case.reference.shape
    assert len(case.silent_reference) == 5
    assert len(case.samples) == 640 * len(case.frames)
    # ingest's landmarks against the renderer's, in the same crop
    assert np.abs(case.landmarks - case.input_truth).mean() < 0.06 * SIZE
    assert built_with(0)[0].seed == case.seed
    assert built_with(1)[0].sentence != case.sentence, "another seed's case of the same clip, beside it"
    assert built_with(0)[0].sentence == case.sentence
    assert not list(tmp_path.glob("footage*")), "the footage is gone"
