from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from model_code.avatars.avatar import ARKIT_NAMES, Avatar, Part
from model_code.avatars.performance import Performance, draw_performance, replace_speech
from model_code.avatars.render import render
from model_code.avatars.scene import CONDITIONS, OCCLUDERS, Condition, OccluderKind, draw_occluder, draw_scene
from model_code.seeding import rng_for

FRAMES = 6


def speech(amount: float, frames: int = FRAMES) -> np.ndarray:
    mouth = np.zeros((frames, 52), np.float32)
    mouth[:, ARKIT_NAMES.index("jawOpen")] = amount
    return mouth


def still(rotation: tuple[float, float, float] = (0, 0, 0)) -> Performance:
    zeros = np.zeros((1, 52), np.float32)
    return Performance(zeros, np.array([rotation], np.float32), np.zeros((1, 3), np.float32), zeros)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_every_condition_renders_and_repeats(ball: Avatar, condition: Condition) -> None:
    performance = draw_performance(rng_for("r", condition), speech(0.2), motion="calm")
    clips = [render(ball, performance, draw_scene(rng_for("r", condition), FRAMES, condition), 64) for _ in range(2)]
    assert clips[0].frames.shape == (FRAMES, 64, 64, 3)
    assert clips[0].frames.dtype == np.uint8
    assert clips[0].landmarks.shape == (FRAMES, 68, 2)
    assert clips[0].mouth.shape == (FRAMES, 3)
    assert clips[0].frames.std() > 5
    for name in ("frames", "landmarks", "mouth", "occluder"):
        assert getattr(clips[0], name).tobytes() == getattr(clips[1], name).tobytes()


@pytest.mark.parametrize("rotation", [(0.0, 0.0, 0.0), (0.3, 0.1, -0.2)])
def test_landmarks_are_where_their_vertex_is_drawn(ball: Avatar, rotation: tuple[float, float, float]) -> None:
    scene = draw_scene(rng_for("landmarks"), 1, "plain")
    dark = ball.colors * 0.3
    for landmark in (33, 48, 8):
        vertex = ball.landmarks[landmark]
        lit = dark.copy()
        lit[vertex] = 1.0  # a white dot that fades towards the neighbouring vertices
        plain = render(replace(ball, colors=dark), still(rotation), scene, 128)
        dotted = render(replace(ball, colors=lit), still(rotation), scene, 128)
        change = (dotted.frames[0].astype(float) - plain.frames[0]).sum(-1)
        row, column = np.unravel_index(change.argmax(), change.shape)
        np.testing.assert_allclose((column + 0.5, row + 0.5), dotted.landmarks[0, landmark], atol=1.5)


def test_other_speech_leaves_everything_but_the_mouth(ball: Avatar) -> None:
    performance = draw_performance(rng_for("x"), speech(0.0), motion="lively")
    scene = draw_scene(rng_for("x"), FRAMES, "plain")
    first = render(ball, performance, scene, 96)
    same = render(ball, replace_speech(performance, speech(0.0)), scene, 96)
    other = render(ball, replace_speech(performance, speech(0.8)), scene, 96)
    assert same.frames.tobytes() == first.frames.tobytes()
    changed = (other.frames != first.frames).any((0, 3))
    assert changed.any()
    brow = int(first.landmarks[:, 36:48, 1].max()) - 2  # nothing above the eyes moves or changes its light
    assert not changed[:brow].any()


def test_an_open_jaw_is_measured(ball: Avatar) -> None:
    lowered = render(
        ball, draw_performance(rng_for("j"), speech(0.9), motion="calm"), draw_scene(rng_for("j"), FRAMES, "plain"), 48
    )
    closed = render(
        ball, draw_performance(rng_for("j"), speech(0.0), motion="calm"), draw_scene(rng_for("j"), FRAMES, "plain"), 48
    )
    assert not np.array_equal(lowered.landmarks, closed.landmarks)
    assert lowered.mouth.dtype == np.float32


