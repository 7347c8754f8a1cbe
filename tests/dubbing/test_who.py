"""Who speaks: faces whose painted mouths follow the video's sound, or another one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from model_code import base
from model_code.avatars.clipspec import draw_spec, render_spec
from model_code.avatars.seeds import head_seed
from model_code.config import MediaConfig
from model_code.dubbing.listener import Listener
from model_code.dubbing.longform import pingpong
from model_code.dubbing.plan import plan_dub
from model_code.dubbing.speaker import parse_speaker
from model_code.errors import InputError
from model_code.faces.crop import crop
from model_code.faces.landmarker import Landmarker
from model_code.faces.track import crop_boxes
from model_code.media.video import write_video
from model_code.training.syncnet import sync_accuracy, train_syncnet
from tests.tiny import SyncExample

CONFIG = MediaConfig()
LENGTH = 75
U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Head:
    """(T, 256, 256, 3) frames and (T, 68, 2) landmarks."""

    frames: U8
    landmarks: F32

    def saying(self, loudness: F32) -> U8:
        """With a dark mouth that opens with the loudness (T,) 0..1."""
        out = self.frames.copy()
        for frame, points, loud in zip(out, self.landmarks, loudness, strict=True):
            lips = points[48:]
            half = float(np.ptp(lips[:, 0])) / 2
            centre = tuple(int(value) for value in lips.mean(0))
            cv2.ellipse(frame, centre, (round(0.8 * half), 1 + round(half * float(loud))), 0, 0, 360, (60, 15, 20), -1)
        return out


def _speech(seed: int) -> tuple[F32, F32]:
    """Loudness (T,) and noise (640 T,) that swells with it."""
    rng = np.random.default_rng(seed)
    slow = np.convolve(rng.normal(size=LENGTH + 8), np.ones(4) / 2, "same")[4:-4]
    loudness = (1 / (1 + np.exp(-3 * slow))).astype(np.float32)
    at = np.interp(np.arange(LENGTH * 640) / 640 - 0.5, np.arange(LENGTH), loudness)
    return loudness, (rng.normal(0, 0.3, LENGTH * 640) * at**2).astype(np.float32)


@pytest.fixture(scope="module")
def head() -> Head:
    rendered, _ = render_spec(draw_spec(head_seed("FRESH", 910), 0, kind="natural", condition="plain"), 256, first=30)
    order = pingpong(30, LENGTH)
    return Head(rendered.frames[order], rendered.landmarks[order].astype(np.float32))


@pytest.fixture(scope="module")
def listener(head: Head) -> Listener:
    encoder = base.load("audio_encoder")
    boxes, examples = crop_boxes(head.landmarks), []
    for seed in range(10):
        loudness, samples = _speech(seed)
        examples.append(SyncExample(crop(head.saying(loudness), boxes, 96), encoder.encode(samples)))
    syncnet, _ = train_syncnet(examples[:8], [], steps=40, batch_size=6)
    assert sync_accuracy(syncnet, examples[8:]) > 0.8
    return Listener(syncnet, encoder)


@pytest.fixture(scope="module")
def landmarker() -> Landmarker:
    return base.load("landmarker")


def _beside(left: U8, right: U8) -> U8:
    """A small face on the left, a large one on the right."""
    both = np.full((len(left), 256, 512, 3), left[0, 2, 2], np.uint8)
    for frame, small, large in zip(both, left, right, strict=True):
        frame[60:204, 20:164] = cv2.resize(small, (144, 144), interpolation=cv2.INTER_AREA)
        frame[:, 230:486] = large
    return both


def test_the_face_that_fits_the_sound_is_dubbed(
    head: Head, listener: Listener, landmarker: Landmarker, tmp_path: Path
) -> None:
    """Be it the small one on the left or the large one on the right."""
    (own, samples), (other, _) = _speech(100), _speech(101)
    write_video(tmp_path / "left.mp4", _beside(head.saying(own), head.saying(other)), audio=samples, crf=12)
    write_video(tmp_path / "right.mp4", _beside(head.saying(other), head.saying(own)), audio=samples, crf=12)
    for name, left in (("left", True), ("right", False)):
        plan = plan_dub(tmp_path / f"{name}.mp4", LENGTH * 640, landmarker, CONFIG, listener)
        assert plan.dubbed.all()
        assert plan.faces == 2
        assert (plan.boxes[:, 2] < 230).all() if left else (plan.boxes[:, 0] > 200).all()
        assert f"number {1 if left else 2} from the left" in plan.chosen


def test_a_face_alone_in_a_silent_or_a_speaking_video(
    head: Head, listener: Listener, landmarker: Landmarker, tmp_path: Path
) -> None:
    loudness, samples = _speech(102)
    frames = head.saying(loudness)
    write_video(tmp_path / "alone.mp4", frames[:30], audio=samples[: 20 * 640], crf=12)
    plan = plan_dub(tmp_path / "alone.mp4", 30 * 640, landmarker, CONFIG, listener)
    assert plan.dubbed.all()
    assert (plan.faces, plan.chosen) == (1, "the only one")
    write_video(tmp_path / "silent.mp4", frames[:12], crf=12)
    with pytest.raises(
        InputError, match=r"'silent.mp4' has no sound that can be decoded: nothing tells who speaks \(name the speaker"
    ):
        plan_dub(tmp_path / "silent.mp4", 12 * 640, landmarker, CONFIG, listener)


@pytest.mark.parametrize(("text", "speaker"), [("", None), ("1", 1), ("12", 12), ("sync", "sync")])
def test_a_speaker_is_a_number_or_sync(text: str, speaker: object) -> None:
    assert parse_speaker(text) == speaker


@pytest.mark.parametrize("text", ["0", "-1", "100", "left", "Sync", "1.5"])
def test_other_speakers_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=f"'{text}' is neither"):
        parse_speaker(text)
