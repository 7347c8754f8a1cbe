"""Trains a base like the shipped one: footage first, then every network, two processes at a time.

    python -m model_code.pretrain                     everything, into .xdub/pretrain/base
    python -m model_code.pretrain codec prior         some of it
    python -m model_code.pretrain --stage codec       one stage in this process

A folder `<work>/init/prior` with an earlier prior is what the next one starts from. Copied over those of
`model_code/base` the trained networks are used.
Every stage resumes or is skipped if its card is there; delete `<out>/<name>/card.json` to train it again.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_code import base
from model_code.config import PretrainConfig

if TYPE_CHECKING:
    from model_code.pretrain.footage import Footage

logger = logging.getLogger("pretrain")

#: stage -> the stages whose results it reads.
NEEDS: dict[str, tuple[str, ...]] = {
    "footage": (),
    "audio_encoder": (),
    "codec": ("footage",),
    "landmarker": ("footage",),
    "perceptual": ("footage",),
    "mouth_reader": (),
    "identity_judge": ("mouth_reader",),
    "prior": ("codec", "audio_encoder", "footage"),
}
AT_ONCE = 2


def _footage(work: Path, out: Path, config: PretrainConfig) -> None:
    from model_code.pretrain.footage import render_footage

    def tell(done: int, total: int) -> None:
        if done % 50 == 0 or done == total:
            logger.info("footage: %d of %d heads", done, total)

    render_footage(work / "footage", config, tell)


def _split(work: Path, config: PretrainConfig) -> tuple[Iterator[Footage], Iterator[Footage]]:
    """Footage to learn from, and that of the last heads, which only cards see."""
    from model_code.pretrain.footage import load_footage

    learned = range(config.heads - config.heldout_heads)
    heldout = range(len(learned), config.heads)
    return load_footage(work / "footage", config, learned), load_footage(work / "footage", config, heldout)


def _codec(work: Path, out: Path, config: PretrainConfig) -> dict[str, Any]:
    from model_code.training.codec import train_codec

    train, held = ([item.sample for item in part] for part in _split(work, config))
    return train_codec(
        [clip.frames for clip in train],
        [clip.landmarks for clip in train],
        out / "codec",
        config.codec_steps,
        config.seed,
        heldout_crops=[clip.frames for clip in held],
        heldout_landmarks=[clip.landmarks for clip in held],
    )


def _landmarker(work: Path, out: Path, config: PretrainConfig) -> dict[str, Any]:
    import numpy as np

    from model_code.training.landmarker import train_landmarker

    (frames, landmarks), (heldout_frames, heldout_landmarks) = (
        [np.concatenate(arrays) for arrays in zip(*((item.raw, item.raw_landmarks) for item in part), strict=True)]
        for part in _split(work, config)
    )
    return train_landmarker(
        frames,
        landmarks,
        out / "landmarker",
        config.landmarker_steps,
        config.seed,
        heldout_frames=heldout_frames,
        heldout_landmarks=heldout_landmarks,
    )


def _perceptual(work: Path, out: Path, config: PretrainConfig) -> dict[str, Any]:
    from model_code.training.perceptual import train_perceptual

    train, held = ([(item.sample.frames, item.attributes) for item in part] for part in _split(work, config))
    return train_perceptual(
        [frames for frames, _ in train],
        [attributes for _, attributes in train],
        out / "perceptual",
        config.perceptual_steps,
        config.seed,
        heldout_crops=[frames for frames, _ in held],
        heldout_attributes=[attributes for _, attributes in held],
    )


def _audio_encoder(work: Path, out: Path, config: PretrainConfig) -> dict[str, Any]:
    from model_code.training.audio_encoder import train_audio_encoder

    return train_audio_encoder(out / "audio_encoder", config.audio_encoder_steps, config.seed)


def _prior(work: Path, out: Path, config: PretrainConfig) -> dict[str, Any]:
    from model_code.training.prior import train_prior

    def tell(step: int, steps: int, means: dict[str, float]) -> None:
        logger.info("prior: step %d of %d, %s", step, steps, {name: round(value, 4) for name, value in means.items()})

    train, held = (((item.sample, item.other) for item in part) for part in _split(work, config))
    return train_prior(
        train,
        base.load("codec", out),
        base.load("audio_encoder", out),
        out / "prior",
        config.prior,
        heldout=held,
        init=work / "init" / "prior" if (work / "init" / "prior").is_dir() else None,
        work_dir=work / "prior",
        progress=tell,
    )


def _evaluator_footage(work: Path, config: PretrainConfig) -> Any:
    from model_code.metrics.evaluators.footage import footage_in

    return footage_in(work / "footage", processes=config.processes)


def _mouth_reader(work: Path, out: Path, config: PretrainConfig) -> dict[str, Any]:
    from model_code.metrics.evaluators.mouth_reader import train_mouth_reader

    footage = _evaluator_footage(work, config)
    return train_mouth_reader(footage, out / "mouth_reader", steps=config.mouth_reader_steps, seed=config.seed)


def _identity_judge(work: Path, out: Path, config: PretrainConfig) -> dict[str, Any]:
    from model_code.metrics.evaluators.identity_judge import train_identity_judge

    footage = _evaluator_footage(work, config)
    return train_identity_judge(footage, out / "identity_judge", steps=config.identity_judge_steps, seed=config.seed)


STAGES: dict[str, Callable[[Path, Path, PretrainConfig], dict[str, Any] | None]] = {
    "footage": _footage,
    "audio_encoder": _audio_encoder,
    "codec": _codec,
    "landmarker": _landmarker,
    "perceptual": _perceptual,
    "mouth_reader": _mouth_reader,
    "identity_judge": _identity_judge,
    "prior": _prior,
}


def run_stage(name: str, work: Path, out: Path, config: PretrainConfig) -> None:
    """One stage in this process; its card names the command that repeats it."""
    started = time.monotonic()
    work.mkdir(parents=True, exist_ok=True)
    card = STAGES[name](work, out, config)
    if card is not None:
        path = out / name / "card.json"
        card = {**json.loads(path.read_text()), "command": f"python -m model_code.pretrain {name}", "seed": config.seed}
        path.write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n")
        logger.info("%s: %s", name, card.get("scores"))
    logger.info("%s took %.0f s", name, time.monotonic() - started)


def run_all(names: list[str], work: Path, out: Path) -> int:
    """Runs the named stages, each in a process of its own once what it needs is there."""
    waiting = [
        name for name in STAGES if name in names and (name == "footage" or not (out / name / "card.json").is_file())
    ]
    running: dict[str, subprocess.Popen[bytes]] = {}
    failed = 0
    while (waiting and not failed) or running:
        for name in list(waiting):
            blocked = any(need in waiting or need in running for need in NEEDS[name])
            if not blocked and not failed and len(running) < AT_ONCE:
                waiting.remove(name)
                command = [sys.executable, "-m", "model_code.pretrain", "--stage", name]
                command += ["--work", str(work), "--out", str(out)]
                running[name] = subprocess.Popen(command)
        for name, process in list(running.items()):
            if process.poll() is not None:
                del running[name]
                failed = failed or process.returncode
        time.sleep(0.5)
    return failed


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m model_code.pretrain", description=__doc__)
    parser.add_argument("names", nargs="*", help="stages; default all")
    parser.add_argument("--stage", choices=list(STAGES))
    parser.add_argument("--work", type=Path, default=Path(".xdub/pretrain"))
    parser.add_argument("--out", type=Path, default=Path(".xdub/pretrain/base"))
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if args.stage:
        os.environ.setdefault("OMP_NUM_THREADS", "2" if args.stage == "prior" else "1")  # the prior runs last, alone
        run_stage(args.stage, args.work, args.out, PretrainConfig())
        return 0
    unknown = set(args.names) - set(STAGES)
    if unknown:
        parser.error(f"unknown stages {sorted(unknown)}; there are {list(STAGES)}")
    return run_all(args.names or list(STAGES), args.work, args.out)


if __name__ == "__main__":
    sys.exit(main())
