"""``python -m benchmarks.long_dub``: does a dub of ten minutes need more memory than one of one, or get worse?

A looped head of 512x512 is dubbed to looped speech by the shipped base as an editor, each length in a process of its
own. Pictures and speech repeat after the shorter length, so that its end can be held against its beginning.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from benchmarks.memory import resident
from model_code import base
from model_code.avatars.clipspec import draw_spec, other_speech, render_spec
from model_code.avatars.seeds import head_seed
from model_code.config import MediaConfig
from model_code.dubbing.dub import dub_file
from model_code.dubbing.longform import pingpong
from model_code.dubbing.model import DubberConfig, DubbingPipelineModel, load_transformer
from model_code.faces.crop import crop_yuv
from model_code.faces.track import crop_boxes
from model_code.media.insync import heard_opening
from model_code.media.sample import wav_bytes
from model_code.media.video import stream_video, write_video

SIDE, FPS, RATE = 512, 25, 16_000
DRAWN = 51
"""Frames that are drawn; back and forth they last four seconds."""
MEMORY, QUALITY = 0.10, 0.02
"""How much more memory the long dub may take, and how far its end may be from its beginning."""
SUFFIX = {"in": "mp4", "speech": "wav", "out": "mp4"}
F32 = np.ndarray


def main() -> int:
    """Prints peak memory, and the first and last part's measures; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--seconds", type=int, nargs=2, default=(60, 600), help="A multiple of 4, and a multiple of that."
    )
    parser.add_argument("--dub", type=Path, nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.dub:
        print(json.dumps(dub(*given.dub)))
        return 0
    short, long = sorted(given.seconds)
    if short % 4 or long % short:
        parser.error("the head repeats after 4 s, the speech after the shorter length: give such multiples")
    with tempfile.TemporaryDirectory() as folder:
        return compare(Path(folder), short, long)


def dub(video: Path, audio: Path, out: Path) -> dict[str, float | list[str]]:
    """Dubs in this process; peak resident bytes, seconds of CPU and notes."""
    torch.set_num_threads(1)
    model = DubbingPipelineModel(
        DubberConfig(mode="editor"),
        base.load("codec"),
        base.load("audio_encoder"),
        load_transformer(base.FOLDER / "prior"),
    )
    before = resident(peak=True)
    report = dub_file(video, audio, out, model, base.load("landmarker"), MediaConfig())
    spent = time.process_time()
    return {"peak": resident(peak=True), "loaded": before, "cpu_seconds": spent, "notes": list(report.notes)}


def compare(folder: Path, short: int, long: int) -> int:
    """Dubs both lengths and holds them against the bars."""
    spec = draw_spec(head_seed("FRESH", 912), 0, kind="natural", condition="plain", seconds=(2.1, 2.2))
    head, _ = render_spec(spec, SIDE, first=DRAWN)
    speech = np.concatenate([other_speech(spec, key).samples for key in range(2 + short // 2)])[: short * RATE]
    speech = np.pad(speech, (0, short * RATE - len(speech)))
    order = pingpong(DRAWN, short * FPS)
    made: dict[int, dict[str, float]] = {}
    for seconds in (short, long):
        video, audio, out = (folder / f"{name}{seconds}.{SUFFIX[name]}" for name in ("in", "speech", "out"))
        write_video(video, (head.frames[order[n % len(order)]] for n in range(seconds * FPS)), crf=12)
        audio.write_bytes(wav_bytes(np.resize(speech, seconds * RATE)))
        command = [sys.executable, "-m", "benchmarks.long_dub", "--dub", str(video), str(audio), str(out)]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        made[seconds] = json.loads(told.splitlines()[-1])
        print(
            f"{seconds} s: peak {made[seconds]['peak'] / 2**20:.0f} MiB ({made[seconds]['loaded'] / 2**20:.0f} MiB "
            f"before the dub), {made[seconds]['cpu_seconds']:.0f} s of CPU, notes {made[seconds]['notes']}",
            flush=True,
        )
    more = made[long]["peak"] / made[short]["peak"] - 1
    print(f"memory: {long} s takes {100 * more:+.1f} % of what {short} s takes (bar {100 * MEMORY:.0f} %)")
    met = more <= MEMORY
    boxes = crop_boxes(head.landmarks[:DRAWN].astype(np.float32))[order]
    parts = [
        measures(folder / f"in{long}.mp4", folder / f"out{long}.mp4", start, boxes, speech)
        for start in (0, (long - short) * FPS)
    ]
    for name, first in parts[0].items():
        apart = parts[1][name] / first - 1
        met = met and abs(apart) <= QUALITY
        print(f"{name}: first {short} s {first:.4f}, last {parts[1][name]:.4f}, {100 * apart:+.2f} %")
    return 0 if met else 1


def measures(video: Path, dubbed: Path, start: int, boxes: F32, speech: F32) -> dict[str, float]:
    """Identity, colour and sync of a part, from frame `start`, `len(boxes)` frames long.

    identity: mean cosine of the judge's vectors of dub and input. red, green, blue: mean over the upper half of the
    crop, which a dub leaves as it is, over the input's. mouth: correlation of the opening that is seen with the one
    that is heard.
    """
    before, after = (np.stack(list(_crops(path, start, boxes))) for path in (video, dubbed))
    judge, reader = base.load("identity_judge"), base.load("mouth_reader")
    seen = reader.read(after)[:, 0]
    heard = heard_opening(speech, len(seen), base.load("audio_encoder"))
    red, green, blue = (_upper(after, channel) / _upper(before, channel) for channel in range(3))
    return {
        "identity": float((judge.embed(before) * judge.embed(after)).sum(1).mean()),
        "red": red,
        "green": green,
        "blue": blue,
        "mouth": float(np.corrcoef(seen, heard)[0, 1]),
    }


def _upper(frames: np.ndarray, channel: int) -> float:
    return float(frames[:, : frames.shape[1] // 2, :, channel].mean())


def _crops(path: Path, start: int, boxes: F32) -> Iterator[np.ndarray]:
    frames = islice(stream_video(path), start, start + len(boxes))
    for frame, box in zip(frames, boxes, strict=True):
        yield crop_yuv(frame, box, MediaConfig().crop_size)


if __name__ == "__main__":
    sys.exit(main())
