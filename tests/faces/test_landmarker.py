"""The landmarker: training in small, the shipped weights on new heads, finding and following faces."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from model_code import base
from model_code.avatars.clipspec import draw_spec, render_spec
from model_code.avatars.render import Rendered
from model_code.avatars.seeds import head_seed
from model_code.config import MediaConfig
from model_code.faces.align import interocular
from model_code.faces.crop import crop
from model_code.faces.detect import FaceFinder, _windows
from model_code.faces.follow import Follower
from model_code.faces.landmarker import Landmarker
from model_code.faces.track import face_box
from model_code.media.video import stream_video, write_video
from model_code.media.yuv import YuvFrame
from model_code.training.landmarker import score_landmarker, train_landmarker

CONFIG = MediaConfig()


@pytest.fixture(scope="module")
def landmarker() -> Landmarker:
    return base.load("landmarker")


def _toy() -> object:
    spec = importlib.util.spec_from_file_location("toy", Path(__file__).with_name("toy.py"))
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _head(index: int, kind: str, condition: str = "plain") -> Rendered:
    seed = head_seed("FRESH", index)
    return render_spec(draw_spec(seed, 0, kind=kind, condition=condition, seconds=(1.2, 1.2)), 192)[0]  # type: ignore[arg-type]


def _planes(frames: NDArray[np.uint8], path: Path) -> list[YuvFrame]:
    write_video(path, frames, crf=10)
    return list(stream_video(path))


def test_training_lowers_the_error_and_repeats(tmp_path: Path) -> None:
    frames, landmarks = _toy().toy_clip(60, 96, 96, 16.0)  # type: ignore[attr-defined]
    before = score_landmarker(Landmarker(), frames, landmarks, limit=20)["nme"]
    held = {"heldout_frames": frames[54:], "heldout_landmarks": landmarks[54:]}
    cards = [train_landmarker(frames[:54], landmarks[:54], tmp_path / name, 12, 3, **held) for name in ("a", "b")]
    assert cards[0]["scores"]["nme"] < 0.7 * before
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    assert json.loads((tmp_path / "a/card.json").read_text())["scores"] == cards[0]["scores"]
    assert cards[0]["parameters"] < 1_000_000


def test_saved_weights_are_half_precision_and_read_back(tmp_path: Path) -> None:
    model = Landmarker().eval()
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size < 1.3e6
    crops = np.random.default_rng(0).integers(0, 255, (2, 96, 96, 3)).astype(np.uint8)
    first, second = (one.predict_crops(crops) for one in (model, Landmarker.from_pretrained(tmp_path)))
    assert np.abs(first[0] - second[0]).max() < 0.2
    assert np.abs(first[1] - second[1]).max() < 0.02


@pytest.mark.parametrize("kind", ["natural", "stylised", "nonhuman"])
def test_shipped_landmarker_on_new_heads(kind: str, landmarker: Landmarker) -> None:
    errors = []
    for index in range(940, 943):
        head = _head(index, kind)
        found, confidence = landmarker.predict(head.frames[::6], face_box(head.landmarks[::6]))
        truth = head.landmarks[::6]
        errors.append((np.linalg.norm(found - truth, axis=-1).mean(1) / interocular(truth)).mean())
        assert confidence.min() > 0.5
    assert np.mean(errors) < 0.1


def test_landmarks_of_large_crops_are_those_of_small_ones(landmarker: Landmarker) -> None:
    head = _head(943, "natural")
    frames, boxes = head.frames[::6], face_box(head.landmarks[::6])
    small, confidence = landmarker.predict_crops(crop(frames, boxes, 96))
    large, sure = landmarker.predict_crops(crop(frames, boxes, 192))
    assert np.abs(large - 2 * small).max() < 3
    assert np.abs(sure - confidence).max() < 0.1


@pytest.mark.parametrize("kind", ["natural", "stylised", "nonhuman"])
@pytest.mark.parametrize("place", [(0, 0), (150, 60)])
def test_faces_are_found_anywhere(kind: str, place: tuple[int, int], landmarker: Landmarker) -> None:
    head = _head(944, kind)
    canvas = np.broadcast_to(head.frames[0, 2, 2], (300, 400, 3)).copy()
    canvas[place[1] : place[1] + 192, place[0] : place[0] + 192] = head.frames[0]
    faces = FaceFinder(landmarker).find(canvas)
    assert len(faces) == 1
    truth = head.landmarks[0] + np.array(place, np.float32)
    error = np.linalg.norm(faces[0].landmarks - truth, axis=-1).mean() / interocular(truth[None])[0]
    assert error < 0.15


def test_large_frames_are_searched_in_small(landmarker: Landmarker) -> None:
    head = _head(945, "natural")
    large = np.repeat(np.repeat(head.frames[0], 5, 0), 5, 1)
    (face,) = FaceFinder(landmarker).find(large)
    truth = head.landmarks[0] * 5
    assert np.linalg.norm(face.landmarks - truth, axis=-1).mean() < 0.15 * interocular(truth[None])[0]


def test_nothing_is_found_where_nothing_is(landmarker: Landmarker) -> None:
    rng = np.random.default_rng(0)
    for _ in range(3):
        noise = rng.integers(0, 255, (24, 32, 3)).astype(np.uint8).repeat(10, 0).repeat(10, 1)
        assert FaceFinder(landmarker).find(noise) == []


@pytest.mark.parametrize(
    "shape", [(2, 4096), (4096, 2), (2, 300), (30, 480), (24, 240), (48, 480), (300, 400), (40, 40)]
)
def test_windows_are_few_at_a_time_and_none_in_strips(
    shape: tuple[int, int], landmarker: Landmarker, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []

    def predict(crops: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        counts.append(len(crops))
        assert counts[-1] <= 64
        return np.zeros((len(crops), 68, 2), np.float32), np.zeros(len(crops), np.float32)

    monkeypatch.setattr(landmarker, "predict_crops", predict)
    assert FaceFinder(landmarker).find(np.full((*shape, 3), 90, np.uint8)) == []
    assert bool(counts) == (max(shape) <= 10 * min(shape))
    assert sum(counts) < 2500


def test_windows_few_at_a_time_are_judged_as_at_once(landmarker: Landmarker) -> None:
    windows = _windows(270, 480, 0.25)
    image = np.random.default_rng(0).integers(0, 255, (270, 480, 3)).astype(np.uint8)
    frames = np.broadcast_to(image, (len(windows), *image.shape))
    _, at_once = landmarker.predict_crops(crop(frames, windows, landmarker.size))
    assert len(windows) > 128
    assert np.array_equal(landmarker.predict(frames, windows)[1], at_once)


@pytest.mark.parametrize("condition", ["plain", "occluded", "changing_light", "profile"])
def test_face_is_followed(condition: str, landmarker: Landmarker, tmp_path: Path) -> None:
    head = _head(946, "natural", condition)
    track = Follower(FaceFinder(landmarker), CONFIG.crop_scale).follow(_planes(head.frames, tmp_path / "head.mp4"))
    assert track is not None
    assert track.found.mean() > 0.95
    assert track.faces == 1
    inside = (head.landmarks >= track.boxes[:, None, :2] - 2) & (head.landmarks <= track.boxes[:, None, 2:] + 2)
    assert inside.all(-1).mean() > 0.98, "the crop holds the face"


def test_lost_face_is_found_again(landmarker: Landmarker, tmp_path: Path) -> None:
    head = _head(947, "natural")
    frames = head.frames.copy()
    frames[10:20] = frames[0, 2, 2]
    frames[20:] = np.roll(frames[20:], 25, axis=2)
    track = Follower(FaceFinder(landmarker), CONFIG.crop_scale).follow(_planes(frames, tmp_path / "head.mp4"))
    assert track is not None
    assert track.found[:10].all()
    assert not track.found[12:17].any()
    assert track.found[-5:].all()


def test_no_face_no_track(landmarker: Landmarker, tmp_path: Path) -> None:
    frames = np.broadcast_to(np.linspace(40, 90, 96, dtype=np.uint8)[:, None, None], (9, 96, 96, 3))
    assert Follower(FaceFinder(landmarker), CONFIG.crop_scale).follow(_planes(frames, tmp_path / "x.mp4")) is None
