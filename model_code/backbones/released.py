"""Weights that others published, as a `DubbingTransformer`: X-Dub's checkpoint, or Wan2.2 as a warm start.

Headers are checked before any weight is read: a wrong or partial file names what it lacks at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from model_code.backbones.attention import EPS, Attention, AudioProjection
from model_code.backbones.block import DubbingBlock
from model_code.backbones.presets import PRESETS
from model_code.backbones.transformer import DubbingTransformer, start_xavier
from model_code.config import TransformerConfig
from model_code.errors import InputError
from model_code.files import read_json

Kind = Literal["xdub", "wan"]
RELEASE = PRESETS["xdub-wan-5b"]
WEIGHTS = "diffusion_pytorch_model.safetensors"
SHOWN = 8
"""Keys that an error lists; it counts the others."""

# Wan's names in diffusers -> ours, which are the released checkpoint's (and Wan's original) names.
WAN_OUTER = {
    "patch_embedding": "patch_embedding",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "proj_out": "head.head",
}
WAN_BLOCK = {
    "attn1.to_q": "self_attn.q",
    "attn1.to_k": "self_attn.k",
    "attn1.to_v": "self_attn.v",
    "attn1.to_out.0": "self_attn.o",
    "attn1.norm_q": "self_attn.norm_q",
    "attn1.norm_k": "self_attn.norm_k",
    "attn2.to_q": "cross_attn.q",
    "attn2.to_k": "cross_attn.k",
    "attn2.to_v": "cross_attn.v",
    "attn2.to_out.0": "cross_attn.o",
    "attn2.norm_q": "cross_attn.norm_q",
    "attn2.norm_k": "cross_attn.norm_k",
    "norm2": "norm3",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
}
WAN_FIXED = {
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "eps": EPS,
    "image_dim": None,
    "added_kv_proj_dim": None,
}
"""What has to hold of a Wan model for its blocks to be ours."""


def wan_names(num_layers: int) -> dict[str, str]:
    """Every key of diffusers' `WanTransformer3DModel` -> our key."""
    names = {"scale_shift_table": "head.modulation"}
    pairs = list(WAN_OUTER.items())
    for index in range(num_layers):
        names[f"blocks.{index}.scale_shift_table"] = f"blocks.{index}.modulation"
        pairs += [(f"blocks.{index}.{theirs}", f"blocks.{index}.{ours}") for theirs, ours in WAN_BLOCK.items()]
    for theirs, ours in pairs:
        names[f"{theirs}.weight"] = f"{ours}.weight"
        if "norm_" not in theirs:  # RMS norms have no bias
            names[f"{theirs}.bias"] = f"{ours}.bias"
    return names


@dataclass(frozen=True)
class Published:
    """Weights found at a path, their headers checked.

    Attributes:
        kind: xdub: the released checkpoint; wan: Wan2.2 in diffusers' form, without the parts that sound needs.
        config: The transformer that they make.
        files: The safetensors that hold them.
        names: Their keys -> ours.
    """

    kind: Kind
    config: TransformerConfig
    files: tuple[Path, ...]
    names: Mapping[str, str]

    def load(self) -> DubbingTransformer:
        """The transformer in the files' precision; parts that they lack are new: Wan's model hears nothing yet."""
        with torch.device("meta"):
            model = DubbingTransformer.build(self.config)
        for file in self.files:
            with safe_open(file, framework="pt") as weights:
                state = {self.names[key]: weights.get_tensor(key) for key in weights.keys()}  # noqa: SIM118
            model.load_state_dict(state, strict=False, assign=True)
        if self.kind == "wan":
            _add_hearing(model)
        return model.eval()


def inspect_weights(path: Path, like: TransformerConfig = RELEASE) -> Published:
    """Recognises published weights and checks every key and shape, without reading the weights.

    Args:
        path: X-Dub's checkpoint (one safetensors), or a Wan2.2 folder in diffusers' form (its ``transformer`` folder
            or the one above). A checkpoint of another size than the release has its config.json beside it.
        like: For Wan, whose files say nothing of sound: the audio features and layers to add.

    Raises:
        InputError: Nothing known is there, or keys are missing, unknown or of another shape.
    """
    if path.is_dir():
        folder = path / "transformer" if (path / "transformer").is_dir() else path
        config = _wan_config(folder, like)
        files, names = _wan_files(folder), wan_names(config.num_layers)
        kind: Kind = "wan"
    elif path.is_file() and path.suffix == ".safetensors":
        config, files, kind = _xdub_config(path), (path,), "xdub"
        names = {name: name for name in _shapes_of(config)}
    else:
        raise InputError(
            f"'{path}' is neither a .safetensors file nor a folder",
            "give X-Dub's released checkpoint or a Wan2.2 folder in diffusers' form",
        )
    ours = _shapes_of(config)
    _check(path, {theirs: ours[name] for theirs, name in names.items()}, _shapes_in(files))
    return Published(kind, config, files, names)


