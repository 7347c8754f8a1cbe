"""Procedural heads: sound meshes, shapes that do what their names say, identities that differ."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from model_code.avatars.avatar import ARKIT_NAMES, KINDS, Avatar, Kind, Part, interocular, mouth_curves
from model_code.avatars.grid import face_grid
from model_code.avatars.head import build_head, draw_head

HEADS: list[tuple[int, Kind]] = [(seed, kind) for kind in KINDS for seed in (3, 4, 5, 6)]


def coefficients(**weights: float) -> np.ndarray:
    """One frame; a name without side sets both."""
    frame = np.zeros((1, 52), np.float32)
    for name, weight in weights.items():
        for full in [name] if name in ARKIT_NAMES else [f"{name}Left", f"{name}Right"]:
            frame[0, ARKIT_NAMES.index(full)] = weight
    return frame


@pytest.fixture(scope="module", params=HEADS, ids=lambda head: f"{head[1]}-{head[0]}")
def avatar(request: pytest.FixtureRequest) -> Avatar:
    return build_head(draw_head(*request.param))


def test_mesh_is_sound(avatar: Avatar) -> None:
    count = len(avatar.vertices)
    assert 2500 <= len(avatar.faces) <= 5000
    assert avatar.faces.min() >= 0
    assert avatar.faces.max() < count
    assert avatar.vertices.dtype == avatar.colors.dtype == avatar.morphs.dtype == np.float32
    assert avatar.faces.dtype == avatar.landmarks.dtype == np.int32
    assert avatar.part.dtype == np.uint8
    for array in (avatar.vertices, avatar.colors, avatar.gloss, avatar.morphs, avatar.head_mask):
        assert np.isfinite(array).all()
    assert avatar.morphs.shape == (52, count, 3)
    assert avatar.landmarks.shape == (68,)
    for array in (avatar.colors, avatar.gloss, avatar.head_mask):
        assert array.min() >= 0
        assert array.max() <= 1
    assert {Part.SKIN, Part.LIPS, Part.TEETH, Part.TONGUE, Part.CAVITY, Part.EYE, Part.CLOTH} <= set(
        avatar.part.tolist()
    )
    assert 0.45 < interocular(avatar) < 0.85
    assert (avatar.morphs != 0).any(axis=(1, 2)).all()


def test_skin_is_a_manifold_with_openings_for_eyes_mouth_and_neck() -> None:
    grid = face_grid()
    edges = Counter((int(face[k]), int(face[(k + 1) % 3])) for face in grid.faces for k in range(3))
    assert max(edges.values()) == 1
    border = {edge for edge in edges if edge[::-1] not in edges}
    loops = 0
    following = dict(border)
    assert len(following) == len(border)
    while following:
        _, at = following.popitem()
        while at in following:
            at = following.pop(at)
        loops += 1
    assert loops == 4
    assert np.array_equal(grid.twin[grid.twin], np.arange(len(grid.twin)))
    assert len(set(grid.landmarks.tolist())) == 68


def test_eyeballs_and_skin_face_outwards(avatar: Avatar) -> None:
    """The front of the face looks at the camera."""
    corners = avatar.vertices[avatar.faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    middle = corners.mean(1)
    eyes = avatar.part == Part.EYE
    assert normals[eyes, 2].sum() > 0
    forehead = (avatar.part == Part.SKIN) & (np.abs(middle[:, 0]) < 0.3) & (middle[:, 2] > 0.6) & (middle[:, 1] > 0.3)
    assert (normals[forehead, 2] > 0).all()


def test_landmarks_lie_where_ibug_puts_them(avatar: Avatar) -> None:
    points = avatar.vertices[avatar.landmarks]
    mirrored = points[[*range(16, -1, -1)]] * np.array([-1, 1, 1])
    assert np.allclose(points[:17], mirrored, atol=1e-5)
    assert (np.diff(points[:17, 0]) > 0).all()
    assert points[8, 1] == points[:17, 1].min()
    assert points[36, 0] < points[39, 0] < 0 < points[42, 0] < points[45, 0]
    assert points[48, 0] < 0 < points[54, 0]
    assert points[30, 2] > points[27, 2]
    assert points[27:31, 1].min() > points[33, 1] > points[51, 1] > points[62, 1] - 1e-6 > points[57, 1] > points[8, 1]


def test_left_and_right_shapes_mirror_each_other(avatar: Avatar) -> None:
    lips = avatar.landmarks[48:68]
    swap = [6, 5, 4, 3, 2, 1, 0, 11, 10, 9, 8, 7, 16, 15, 14, 13, 12, 19, 18, 17]
    for name in ARKIT_NAMES:
        if not name.endswith("Left"):
            continue
        left = avatar.morphs[ARKIT_NAMES.index(name)]
        right = avatar.morphs[ARKIT_NAMES.index(name[:-4] + "Right")]
        assert np.isclose(np.abs(left).sum(), np.abs(right).sum(), rtol=1e-3), name
        assert np.allclose(left[lips], right[lips][swap] * np.array([-1, 1, 1]), atol=1e-5), name


def test_mouth_does_what_the_names_say(avatar: Avatar) -> None:
    def curves(**weights: float) -> np.ndarray:
        return mouth_curves(avatar, coefficients(**weights))[0]

    rest = curves()
    assert abs(rest[0]) < 1e-3
    assert rest[2] == 0
    assert 0.5 < rest[1] < 1.3
    assert curves(jawOpen=1)[0] > 0.25
    assert 0.3 < curves(jawOpen=0.5)[0] / curves(jawOpen=1)[0] < 0.7
    assert abs(curves(jawOpen=1, mouthClose=1)[0]) < 0.02
    assert curves(mouthPucker=1)[1] < 0.75 * rest[1]
    assert curves(mouthPucker=1)[2] > 0.05
    assert curves(mouthFunnel=1)[0] > 0.08
    assert curves(mouthSmile=1)[1] > 1.12 * rest[1]
    assert curves(mouthStretch=1)[1] > 1.12 * rest[1]
    assert curves(mouthUpperUp=1)[0] > 0.03
    assert curves(mouthLowerDown=1)[0] > 0.03
    lips = avatar.landmarks[48:68]
    smile = avatar.deform(coefficients(mouthSmile=1))[0, lips] - avatar.vertices[lips]
    assert smile[0, 1] > 0.03
    assert smile[6, 1] > 0.03
    left = avatar.deform(coefficients(mouthLeft=1))[0, lips] - avatar.vertices[lips]
    assert (left[:, 0] > 0.02).all()


def test_blink_closes_the_lids(avatar: Avatar) -> None:
    points = avatar.vertices[avatar.landmarks]
    closed = avatar.deform(coefficients(eyeBlink=1))[0, avatar.landmarks]
    for upper, lower in ((37, 41), (38, 40), (43, 47), (44, 46)):
        assert closed[upper, 1] - closed[lower, 1] < 0.25 * (points[upper, 1] - points[lower, 1])
    gaze = avatar.morphs[ARKIT_NAMES.index("eyeLookOutLeft")]
    pupil = np.unique(avatar.faces[avatar.part == Part.EYE])
    pupil = pupil[avatar.vertices[pupil, 0] > 0]
    front = pupil[np.abs(gaze[pupil]).max(1) > 0]
    front = front[np.argmax(avatar.vertices[front, 2])]
    assert gaze[front, 0] > 0.03


def test_same_seed_same_bytes_and_other_seeds_differ() -> None:
    first, again, other = (build_head(draw_head(seed, "natural")) for seed in (11, 11, 12))
    assert first.vertices.tobytes() == again.vertices.tobytes()
    assert first.colors.tobytes() == again.colors.tobytes()
    shift = np.linalg.norm(first.vertices[first.landmarks] - other.vertices[other.landmarks], axis=1)
    assert shift.mean() > 0.01


def test_kinds_are_drawn() -> None:
    kinds = Counter(draw_head(seed).kind for seed in range(60))
    assert set(kinds) == set(KINDS)
    assert draw_head(5, "nonhuman").kind == "nonhuman"


def test_coefficients_of_the_wrong_width_are_refused() -> None:
    avatar = build_head(draw_head(0))
    with pytest.raises(ValueError, match="52"):
        avatar.deform(np.zeros((3, 51)))
