"""What the four training phases have in common."""

from collections.abc import Mapping, Sequence
from typing import Any

from xdub_platform.base import base_digest
from xdub_platform.failures import input_error_fails_the_run
from xdub_platform.platform import Platform
from xdub_platform.resources.store import Dataset
from xdub_platform.settings import Settings
from xdub_platform.weights import starting_weights

ASSETS = {"generator": "generator", "editor": "editor", "lip": "lip_expert", "texture": "texture_expert"}
"""Phase -> the asset that it makes."""


def phase_config(settings: Settings, phase: str, *base: str) -> dict[str, Any]:
    """What decides a phase besides its data: the config that the worker gets, and so the asset's code version.

    Args:
        settings: Resolved settings.
        phase: generator, editor, lip or texture.
        base: Networks of the shipped base that the phase reads.
    """
    numbers = getattr(settings.phases, phase)
    start = settings.start.named(phase)
    return {
        **({"start": start} if start else {}),
        "phase": numbers.model_copy(update={"seed": settings.seed + numbers.seed}).model_dump(mode="json"),
        "transformer": settings.transformer.model_dump(mode="json"),
        "flow": settings.flow.model_dump(mode="json"),
        "media": settings.media.model_dump(mode="json"),
        "backbones": settings.backbones.model_dump(mode="json"),
        "base": base_digest(*base),
    }


def weights_for(platform: Platform, asset: str) -> dict[str, Dataset]:
    """The registered weights that settings name, as a model of `training_inputs`; empty if they name none.

    Raises:
        dagster.Failure: They are not registered, or damaged.
    """
    with input_error_fails_the_run():
        found = starting_weights(platform, asset)
    return {"weights": found} if found else {}


def training_inputs(
    platform: Platform,
    config: dict[str, Any],
    models: Mapping[str, Dataset],
    *,
    shards: Sequence[Dataset] = (),
    pairs: Sequence[Dataset] = (),
) -> dict[str, Any]:
    """The worker's config: numbers, and where the accepted data and the models lie.

    Args:
        platform: Resources.
        config: From `phase_config`.
        models: What training starts from (`init`, or registered `weights`) and teachers, as the worker names them.
        shards: Clips.
        pairs: Companion pairs.
    """
    places: dict[str, Any] = {name: str(dataset.path) for name, dataset in models.items()}
    if "weights" in models:
        weights = models["weights"]
        places["weights"] = {"name": weights.name, "digest": weights.version, "folder": str(weights.path)}
    return {
        **config,
        "shards": [str(dataset.path) for dataset in shards],
        "pairs": [str(dataset.path) for dataset in pairs],
        **places,
        "device": platform.settings.processes.device,
        "processes": platform.workers.processes(ASSETS[config["phase"]["phase"]]),
        "sharding": platform.settings.processes.sharding,
        "cache": str(platform.settings.path("cache", "latents")),
    }
