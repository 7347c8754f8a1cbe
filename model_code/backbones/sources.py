"""Where published networks lie: a local folder, or a hub id, of which only safetensors and JSON are fetched."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model_code.errors import InputError
from model_code.files import read_json

HUB_ID = re.compile(r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w.-]+))?")
FETCHED = ("*.json", "*.safetensors", "*.txt", "*.model")
"""Weights, settings and vocabularies; pickles are never fetched."""


def local_folder(source: str, inside: str = "") -> Path:
    """The folder of a published network, fetched first if `source` is a hub id.

    Args:
        source: Local folder, or a hub id (owner/name, or owner/name@revision).
        inside: Folder of a pipeline in which this part lies (`vae`); a local source may also be that folder itself.

    Raises:
        InputError: Neither a folder nor something that the hub has.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        hub_id = HUB_ID.fullmatch(source)
        if hub_id is None:
            raise InputError(f"'{source}' is no folder", "give a local folder, or a hub id such as owner/name")
        folder = _fetched(hub_id["name"], hub_id["revision"], inside)
    return folder / inside if inside and (folder / inside).is_dir() else folder


def _fetched(name: str, revision: str | None, inside: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = [f"{inside}/{pattern}" for pattern in FETCHED] if inside else list(FETCHED)
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        told = " ".join(str(error).split())[:200]
        raise InputError(f"'{name}' is no folder, and the hub does not give it ({told})", "check the name") from error


def config_of(folder: Path, key: str, *wanted: str) -> dict[str, Any]:
    """The config.json of a published network whose `key` (`model_type`, `_class_name`) names its class.

    Raises:
        InputError: There is none, or it is of another class than those `wanted`.
    """
    if not (folder / "config.json").is_file():
        raise InputError(f"'{folder}' holds no config.json", f"give a folder of {' or '.join(wanted)}")
    config = read_json(folder / "config.json")
    if config.get(key) not in wanted:
        raise InputError(
            f"'{folder}' holds {config.get(key) or 'no class that it names'}", f"give {' or '.join(wanted)}"
        )
    return config


def load_whole(kind: Any, folder: Path, spare: str | None = None) -> Any:
    """Loads a model of transformers or diffusers in single precision, if every one of its weights is there.

    Both libraries would fill in what is missing or of another shape with random numbers.

    Args:
        kind: The class.
        folder: Where it was saved.
        spare: A weight that nothing here asks for and that publishers may leave out; zeros then.

    Raises:
        InputError: Weights are missing or of another shape, or there are no safetensors.
    """
    try:
        with _in_silence():
            model, found = kind.from_pretrained(
                str(folder),
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # told below, by name
                local_files_only=True,
            )
    except (OSError, RuntimeError, ValueError) as error:
        told = " ".join(str(error).split())[:200]
        raise InputError(f"'{folder}' holds no whole {kind.__name__} ({told})", "fetch it again") from error
    missing = sorted({*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])} - {spare})
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise InputError(
            f"'{folder}' lacks weights of {kind.__name__}, or has others: {shown}", "fetch it again, completely"
        )
    if spare in found["missing_keys"]:
        model.get_parameter(spare).data.zero_()  # or it would be another number in every process
    return model.float().eval().requires_grad_(False)


@contextmanager
def _in_silence() -> Iterator[None]:
    """transformers lists every weight of the heads that are left out; what matters is checked by `load_whole`."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
