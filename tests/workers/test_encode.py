"""Latents are found again by the bytes of what they were made of, and shared by the processes that make them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model_code.backbones.audio import AudioEncoder, AudioEncoderConfig
from model_code.backbones.codec import BlockCodec, BlockCodecConfig
from model_code.config import MediaConfig, PairsConfig
from model_code.media import sample
from model_code.media.sample import StoredClip
from model_code.media.shards import ShardWriter
from model_code.pairs import pair as pairs
from model_code.pairs.pair import Pair, StoredPair
from model_code.pairs.rendered import draw_rendered, render_pairs
from model_code.training.data import CachedClip, ClipEncoder
from model_code.training.parallel import ALONE, Team, team
from model_code.workers.run import in_silence
from model_code.workers.train import Source, encode


@pytest.fixture(scope="module")
def made() -> list[Pair]:
    config = PairsConfig(rendered_seconds=1.3)
    return [pair for index in range(2) for pair in render_pairs(draw_rendered("w", index, config), "w", MediaConfig())]


def clips_of(made: list[Pair], folder: Path) -> list[Source]:
    """Three clips: two processes cannot share them evenly."""
    with ShardWriter(folder) as writer:
        for pair in made[:3]:
            writer.add(pair.target.clip_id, pair.target.to_members())
        shard = writer.commit([pair.target.row for pair in made[:3]])
    return [StoredClip(shard, row) for row in shard.rows]


def pairs_of(made: list[Pair], folder: Path) -> list[Source]:
    """Two pairs."""
    with ShardWriter(folder) as writer:
        for pair in made[:2]:
            writer.add(pair.pair_id, pair.to_members())
        shard = writer.commit([pair.row for pair in made[:2]])
    return [StoredPair(shard, row) for row in shard.rows]


def encoded(sources: list[Source], folder: Path, own: Team = ALONE) -> list[CachedClip]:
    """By small networks that are the same in every process."""
    torch.manual_seed(0)
    codec = BlockCodec(BlockCodecConfig(channels=12, refiner_width=8, refiner_blocks=1))
    audio_encoder = AudioEncoder(AudioEncoderConfig(width=16)).eval()
    return encode(sources, ClipEncoder(codec, audio_encoder, "reference", folder), own, in_silence)


@pytest.mark.parametrize("stored", [clips_of, pairs_of])
def test_only_what_changed_is_decoded_again(
    stored: Callable[[list[Pair], Path], list[Source]],
    made: list[Pair],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = encoded(stored(made, tmp_path / "0000"), tmp_path / "latents")
    decoded: list[bytes] = []
    for module in (sample, pairs):
        decode = module.from_mp4_bytes
        monkeypatch.setattr(module, "from_mp4_bytes", lambda data, decode=decode: decoded.append(data) or decode(data))
    assert encoded(stored(made, tmp_path / "elsewhere"), tmp_path / "latents") == first
    assert not decoded
    other = [*made]
    other[1] = replace(made[1], target=replace(made[1].target, audio=made[1].target.audio[::-1].copy()))
    again = encoded(stored(other, tmp_path / "0000"), tmp_path / "latents")
    assert [old.path == new.path for old, new in zip(first, again, strict=True)] == [i != 1 for i in range(len(first))]
    assert len(decoded) == (1 if stored is clips_of else 2)
    assert not torch.equal(again[1].load().audio, first[1].load().audio)


def encoded_together(sources: list[Source], own: Team) -> list[CachedClip]:
    """What each of the processes does."""
    return encoded(sources, sources[0].shard.directory.parent / "together", own)


def test_each_process_makes_its_part_and_knows_all(
    made: list[Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = clips_of(made, tmp_path / "0000")
    alone = encoded(sources, tmp_path / "alone")
    read: list[str] = []
    with team(2, "replicated", "cpu", encoded_together, sources, tmp_path / "team") as own:
        content = StoredClip.content
        monkeypatch.setattr(StoredClip, "content", lambda clip: read.append(clip.clip_id) or content(clip))
        together = encoded_together(sources, own)
    assert read == [sources[0].clip_id, sources[2].clip_id]
    assert [clip.clip_id for clip in together] == [clip.clip_id for clip in alone]
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one.load().tracks["masked"].blocks, other.load().tracks["masked"].blocks)
