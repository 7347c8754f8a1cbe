"""Training that starts from what others published: Wan, and X-Dub's editor, as generator and as editor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from model_code.backbones.released import inspect_weights, listening_as
from model_code.backbones.transformer import DubbingTransformer, generator_to_editor
from model_code.config import TransformerConfig
from model_code.errors import InputError
from model_code.training.warm_start import warm_start

PLAIN = Path(__file__).resolve().parents[1] / "golden" / "plain" / "tiny_model.safetensors"
CONTEXT = 4


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    inspect_weights(PLAIN).load().save_pretrained(tmp_path / "weights")
    return tmp_path / "weights"


def shape_of(model: DubbingTransformer) -> TransformerConfig:
    return TransformerConfig.model_validate({name: model.config[name] for name in TransformerConfig.model_fields})


def wanted(weights: Path) -> TransformerConfig:
    """As the cluster profile's: what training may choose is not as in the weights."""
    shape = shape_of(DubbingTransformer.from_pretrained(weights))
    return shape.model_copy(update={"context_channels": CONTEXT, "reference_attention": "own"})


def test_new_context_channels_change_nothing_and_learn(weights: Path) -> None:
    plain, like = DubbingTransformer.from_pretrained(weights), wanted(weights)
    model = warm_start(weights, like.model_copy(update={"reference_attention": "full"}), "x")
    torch.manual_seed(0)
    latents, audio, text = torch.randn(2, CONTEXT, 3, 4, 4), torch.randn(2, 3, 8, 10), torch.randn(2, 5, 8)
    given = (torch.rand(2, 3), torch.randn(2, CONTEXT, 1, 4, 4), audio, text)
    expected = plain(latents, *given)
    assert expected.std() > 0.01
    made = model(torch.cat([torch.randn(2, CONTEXT, 3, 4, 4), latents], dim=1), *given)
    torch.testing.assert_close(made, expected)
    made.square().mean().backward()
    seen = model.patch_embedding.weight.grad
    assert seen is not None
    assert seen[:, :CONTEXT].abs().max() > 0
    assert all(value.requires_grad and value.dtype == torch.float32 for value in model.parameters())


def test_an_editor_is_the_checkpoint_itself(weights: Path) -> None:
    editor = generator_to_editor(warm_start(weights, wanted(weights), "x"))
    state = editor.state_dict()
    for name, value in DubbingTransformer.from_pretrained(weights).state_dict().items():
        assert torch.equal(value, state[name]), name
    assert shape_of(editor).reference_attention == "own"


def test_an_older_generator_keeps_its_context(weights: Path, tmp_path: Path) -> None:
    first = warm_start(weights, wanted(weights), "x")
    nn.init.normal_(first.patch_embedding.weight)
    first.save_pretrained(tmp_path / "first")
    again = warm_start(tmp_path / "first", wanted(weights), "x")
    assert torch.equal(again.patch_embedding.weight, first.patch_embedding.weight)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"dim": 24, "num_layers": 3}, "weights/1 has dim 12 instead of 24, num_layers 2 instead of 3"),
        ({"residual": True}, "residual False instead of True"),
        ({"precondition": 0.1}, "precondition 0.0 instead of 0.1"),
        ({"audio_dim": 64}, "audio_dim 10 instead of 64"),
    ],
)
def test_another_shape_is_told_by_its_settings(weights: Path, change: dict[str, object], told: str) -> None:
    with pytest.raises(InputError, match=told) as error:
        warm_start(weights, wanted(weights).model_copy(update=change), "weights/1")
    assert "XDUB_TRANSFORMER__" in error.value.remedy


def test_what_is_no_transformer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="weights/1 holds no transformer"):
        warm_start(tmp_path, TransformerConfig(), "weights/1")


def test_wan_becomes_a_generator_with_the_profiles_hearing(tmp_path: Path) -> None:
    from diffusers import WanTransformer3DModel

    wan = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=8, freq_dim=16,
        ffn_dim=32, num_layers=2, rope_max_seq_len=32,
    )  # fmt: skip
    wan.save_pretrained(tmp_path / "wan" / "transformer")
    like = TransformerConfig(audio_dim=10, audio_inner_dim=8, audio_heads=2, audio_layers=1)
    inspect_weights(tmp_path / "wan", listening_as(like)).load().save_pretrained(tmp_path / "weights")
    shape = shape_of(DubbingTransformer.from_pretrained(tmp_path / "weights"))
    assert (shape.audio_dim, shape.audio_window, shape.dim, shape.residual) == (10, 16, 24, False)
    model = warm_start(tmp_path / "weights", shape.model_copy(update={"context_channels": CONTEXT}), "x")
    embedding = model.patch_embedding.weight
    assert torch.equal(embedding[:, CONTEXT:], wan.patch_embedding.weight)
    assert not embedding[:, :CONTEXT].any()
