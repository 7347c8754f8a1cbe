"""Windows put together from tracks, batches by (seed, step), the cache."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model_code.backbones.audio import AudioEncoder, AudioEncoderConfig
from model_code.backbones.codec import BlockCodec, BlockCodecConfig, WanCodec
from model_code.media.sample import ClipSample
from model_code.seeding import rng_for
from model_code.training.data import (
    SINGLES_AT_ONCE,
    CachedClip,
    ClipEncoder,
    EncodedClip,
    LatentTrack,
    TrainingSet,
    encode_track,
    latent_length,
    mask_track,
    masked_frames,
    to_frames,
    to_network,
)
from tests.published import save_vae


def random_track(channels: int, blocks: int, seed: int) -> LatentTrack:
    generator = torch.Generator().manual_seed(seed)
    return LatentTrack(
        torch.randn(channels, blocks + 1, 4, 4, generator=generator).half(),
        torch.randn(channels, blocks, 4, 4, generator=generator).half(),
    )


def random_clip(number: int, blocks: int = 9) -> EncodedClip:
    names = {"target": 6, "masked": 6, "face": 1, "lip": 1}
    tracks = {name: random_track(count, blocks, number * 10 + i) for i, (name, count) in enumerate(names.items())}
    audio = torch.randn(2 * (4 * blocks + 1), 8, generator=torch.Generator().manual_seed(number)).half()
    return EncodedClip(f"clip{number}", f"speaker{number // 2}", tracks, audio)


@pytest.fixture
def video() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (31, 32, 32, 3), dtype=np.uint8)


def test_frames_survive_the_networks_range(video: np.ndarray) -> None:
    assert np.array_equal(to_frames(to_network(video)), video)


@pytest.mark.parametrize(("frames", "latents"), [(1, 1), (5, 2), (25, 7), (77, 20)])
def test_latent_length(frames: int, latents: int) -> None:
    assert latent_length(frames) == latents


def test_latent_length_refuses_other_numbers() -> None:
    with pytest.raises(ValueError, match="not 24"):
        latent_length(24)


@pytest.mark.parametrize("start", [0, 1, 3])
def test_a_window_of_the_track_is_the_encoding_of_the_window(video: np.ndarray, start: int) -> None:
    codec = BlockCodec(BlockCodecConfig(channels=12, refiner_width=8, refiner_blocks=1))
    codec.fit(torch.randn(2000, 768, generator=torch.Generator().manual_seed(0)))
    track = encode_track(video, codec)
    direct = codec.encode(to_network(video[4 * start : 4 * start + 13])[None])[0]
    assert track.n_blocks == 7
    assert torch.allclose(track.window(start, 4), direct, atol=5e-3)


@pytest.mark.parametrize("start", [0, 1, 4, 8])
def test_a_window_of_wans_track_remembers_the_frames_before_it(start: int, tmp_path: Path) -> None:
    """What docs/numerics.md says of it: the first latent frame is the window's own, the blocks after it are not."""
    codec = WanCodec.from_pretrained(save_vae(tmp_path))
    times, (rows, columns) = np.arange(77)[:, None, None], np.mgrid[:32, :32]
    waves = [np.sin(columns / (5 + 3 * c) + rows / (7 + 2 * c) + times / 4) for c in range(3)]
    video = (127 + 90 * np.stack(waves, -1)).astype(np.uint8)
    own = codec.encode(to_network(video[4 * start : 4 * start + 37])[None])[0]
    squared = (encode_track(video, codec).window(start, 10) - own).square()
    apart = (squared.mean((0, 2, 3)).sqrt() / own.std()).numpy()
    assert apart[0] < 1e-3
    if start == 0:
        assert apart.max() < 1e-3
    else:
        assert 0.5 < apart[1] < 0.9
        assert 0.1 < apart[9] < 0.3


def test_single_frames_are_encoded_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = BlockCodec(BlockCodecConfig(channels=12, refiner_width=8, refiner_blocks=1))
    long = np.random.default_rng(0).integers(0, 256, (4 * SINGLES_AT_ONCE + 9, 16, 16, 3), dtype=np.uint8)
    batches, encode_it = list[int](), codec.encode

    def watched(video: torch.Tensor) -> torch.Tensor:
        batches.append(len(video))
        return encode_it(video)

    monkeypatch.setattr(codec, "encode", watched)
    track = encode_track(long, codec)
    assert batches == [1, SINGLES_AT_ONCE, 3]
    at_once = encode_it(to_network(long[::4]).permute(1, 0, 2, 3)[:, :, None])
    assert torch.equal(track.singles, at_once[:, :, 0].permute(1, 0, 2, 3).half())


def test_mask_track_averages_cells_and_groups() -> None:
    mask = np.zeros((9, 32, 32), bool)
    mask[3:5, :8, :8] = True
    track = mask_track(mask, (4, 4))
    assert track.blocks[0, 0, 0, 0] == 0.5
    assert track.blocks[0, 1].abs().sum() == 0
    assert track.singles[0, 1, 0, 0] == 1.0


def test_masked_frames_paint_grey_where_nothing_is_kept(video: np.ndarray) -> None:
    keep = np.ones(video.shape[:3], bool)
    keep[:, 8:, :] = False
    out = masked_frames(video, keep)
    assert np.array_equal(out[:, :8], video[:, :8])
    assert (out[:, 8:] == 128).all()
    filled = masked_frames(video, keep, video[::-1])
    assert np.array_equal(filled[:, :8], video[:, :8])
    assert np.array_equal(filled[:, 8:], video[::-1, 8:])


