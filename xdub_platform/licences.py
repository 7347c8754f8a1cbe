"""Licences of published weights, carried on to everything that is made from them.

A version of published weights has the tags `licence`, `licence.required` and `licence.acknowledged`. What is made from
it keeps them in a record beside its data, and its own registered versions get them as tags, which promotion asks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from xdub_platform.platform import Platform
from xdub_platform.resources.store import Dataset

RECORD = "licences"
"""Record beside a product: the licence tags of the weights in it."""

Licences = dict[str, dict[str, str]]
"""`MODEL/VERSION` of registered weights -> their licence tags."""


def is_open(tags: Mapping[str, str]) -> bool:
    """Whether a version asks for a licence to be acknowledged that nobody has acknowledged."""
    return tags.get("licence.required") == "true" and tags.get("licence.acknowledged", "false") in ("", "false")


def licences_of(platform: Platform, inputs: Sequence[Dataset]) -> Licences:
    """The licences of the weights that went into datasets or are among them, as their tags say now."""
    found: Licences = {}
    for each in inputs:
        if each.source == "mlflow":
            found[each.name] = {}
        else:
            found |= (platform.store.recorded(each.name, RECORD) or {}).get("weights", {})
    now = {name: _tags(platform, name) or tags for name, tags in found.items()}
    return {name: tags for name, tags in now.items() if tags}


def carried(licences: Licences) -> dict[str, str]:
    """Tags of a version made from licensed weights: acknowledged once every licence is; none for no licence."""
    if not licences:
        return {}
    asking = [tags for tags in licences.values() if tags.get("licence.required") == "true"]
    names = {tags.get("licence.acknowledged", "") for tags in asking}
    return {
        "licence": "; ".join(sorted({tags.get("licence", "not stated") for tags in licences.values()})),
        "licence.required": "true" if asking else "false",
        "licence.acknowledged": "" if any(map(is_open, asking)) else ", ".join(sorted(names)),
        "part.weights": "; ".join(sorted(licences)),
    }


def _tags(platform: Platform, name: str) -> dict[str, str]:
    model, _, version = name.rpartition("/")
    found = platform.mlflow.model_version(model, version)
    tags = dict(found.tags) if found else {}
    return {key: value for key, value in tags.items() if key.split(".")[0] == "licence"}
