"""A dubbing model from published weights: their transformer beside the backbones that it was trained with."""

from __future__ import annotations

import shutil
from pathlib import Path

from model_code.backbones.codec import WanCodec
from model_code.backbones.load import check_fit, load_audio, load_codec, load_prompts
from model_code.backbones.transformer import DubbingTransformer
from model_code.config import BackbonesConfig
from model_code.dubbing.model import PROMPTS_FILE, DubberConfig
from model_code.errors import InputError
from model_code.files import write_json


def assemble(
    transformer: Path, backbones: BackbonesConfig, config: DubberConfig, folder: Path, cache: Path | None = None
) -> DubberConfig:
    """Writes the folder that `DubbingPipelineModel.from_pretrained` reads, without loading the transformer.

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
    kind = "wan" if isinstance(codec, WanCodec) else "block"
    config = config.model_copy(update={"codec": kind, **backbones.texts})
    folder.mkdir(parents=True, exist_ok=True)
    codec.save_pretrained(folder / "codec")
    audio_encoder.save_pretrained(folder / "audio_encoder")
    if prompts is not None:
        prompts.save(folder / PROMPTS_FILE)
    shutil.copytree(transformer, folder / "transformer")
    write_json(folder / "config.json", config.model_dump(mode="json"))
    return config
