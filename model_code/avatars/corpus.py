"""The procedural corpus: ordinary videos with a sidecar, as a user would drop them, and the truth beside them."""

from __future__ import annotations

import json
import os
import wave
from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from pathlib import Path

import numpy as np

from model_code.avatars.clipspec import CONDITION_SHARES, KIND_SHARES, ClipSpec, draw_spec, render_spec, spread
from model_code.avatars.seeds import CORPUS, RANGE
from model_code.config import CorpusConfig
from model_code.files import write_text
from model_code.lifetime import process_pool
from model_code.media.video import write_video
from model_code.seeding import seed_for

LICENCE = "CC0-1.0"
CONSENT = "synthetic: a procedural head and a synthetic voice, no real person"
CRF = 14
Progress = Callable[[int, int], None]
"""Called with (clips done, clips in all)."""


def corpus_specs(config: CorpusConfig) -> list[ClipSpec]:
    """Every clip of the corpus: training heads first, then held-out ones.

    Kinds are spread over each group of heads, conditions over its clips, languages over the speakers. Held-out
    heads speak held-out sentences with held-out voices.
    """
    specs: list[ClipSpec] = []
    start = CORPUS + 1000 * (seed_for("corpus", config.seed) % (RANGE // 1000 - 1))
    for split, first, heads in (
        ("train", 0, config.training_heads),
        ("heldout", config.training_heads, config.heldout_heads),
    ):
        kinds = spread(KIND_SHARES, heads, seed_for("kinds", config.seed, split))
        conditions = spread(CONDITION_SHARES, heads * config.clips_per_head, seed_for("conditions", config.seed, split))
        for i in range(heads):
            for clip in range(config.clips_per_head):
                specs.append(
                    draw_spec(
                        start + first + i,
                        clip,
                        kind=kinds[i],
                        condition=conditions[i * config.clips_per_head + clip],
                        language=config.languages[(first + i) % len(config.languages)],
                        split=split,  # type: ignore[arg-type]
                        seconds=config.seconds,
                        speaker_id=f"speaker{first + i:03d}",
                        seed=config.seed,
                    )
                )
    return specs


def sidecar(spec: ClipSpec) -> dict[str, str]:
    """What a user would write beside a clip."""
    card = {
        "speaker_id": spec.speaker_id,
        "language": spec.language,
        "licence": LICENCE,
        "consent": CONSENT,
        "kind": spec.kind,
        "condition": spec.condition,
    }
    if spec.split == "heldout":
        card["split"] = "heldout"
    return card


def write_clip(spec: ClipSpec, folder: Path, truth: Path, size: int) -> None:
    """Renders one clip into files; the video comes last, so that whoever finds it finds its companions.

    A clip that is already there with the same spec is left alone.
    """
    video, answer = folder / f"{spec.name}.mp4", truth / f"{spec.name}.json"
    text = spec.model_dump_json(indent=1)
    if video.exists() and answer.exists() and answer.read_text("utf-8") == text:
        return
    rendered, utterance = render_spec(spec, size)
    if rendered.occluder.any():
        mask = np.repeat(rendered.occluder[..., None].astype(np.uint8) * 255, 3, axis=-1)
        write_video(folder / f"{spec.name}.occluder.mp4", mask, crf=CRF)
    write_wav(folder / f"{spec.name}.wav", utterance.samples)
    write_text(folder / f"{spec.name}.json", json.dumps(sidecar(spec), indent=1, ensure_ascii=False))
    write_video(video, rendered.frames, audio=utterance.samples, crf=CRF)
    write_text(answer, text)


def write_corpus(
    folder: Path,
    config: CorpusConfig,
    *,
    truth: Path | None = None,
    specs: Sequence[ClipSpec] | None = None,
    processes: int | None = None,
    progress: Progress | None = None,
) -> list[ClipSpec]:
    """Writes the corpus as footage that a user could have dropped; the same bytes for any number of processes.

    Args:
        folder: receives NAME.mp4, NAME.wav, NAME.json and, where something passes before the mouth,
            NAME.occluder.mp4.
        config: heads, clips and sizes.
        truth: receives NAME.json, the `ClipSpec`; by default the folder ``truth`` beside ``folder``. Only the
            benchmark reads it.
        specs: a part of `corpus_specs`, e.g. one shard; all by default.
        processes: workers; by default one a core.
        progress: called after each clip.

    Returns:
        The specs that were written.
    """
    specs = list(corpus_specs(config) if specs is None else specs)
    truth = folder.parent / "truth" if truth is None else truth
    folder.mkdir(parents=True, exist_ok=True)
    truth.mkdir(parents=True, exist_ok=True)
    processes = processes or os.cpu_count() or 1
    if processes == 1:
        for done, spec in enumerate(specs, 1):
            write_clip(spec, folder, truth, config.frame_size)
            if progress:
                progress(done, len(specs))
        return specs
    with process_pool(processes) as pool:
        jobs = [pool.submit(write_clip, spec, folder, truth, config.frame_size) for spec in specs]
        for done, job in enumerate(as_completed(jobs), 1):
            job.result()
            if progress:
                progress(done, len(specs))
    return specs


def read_specs(truth: Path) -> dict[str, ClipSpec]:
    """The specs of a truth folder by clip name, in name order."""
    return {path.stem: ClipSpec.model_validate_json(path.read_text("utf-8")) for path in sorted(truth.glob("*.json"))}


def write_wav(path: Path, samples: np.ndarray, sample_rate: int = 16_000) -> None:
    """16-bit mono sound."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes((np.clip(samples, -1.0, 1.0) * 32767.0).round().astype("<i2").tobytes())
