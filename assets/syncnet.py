"""The chain's own SyncNet: teacher of the lip expert, and a sync score."""

from typing import Any

import dagster as dg

from assets.clips import clips
from assets.gates import accepted_shards
from assets.produce import Gate, Product, produce
from xdub_platform.base import base_digest
from xdub_platform.platform import Platform
from xdub_platform.resources.mlflow import SYNCNET
from xdub_platform.resources.quality import GateResult
from xdub_platform.settings import Settings

VERSION = "2"
CHECK = "syncnet_accuracy"


def config(settings: Settings) -> dict[str, Any]:
    """Budget and seed."""
    return {
        "seed": settings.seed + settings.syncnet.seed,
        "steps": settings.syncnet.steps,
        "backbones": settings.backbones.model_dump(mode="json"),
        "base": base_digest("audio_encoder"),
    }


@dg.asset(
    deps=[clips],
    group_name="teachers",
    kinds={"pytorch", "mlflow", "dvc"},
    owners=["team:models"],
    tags={"xdub/stage": "3"},
    check_specs=[
        dg.AssetCheckSpec(
            CHECK, asset="syncnet", blocking=True, description="It tells sound in step from sound out of step."
        )
    ],
)
def syncnet(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult:
    """Audio-visual sync network, contrastive on accepted clips.

    Gated on its accuracy, because its loss alone says little.
    """
    shards = accepted_shards(platform.store, "clips")
    return produce(
        context,
        platform,
        "syncnet",
        {
            **config(platform.settings),
            "shards": [str(shard.path) for shard in shards],
            "device": platform.settings.processes.device,
        },
        inputs=shards,
        gate=gate,
        register=SYNCNET,
    )


def judge(platform: Platform, product: Product) -> GateResult:
    """The accuracy gate; its line says what the accuracy was measured on, which few speakers make less telling."""
    accuracy, minimum = float(product.result["metrics"]["accuracy"]), platform.settings.syncnet.min_accuracy
    measured_on = product.result.get("measured_on", "clips it may have been trained on")  # an earlier version's result
    why = f"accuracy >= {minimum:g} on {measured_on}"
    row = {
        "expectation": why,
        "ok": accuracy >= minimum,
        "unexpected %": round(100 * (1 - accuracy), 2),
        "critical": True,
    }
    return GateResult(accuracy >= minimum, () if accuracy >= minimum else (f"{why}: found {accuracy:.3f}",), (), (row,))


gate = Gate(CHECK, judge, lambda settings: settings.syncnet.model_dump(include={"min_accuracy"}), SYNCNET)