def test_batches_depend_on_seed_and_step_alone() -> None:
    data = TrainingSet([random_clip(i) for i in range(5)], 25, 16)
    first, again, other = data.batch(3, 7, 4), data.batch(3, 7, 4), data.batch(3, 8, 4)
    assert first.clip_ids == again.clip_ids
    assert torch.equal(first.target, again.target)
    assert not torch.equal(first.target, other.target)
    assert first.target.shape == (4, 6, 7, 4, 4)
    assert first.audio.shape == (4, 7, 16, 8)
    assert first.features.shape == (4, 50, 8)
    assert first.reference.shape == (4, 6, 1, 4, 4)


def test_an_epoch_shows_every_clip_once() -> None:
    data = TrainingSet([random_clip(i) for i in range(6)], 25, 16)
    seen = [name for step in range(3) for name in data.batch(0, step, 2).clip_ids]
    assert sorted(seen) == [f"clip{i}" for i in range(6)]


def test_an_epochs_order_is_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A permutation of a large set for every sample would cost more than the sample."""
    data, drawn = TrainingSet([random_clip(i) for i in range(5)], 25, 16), []

    def counted(*parts: object) -> np.random.Generator:
        drawn.append(parts)
        return rng_for(*parts)

    monkeypatch.setattr("model_code.training.data.rng_for", counted)
    seen = [name for step in range(5) for name in data.batch(3, step, 3).clip_ids]
    orders = [rng_for("epoch", 3, epoch).permutation(5) for epoch in range(3)]
    assert seen == [f"clip{i}" for i in np.concatenate(orders)]
    assert [parts for parts in drawn if parts[0] == "epoch"] == [("epoch", 3, epoch) for epoch in range(3)]
    another = [rng_for("epoch", 4, epoch).permutation(5) for epoch in range(3)]
    assert data.batch(4, 4, 3).clip_ids == tuple(f"clip{i}" for i in another[2][2:])
    assert data.batch(3, 0, 3).clip_ids == tuple(seen[:3])


def test_the_reference_comes_from_another_segment() -> None:
    clip = random_clip(0, blocks=12)
    data = TrainingSet([clip], 25, 16)
    for step in range(20):
        batch = data.batch(0, step, 1)
        singles = clip.tracks["target"].singles.float()
        place = next(k for k in range(13) if torch.equal(singles[:, k : k + 1], batch.reference[0]))
        start = next(k for k in range(13) if torch.equal(singles[:, k], batch.target[0, :, 0]))
        assert place < start or place >= start + 7


@pytest.mark.parametrize("fill", [0, 17, 30, 48])
def test_no_window_holds_the_frame_that_fills_its_hole(fill: int) -> None:
    clip = replace(random_clip(0, blocks=12), fill=fill)
    singles, starts = clip.tracks["target"].singles.float(), set()
    for step in range(40):
        target = TrainingSet([clip], 25, 16).batch(0, step, 1).target
        starts.add(next(k for k in range(13) if torch.equal(singles[:, k], target[0, :, 0])))
    assert starts == {k for k in range(7) if not 4 * k <= fill <= 4 * k + 24}
    everywhere = TrainingSet([replace(random_clip(0, blocks=6), fill=12)], 25, 16)
    assert everywhere.batch(0, 0, 1).target.shape[2] == 7, "a clip of one window has no other frame"


def test_short_clips_are_left_out_and_none_left_is_an_error() -> None:
    assert len(TrainingSet([random_clip(0, 9), random_clip(1, 4)], 25, 16)) == 1
    with pytest.raises(ValueError, match="no clip has 25 frames"):
        TrainingSet([random_clip(1, 4)], 25, 16)


def test_the_cache_gives_back_what_was_encoded_and_knows_the_companion(tmp_path: Path, video: np.ndarray) -> None:
    codec = BlockCodec(BlockCodecConfig(channels=12, refiner_width=8, refiner_blocks=1))
    encoder = ClipEncoder(codec, AudioEncoder(AudioEncoderConfig(width=16, features=8)).eval(), "reference", tmp_path)
    landmarks = np.random.default_rng(1).uniform(6, 26, (31, 68, 2)).astype(np.float32)
    sound = np.random.default_rng(2).normal(0, 0.1, 31 * 640).astype(np.float32)
    boxes = np.zeros((31, 4), np.float32)
    clip = ClipSample("a", {"speaker_id": "s"}, video, landmarks, np.ones(31, np.float32), sound, boxes)
    stored = encoder.encode(clip)
    assert stored == encoder.encode(clip)
    first, second = stored.load(), encoder.encode(clip).load()
    assert stored.n_blocks == first.n_blocks == 7
    name = encoder.name("a", "another content", masked=False)
    encoder.write(name, clip, video[::-1].copy(), masked=False)
    pair = CachedClip("a", "s", encoder.path(name)).load()
    assert encoder.encode(clip, video[::-1].copy()).path != stored.path
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    assert set(first.tracks) == {"target", "masked", "face", "lip"}
    assert set(pair.tracks) == {"target", "companion", "face", "lip"}
    for name, track in first.tracks.items():
        assert torch.equal(track.blocks, second.tracks[name].blocks)