def listening_as(config: TransformerConfig) -> TransformerConfig:
    """The release with another transformer's audio parts: what Wan's weights are to become, see `inspect_weights`."""
    fields = ("audio_dim", "audio_window", "audio_inner_dim", "audio_heads", "audio_layers")
    return RELEASE.model_copy(update={name: getattr(config, name) for name in fields})


def _xdub_config(path: Path) -> TransformerConfig:
    beside = path.parent / "config.json"
    given = read_json(beside) if beside.is_file() else {}
    audio = given.get("audio")
    if not isinstance(audio, dict):  # none, or of something else
        return RELEASE
    try:
        fields = ("dim", "num_layers", "num_heads", "ffn_dim", "freq_dim", "in_channels", "out_channels", "text_dim")
        changes = {name: given[name] for name in fields} | {
            "patch_size": tuple(given["patch_size"]),
            "audio_dim": sum(audio["feature_channels"]),
            "audio_inner_dim": audio["inner_dim"],
            "audio_heads": audio["num_heads"],
            "audio_layers": audio["num_layers"],
        }
        eps = given["eps"]
    except KeyError as error:
        raise InputError(f"'{beside}' does not say {error}", "give the checkpoint's own config.json") from None
    _same(beside, "eps", eps, EPS)
    return RELEASE.model_copy(update=changes)


def _wan_config(folder: Path, like: TransformerConfig) -> TransformerConfig:
    file = folder / "config.json"
    if not file.is_file():
        raise InputError(f"'{folder}' holds no config.json", "give a Wan2.2 folder in diffusers' form")
    given = read_json(file)
    _same(file, "_class_name", given.get("_class_name"), "WanTransformer3DModel")
    for name, value in WAN_FIXED.items():
        _same(file, name, given.get(name, value), value)
    fields = ("num_layers", "ffn_dim", "freq_dim", "in_channels", "out_channels", "text_dim")
    try:
        heads = given["num_attention_heads"]
        changes = {name: given[name] for name in fields} | {
            "num_heads": heads,
            "dim": heads * given["attention_head_dim"],
            "patch_size": tuple(given["patch_size"]),
        }
    except KeyError as error:
        raise InputError(f"'{file}' does not say {error}", "fetch the folder again") from None
    return like.model_copy(update=changes)


def _wan_files(folder: Path) -> tuple[Path, ...]:
    index = folder / f"{WEIGHTS}.index.json"
    names = sorted(set(read_json(index)["weight_map"].values())) if index.is_file() else [WEIGHTS]
    files = tuple(folder / Path(name).name for name in names)
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise InputError(f"'{folder}' lacks {', '.join(missing)}", "fetch the folder again, completely")
    return files


def _shapes_of(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in DubbingTransformer.build(config).state_dict().items()}


def _shapes_in(files: tuple[Path, ...]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as weights:
                shapes |= {key: tuple(weights.get_slice(key).get_shape()) for key in weights.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise InputError(f"'{file}' is damaged or not whole ({error})", "fetch it again") from None
    return shapes


def _check(path: Path, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> None:
    misshaped = [
        f"{name} {found[name]} instead of {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    wrongs = (
        ("lacks", [name for name in expected if name not in found]),
        ("holds unknown", [name for name in found if name not in expected]),
        ("has of another shape", misshaped),
    )
    told = [f"{what} {_some(names)}" for what, names in wrongs if names]
    if told:
        raise InputError(
            f"'{path}' {'; '.join(told)}",
            "give the whole, unchanged file; one of another size than the release needs its config.json beside it",
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _same(file: Path, name: str, value: object, wanted: object) -> None:
    if value != wanted:
        raise InputError(f"'{file}' says {name} {value!r}", f"only models with {wanted!r} can be read")


def _add_hearing(model: DubbingTransformer) -> None:
    """New audio parts, as a new transformer has them: they add nothing until they are trained."""
    config = model.config
    dtype = model.patch_embedding.weight.dtype
    shape = (config["audio_dim"], config["audio_inner_dim"], config["audio_heads"], config["audio_layers"])
    model.audio_embedding = AudioProjection(*shape, config["dim"]).to(dtype)
    start_xavier(model.audio_embedding)
    for block in model.blocks:
        assert isinstance(block, DubbingBlock)
        block.audio_attn = Attention(config["dim"], config["num_heads"], EPS).to(dtype)
        start_xavier(block.audio_attn)
        nn.init.zeros_(block.audio_attn.o.weight)
        block.norm4 = nn.LayerNorm(config["dim"], eps=EPS).to(dtype)
