"""Shards and clip samples on disk."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset

from model_code.errors import InputError
from model_code.media.ingest import shift_audio
from model_code.media.sample import ClipSample, StoredClip, wav_bytes, wav_samples
from model_code.media.shards import MANIFEST, TAR, Shard, ShardWriter


def _sample(clip_id: str, seed: int = 0, occluded: bool = True) -> ClipSample:
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 200, 32, dtype=np.float32)
    frames = np.stack([np.stack([ramp[None] + ramp[:, None] * 0.2 + t] * 3, -1) for t in range(5)]).astype(np.uint8)
    row = {"clip_id": clip_id, "n_frames": 5, "fps": 25, "sample_rate": 16_000, "sync_offset": 0, "speaker_id": "Ánna"}
    return ClipSample(
        clip_id,
        row,
        frames,
        rng.uniform(0, 32, (5, 68, 2)).astype(np.float32),
        rng.random(5).astype(np.float32),
        rng.uniform(-0.5, 0.5, 3200).astype(np.float32),
        rng.uniform(0, 200, (5, 4)).astype(np.float32),
        rng.random((5, 32, 32)) < 0.3 if occluded else None,
    )


def _write(directory: Path, names: list[str]) -> Shard:
    with ShardWriter(directory) as writer:
        for name in names:
            writer.add(name, _sample(name).to_members())
        return writer.commit([_sample(name).row for name in sorted(names)])


def test_samples_come_back(tmp_path: Path) -> None:
    shard = _write(tmp_path / "0000", ["b", "a"])
    assert shard.keys == ["a", "b"]
    assert [row["clip_id"] for row in shard.rows] == ["a", "b"]
    sample, wanted = StoredClip(shard, {"clip_id": "a"}).read(), _sample("a")
    assert sample.row == wanted.row
    assert np.array_equal(sample.landmarks, wanted.landmarks)
    assert np.array_equal(sample.boxes, wanted.boxes)
    assert np.array_equal(sample.confidence, wanted.confidence)
    assert sample.occluder is not None
    assert np.array_equal(sample.occluder, wanted.occluder)
    assert np.abs(sample.audio - wanted.audio).max() < 1e-4
    assert np.abs(sample.frames.astype(int) - wanted.frames).mean() < 2
    assert StoredClip(_write(tmp_path / "1", ["x"]), {"clip_id": "x"}).read().occluder is not None


def test_bytes_depend_on_content_only(tmp_path: Path) -> None:
    first, second = _write(tmp_path / "a", ["x", "y"]), _write(tmp_path / "b", ["y", "x"])
    assert first.tar.read_bytes() == second.tar.read_bytes()
    assert (first.directory / MANIFEST).read_bytes() == (second.directory / MANIFEST).read_bytes()
    with tarfile.open(first.tar) as tar:
        assert all(info.mtime == 0 and info.uid == 0 for info in tar)


def test_no_manifest_no_shard(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "s") as writer:
        writer.add("a", {"row.json": b"{}"})  # and never commits
    assert not list(tmp_path.iterdir()), "nothing is left of a shard that was not committed"
    shard = _write(tmp_path / "s", ["a"])
    (shard.directory / MANIFEST).unlink()
    assert not Shard.exists(shard.directory)
    with pytest.raises(InputError, match="is no shard"):
        Shard(shard.directory)


def test_a_shard_is_replaced_as_a_whole(tmp_path: Path) -> None:
    _write(tmp_path / "s", ["a", "b"])
    shard = _write(tmp_path / "s", ["c"])
    assert shard.keys == ["c"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s"]
    assert sorted(path.name for path in shard.directory.iterdir()) == [MANIFEST, TAR]


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "../a"])
def test_keys_that_would_break_the_tar_are_refused(tmp_path: Path, key: str) -> None:
    with ShardWriter(tmp_path / "s") as writer, pytest.raises(ValueError, match="shard key"):
        writer.add(key, {"x": b""})


def test_keys_are_unique(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "s") as writer:
        writer.add("a", {"x": b""})
        with pytest.raises(ValueError, match="added before"):
            writer.add("a", {"x": b""})


def test_webdataset_reads_the_tar(tmp_path: Path) -> None:
    shard = _write(tmp_path / "s", ["a", "b"])
    samples = list(webdataset.WebDataset(str(shard.tar), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == ["a", "b"]
    assert samples[0]["audio.wav"] == shard.read("a")["audio.wav"]


def test_wav_round_trip() -> None:
    samples = np.array([0.0, 0.5, -1.0, 1.0], np.float32)
    assert np.allclose(wav_samples(wav_bytes(samples)), samples, atol=1e-4)


@pytest.mark.parametrize("offset", [0, 2, -3, 9])
def test_sound_moves_by_frames(offset: int) -> None:
    sample = _sample("a")
    moved = shift_audio(sample, offset)
    lag = offset * 640
    assert len(moved.audio) == len(sample.audio)
    assert moved.row["sync_offset"] == offset
    if 0 < lag < len(sample.audio):
        assert np.array_equal(moved.audio[:-lag], sample.audio[lag:])
    elif lag < 0:
        assert np.array_equal(moved.audio[-lag:], sample.audio[:lag])
    else:
        assert np.array_equal(moved.audio, sample.audio) == (lag == 0)
    assert np.array_equal(shift_audio(sample, 0).audio, sample.audio)
