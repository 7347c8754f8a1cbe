"""A dubbing model put together: a transformer beside the backbones that it was trained with."""

from __future__ import annotations

import shutil
from pathlib import Path

from model_code.backbones.codec import LatentCodec, WanCodec
from model_code.backbones.load import check_fit, load_audio, load_codec, load_prompts
from model_code.backbones.transformer import DubbingTransformer
from model_code.config import BackbonesConfig, FlowConfig, MediaConfig, WindowConfig
from model_code.dubbing.model import PROMPTS_FILE, DubberConfig, DubbingPipelineModel, Mode, load_transformer
from model_code.errors import InputError
from model_code.files import write_json


def on_backbones(
    config: DubberConfig, backbones: BackbonesConfig, transformer: DubbingTransformer, cache: Path | None = None
) -> DubbingPipelineModel:
    """A model in memory.

    Args:
        config: How it dubs; codec and texts are filled in from the backbones.
        backbones: What the transformer sees, hears and reads through.
        transformer: With the config's experts.
        cache: Folder of published encoders' features and texts.

    Raises:
        InputError: A backbone is missing or not whole, or its numbers are not those that the transformer takes.
    """
    codec = load_codec(backbones)
    audio_encoder, prompts = load_audio(backbones, cache), load_prompts(backbones, cache)
    return DubbingPipelineModel(_filled_in(config, backbones, codec), codec, audio_encoder, transformer, prompts)


def without_experts(
    mode: Mode,
    transformer: Path,
    backbones: BackbonesConfig,
    flow: FlowConfig,
    media: MediaConfig,
    window: WindowConfig,
    cache: Path | None = None,
) -> DubbingPipelineModel:
    """As `on_backbones`, of a transformer that lies in a folder and samples as it was trained, alone."""
    config = DubberConfig(
        mode=mode,
        flow=flow,
        crop_size=media.crop_size,
        window_frames=window.clip_frames,
        overlap_frames=window.motion_frames,
    )
    return on_backbones(config, backbones, load_transformer(transformer), cache)


def _filled_in(config: DubberConfig, backbones: BackbonesConfig, codec: LatentCodec) -> DubberConfig:
    kind = "wan" if isinstance(codec, WanCodec) else "block"
    return config.model_copy(update={"codec": kind, **backbones.texts})


def assemble(
    transformer: Path, backbones: BackbonesConfig, config: DubberConfig, folder: Path, cache: Path | None = None
) -> DubberConfig:
    """Writes published weights as the folder that `DubbingPipelineModel.from_pretrained` reads; loads no transformer.

    Args:
        transformer: Folder of the converted weights.
        backbones: What the transformer sees, hears and reads through.
        config: How it dubs; codec and texts are filled in from the backbones.
        folder: Of the model; config.json is written last.
        cache: Folder of encoded texts.

    Returns:
        The settings that the model has.

    Raises:
        InputError: A backbone is missing or not whole, or its numbers are not those that the transformer takes.
    """
    if not (transformer / "config.json").is_file():
        raise InputError(f"'{transformer}' holds no transformer", "import the weights again")
    codec, audio_encoder = load_codec(backbones), load_audio(backbones)
    prompts = load_prompts(backbones, cache)
    shape = DubbingTransformer.load_config(str(transformer))
    check_fit(shape, codec, audio_encoder, prompts)
    if shape["text_dim"] is not None and prompts is None:
        raise InputError("a transformer that reads, and no text encoder", "name one in backbones.text")
    if config.crop_size % (codec.spatial_factor * shape["patch_size"][1]):
        raise InputError(
            f"crops of {config.crop_size} px",
            f"give media.crop_size a multiple of {codec.spatial_factor * shape['patch_size'][1]}",
        )
    config = _filled_in(config, backbones, codec)
    folder.mkdir(parents=True, exist_ok=True)
    codec.save_pretrained(folder / "codec")
    audio_encoder.save_pretrained(folder / "audio_encoder")
    if prompts is not None:
        prompts.save(folder / PROMPTS_FILE)
    shutil.copytree(transformer, folder / "transformer")
    write_json(folder / "config.json", config.model_dump(mode="json"))
    return config
