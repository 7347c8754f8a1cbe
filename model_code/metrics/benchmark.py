"""Held-out clips dubbed to held-out sentences, scored against the exact reference that the renderer gives.

A case is a procedural clip that went through the ordinary ingest, another sentence by its speaker, and what the same
head looks like saying it, cut out with the very boxes that ingest found. Only this module, the corpus writer and the
`rendered` pairs know what the renderer knows.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model_code.avatars.clipspec import CONDITION_SHARES, ClipSpec, fresh_specs, other_speech, render_spec
from model_code.avatars.corpus import CRF, corpus_specs, sidecar
from model_code.avatars.scene import Condition
from model_code.backbones.perceptual import PerceptualEncoder
from model_code.config import BenchmarkConfig, CorpusConfig, MediaConfig
from model_code.dubbing.model import DubItem
from model_code.errors import InputError
from model_code.faces.crop import crop, to_crop
from model_code.faces.landmarker import Landmarker
from model_code.files import unfinished, write_text
from model_code.media.ingest import ingest_file
from model_code.media.sample import ClipSample
from model_code.media.video import write_video
from model_code.metrics.evaluators.identity_judge import IdentityJudge
from model_code.metrics.evaluators.mouth_reader import MouthReader
from model_code.metrics.image import box_of, face_region, lip_region, psnr, ssim
from model_code.metrics.mouth import CURVES
from model_code.metrics.scores import (
    COPY,
    DIFFERENCES,
    EXACT,
    CaseRecord,
    RowCase,
    frechet_measure,
    save_records,
    summarise,
)
from model_code.seeding import rng_for, seed_for
from model_code.speech.espeak import Utterance

logger = logging.getLogger(__name__)

SAMPLES_PER_FRAME = 640
CASES_VERSION = 3
"""Rises when the same settings make other cases."""
PERCEIVED_EVERY = 3
"""Every so many frames one is shown to the perceptual encoder: those 0.12 s apart say the same."""
Dubber = Callable[[Sequence[DubItem]], Sequence[np.ndarray]]
"""Dubs many clips: one uint8 (T,S,S,3) array an item."""
SyncScores = Callable[[np.ndarray, np.ndarray], tuple[float, float]]
"""(frames, samples) -> (Sync-C, Sync-D)."""


@dataclass(frozen=True)
class Case:
    """One benchmark case, all in pixels of the crop.

    Attributes:
        case_id: Name of its folder.
        head: Head seed.
        kind: "natural", "stylised" or "nonhuman".
        condition: The clip's condition, or its kind where the condition is plain.
        language: Of clip and sentence.
        sentence: The driving sentence.
        seed: For the dubber's noise.
        frames: (T,S,S,3) uint8 input, as ingest gave it.
        input_audio: (N,) the input's own sound.
        samples: (N,) the driving sound.
        landmarks: (T,68,2) as ingest found them, for dubbers that need a mask.
        occluder: (T,S,S) bool as the footage brought it; all False without one.
        reference: (T,S,S,3) uint8 the exact dub.
        silent_reference: (T',S,S,3) uint8 the exact dub of silence, its first frames.
        input_curves: (T,3) true opening, width and pucker of the input.
        reference_curves: (T,3) of the exact dub.
        input_truth: (T,68,2) true landmarks of the input.
        reference_truth: (T,68,2) of the exact dub.
    """

    case_id: str
    head: int
    kind: str
    condition: str
    language: str
    sentence: str
    seed: int
    frames: np.ndarray
    input_audio: np.ndarray
    samples: np.ndarray
    landmarks: np.ndarray
    occluder: np.ndarray
    reference: np.ndarray
    silent_reference: np.ndarray
    input_curves: np.ndarray
    reference_curves: np.ndarray
    input_truth: np.ndarray
    reference_truth: np.ndarray

    def item(self) -> DubItem:
        """The case as a dubber sees it."""
        return self._item(len(self.frames), self.samples)

    def silent_item(self) -> DubItem:
        """The case's first frames with silent audio."""
        count = len(self.silent_reference)
        return self._item(count, np.zeros(count * SAMPLES_PER_FRAME, np.float32))

    def _item(self, count: int, samples: np.ndarray) -> DubItem:
        occluder = self.occluder[:count] if self.occluder.any() else None
        return DubItem(self.frames[:count], samples, self.seed, self.landmarks[:count], occluder)

    def lips(self) -> np.ndarray:
        """bool (T,S,S): the lips of input and reference with their surroundings."""
        return lip_region(self.input_truth, self.reference_truth, size=self.frames.shape[1])

    def face(self) -> np.ndarray:
        """bool (T,S,S): the face of input and reference."""
        return face_region(self.input_truth, self.reference_truth, size=self.frames.shape[1])

    def digest(self) -> str:
        """Of all that it holds."""
        found = hashlib.sha256()
        for name, value in vars(self).items():
            array = np.ascontiguousarray(value)
            found.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
        return found.hexdigest()

    def save(self, path: Path) -> None:
        """Writes one ``.npz``, complete or not at all."""
        with unfinished(path) as partial, partial.open("wb") as file:
            np.savez(file, **asdict(self))

    @classmethod
    def load(cls, path: Path) -> Case:
        """Reads what `save` wrote."""
        with np.load(path, allow_pickle=False) as data:
            values = {field.name: data[field.name] for field in fields(cls)}
        return cls(**{name: value.item() if value.ndim == 0 else value for name, value in values.items()})


def case_specs(config: BenchmarkConfig, corpus: CorpusConfig) -> list[ClipSpec]:
    """The clips to dub: of freshly drawn heads, or of the corpus's held-out heads.

    Each head comes once before any twice, and the first round shows every condition that it can.

    Raises:
        InputError: More cases asked than the corpus has held-out clips.
    """
    if config.heads_seed is not None:
        return fresh_specs(config.heads_seed, config.cases, seconds=(config.seconds, config.seconds))
    by_head: dict[int, list[ClipSpec]] = {}
    for spec in corpus_specs(corpus):
        if spec.split == "heldout":
            by_head.setdefault(spec.head_seed, []).append(spec)
    rounds = _in_rounds(list(by_head.values()))
    if config.cases > len(rounds):
        raise InputError(
            f"{config.cases} benchmark cases asked of {len(rounds)} held-out clips",
            "set heads_seed to draw fresh heads",
        )
    return rounds[: config.cases]


def _in_rounds(heads: list[list[ClipSpec]]) -> list[ClipSpec]:
    """Clips of all heads in turn; the first few already show every condition, in about the corpus's proportions.

    Each head gives the clip whose condition is furthest behind its share, and of these the one that the fewest heads
    after it could give.
    """
    heads, chosen, taken = [list(clips) for clips in heads], list[ClipSpec](), Counter[Condition]()
    while any(heads):
        for number, clips in enumerate(heads):
            if not clips:
                continue
            later = Counter(condition for others in heads[number + 1 :] for condition in {c.condition for c in others})

            def urgency(clip: ClipSpec, later: Counter[Condition] = later) -> tuple[float, int]:
                return taken[clip.condition] / CONDITION_SHARES[clip.condition], later[clip.condition]

            chosen.append(min(clips, key=urgency))
            clips.remove(chosen[-1])
            taken[chosen[-1].condition] += 1
    return chosen


def build_cases(
    config: BenchmarkConfig,
    corpus: CorpusConfig,
    media: MediaConfig,
    landmarker: Landmarker,
    folder: Path,
    *,
    scratch: Path,
    pool: Executor,
    progress: Callable[[int, int], None] | None = None,
) -> list[Case]:
    """Renders (in `pool`), ingests and cuts every case; what `folder` already holds is read back.

    A clip that ingest turns away, or cuts so that none of its silent frames is left, is left out with a warning.
    Benchmarks that run side by side may share `folder`, which holds whole cases alone; each has a `scratch` folder of
    its own for their footage, which is removed.
    """
    specs = case_specs(config, corpus)
    folder.mkdir(parents=True, exist_ok=True)
    paths = {spec.name: _case_path(folder, spec, config, corpus.frame_size) for spec in specs}
    missing = [spec for spec in specs if not paths[spec.name].is_file()]
    cases = []
    scratch.mkdir(parents=True, exist_ok=True)
    jobs = {spec.name: pool.submit(_render_case, spec, config, corpus.frame_size, scratch) for spec in missing}
    for number, spec in enumerate(specs, 1):
        path = paths[spec.name]
        if spec.name in jobs:
            jobs[spec.name].result()
            case = _cut_case(spec, config, media, landmarker, scratch)
            if case is not None:
                case.save(path)
        if path.is_file():
            cases.append(Case.load(path))
        if progress:
            progress(number, len(specs))
    shutil.rmtree(scratch)
    return cases


def _case_path(folder: Path, spec: ClipSpec, config: BenchmarkConfig, size: int) -> Path:
    version = seed_for(spec.model_dump_json(), config.seed, config.silent_frames, size, CASES_VERSION) % 10**8
    return folder / f"{spec.name}-{version:08d}.npz"


def _render_case(spec: ClipSpec, config: BenchmarkConfig, size: int, folder: Path) -> None:
    """Writes the input as a user's footage, and beside it the raw truth for `_cut_case`."""
    own, own_speech = render_spec(spec, size)
    speech = other_speech(spec, ("benchmark", config.seed), "heldout")
    reference, driving = render_spec(spec, size, speech)
    silence = Utterance(np.zeros(spec.n_frames * SAMPLES_PER_FRAME, np.float32), ())
    silent, _ = render_spec(spec, size, silence, first=config.silent_frames)
    if own.occluder.any():
        mask = np.repeat(own.occluder[..., None].astype(np.uint8) * 255, 3, axis=-1)
        write_video(folder / f"{spec.name}.occluder.mp4", mask, crf=CRF)
    (folder / f"{spec.name}.json").write_text(json.dumps(sidecar(spec), ensure_ascii=False), encoding="utf-8")
    write_video(folder / f"{spec.name}.mp4", own.frames, audio=own_speech.samples, crf=CRF)
    np.savez(
        folder / f"{spec.name}.truth.npz",
        sentence=speech.text,
        samples=driving.samples,
        reference=reference.frames,
        silent=silent.frames,
        input_curves=own.mouth,
        reference_curves=reference.mouth,
        input_landmarks=own.landmarks,
        reference_landmarks=reference.landmarks,
    )


def _cut_case(
    spec: ClipSpec, config: BenchmarkConfig, media: MediaConfig, landmarker: Landmarker, folder: Path
) -> Case | None:
    sample = _taken_in(folder / f"{spec.name}.mp4", media, landmarker)
    if sample is None:
        return None
    with np.load(folder / f"{spec.name}.truth.npz", allow_pickle=False) as data:
        truth = {name: data[name] for name in data.files}
    count, size = len(sample.frames), sample.frames.shape[1]
    start = int(sample.row.get("start_frame", 0))
    span = slice(start, start + count)
    quiet = truth["silent"][span]
    if not len(quiet):
        logger.warning("of %s ingest kept none of the first %d frames", spec.name, config.silent_frames)
        return None
    case_id = f"{spec.name}_{config.seed}"
    return Case(
        case_id=case_id,
        head=spec.head_seed,
        kind=spec.kind,
        condition=spec.kind if spec.condition == "plain" else spec.condition,
        language=spec.language,
        sentence=str(truth["sentence"]),
        seed=seed_for("benchmark case", case_id) % 2**31,
        frames=sample.frames,
        input_audio=sample.audio[: count * SAMPLES_PER_FRAME],
        samples=truth["samples"][start * SAMPLES_PER_FRAME : (start + count) * SAMPLES_PER_FRAME],
        landmarks=sample.landmarks,
        occluder=np.zeros((count, size, size), bool) if sample.occluder is None else sample.occluder,
        reference=crop(truth["reference"][span], sample.boxes, size),
        silent_reference=crop(quiet, sample.boxes[: len(quiet)], size),
        input_curves=truth["input_curves"][span],
        reference_curves=truth["reference_curves"][span],
        input_truth=to_crop(truth["input_landmarks"][span], sample.boxes, size),
        reference_truth=to_crop(truth["reference_landmarks"][span], sample.boxes, size),
    )


def _taken_in(path: Path, media: MediaConfig, landmarker: Landmarker) -> ClipSample | None:
    taken = list(ingest_file(path, media, landmarker))
    samples = [each for each in taken if isinstance(each, ClipSample)]
    if not samples:
        logger.warning("ingest turned %s away: %s", path.name, taken)
        return None
    return max(samples, key=lambda sample: len(sample.frames))


@dataclass(frozen=True)
class Judges:
    """Who scores.

    Attributes:
        reader: Independent mouth reader.
        identity: Independent identity judge.
        perceptual: The chain's perceptual encoder, also a teacher; None leaves its measures out.
        sync: The chain's SyncNet, also a teacher; None leaves Sync-C and Sync-D out.
    """

    reader: MouthReader
    identity: IdentityJudge
    perceptual: PerceptualEncoder | None = None
    sync: SyncScores | None = None


def score_case(case: Case, output: np.ndarray, silent: np.ndarray | None, judges: Judges) -> RowCase:
    """Scores one dubbed case.

    Args:
        case: The case.
        output: Dub (T,S,S,3) uint8, before pasting.
        silent: Dub of the case's first frames with silent audio, or None.
        judges: Who scores.

    Raises:
        ValueError: The dub's shape is not the input's.
    """
    if output.shape != case.frames.shape:
        raise ValueError(f"case {case.case_id}: the dub is {output.shape}, the input {case.frames.shape}")
    face = case.face()
    here, there = judges.identity.embed(output), judges.identity.embed(case.frames)
    sync_c, sync_d = judges.sync(output, case.samples) if judges.sync else (None, None)
    return RowCase(
        curves=_rounded(judges.reader.read(output)),
        silent_opening=None if silent is None else _rounded(judges.reader.read(silent)[:, 0]),
        lip_psnr=psnr(output, case.reference, case.lips()),
        face_psnr=psnr(output, case.reference, face),
        outside_psnr=psnr(output, case.reference, ~face),
        psnr=psnr(output, case.reference),
        ssim=ssim(output, case.reference),
        identity=float((here * there).sum(1).mean()),
        perceptual_distance=_perceptual_distance(judges.perceptual, output, case.reference),
        sync_c=sync_c,
        sync_d=sync_d,
    )


def run_benchmark(
    cases: Sequence[Case],
    dubbers: Mapping[str, Dubber],
    judges: Judges,
    out: Path,
    *,
    final: str,
    versions: Mapping[str, str] | None = None,
    differences: Sequence[tuple[str, str]] = DIFFERENCES,
    pool: Executor | None = None,
    threads: int | None = None,
    progress: Callable[[str], None] | None = None,
    videos: bool = True,
) -> dict[str, Any]:
    """Dubs and scores every case with every dubber, and writes it all down.

    Copying the input and the exact reference are scored as rows of their own. Writes ``scores.json``,
    ``records.jsonl`` (what `summarise` needs, to pool runs) and, if asked, for the final row
    ``cases/<id>/{input,dub,reference}.mp4`` with ``case.json``.

    Args:
        cases: From `build_cases`.
        dubbers: Row name -> dubber, in the table's order; `base`, `generator`, `editor`, `lip`, `texture`.
        judges: Who scores.
        out: Folder.
        final: The row whose videos are written and whose scores stand for the run.
        versions: Row name -> text that changes with the dubber: rows of these very cases scored before with the same
            text are read back.
        differences: See `summarise`.
        pool: Processes that make the rows at once; dubbers and judges travel there. None makes all here.
        threads: Of torch in each of them.
        progress: Told the name of each row that is waited for.
        videos: Whether the final row's are written.

    Returns:
        What ``scores.json`` holds.
    """
    if not cases:
        raise InputError("the benchmark has no case", "see the log: ingest turned every clip away")
    rows = (COPY, *dubbers, EXACT)
    suffix = f"{judges.sync is not None} {seed_for(*(case.digest() for case in cases))}"
    wanted = {row: f"{versions[row]} {suffix}" if versions and row in versions else None for row in rows}
    shown = final if videos else None
    before = {row: _scored_before(out, row, wanted[row], cases if row == shown else ()) for row in rows}
    stored = {row: known for row, known in before.items() if known is not None}
    jobs = {
        row: (cases, row, dubbers.get(row), judges, out, row == shown, wanted[row]) for row in rows if row not in stored
    }
    # Those with most to compute come last in the table and first here, so that no process waits long for another.
    elsewhere: dict[str, Future[dict[str, Any]]] = {}
    if pool:
        elsewhere = {row: pool.submit(score_row, *jobs[row], threads) for row in reversed(jobs)}
    for row in reversed(rows) if pool else rows:
        if progress:
            progress(row)
        if row in elsewhere:
            stored[row] = elsewhere[row].result()
        elif row in jobs:
            stored[row] = score_row(*jobs[row])
    results = {row: [RowCase.model_validate(one) for one in stored[row]["cases"]] for row in rows}
    frechet = {row: stored[row]["frechet"] for row in rows if stored[row]["frechet"]}
    records = [_record(case, {row: scored[i] for row, scored in results.items()}) for i, case in enumerate(cases)]
    save_records(out / "records.jsonl", records)
    scores = summarise(records, final=final, differences=differences)
    for row, value in frechet.items():
        scores["rows"][row]["perceptual_frechet"] = value
    (out / "scores.json").write_text(json.dumps(scores, indent=1) + "\n")
    return scores


def score_row(
    cases: Sequence[Case],
    row: str,
    dub: Dubber | None,
    judges: Judges,
    out: Path,
    final: bool,
    version: str | None,
    threads: int | None = None,
) -> dict[str, Any]:
    """Dubs and scores every case with one dubber; the result is also kept in ``rows/<row>.json``.

    Args:
        cases: From `build_cases`.
        row: Its name.
        dub: The dubber; None for the rows `COPY` and `EXACT`, which need none.
        judges: Who scores.
        out: Folder of the benchmark.
        final: Whether its videos are written too.
        version: See `run_benchmark`.
        threads: Of torch in this process; None leaves them as they are.
    """
    if threads:
        torch.set_num_threads(threads)
    outputs, silent = _dubs(cases, row, dub)
    scored = [score_case(*one, judges) for one in zip(cases, outputs, silent, strict=True)]
    stored: dict[str, Any] = {"version": version, "cases": [one.model_dump() for one in scored], "frechet": None}
    features = _features(judges, outputs)
    reference_features = _features(judges, [case.reference for case in cases])
    if features is not None and reference_features is not None:
        measure = frechet_measure(features, reference_features).by([str(case.head) for case in cases])
        stored["frechet"] = measure.estimate(rng_for("frechet", row), draws=100).as_dict()
    if final:
        for case, output in zip(cases, outputs, strict=True):
            write_case(out / "cases" / case.case_id, case, output)
    write_text(out / "rows" / f"{row}.json", json.dumps(stored))  # whole or not there: a killed benchmark reads it
    return stored


def _scored_before(out: Path, row: str, version: str | None, shown: Sequence[Case]) -> dict[str, Any] | None:
    """What an earlier run kept of this very row; None too where a case of `shown` has no videos yet."""
    kept = out / "rows" / f"{row}.json"
    if version is None or not kept.is_file():
        return None
    stored: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
    videos = all((out / "cases" / case.case_id / "case.json").is_file() for case in shown)
    return stored if stored["version"] == version and videos else None


def write_case(folder: Path, case: Case, dub: np.ndarray) -> None:
    """Writes ``input.mp4``, ``dub.mp4``, ``reference.mp4`` and, last, ``case.json`` with the truth."""
    folder.mkdir(parents=True, exist_ok=True)
    write_video(folder / "input.mp4", case.frames, audio=case.input_audio, crf=8)
    write_video(folder / "dub.mp4", dub, audio=case.samples, crf=8, metadata={"comment": "synthetic: dubbed by xdub"})
    write_video(folder / "reference.mp4", case.reference, audio=case.samples, crf=8)
    truth = {
        "case_id": case.case_id,
        "condition": case.condition,
        "kind": case.kind,
        "head": case.head,
        "language": case.language,
        "sentence": case.sentence,
        "mouth_box": box_of(case.lips()),
        "input": {name: _rounded(case.input_curves[:, k]) for k, name in enumerate(CURVES)},
        "reference": {name: _rounded(case.reference_curves[:, k]) for k, name in enumerate(CURVES)},
    }
    (folder / "case.json").write_text(json.dumps(truth, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _dubs(cases: Sequence[Case], row: str, dub: Dubber | None) -> tuple[Sequence[np.ndarray], Sequence[np.ndarray]]:
    """What a row makes of all cases, and of their silent beginnings."""
    if dub is not None:
        made = dub([*(case.item() for case in cases), *(case.silent_item() for case in cases)])
        return made[: len(cases)], made[len(cases) :]
    if row == EXACT:
        return [case.reference for case in cases], [case.silent_reference for case in cases]
    return [case.frames for case in cases], [case.frames[: len(case.silent_reference)] for case in cases]


def _record(case: Case, rows: dict[str, RowCase]) -> CaseRecord:
    return CaseRecord(
        case_id=case.case_id,
        head=case.head,
        kind=case.kind,
        condition=case.condition,
        language=case.language,
        sentence=case.sentence,
        input_curves=_rounded(case.input_curves),
        reference_curves=_rounded(case.reference_curves),
        rows=rows,
    )


def _features(judges: Judges, clips: Sequence[np.ndarray]) -> list[np.ndarray] | None:
    if judges.perceptual is None:
        return None
    return [_perceived(judges.perceptual.embed, clip) for clip in clips]


def _perceptual_distance(encoder: PerceptualEncoder | None, a: np.ndarray, b: np.ndarray) -> float | None:
    return None if encoder is None else float(_perceived(encoder.distance, a, b).mean())


@torch.inference_mode()
def _perceived(function: Callable[..., torch.Tensor], *clips: np.ndarray) -> np.ndarray:
    shown = (torch.from_numpy(clip[::PERCEIVED_EVERY]).permute(0, 3, 1, 2).float() / 127.5 - 1 for clip in clips)
    values: np.ndarray = function(*shown).numpy()
    return values


def _rounded(values: np.ndarray) -> list[Any]:
    return [[round(float(v), 5) for v in row] if np.ndim(row) else round(float(row), 5) for row in values]
