"""Rendered pairs, storage, filters, aspects, relighting and the calibration, on real renderings."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model_code.config import FilterConfig, MediaConfig, PairsConfig
from model_code.faces.identity import IdentityEncoder
from model_code.media.sample import StoredClip
from model_code.media.shards import Shard, ShardWriter
from model_code.metrics.image import polygon_mask, psnr
from model_code.pairs.aspects import ASPECTS, aspects
from model_code.pairs.calibrate import blurred, calibrate, curve, flickering, shaking, write_calibration
from model_code.pairs.filters import decide, judge
from model_code.pairs.generate import choose_clips, composite, driving_clip, driving_sound
from model_code.pairs.pair import SCHEMA, Pair, accepted_pairs
from model_code.pairs.relight import draw_relighting, is_uniformly_lit, relight
from model_code.pairs.rendered import draw_rendered, render_pairs

CONFIG = PairsConfig(rendered_seconds=1.4)


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    return [pair for index in range(2) for pair in render_pairs(draw_rendered("s", index, CONFIG), "s", MediaConfig())]


@pytest.fixture(scope="module")
def identity() -> IdentityEncoder:
    torch.manual_seed(0)
    return IdentityEncoder().eval().requires_grad_(False)


def test_rendered_pairs_differ_in_the_mouth_alone(pairs: list[Pair]) -> None:
    for pair in pairs:
        assert pair.companion.shape == pair.target.frames.shape
        mouths = [
            polygon_mask(each[:, 2:15], 96, dilate=0.3) for each in (pair.target.landmarks, pair.companion_landmarks)
        ]
        eyes = np.zeros(mouths[0].shape, bool)
        low = pair.target.landmarks[:, 36:48, 1].min()
        eyes[:, : int(low)] = True
        assert psnr(pair.target.frames, pair.companion, eyes & ~mouths[0] & ~mouths[1]) > 38
        assert len(pair.target.audio) == len(pair.target.frames) * 640


def test_larger_crops_are_cut_from_larger_renderings(pairs: list[Pair]) -> None:
    config, media = CONFIG.model_copy(update={"rendered_seconds": 0.2}), MediaConfig(crop_size=160)
    large, small = render_pairs(draw_rendered("s", 0, config), "s", media)[0].target, pairs[0].target
    assert large.frames.shape[1:3] == (160, 160)
    sides = [float(np.diff(each.boxes[:, ::2]).mean()) / each.frames.shape[1] for each in (large, small)]
    assert sides[0] == pytest.approx(sides[1], rel=0.05)


def test_both_directions_of_a_rendering_are_pairs(pairs: list[Pair]) -> None:
    first, second = pairs[:2]
    assert np.array_equal(first.companion, second.target.frames)
    assert np.array_equal(second.companion, first.target.frames)
    assert first.row["driving_clip_id"] == second.row["clip_id"]
    assert not np.array_equal(first.target.audio, second.target.audio)


def test_shards_have_heads_of_their_own() -> None:
    seeds = {draw_rendered(shard, index, CONFIG).head_seed for shard in ("a", "b") for index in range(5)}
    assert len(seeds) == 10
    assert draw_rendered("a", 0, CONFIG) == draw_rendered("a", 0, CONFIG)


def test_a_shard_gives_the_accepted_pairs_back(tmp_path: Path, pairs: list[Pair], identity: IdentityEncoder) -> None:
    with ShardWriter(tmp_path / "shard") as writer:
        rows = []
        for index, pair in enumerate(pairs):
            row = judge(pair, identity, FilterConfig(identity_cosine=-1, mouth_distance=0, aspect_mean=0))
            row |= {"accepted": index != 1}
            rows.append({name: row[name] for name in SCHEMA.names})
            writer.add(pair.pair_id, pair.to_members())
        shard = writer.commit(rows, SCHEMA)
    stored = accepted_pairs([shard])
    loaded = [each.read() for each in stored]
    assert [each.pair_id for each in loaded] == [pair.pair_id for i, pair in enumerate(pairs) if i != 1]
    assert [each.clip_id for each in stored] == [each.target.clip_id for each in loaded]
    first = loaded[0]
    assert psnr(first.companion, pairs[0].companion) > 36
    assert psnr(first.target.frames, pairs[0].target.frames) > 36
    assert np.array_equal(first.target.landmarks, pairs[0].target.landmarks)
    assert np.abs(first.target.audio - pairs[0].target.audio).max() < 1e-4
    assert first.target.row["speaker_id"] == pairs[0].row["speaker_id"]


def test_exact_pairs_score_high_and_spoilt_ones_below_four(pairs: list[Pair]) -> None:
    rng = np.random.default_rng(0)
    for pair in pairs[::2]:
        args = (pair.target.frames, pair.target.landmarks)
        good = aspects(pair.companion, *args)
        assert tuple(good) == ASPECTS
        assert np.mean(list(good.values())) > 4.6
        spoilt = {
            "image_fidelity": blurred(pair.companion, 1.2),
            "temporal_stability": flickering(pair.companion, 0.04, rng),
            "motion_smoothness": shaking(pair.companion, 1.2, rng),
        }
        for name, frames in spoilt.items():
            bad = aspects(frames, *args)
            assert bad[name] < good[name] - 0.5, name
            assert np.mean(list(bad.values())) < 4.0, name


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"identity_cosine": 0.5, "mouth_distance": 3.0, "aspect_mean": 5.0}, "identity cosine 0.500 < 0.85"),
        ({"identity_cosine": 0.9, "mouth_distance": 0.2, "aspect_mean": 5.0}, "mouth distance 0.20 < 1.0"),
        ({"identity_cosine": 0.9, "mouth_distance": 3.0, "aspect_mean": 4.0}, "mean aspect 4.00 <= 4.0"),
        ({"identity_cosine": 0.85, "mouth_distance": 1.0, "aspect_mean": 4.1}, ""),
    ],
)
def test_filters_say_why(row: dict[str, float], reason: str) -> None:
    config = FilterConfig(identity_cosine=0.85, mouth_distance=1.0, aspect_mean=4.0)
    judged = decide(row, config)
    assert judged["reasons"] == reason
    assert judged["accepted"] == (not reason)


def test_relighting_is_identical_on_both_and_repeats() -> None:
    frames = np.random.default_rng(0).integers(40, 200, (12, 32, 32, 3), dtype=np.uint8)
    light = draw_relighting(np.random.default_rng(5), 12)
    assert np.array_equal(relight(frames, light), relight(frames.copy(), draw_relighting(np.random.default_rng(5), 12)))
    assert not np.array_equal(relight(frames, light), frames)


def test_static_light_stands_still_and_dynamic_light_moves() -> None:
    grey = np.full((25, 16, 16, 3), 128, np.uint8)
    kinds = set()
    for seed in range(12):
        light = draw_relighting(np.random.default_rng(seed), 25)
        kinds.add(light.kind)
        moved = np.ptp(relight(grey, light).astype(int), axis=0).max()
        assert (moved == 0) == (light.kind == "static")
    assert kinds == {"static", "dynamic"}


def test_side_light_is_not_uniform(pairs: list[Pair]) -> None:
    target = next(p.target for p in pairs if is_uniformly_lit(p.target.frames, p.target.landmarks, 1.0))
    ramp = np.linspace(0.25, 1.6, 96)[None, None, :, None]
    lit = np.clip(target.frames * ramp, 0, 255).astype(np.uint8)
    assert not is_uniformly_lit(lit, target.landmarks)


def test_compositing_keeps_what_is_outside_and_before_the_face(pairs: list[Pair]) -> None:
    target = pairs[0].target
    generated = np.full_like(target.frames, 255)
    occluder = np.zeros(target.frames.shape[:3], bool)
    occluder[:, :, :48] = True
    out = composite(generated, target.frames, target.landmarks, occluder)
    assert np.array_equal(out[:, :4], target.frames[:, :4])
    assert np.array_equal(out[:, :, :40], target.frames[:, :, :40])
    assert not np.array_equal(out, target.frames)


def test_driving_clips_are_of_the_same_speaker(pairs: list[Pair]) -> None:
    clips = [pair.target for pair in pairs]
    driver = driving_clip(clips[0], clips, np.random.default_rng(0))
    assert driver.row["speaker_id"] == clips[0].row["speaker_id"]
    assert driver.clip_id != clips[0].clip_id


def test_a_speaker_with_one_clip_is_driven_by_its_other_half(pairs: list[Pair], tmp_path: Path) -> None:
    samples = [pair.target for pair in pairs[:2]]
    with ShardWriter(tmp_path) as writer:
        for sample in samples:
            writer.add(sample.clip_id, sample.to_members())
        writer.commit([{"clip_id": each.clip_id, "speaker_id": each.row["speaker_id"]} for each in samples])
    shard = Shard(tmp_path)
    clip, other = (StoredClip(shard, row) for row in shard.rows)
    assert driving_clip(clip, [clip], np.random.default_rng(0)) is clip
    half = len(clip.sound()) // 2
    sound = driving_sound(clip, clip)
    assert np.array_equal(sound[:half], clip.sound()[-half:])
    assert np.array_equal(sound[half:], clip.sound()[: len(sound) - half])
    assert np.array_equal(driving_sound(clip, other), other.sound())


def test_the_choice_of_clips_depends_on_the_shard(pairs: list[Pair]) -> None:
    clips = [replace(pairs[0].target, clip_id=f"c{index}") for index in range(12)]
    chosen = [
        tuple(c.clip_id for c, _ in choose_clips(clips, 0.5, 1, name, "generated", 0)) for name in ("a", "a", "b")
    ]
    assert chosen[0] == chosen[1] != chosen[2]
    assert len(chosen[0]) == 6


def test_the_threshold_falls_into_the_gap() -> None:
    one = curve([2.0, 3.0, 4.0], {"bad": [0.0, 1.0]})
    assert one.threshold == 1.5
    assert one.kept == 1.0
    assert one.rejected == {"bad": 1.0}


def test_calibration_bites(tmp_path: Path, pairs: list[Pair], identity: IdentityEncoder) -> None:
    curves = calibrate(pairs, identity)
    assert curves["mouth_distance"].rejected["own mouth 40 ms late"] >= 0.75
    assert curves["aspect_mean"].kept == 1.0
    assert min(curves["aspect_mean"].rejected.values()) >= 0.5
    value = write_calibration(curves, FilterConfig(), tmp_path)
    assert value["mouth_distance"]["in_force"] == FilterConfig().mouth_distance
    assert (tmp_path / "calibration.png").stat().st_size > 5000
