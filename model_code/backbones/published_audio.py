"""Published audio encoders at 50 Hz: Whisper's and wav2vec2's, alone or concatenated, with a cache on disk.

The paper hears with Whisper, the release with Whisper large-v2 and wav2vec2-base-960h side by side (1280 + 768 wide).
The release cuts long sound into hard pieces of 30 s, and glitches there. Here pieces overlap; only their middles are
kept.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from torch import Tensor, nn

from model_code.backbones.audio import FEATURE_RATE, AudioEncoder, SpeechEncoder, spans
from model_code.backbones.saved import fingerprint, write_tensors
from model_code.backbones.sources import config_of, load_whole
from model_code.errors import InputError
from model_code.files import read_json, write_json
from model_code.media.audio import Sound, samples_of

Floats = NDArray[np.float32]

SAMPLE_RATE = 16_000
STEP = SAMPLE_RATE // FEATURE_RATE
"""Samples of a feature."""
CACHE_VERSION = 1


class PublishedEncoder(nn.Module):
    """A transformer of transformers that hears at most `context` features at once.

    Args:
        network: The encoder, from `from_pretrained` or a random one in tests.
    """

    model_type: ClassVar[str]
    context: int
    feature_dim: int

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    @abstractmethod
    def heard(self, samples: Floats) -> Tensor:
        """(at least ceil(N / 320), feature_dim) of one piece (N,), N <= 320 `context`."""

    def prepared(self, samples: Floats) -> Floats:
        """The whole sound as the network wants it, before it is cut into pieces."""
        return samples

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    @torch.no_grad()
    def encode(self, sound: Sound, length: int | None = None) -> Floats:
        """Features (ceil(N / 320), feature_dim) of `sound` (N,) at 16 kHz; N is `length` where that is given.

        Sound within the network's context is heard as a whole. Longer sound is cut into equal pieces, each heard with a
        tenth of the context on either side, whose features are not kept.
        """
        samples = self.prepared(samples_of(sound, length))
        count = -(-len(samples) // STEP)
        margin = self.context // 10
        core = self.context
        if count > core:
            pieces = -(-count // (self.context - 2 * margin))
            core = -(-count // pieces)
        parts = [np.zeros((0, self.feature_dim), np.float32)]
        for first, start, stop, last in spans(count, core, margin if count > self.context else 0):
            features = self.heard(samples[STEP * first : STEP * last])
            parts.append(features[start - first : stop - first].float().cpu().numpy())
        return np.concatenate(parts)

    def save_pretrained(self, folder: Path | str) -> None:
        """Writes the encoder as transformers does."""
        self.network.save_pretrained(str(folder))


class WhisperFeatures(PublishedEncoder):
    """Whisper's encoder: the last block's output before the final norm (release), in pieces of at most 30 s."""

    model_type = "whisper"

    def __init__(self, network: Any) -> None:
        from transformers import WhisperFeatureExtractor

        super().__init__(network)
        self.context = int(network.config.max_source_positions)
        self.feature_dim = int(network.config.d_model)
        self._spectrum = WhisperFeatureExtractor(feature_size=network.config.num_mel_bins)

    def heard(self, samples: Floats) -> Tensor:
        """One piece, followed by silence up to the length that Whisper knows."""
        mel = self._spectrum(
            samples, sampling_rate=SAMPLE_RATE, max_length=self.context * STEP, return_tensors="pt"
        ).input_features
        before: list[Tensor] = []
        hook = self.network.layer_norm.register_forward_pre_hook(lambda _, inputs: before.append(inputs[0]))
        try:
            self.network(mel.to(self.device))
        finally:
            hook.remove()
        return before[0][0]

    @classmethod
    def from_pretrained(cls, folder: Path) -> WhisperFeatures:
        """Reads the encoder of a Whisper folder, whichever class was saved there."""
        from transformers import WhisperModel
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        if read_json(folder / "config.json").get("architectures") == ["WhisperEncoder"]:
            return cls(load_whole(WhisperEncoder, folder))
        return cls(load_whole(WhisperModel, folder).encoder)


class Wav2Vec2Features(PublishedEncoder):
    """wav2vec2's last hidden state.

    Its convolutions need 400 samples for a first feature, and 320 more for each further one. 40 zeros on either side
    make one feature of every 320 samples, in their middle (how the release fills the missing one is not told). Sound
    is brought to zero mean and unit variance as a whole; pieces have 30 s at most, since attention is quadratic.
    """

    model_type = "wav2vec2"

    def __init__(self, network: Any) -> None:
        super().__init__(network)
        self.context = 30 * FEATURE_RATE
        self.feature_dim = int(network.config.hidden_size)

    def prepared(self, samples: Floats) -> Floats:
        """Zero mean, unit variance."""
        if not len(samples):
            return samples
        return ((samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)).astype(np.float32)

    def heard(self, samples: Floats) -> Tensor:
        """One piece, followed by zeros up to a whole feature."""
        missing = -len(samples) % STEP
        padded = torch.from_numpy(np.pad(samples, (40, 40 + missing)))
        features: Tensor = self.network(padded[None].to(self.device)).last_hidden_state[0]
        return features

    @classmethod
    def from_pretrained(cls, folder: Path) -> Wav2Vec2Features:
        """Reads a wav2vec2 folder, with a head or without."""
        from transformers import Wav2Vec2Model

        return cls(load_whole(Wav2Vec2Model, folder, spare="masked_spec_embed"))


PUBLISHED: dict[str, type[WhisperFeatures] | type[Wav2Vec2Features]] = {
    kind.model_type: kind for kind in (WhisperFeatures, Wav2Vec2Features)
}


def read_published(folder: Path) -> PublishedEncoder:
    """The Whisper or wav2vec2 of a folder.

    Raises:
        InputError: It holds neither, or not all of it.
    """
    config = config_of(folder, "model_type", *PUBLISHED)
    return PUBLISHED[config["model_type"]].from_pretrained(folder)


class JoinedEncoders(nn.Module):
    """Several encoders side by side: their features, concatenated.

    Args:
        encoders: In the order of the concatenation.
    """

    def __init__(self, encoders: Iterable[nn.Module]) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(encoders)

    @property
    def _each(self) -> list[SpeechEncoder]:
        return [cast(SpeechEncoder, encoder) for encoder in self.encoders]

    @property
    def feature_dim(self) -> int:
        """Width of the concatenation."""
        return sum(encoder.feature_dim for encoder in self._each)

    def encode(self, sound: Sound, length: int | None = None) -> Floats:
        """Features (ceil(N / 320), feature_dim) of `sound` (N,) at 16 kHz; N is `length` where that is given."""
        return np.concatenate([encoder.encode(sound, length) for encoder in self._each], axis=1)

    def save_pretrained(self, folder: Path | str) -> None:
        """Writes each into a folder of its number, and config.json last."""
        for index, encoder in enumerate(self._each):
            encoder.save_pretrained(Path(folder) / str(index))
        write_json(Path(folder) / "config.json", {"encoders": len(self.encoders)})

    @classmethod
    def from_pretrained(cls, folder: Path) -> JoinedEncoders:
        """Reads what `save_pretrained` wrote."""
        count = read_json(folder / "config.json")["encoders"]
        return cls(_read_one(folder / str(index)) for index in range(count))


def _read_one(folder: Path) -> nn.Module:
    published = "model_type" in read_json(folder / "config.json")
    return read_published(folder) if published else AudioEncoder.from_pretrained(folder)


def read_audio_encoder(folder: Path) -> AudioEncoder | JoinedEncoders:
    """The audio encoder of a dubbing model's folder.

    Raises:
        InputError: There is none.
    """
    if not (folder / "config.json").is_file():
        raise InputError(f"'{folder}' holds no audio encoder", "restore the model's folder")
    kind = JoinedEncoders if "encoders" in read_json(folder / "config.json") else AudioEncoder
    return kind.from_pretrained(folder)


class CachedEncoder(nn.Module):
    """Another encoder, whose features are kept on disk by the hash of the sound and of the encoder's weights.

    Args:
        encoder: Asked where nothing is kept.
        folder: Of the cache; processes may share it.
    """

    def __init__(self, encoder: JoinedEncoders, folder: Path) -> None:
        super().__init__()
        self.encoder, self.folder = encoder, folder

    @cached_property
    def _identity(self) -> str:
        """Hashed when the first sound is heard: who only saves the encoder need not wait for it."""
        return fingerprint(self.encoder)

    @property
    def feature_dim(self) -> int:
        """Width of the features."""
        return self.encoder.feature_dim

    def encode(self, sound: Sound, length: int | None = None) -> Floats:
        """As the encoder's."""
        samples = np.ascontiguousarray(samples_of(sound, length))
        digest = hashlib.sha256(f"{CACHE_VERSION} {self._identity} ".encode())
        digest.update(samples.tobytes())
        path = self.folder / f"{digest.hexdigest()[:32]}.safetensors"
        if path.is_file():
            return load_file(path)["features"]
        features = self.encoder.encode(samples)
        write_tensors(path, {"features": torch.from_numpy(np.ascontiguousarray(features))})
        return features

    def save_pretrained(self, folder: Path | str) -> None:
        """Writes the encoder, not what is kept."""
        self.encoder.save_pretrained(folder)
