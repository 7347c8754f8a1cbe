"""Tiny random networks of the published classes, saved as their publishers save them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn


def _seeded(network: nn.Module, folder: Path) -> Path:
    """Weights that a deviation of 0.02 would leave without effect, and a folder of them."""
    generator = torch.Generator().manual_seed(0)
    for value in network.parameters():
        if value.ndim > 1:
            nn.init.normal_(value, std=0.3, generator=generator)
    network.save_pretrained(folder)  # type: ignore[operator]
    return folder


def save_whisper(folder: Path, width: int = 24, positions: int = 50) -> Path:
    """A whole Whisper, decoder included, that hears `positions` features at once."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        vocab_size=20,
        num_mel_bins=8,
        d_model=width,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=32,
        max_source_positions=positions,
        max_target_positions=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    return _seeded(WhisperForConditionalGeneration(config), folder)


def save_wav2vec2(folder: Path, width: int = 40) -> Path:
    """A wav2vec2 with its head for characters, as the release's: without the weight that only its training asks for."""
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    config = Wav2Vec2Config(
        vocab_size=20,
        hidden_size=width,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
    )
    model = Wav2Vec2ForCTC(config)
    del model.wav2vec2.masked_spec_embed
    return _seeded(model, folder)


def save_umt5(folder: Path, width: int = 32) -> Path:
    """`text_encoder` and `tokenizer` of a Wan pipeline; the tokenizer knows a few words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    words = Tokenizer(
        WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "person": 4, "speaks": 5, "blur": 6}, "<unk>")
    )
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder / "tokenizer")
    config = UMT5Config(vocab_size=8, d_model=width, d_kv=8, d_ff=48, num_layers=1, num_heads=2)
    _seeded(UMT5EncoderModel(config), folder / "text_encoder")
    return folder


def save_vae(folder: Path, channels: int = 8) -> Path:
    """`vae` of a Wan pipeline, 8x in space and 4x in time."""
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    vae = AutoencoderKLWan(
        base_dim=8,
        z_dim=channels,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1] * channels,
        latents_std=[0.5] * channels,
    )
    vae.save_pretrained(folder / "vae")
    return folder


def save_clip(folder: Path) -> Path:
    """A whole CLIP, text tower included."""
    from transformers import CLIPConfig, CLIPModel

    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**tower, "vocab_size": 20, "max_position_embeddings": 8},
        vision_config={**tower, "image_size": 32, "patch_size": 8, "projection_dim": 12},
        projection_dim=12,
    )
    return _seeded(CLIPModel(config), folder)
