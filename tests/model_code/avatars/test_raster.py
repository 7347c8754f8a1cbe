from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_code.avatars import raster


def fill(xy: list[list[float]], nearness: list[float], faces: list[list[int]], size: int = 16, two_sided: bool = False):
    near = np.zeros((size, size), np.float32)
    index = np.full((size, size), -1, np.int32)
    raster.fill_triangles(
        np.array(xy, np.float32),
        np.array(nearness, np.float32),
        np.array(faces, np.int32),
        np.full(len(faces), two_sided),
        near,
        index,
    )
    return near, index


def test_a_right_triangle_covers_exactly_its_samples() -> None:
    # Counter-clockwise with y up: (0,8) -> (8,8) -> (0,0) in rows that count down.
    _, index = fill([[0, 8], [8, 8], [0, 0]], [1, 1, 1], [[0, 1, 2]])
    y, x = np.mgrid[0:16, 0:16] + 0.5
    inside = (x < y) & (y < 8) & (x < 8)
    on_edge = x == y
    assert np.array_equal((index == 0)[~on_edge], inside[~on_edge])


def test_two_triangles_share_a_diagonal_without_gap_or_overlap() -> None:
    corners = [[2, 2], [2, 12], [12, 12], [12, 2]]
    first = fill(corners, [1] * 4, [[0, 1, 2]])[1] == 0
    second = fill(corners, [1] * 4, [[0, 2, 3]])[1] == 0
    assert not (first & second).any()
    square = np.zeros((16, 16), bool)
    square[2:12, 2:12] = True
    assert np.array_equal(first | second, square)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 32), st.integers(0, 32)), min_size=4, max_size=4, unique=True))
def test_a_fan_never_counts_a_sample_twice(corners: list[tuple[int, int]]) -> None:
    center = np.mean(corners, axis=0)
    order = sorted(corners, key=lambda p: -np.arctan2(p[1] - center[1], p[0] - center[0]))
    xy = [[x / 2, y / 2] for x, y in order]
    first = fill(xy, [1] * 4, [[0, 1, 2]])[1] == 0
    second = fill(xy, [1] * 4, [[0, 2, 3]])[1] == 0
    assert not (first & second).any()


def test_the_nearer_triangle_wins_in_either_order() -> None:
    xy = [[0, 0], [0, 16], [16, 16]] * 2
    for faces, front in (([[0, 1, 2], [3, 4, 5]], 1), ([[3, 4, 5], [0, 1, 2]], 0)):
        near, index = fill(xy, [0.5] * 3 + [0.8] * 3, faces)
        assert set(np.unique(index)) == {-1, front}
        assert near.max() == pytest.approx(0.8, abs=1e-6)


def test_depth_is_interpolated() -> None:
    near, index = fill([[0, 0], [0, 16], [16, 0]], [0.0 + 0.1, 0.1, 0.9], [[0, 1, 2]])
    row = near[0][index[0] == 0]
    expected = 0.1 + 0.8 * (np.arange(len(row)) + 0.5) / 16
    np.testing.assert_allclose(row, expected, atol=1e-6)


def test_backs_are_culled_unless_two_sided() -> None:
    xy = [[0, 0], [16, 16], [0, 16]]
    assert (fill(xy, [1] * 3, [[0, 1, 2]])[1] == -1).all()
    assert (fill(xy, [1] * 3, [[0, 1, 2]], two_sided=True)[1] == 0).any()


def test_what_is_behind_the_camera_is_dropped() -> None:
    assert (fill([[0, 0], [0, 16], [16, 16]], [1, 0, 1], [[0, 1, 2]])[1] == -1).all()


def test_normals_of_a_tetrahedron_point_outwards() -> None:
    vertices = np.array([[1, 1, 1], [-1, -1, 1], [-1, 1, -1], [1, -1, -1]], np.float32)
    faces = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], np.int32)
    normals = np.zeros_like(vertices)
    raster.vertex_normals(vertices, faces, normals)
    np.testing.assert_allclose(normals, vertices / np.sqrt(3), atol=1e-6)


def test_a_wall_shades_what_lies_behind_it() -> None:
    wall = [[-1, -1, 1], [1, -1, 1], [1, 1, 1], [-1, 1, 1]]
    points = [[0, 0, 0], [3, 0, 0]]
    vertices = np.array(wall + points, np.float32)
    normals = np.tile(np.array([[0, 0, 1]], np.float32), (6, 1))
    seen = np.zeros(6, np.float32)
    faces = np.array([[0, 1, 2], [0, 2, 3]], np.int32)
    axes = np.eye(3, dtype=np.float32)
    raster.light_visibility(vertices, normals, faces, np.zeros(2, bool), axes, 8.0, 0.05, 64, seen)
    assert seen[4] == 0.0
    assert seen[5] == 1.0
    assert seen[:4].min() == 1.0


def test_rotation_turns_to_the_viewers_right_and_down() -> None:
    matrix = np.zeros((3, 3))
    raster.rotation_matrix(0.4, 0.0, 0.0, matrix)
    assert (matrix @ [0, 0, 1])[0] == pytest.approx(np.sin(0.4))
    raster.rotation_matrix(0.0, 0.3, 0.0, matrix)
    assert (matrix @ [0, 0, 1])[1] == pytest.approx(-np.sin(0.3))
    raster.rotation_matrix(0.3, -0.2, 0.5, matrix)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)


def test_the_tone_curve_rises_and_inverts() -> None:
    table = raster.tone_table()
    assert (np.diff(table) >= 0).all()
    shown = np.array([0.1, 0.4, 0.8])
    index = raster.inverse_tone(shown) / raster.TONE_RANGE * (raster.TONE_STEPS - 1)
    np.testing.assert_allclose(table[index.round().astype(int)] / 255, shown, atol=0.004)
