"""Whisper and wav2vec2 as audio encoders: any length, pieces that join, a cache that knows its content."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from torch import Tensor, nn

from model_code.backbones.audio import spans
from model_code.backbones.load import load_audio
from model_code.backbones.published_audio import (
    STEP,
    CachedEncoder,
    JoinedEncoders,
    PublishedEncoder,
    Wav2Vec2Features,
    WhisperFeatures,
    read_audio_encoder,
    read_published,
)
from model_code.config import BackbonesConfig
from model_code.errors import InputError
from tests.published import save_wav2vec2, save_whisper


def noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, count).astype(np.float32)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("published")
    return save_whisper(folder / "whisper"), save_wav2vec2(folder / "wav2vec2")


@pytest.fixture(scope="module")
def whisper(folders: tuple[Path, Path]) -> WhisperFeatures:
    loaded = read_published(folders[0])
    assert isinstance(loaded, WhisperFeatures)
    return loaded


@pytest.fixture(scope="module")
def wav2vec2(folders: tuple[Path, Path]) -> Wav2Vec2Features:
    loaded = read_published(folders[1])
    assert isinstance(loaded, Wav2Vec2Features)
    return loaded


class Near(PublishedEncoder):
    """A feature is the mean of its own samples and its neighbours': what a piece hears beyond these is no matter."""

    context, feature_dim = 50, 1

    def heard(self, samples: np.ndarray) -> Tensor:
        count = -(-len(samples) // STEP)
        assert count <= self.context
        padded = np.pad(samples, (STEP, STEP * (count + 1) - len(samples)))
        return torch.tensor([[padded[STEP * k : STEP * (k + 3)].mean()] for k in range(count)])


@given(st.integers(0, 400 * STEP))
@limits(max_examples=30)
def test_pieces_make_the_whole_at_any_length(count: int) -> None:
    encoder = Near(nn.Linear(1, 1))
    samples = noise(count)
    features = encoder.encode(samples)
    assert features.shape == (-(-count // STEP), 1)
    if count:
        encoder.context = 10**6
        assert np.array_equal(features, encoder.encode(samples))


@given(st.integers(1, 9000), st.integers(1, 1500), st.integers(0, 150))
def test_spans_keep_every_feature_once_and_hear_their_margins(count: int, core: int, margin: int) -> None:
    pieces = list(spans(count, core, margin))
    assert [index for _, start, stop, _ in pieces for index in range(start, stop)] == list(range(count))
    for first, start, stop, last in pieces:
        assert first == max(0, start - margin)
        assert last == min(count, stop + margin)


def test_whisper_gives_its_last_block_before_the_final_norm(whisper: WhisperFeatures) -> None:
    samples = noise(STEP * 50)
    mel = whisper._spectrum(samples, sampling_rate=16_000, max_length=STEP * 50, return_tensors="pt").input_features
    with torch.no_grad():
        normed = whisper.network(mel).last_hidden_state[0]
        ours = torch.from_numpy(whisper.encode(samples))
        assert torch.allclose(whisper.network.layer_norm(ours), normed, atol=1e-5)
    assert not torch.allclose(ours, normed, atol=1e-2)


def test_whisper_reads_any_class_that_was_saved(whisper: WhisperFeatures, tmp_path: Path) -> None:
    from transformers import WhisperModel

    whisper.save_pretrained(tmp_path / "encoder")
    model = WhisperModel(whisper.network.config)
    model.encoder.load_state_dict(whisper.network.state_dict())
    model.save_pretrained(tmp_path / "model")
    wanted = whisper.encode(noise(5000))
    for name in ("encoder", "model"):
        again = read_published(tmp_path / name)
        assert np.allclose(again.encode(noise(5000)), wanted, atol=1e-6)


def test_wav2vec2_has_a_feature_for_every_20_ms(wav2vec2: Wav2Vec2Features) -> None:
    samples = noise(STEP * 12)
    centred = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
    with torch.no_grad():
        wanted = wav2vec2.network(torch.from_numpy(np.pad(centred, 40))[None]).last_hidden_state[0]
    assert wanted.shape == (12, 40)
    assert np.allclose(wav2vec2.encode(samples), wanted.numpy(), atol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 319, 321, STEP * 50, STEP * 50 + 1, STEP * 131 + 7])
def test_both_give_every_length(whisper: WhisperFeatures, wav2vec2: Wav2Vec2Features, count: int) -> None:
    joined = JoinedEncoders([whisper, wav2vec2])
    features = joined.encode(noise(count))
    assert features.shape == (-(-count // STEP), 64)
    assert joined.feature_dim == 64
    assert np.isfinite(features).all()
    assert np.array_equal(features[:, :24], whisper.encode(noise(count)))


def test_long_sound_is_heard_in_pieces_with_a_margin(whisper: WhisperFeatures) -> None:
    """131 features in a context of 50: four pieces of 33, each with 5 more on either side."""
    samples = noise(STEP * 131)
    features = whisper.encode(samples)
    for first, start, stop, last in ((0, 0, 33, 38), (28, 33, 66, 71), (94, 99, 131, 131)):
        alone = whisper.encode(samples[STEP * first : STEP * last])
        assert np.allclose(features[start:stop], alone[start - first : stop - first], atol=1e-5)


def test_features_are_kept_by_content(folders: tuple[Path, Path], tmp_path: Path) -> None:
    config = BackbonesConfig(audio=tuple(map(str, folders)))
    cached = load_audio(config, tmp_path / "features")
    assert isinstance(cached, CachedEncoder)
    wanted = cached.encode(noise(5000))
    assert len(list((tmp_path / "features").iterdir())) == 1
    cached.encoder.encoders[0] = nn.Identity()  # nobody asks it again
    assert np.array_equal(cached.encode(noise(5000)), wanted)
    other = load_audio(config.model_copy(update={"audio": (str(folders[0]),)}), tmp_path / "features")
    assert other.encode(noise(5000)).shape == (16, 24)
    other.encode(noise(5000, seed=1))
    assert len(list((tmp_path / "features").iterdir())) == 3


def test_a_folder_gives_back_the_same_features(folders: tuple[Path, Path], tmp_path: Path) -> None:
    joined = load_audio(BackbonesConfig(audio=("base", *map(str, folders))))
    joined.save_pretrained(tmp_path / "audio")
    again = read_audio_encoder(tmp_path / "audio")
    assert again.feature_dim == 128
    assert np.allclose(again.encode(noise(5000)), joined.encode(noise(5000)), atol=1e-5)


def test_wrong_folders_are_refused_in_a_line(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'/no/such/whisper' is no folder"):
        load_audio(BackbonesConfig(audio=("/no/such/whisper",)))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match=f"'{tmp_path}' holds bert .give whisper or wav2vec2"):
        load_audio(BackbonesConfig(audio=(str(tmp_path),)))
    from safetensors.torch import load_file, save_file

    part = save_whisper(tmp_path / "part")
    state = load_file(part / "model.safetensors")
    del state["model.encoder.conv1.weight"]
    save_file(state, part / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks weights of WhisperModel, or has others: encoder\.conv1\.weight"):
        read_published(part)
    state["model.encoder.conv1.weight"] = torch.zeros(24, 9, 3)
    save_file(state, part / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks weights of WhisperModel, or has others: encoder\.conv1\.weight"):
        read_published(part)
    (part / "model.safetensors").unlink()
    with pytest.raises(InputError, match="holds no whole WhisperModel"):
        read_published(part)
