"""Image measures against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_code.metrics.image import (
    PSNR_CEILING,
    box_of,
    face_region,
    frechet,
    lip_region,
    polygon_mask,
    psnr,
    ssim,
)


def _frames(seed: int = 0, shape: tuple[int, ...] = (3, 32, 32, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(20, 200, shape, dtype=np.uint8)


@given(st.integers(1, 55))
@settings(deadline=None)
def test_psnr_of_a_constant_offset(offset: int) -> None:
    frames = _frames()
    assert psnr(frames, frames + np.uint8(offset)) == pytest.approx(20 * np.log10(255 / offset), abs=1e-4)


def test_psnr_pools_errors_before_the_logarithm() -> None:
    frames = _frames(shape=(2, 8, 8, 3))
    other = frames.copy()
    other[1] += 10
    assert psnr(frames, other) == pytest.approx(10 * np.log10(255**2 / 50), abs=1e-4)
    assert psnr(frames, frames) == PSNR_CEILING


def test_psnr_over_a_mask_sees_only_the_mask() -> None:
    frames = _frames()
    other = frames.copy()
    other[:, :16] += 10
    mask = np.zeros(frames.shape[:3], bool)
    mask[:, :16] = True
    assert psnr(frames, other, mask) == pytest.approx(20 * np.log10(25.5), abs=1e-4)
    assert psnr(frames, other, ~mask) == PSNR_CEILING
    assert np.isnan(psnr(frames, other, np.zeros_like(mask)))


def test_unequal_shapes_are_an_error() -> None:
    with pytest.raises(ValueError, match="equal shape"):
        psnr(_frames(), _frames(shape=(2, 32, 32, 3)))


def test_ssim_of_itself_is_one_and_of_flat_pictures_is_the_luminance_term() -> None:
    assert ssim(_frames(), _frames()) == pytest.approx(1.0)
    a, b = np.full((1, 32, 32, 3), 100, np.uint8), np.full((1, 32, 32, 3), 150, np.uint8)
    c1 = (0.01 * 255) ** 2
    assert ssim(a, b) == pytest.approx((2 * 100 * 150 + c1) / (100**2 + 150**2 + c1), abs=1e-3)


def test_ssim_falls_with_noise() -> None:
    frames = _frames(shape=(1, 48, 48, 3)) // 2 + 60
    rng = np.random.default_rng(1)
    scores = [
        ssim(frames, np.clip(frames + rng.normal(0, s, frames.shape), 0, 255).astype(np.uint8)) for s in (2, 10, 30)
    ]
    assert 1 > scores[0] > scores[1] > scores[2] > 0


def test_frechet_of_shifted_and_scaled_gaussians() -> None:
    mean, covariance = np.ones(4), np.cov(np.random.default_rng(2).standard_normal((4, 500)))
    assert frechet(mean, covariance, mean, covariance) == pytest.approx(0, abs=1e-9)
    assert frechet(mean, covariance, mean + 3, covariance) == pytest.approx(4 * 9, rel=1e-6)
    assert frechet(mean, covariance, mean, 4 * covariance) == pytest.approx(np.trace(covariance), rel=1e-6)


def test_regions_hold_their_landmarks_and_lips_lie_in_the_face() -> None:
    rng = np.random.default_rng(3)
    landmarks = np.empty((2, 68, 2), np.float32)
    landmarks[:, :48] = 48 + 30 * _circle(48)
    landmarks[:, 48:] = np.array([48, 62]) + np.array([10, 5]) * _circle(20)
    other = landmarks + rng.uniform(-2, 2)
    lips, face = lip_region(landmarks, other, size=96), face_region(landmarks, other, size=96)
    assert lips.shape == (2, 96, 96)
    assert lips.any()
    assert not (lips & ~face).any()
    x0, y0, x1, y1 = box_of(lips)
    assert x0 <= 38 < 58 <= x1
    assert y0 <= 57 < 67 <= y1
    assert not face[:, :4].any()
    with pytest.raises(ValueError, match="no pixel"):
        box_of(np.zeros((1, 4, 4), bool))


def test_polygon_mask_fills_a_square() -> None:
    corners = np.array([[[8.5, 8.5], [20.5, 8.5], [20.5, 20.5], [8.5, 20.5]]])
    mask = polygon_mask(corners, 32)
    assert mask.sum() == 13 * 13


def _circle(points: int) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.stack([np.cos(angle), np.sin(angle)], 1)
