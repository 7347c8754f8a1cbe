"""UMT5's embeddings of the prompts: padded as Wan pads, kept by content."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from model_code.backbones import text
from model_code.backbones.load import load_prompts
from model_code.backbones.text import WORDS, Prompts, encode_prompts
from model_code.config import BackbonesConfig
from model_code.errors import InputError
from tests.published import save_umt5


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_umt5(tmp_path_factory.mktemp("wan"))


def test_words_are_followed_by_zeros(wan: Path) -> None:
    prompts = encode_prompts(str(wan), "a person  speaks", "")
    assert prompts.prompt.shape == (WORDS, 32)
    assert prompts.dim == 32
    filled = prompts.prompt.abs().sum(1) > 0
    assert filled.tolist() == [True] * 4 + [False] * (WORDS - 4)  # three words and the end
    assert prompts.negative is not None
    assert (prompts.negative.abs().sum(1) > 0).tolist() == [True] + [False] * (WORDS - 1)


def test_the_encoder_is_not_loaded_for_what_is_kept(wan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = BackbonesConfig(text=str(wan), prompt="a person", negative_prompt="blur")
    first = load_prompts(config, tmp_path)
    assert first is not None
    assert len(list(tmp_path.iterdir())) == 2
    monkeypatch.setattr(text, "_Umt5", None)
    again = load_prompts(config, tmp_path)
    assert again is not None
    assert torch.equal(first.prompt, again.prompt)
    with pytest.raises(TypeError):  # another text is not kept
        load_prompts(config.model_copy(update={"prompt": "a"}), tmp_path)
    vocabulary = wan / "tokenizer" / "tokenizer_config.json"
    vocabulary.write_text(json.dumps({**json.loads(vocabulary.read_text()), "other": True}))
    with pytest.raises(TypeError):  # nor is that of another tokenizer
        load_prompts(config, tmp_path)


def test_prompts_come_back_from_a_file(tmp_path: Path) -> None:
    for prompts in (Prompts(torch.randn(4, 3)), Prompts(torch.randn(4, 3), torch.randn(4, 3))):
        prompts.save(tmp_path / "prompts.safetensors")
        again = Prompts.load(tmp_path / "prompts.safetensors")
        assert torch.equal(again.prompt, prompts.prompt)
        assert (again.negative is None) == (prompts.negative is None)
    with pytest.raises(InputError, match="is missing"):
        Prompts.load(tmp_path / "none.safetensors")


def test_no_text_encoder_is_no_text() -> None:
    assert load_prompts(BackbonesConfig()) is None


def test_wrong_folders_are_refused_in_a_line(wan: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no folder"):
        encode_prompts("/no/such/wan", "", None)
    with pytest.raises(InputError, match=r"holds no config\.json .give a folder of umt5"):
        encode_prompts(str(wan / "tokenizer"), "", None)
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(InputError, match=r"holds t5 .give umt5"):
        encode_prompts(str(tmp_path), "", None)
    (tmp_path / "config.json").write_text('{"model_type": "umt5"}')
    with pytest.raises(InputError, match="holds no tokenizer"):
        encode_prompts(str(tmp_path), "", None)