@pytest.mark.parametrize("kind", OCCLUDERS)
def test_the_mask_is_true_exactly_where_the_occluder_is_seen(ball: Avatar, kind: OccluderKind) -> None:
    occluder = draw_occluder(rng_for("o", kind), FRAMES, kind)
    path = occluder.path.copy()
    path[:, :2] = 0
    path[:3] = 100  # out of view for three frames
    scene = draw_scene(rng_for("o"), FRAMES, "plain")
    performance = draw_performance(rng_for("o"), speech(0.0), motion="calm")
    bare = render(ball, performance, scene, 96)
    covered = render(ball, performance, replace(scene, occluder=replace(occluder, path=path)), 96)
    assert not bare.occluder.any()
    assert not covered.occluder[:3].any()
    assert np.array_equal(covered.frames[:3], bare.frames[:3])
    assert covered.occluder[3:].any((1, 2)).all()
    mouth = covered.landmarks[4, 48:60].mean(0).astype(int)
    assert covered.occluder[4, mouth[1] - 10 : mouth[1] + 10, mouth[0] - 10 : mouth[0] + 10].any()
    different = (covered.frames[4].astype(int) - bare.frames[4] != 0).any(-1)
    assert (covered.occluder[4] & different).sum() > 0.9 * covered.occluder[4].sum()


def test_an_occluder_behind_the_head_is_hidden(ball: Avatar) -> None:
    occluder = draw_occluder(rng_for("behind"), FRAMES, "microphone")
    path = np.zeros_like(occluder.path)
    path[:, 2] = -12.0
    path[:, 1] = 3.0
    tiny = replace(occluder, vertices=occluder.vertices * 0.05, path=path)
    scene = replace(draw_scene(rng_for("behind"), FRAMES, "plain"), occluder=tiny)
    assert not render(ball, draw_performance(rng_for("b"), speech(0), motion="calm"), scene, 64).occluder.any()


def test_the_body_stays_when_the_head_turns(ball: Avatar) -> None:
    below = (ball.vertices[:, 1] < -0.9).astype(np.float32)
    avatar = replace(ball, head_mask=1 - below)
    motion = np.zeros((51, 3), np.float32)
    motion[25] = (0.0, 0.0, 0.5)
    zeros = np.zeros((51, 52), np.float32)
    performance = Performance(zeros, motion, np.zeros((51, 3), np.float32), zeros)
    turned = render(avatar, performance, draw_scene(rng_for("body"), 51, "plain"), 32)
    shift = np.linalg.norm(turned.landmarks[25] - turned.landmarks[0], axis=1)
    low = avatar.head_mask[avatar.landmarks] == 0
    assert shift[~low].max() > 2
    if low.any():
        assert shift[low].max() < 0.7


def test_changing_light_changes_and_plain_light_does_not(ball: Avatar) -> None:
    zeros = np.zeros((50, 52), np.float32)
    frozen = Performance(zeros, np.zeros((50, 3), np.float32), np.zeros((50, 3), np.float32), zeros)
    plain = render(ball, frozen, draw_scene(rng_for("l"), 50, "plain"), 32).frames
    moving = render(ball, frozen, draw_scene(rng_for("l"), 50, "changing_light"), 32).frames
    assert (plain == plain[:1]).all()
    assert moving.mean((1, 2)).std(0).max() > 4


def test_every_part_has_its_light(ball: Avatar) -> None:
    for part in Part:
        avatar = replace(ball, part=np.full(len(ball.faces), part, np.uint8))
        frame = render(avatar, still(), draw_scene(rng_for("part"), 1, "plain"), 32).frames[0]
        assert frame[16, 16].mean() < 250


def test_lengths_must_agree(ball: Avatar) -> None:
    with pytest.raises(ValueError, match="frames"):
        render(ball, still(), draw_scene(rng_for("x"), 2, "plain"), 32)
