"""Where published networks are looked for, and that only whole ones without pickles are taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from model_code.backbones.codec import WanCodec
from model_code.backbones.sources import local_folder
from model_code.errors import InputError
from tests.published import save_vae


def test_a_folder_or_the_one_in_it(tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    assert local_folder(str(tmp_path), "vae") == tmp_path / "vae"
    assert local_folder(str(tmp_path / "vae"), "vae") == tmp_path / "vae"
    assert local_folder(str(tmp_path)) == tmp_path
    with pytest.raises(InputError, match="is no folder"):
        local_folder(str(tmp_path / "none"))


@pytest.mark.parametrize(("source", "revision"), [("owner/na.me", None), ("owner/na.me@v1.0", "v1.0")])
def test_a_hub_id_is_fetched_without_pickles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, revision: str | None
) -> None:
    asked: dict[str, Any] = {}

    def fetch(name: str, **more: Any) -> str:
        asked.update(name=name, **more)
        (tmp_path / "vae").mkdir()
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert local_folder(source, "vae") == tmp_path / "vae"
    assert (asked["name"], asked["revision"]) == ("owner/na.me", revision)
    assert {Path(pattern).suffix for pattern in asked["allow_patterns"]} == {".json", ".safetensors", ".txt", ".model"}
    assert all(pattern.startswith("vae/") for pattern in asked["allow_patterns"])


def test_a_hub_that_has_nothing_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(name: str, **more: Any) -> str:
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    with pytest.raises(InputError, match=r"'owner/name' is no folder, and the hub does not give it .no connection"):
        local_folder("owner/name")


def test_half_an_autoencoder_is_refused(tmp_path: Path) -> None:
    folder = save_vae(tmp_path) / "vae"
    file = next(folder.glob("*.safetensors"))
    state = load_file(file)
    del state["quant_conv.weight"]
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"quant_conv\.weight"):
        WanCodec.from_pretrained(tmp_path)
