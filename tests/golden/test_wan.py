"""With sound and reference switched off `DubbingTransformer` is diffusers' `WanTransformer3DModel`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file

from model_code.backbones.released import inspect_weights
from model_code.config import TransformerConfig
from model_code.errors import InputError

HEARING = TransformerConfig(
    audio_dim=6, audio_window=8, audio_inner_dim=8, audio_heads=2, audio_layers=1, positions=0, audio_modulation=False,
    residual=False, refiner_layers=0, precondition=0.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def wan() -> WanTransformer3DModel:
    torch.manual_seed(0)
    model = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=24, in_channels=4, out_channels=6, text_dim=10, freq_dim=16,
        ffn_dim=40, num_layers=2, rope_max_seq_len=32,
    )  # fmt: skip
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in name and name.endswith("weight")), std=0.1)
    return model.eval()


@pytest.fixture(scope="module")
def folder(wan: WanTransformer3DModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline's folder, its transformer in several files."""
    path = tmp_path_factory.mktemp("wan")
    wan.save_pretrained(path / "transformer", max_shard_size="100KB")
    assert (path / "transformer" / "diffusion_pytorch_model.safetensors.index.json").is_file()
    return path


@torch.no_grad()
def test_equal_to_wan(wan: WanTransformer3DModel, folder: Path) -> None:
    ours = inspect_weights(folder, HEARING).load()
    latents, text = torch.randn(2, 4, 3, 6, 8), torch.randn(2, 7, 10)
    times = torch.tensor([[0.0, 0.5, 0.5], [0.25, 0.875, 1.0]])
    tokens = (times * 1000).repeat_interleave(3 * 4, dim=1)  # Wan takes one for every token of a frame
    expected = wan(latents, tokens, text, return_dict=False)[0]
    assert expected.std() > 0.1
    torch.testing.assert_close(ours(latents, times, None, None, text), expected, atol=1e-5, rtol=0)
    # What is new does nothing yet: any sound leaves the picture as it is.
    sound = torch.randn(2, 3, 8, 6)
    torch.testing.assert_close(ours(latents, times, None, sound, text), expected, atol=1e-5, rtol=0)
    assert (ours(latents, times, latents, sound, text) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("way", ["module", "autocast"])
@torch.no_grad()
def test_in_bf16_as_near_to_float32_as_wan(wan: WanTransformer3DModel, folder: Path, way: str) -> None:
    """Diffusers keeps times and modulation in float32; casting these too makes a tenth more error."""
    generator = torch.Generator().manual_seed(0)
    latents, text = (torch.randn(*shape, generator=generator) for shape in ((4, 4, 3, 12, 12), (4, 7, 10)))
    times = torch.rand(4, 3, generator=generator)
    tokens = (times * 1000).repeat_interleave(36, dim=1)
    expected = wan(latents, tokens, text, return_dict=False)[0]
    ours, theirs = inspect_weights(folder, HEARING).load(), wan
    if way == "module":
        ours = ours.bfloat16()
        theirs = WanTransformer3DModel.from_pretrained(folder / "transformer", torch_dtype=torch.bfloat16)
        latents, text = latents.bfloat16(), text.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
        seen = ours(latents, times, None, None, text), theirs(latents, tokens, text, return_dict=False)[0]
    error, allowed = ((each - expected).square().mean().sqrt() for each in seen)
    assert 0 < error < 1.04 * allowed


def test_warm_start_keeps_its_precision_and_trains(wan: WanTransformer3DModel, tmp_path: Path) -> None:
    half = WanTransformer3DModel.from_config(wan.config).to(torch.bfloat16)
    half.save_pretrained(tmp_path)
    ours = inspect_weights(tmp_path, HEARING).load()
    assert {parameter.device.type for parameter in ours.parameters()} == {"cpu"}
    assert {parameter.dtype for parameter in ours.blocks.parameters()} >= {torch.bfloat16}
    ours.float()
    output = ours(torch.randn(1, 4, 3, 4, 4), torch.ones(1, 3), torch.randn(1, 4, 3, 4, 4), torch.randn(1, 3, 8, 6))
    output.square().mean().backward()
    assert all(block.audio_attn.o.weight.grad.abs().max() > 0 for block in ours.blocks)


def test_a_wrong_folder_says_what_is_wrong(folder: Path, tmp_path: Path) -> None:
    source = folder / "transformer"
    config = json.loads((source / "config.json").read_text())
    state = {name: value for file in source.glob("*.safetensors") for name, value in load_file(file).items()}

    def refused(match: str, config: dict[str, object] = config, without: str = "-") -> None:
        (tmp_path / "config.json").write_text(json.dumps(config))
        kept = {name: value for name, value in state.items() if without not in name}
        save_file(kept, tmp_path / "diffusion_pytorch_model.safetensors")
        with pytest.raises(InputError, match=match):
            inspect_weights(tmp_path, HEARING)

    refused(r"lacks blocks\.1\.attn2\.to_k\.weight, blocks\.1\.attn2\.to_k\.bias", without="1.attn2.to_k")
    refused(r"holds unknown blocks\.1\.attn1\.norm_k\.weight, .* and 19 more", config | {"num_layers": 1})
    refused(r"of another shape .*ffn\.net\.0\.proj\.weight \(40, 48\) instead of \(48, 48\)", config | {"ffn_dim": 48})
    refused("says _class_name 'UNet'", config | {"_class_name": "UNet"})
    refused("says image_dim 1280", config | {"image_dim": 1280})
    refused("does not say 'ffn_dim'", {name: value for name, value in config.items() if name != "ffn_dim"})
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="is no JSON"):
        inspect_weights(tmp_path, HEARING)


def test_a_missing_file_of_several_is_named(folder: Path, tmp_path: Path) -> None:
    for file in (folder / "transformer").iterdir():
        if "00002-of" not in file.name:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(InputError, match="lacks diffusion_pytorch_model-00002-of"):
        inspect_weights(tmp_path, HEARING)


def test_a_partial_checkpoint_says_what_it_lacks(tmp_path: Path) -> None:
    plain = Path(__file__).resolve().parent / "plain"
    file = tmp_path / "weights.safetensors"
    state = load_file(plain / "tiny_model.safetensors")
    save_file(state, file)
    with pytest.raises(InputError, match=r"lacks audio_.* and \d+ more; has of another shape patch_embedding"):
        inspect_weights(file)  # without config.json it must be the release itself
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "another"}))
    with pytest.raises(InputError, match="lacks audio_"):
        inspect_weights(file)
    (tmp_path / "config.json").write_bytes((plain / "config.json").read_bytes())
    assert inspect_weights(file).load().config.dim == 12
    save_file({name: value for name, value in state.items() if not name.startswith("blocks.1.")}, file)
    with pytest.raises(InputError, match=r"lacks blocks\.1\.modulation"):
        inspect_weights(file)
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(InputError, match="damaged or not whole"):
        inspect_weights(file)
    with pytest.raises(InputError, match=r"neither a \.safetensors file nor a folder"):
        inspect_weights(tmp_path / "none.bin")
