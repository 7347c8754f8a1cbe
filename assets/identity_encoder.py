"""The chain's own identity encoder: pair filter and teacher of the texture expert."""

from typing import Any

import dagster as dg

from assets.clips import clips
from assets.gates import accepted_shards
from assets.produce import produce
from xdub_platform.platform import Platform
from xdub_platform.settings import Settings

VERSION = "1"


def config(settings: Settings) -> dict[str, Any]:
    """Budget and seed."""
    return {"seed": settings.seed + settings.identity.seed, "steps": settings.identity.steps}


@dg.asset(
    deps=[clips],
    group_name="teachers",
    kinds={"pytorch", "mlflow", "dvc"},
    owners=["team:models"],
    tags={"xdub/stage": "3"},
)
def identity_encoder(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult:
    """Face identity embedding (in ArcFace's place), trained on the speakers of the accepted clips."""
    shards = accepted_shards(platform.store, "clips")
    return produce(
        context,
        platform,
        "identity",
        {
            **config(platform.settings),
            "shards": [str(shard.path) for shard in shards],
            "device": platform.settings.processes.device,
        },
        inputs=shards,
        register="xdub-identity-encoder",
    )
