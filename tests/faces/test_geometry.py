"""Alignment, crops and masks on drawn faces and random geometry."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_code.faces.align import ARCFACE_TEMPLATE, five_points, mouth_distance, transform, umeyama
from model_code.faces.crop import crop, crop_yuv, from_crop, resample, resampling_matrix, to_crop
from model_code.faces.masks import face_loss_mask, face_mask, inpaint_mask, lip_mask, paste_mask
from model_code.faces.track import crop_boxes, face_box
from model_code.media.video import stream_video, write_video
from model_code.training.landmarker import MIRROR


def _toy() -> ModuleType:
    name = "xdub_tests_toy"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("toy.py"))
        assert spec
        assert spec.loader
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


toy = _toy()
angles = st.floats(-3.1, 3.1)
scales = st.floats(0.05, 20)
shifts = st.floats(-300, 300)


@given(angles, scales, shifts, shifts, st.integers(0, 1000))
def test_umeyama_finds_any_similarity(angle: float, scale: float, x: float, y: float, seed: int) -> None:
    points = np.random.default_rng(seed).normal(0, 10, (3, 5, 2)).astype(np.float32)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]], np.float32)
    moved = (scale * points @ turn.T + np.array([x, y])).astype(np.float32)
    assert np.allclose(transform(umeyama(points, moved), points), moved, atol=1e-2 * max(1, scale))


def test_umeyama_does_not_mirror() -> None:
    points = np.array([[0, 0], [1, 0], [1, 1], [0, 2]], np.float32)
    matrix = umeyama(points, points * np.array([-1, 1], np.float32))
    assert np.linalg.det(matrix[:, :2]) >= 0


def test_aligned_face_lies_on_the_template() -> None:
    _, landmarks = toy.toy_clip(3)
    five = five_points(landmarks)
    error = transform(umeyama(five, np.broadcast_to(ARCFACE_TEMPLATE, five.shape)), five) - ARCFACE_TEMPLATE
    assert np.abs(error).mean() < 6


@given(angles, st.floats(0.3, 4), st.floats(0, 1), st.floats(0, 1))
def test_mouth_distance_sees_only_the_mouth(angle: float, scale: float, first: float, second: float) -> None:
    still = np.stack([toy.toy_landmarks((0, 0), 30, first)])
    moved = np.stack([toy.toy_landmarks((50, -20), 30 * scale, first, angle)])
    assert mouth_distance(still, moved) < 1e-2
    other = np.stack([toy.toy_landmarks((0, 0), 30, second)])
    assert mouth_distance(still, other) == pytest.approx(mouth_distance(moved, other), abs=1e-2)
    # Eight of the 20 lip landmarks move by half the eye distance, about 35 px on the template.
    assert mouth_distance(still, other) == pytest.approx(abs(first - second) * 0.5 * 8 / 20 * 33.8, rel=0.1, abs=0.01)


@given(st.floats(-80, 180), st.floats(2, 250), st.integers(4, 96), st.integers(8, 200))
@settings(deadline=None)
def test_resampling_weights(start: float, length: float, n_out: int, n_in: int) -> None:
    weights, first, last = resampling_matrix(start, start + length, n_out, n_in)
    assert weights.shape == (n_out, last - first)
    assert 0 <= first < last <= n_in
    assert np.allclose(weights.sum(1), 1, atol=1e-4)
    wanted = start + (np.arange(n_out) + 0.5) * length / n_out
    reach = 2.5 * max(1.0, length / n_out) + 0.5
    inside = (wanted > reach) & (wanted < n_in - reach)
    read = weights @ (np.arange(first, last) + 0.5)
    assert np.allclose(read[inside], wanted[inside], atol=0.05 * max(1, length / n_out)), "a ramp stays where it is"


def test_identity_crop_and_edges() -> None:
    frames, _ = toy.toy_clip(2)
    height, width = frames.shape[1:3]
    whole = np.array([[0, 0, width, height]] * 2, np.float32)
    assert np.array_equal(resample(frames[0], whole[0], (height, width)).round().astype(np.uint8), frames[0])
    outside = crop(frames, np.array([[-40, -40, -24, -24]] * 2, np.float32), 16)
    assert (outside == frames[:, :1, :1]).all(), "beyond the frame its edge repeats"


def test_large_boxes_are_averaged_not_picked() -> None:
    stripes = np.zeros((1, 800, 800, 3), np.uint8)
    stripes[:, :, ::2] = 255
    small = crop(stripes, np.array([[0, 0, 800, 800]], np.float32), 32)
    assert abs(int(small.min()) - 128) <= 2
    assert abs(int(small.max()) - 128) <= 2


def test_crop_from_planes_matches_rgb(tmp_path: Path) -> None:
    frames, landmarks = toy.toy_clip(3)
    write_video(tmp_path / "toy.mp4", frames, crf=4)
    box = face_box(landmarks)[1]
    planes = list(stream_video(tmp_path / "toy.mp4"))[1]
    assert np.abs(crop_yuv(planes, box, 64).astype(int) - crop(frames[1:2], box[None], 64)[0]).mean() < 3


def test_landmarks_follow_their_crop() -> None:
    _, landmarks = toy.toy_clip(5)
    boxes = crop_boxes(landmarks, 1.3)
    inside = to_crop(landmarks, boxes, 96)
    assert inside.min() > 0
    assert inside.max() < 96
    assert np.allclose(from_crop(inside, boxes, 96), landmarks, atol=1e-3)


def test_inpainting_mask_does_not_tell_the_mouth() -> None:
    """Same head, any mouth: the very same mask, and it covers lips and chin of an open mouth."""
    masks = []
    for opening in np.linspace(0, 0.6, 7):
        landmarks = np.stack([toy.toy_landmarks((96, 80), 36, float(opening))])
        mask = face_mask(landmarks, 192)[0]
        lips = lip_mask(landmarks, 192)[0] > 0.9
        assert (mask | ~lips).all()
        masks.append(mask)
    assert all(np.array_equal(masks[0], mask) for mask in masks)
    assert not masks[0][80 - 12 : 80 + 2].any(), "eyes are left alone"
    for scale in (24, 36, 48):
        area = face_mask(np.stack([toy.toy_landmarks((96, 80), scale)]), 192).sum()
        assert area == pytest.approx(3.1 * scale**2, rel=0.15)


def test_occluder_is_kept() -> None:
    landmarks = np.stack([toy.toy_landmarks((96, 80), 36)] * 5)
    occluder = np.zeros((5, 192, 192), bool)
    occluder[2, 100:140, 80:110] = True
    keep = inpaint_mask(landmarks, 192, occluder)
    assert keep[2, 100:140, 80:110].all()
    assert np.array_equal(keep[1], ~face_mask(landmarks, 192)[1])
    assert paste_mask(landmarks, 192, occluder)[2, 105:135, 85:105].max() == 0


def test_loss_masks_follow_the_lips() -> None:
    closed, wide = (np.stack([toy.toy_landmarks((48, 40), 20, opening)]) for opening in (0.0, 1.0))
    for make in (lip_mask, face_loss_mask):
        small, large = make(closed, 96), make(wide, 96)
        assert small.dtype == np.float32
        assert 0 <= small.min() <= small.max() <= 1
        assert large.sum() > 1.1 * small.sum()
    assert lip_mask(closed, 96).sum() < 0.3 * face_loss_mask(closed, 96).sum()


def test_paste_mask_is_zero_at_the_border() -> None:
    for centre in ((48, 40), (20, 40), (48, 70)):
        mask = paste_mask(np.stack([toy.toy_landmarks(centre, 24)]), 96)[0]
        border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
        assert border.max() == 0
        assert mask.max() > 0.99


def test_crop_boxes_follow_the_head_not_the_mouth() -> None:
    _, still = toy.toy_clip(60, moving=False)
    boxes = crop_boxes(still)
    assert np.ptp(boxes, axis=0).max() == 0, "a talking head that does not move gets a fixed box"
    _, moving = toy.toy_clip(60)
    boxes = crop_boxes(moving)
    assert np.allclose(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1], atol=1e-3)
    centre, nose = (boxes[:, 0] + boxes[:, 2]) / 2, moving[:, 27, 0]
    assert np.corrcoef(centre, nose)[0, 1] > 0.99
    assert np.abs(np.diff(centre, 2)).max() < 0.3, "smooth"


def test_box_holds_face_and_forehead() -> None:
    landmarks = np.stack([toy.toy_landmarks((100, 100), 30)])
    box = face_box(landmarks, 1.0)[0]
    assert box[0] <= landmarks[0, :, 0].min()
    assert box[1] < landmarks[0, :, 1].min() - 0.5 * 30
    assert box[3] >= landmarks[0, :, 1].max() - 1e-3
    assert face_box(landmarks, 2.0)[0, 2] - face_box(landmarks, 2.0)[0, 0] == pytest.approx(2 * (box[2] - box[0]))


def test_mirror_is_its_own_inverse() -> None:
    assert np.array_equal(MIRROR[MIRROR], np.arange(68))
    mirrored = toy.POINTS * np.array([-1, 1], np.float32)
    assert np.abs(mirrored[MIRROR] - toy.POINTS).max() < 0.02
