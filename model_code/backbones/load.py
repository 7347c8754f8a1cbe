"""The one door to the frozen networks of a profile: shipped, or published and named in `BackbonesConfig`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model_code import base
from model_code.backbones.audio import AudioEncoder, SpeechEncoder
from model_code.backbones.clip import ClipVision
from model_code.backbones.codec import LatentCodec, WanCodec
from model_code.backbones.perceptual import PerceptualEncoder
from model_code.backbones.published_audio import CachedEncoder, JoinedEncoders, read_published
from model_code.backbones.sources import local_folder
from model_code.backbones.text import Prompts, encode_prompts
from model_code.config import BASE, BackbonesConfig
from model_code.errors import InputError
from model_code.faces.arcface import ArcFace
from model_code.faces.identity import IdentityEncoder


def load_codec(config: BackbonesConfig) -> Any:
    """The latent codec.

    Raises:
        InputError: The source holds no whole `AutoencoderKLWan`.
    """
    return base.load("codec") if config.codec == BASE else WanCodec.from_pretrained(config.codec)


def load_audio(config: BackbonesConfig, cache: Path | None = None) -> AudioEncoder | JoinedEncoders | CachedEncoder:
    """The audio encoder, or several side by side.

    Args:
        config: Names them.
        cache: Folder in which the features of published encoders are kept; the shipped one is faster than a disk.

    Raises:
        InputError: A source holds neither Whisper nor wav2vec2, or not all of it.
    """
    if config.audio == (BASE,):
        shipped: AudioEncoder = base.load("audio_encoder")
        return shipped
    joined = JoinedEncoders(
        base.load("audio_encoder") if source == BASE else read_published(local_folder(source))
        for source in config.audio
    )
    return joined if cache is None else CachedEncoder(joined, cache)


def load_prompts(config: BackbonesConfig, cache: Path | None = None) -> Prompts | None:
    """The encoded prompt and negative prompt; None where no text encoder is named.

    Raises:
        InputError: The source holds no whole UMT5 with its tokenizer.
    """
    if config.text is None:
        return None
    return encode_prompts(config.text, config.prompt, config.negative_prompt, cache)


def load_identity(config: BackbonesConfig, trained: Path | None) -> IdentityEncoder | ArcFace:
    """The identity critic.

    Args:
        config: Names it.
        trained: Folder of the chain's own encoder.

    Raises:
        InputError: There is no folder of the one that is named, or it holds something else.
    """
    if config.identity != BASE:
        return ArcFace.from_pretrained(local_folder(config.identity), base.load("landmarker"))
    if trained is None:
        raise InputError("the texture phase has no identity encoder", "give the identity worker's output folder")
    return IdentityEncoder.from_pretrained(trained)


def load_perceptual(config: BackbonesConfig) -> PerceptualEncoder | ClipVision:
    """The perceptual critic.

    Raises:
        InputError: The source holds no whole CLIP.
    """
    if config.perceptual != BASE:
        return ClipVision.from_pretrained(local_folder(config.perceptual))
    shipped: PerceptualEncoder = base.load("perceptual").requires_grad_(False)
    return shipped


def check_fit(
    shape: Mapping[str, Any], codec: LatentCodec, audio_encoder: SpeechEncoder, prompts: Prompts | None
) -> None:
    """Raises `InputError` unless the transformer takes what the backbones give.

    Args:
        shape: The config of a `DubbingTransformer`.
        codec: Gives its latents.
        audio_encoder: Gives its audio features.
        prompts: Its text; may be None for any transformer, which then attends to none.
    """
    text = None if prompts is None else prompts.dim
    for name, what, given, remedy in (
        ("in_channels", "latent channels", codec.latent_channels, "backbones.codec"),
        ("audio_dim", "audio features", audio_encoder.feature_dim, "backbones.audio"),
        ("text_dim", "text features", text, "backbones.text"),
    ):
        if given is not None and given != shape[name]:
            raise InputError(
                f"{given} {what} for a transformer that takes {shape[name]}", f"give another {remedy}, or transformer"
            )
