"""What the four training phases have in common."""

from collections.abc import Sequence
from typing import Any

from xdub_platform.base import base_digest
from xdub_platform.platform import Platform
from xdub_platform.resources.store import Dataset
from xdub_platform.settings import Settings


def phase_config(settings: Settings, phase: str, *base: str) -> dict[str, Any]:
    """What decides a phase besides its data: the config that the worker gets, and so the asset's code version.

    Args:
        settings: Resolved settings.
        phase: generator, editor, lip or texture.
        base: Networks of the shipped base that the phase reads.
    """
    numbers = getattr(settings.phases, phase)
    return {
        "phase": numbers.model_copy(update={"seed": settings.seed + numbers.seed}).model_dump(mode="json"),
        "transformer": settings.transformer.model_dump(mode="json"),
        "flow": settings.flow.model_dump(mode="json"),
        "media": settings.media.model_dump(mode="json"),
        "backbones": settings.backbones.model_dump(mode="json"),
        "base": base_digest(*base),
    }


def training_inputs(
    platform: Platform,
    config: dict[str, Any],
    *,
    shards: Sequence[Dataset] = (),
    pairs: Sequence[Dataset] = (),
    **models: Dataset,
) -> dict[str, Any]:
    """The worker's config: numbers, and where the accepted data and the models lie."""
    return {
        **config,
        "shards": [str(dataset.path) for dataset in shards],
        "pairs": [str(dataset.path) for dataset in pairs],
        **{name: str(dataset.path) for name, dataset in models.items()},
        "device": platform.settings.processes.device,
        "processes": platform.workers.processes(config["phase"]["phase"]),
        "sharding": platform.settings.processes.sharding,
        "cache": str(platform.settings.path("cache", "latents")),
    }
