"""The text that a dubbing model is told, through UMT5 as Wan has it.

One prompt serves every clip: a dubbing model keeps what came of it, not the text encoder of several GB.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model_code.backbones.saved import write_tensors
from model_code.backbones.sources import config_of, load_whole, local_folder
from model_code.errors import InputError

WORDS = 512
"""Tokens of a text: Wan cuts longer ones, follows shorter ones by zeros, and attends to these too."""
CACHE_VERSION = 1


@dataclass(frozen=True)
class Prompts:
    """Encoded texts.

    Attributes:
        prompt: (512, D).
        negative: (512, D) for the branch without reference and sound; None: it is told the prompt.
    """

    prompt: Tensor
    negative: Tensor | None = None

    @property
    def dim(self) -> int:
        """Width D of the text features."""
        return int(self.prompt.shape[-1])

    def batch(self, count: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Both texts for `count` samples: (count, 512, D) each."""
        every = (
            None if text is None else text.to(device).expand(count, -1, -1) for text in (self.prompt, self.negative)
        )
        prompt, negative = every
        assert prompt is not None
        return prompt, negative

    def save(self, path: Path) -> None:
        """Writes a safetensors file."""
        save_file({name: value for name, value in vars(self).items() if value is not None}, path)

    @classmethod
    def load(cls, path: Path) -> Prompts:
        """Reads what `save` wrote.

        Raises:
            InputError: It is not there.
        """
        if not path.is_file():
            raise InputError(f"'{path}' is missing", "restore the model's folder")
        return cls(**load_file(path))


def encode_prompts(source: str, prompt: str, negative: str | None, cache: Path | None = None) -> Prompts:
    """Encodes the texts with a Wan folder's UMT5, or takes them from the cache, where UMT5 is not even loaded.

    Args:
        source: Folder or hub id of a Wan pipeline (`text_encoder`, `tokenizer`), or a folder that holds both.
        prompt: May be empty.
        negative: None leaves it out.
        cache: Folder of encoded texts, by the hash of the text and of UMT5's and its tokenizer's files.

    Raises:
        InputError: There is no whole UMT5 with its tokenizer.
    """
    encoder, words = local_folder(source, "text_encoder"), local_folder(source, "tokenizer")
    config_of(encoder, "model_type", "umt5")
    asked = [text for text in (prompt, negative) if text is not None]
    paths: list[Path | None] = [None] * len(asked)
    if cache is not None:
        identity = _digest_of(encoder, words)
        paths = [cache / f"{_key(identity, text)}.safetensors" for text in asked]
    network: Any = None
    found = []
    for text, path in zip(asked, paths, strict=True):
        if path is not None and path.is_file():
            found.append(load_file(path)["text"])
            continue
        network = network or _Umt5(encoder, words)
        found.append(network.encode(text))
        if path is not None:
            write_tensors(path, {"text": found[-1]})
    return Prompts(*found)


class _Umt5:
    """UMT5's encoder with its tokenizer."""

    def __init__(self, encoder: Path, words: Path) -> None:
        from transformers import AutoTokenizer, UMT5EncoderModel

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(str(words), local_files_only=True)
        except (OSError, ValueError) as error:
            told = " ".join(str(error).split())[:200]
            raise InputError(f"'{words}' holds no tokenizer ({told})", "fetch it again") from error
        self._network = load_whole(UMT5EncoderModel, encoder)

    @torch.no_grad()
    def encode(self, text: str) -> Tensor:
        """(512, D): the text's tokens, then zeros."""
        given = self._tokenizer(
            " ".join(text.split()), padding="max_length", max_length=WORDS, truncation=True, return_tensors="pt"
        )
        hidden: Tensor = self._network(given.input_ids, given.attention_mask).last_hidden_state[0]
        return (hidden * given.attention_mask[0, :, None]).contiguous()


def _digest_of(*folders: Path) -> str:
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.glob("*")):
            if path.is_file():
                with path.open("rb") as file:
                    digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _key(identity: str, text: str) -> str:
    return hashlib.sha256(f"{CACHE_VERSION} {identity} {text}".encode()).hexdigest()[:32]
