"""The generator: masked inpainting, the source of companions."""

from typing import Any

import dagster as dg

from assets.clips import clips
from assets.gates import accepted_shards
from assets.produce import produce
from assets.training import phase_config, training_inputs, weights_for
from xdub_platform.platform import Platform
from xdub_platform.settings import Settings

VERSION = "2"
REGISTERED = "xdub-generator"


def config(settings: Settings) -> dict[str, Any]:
    """The phase's numbers and the base that it starts from."""
    return phase_config(settings, "generator", "prior", "codec", "audio_encoder")


@dg.asset(
    deps=[clips],
    group_name="generator",
    kinds={"pytorch", "mlflow", "dvc"},
    owners=["team:models"],
    tags={"xdub/stage": "4"},
)
def generator(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult:
    """Face inpainting from one reference frame and sound.

    It trains on accepted clips only, and past convergence: its companions should keep identity, not
    read lips best.
    """
    shards = accepted_shards(platform.store, "clips")
    start = weights_for(platform, "generator")
    return produce(
        context,
        platform,
        "train",
        training_inputs(platform, config(platform.settings), start, shards=shards),
        inputs=[*shards, *start.values()],
        register=REGISTERED,
    )
