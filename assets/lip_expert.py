"""The lip expert: a LoRA on the editor at mid noise."""

from typing import Any

import dagster as dg

from assets.companion_pairs import companion_pairs
from assets.editor import editor
from assets.gates import accepted, accepted_shards, committed
from assets.produce import produce
from assets.syncnet import syncnet
from assets.training import phase_config, training_inputs
from xdub_platform.platform import Platform
from xdub_platform.settings import Settings

VERSION = "1"


def config(settings: Settings) -> dict[str, Any]:
    """The phase's numbers and the kinds of pairs that it learns from."""
    return {**phase_config(settings, "lip", "codec", "audio_encoder"), "variants": list(settings.variants)}


@dg.asset(
    deps=[companion_pairs, editor, syncnet],
    group_name="editor",
    kinds={"pytorch", "mlflow", "dvc"},
    owners=["team:models"],
    tags={"xdub/stage": "7"},
)
def lip_expert(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult:
    """LoRA that acts for t in the lip window: the editor's loss plus the SyncNet's distance on decoded frames."""
    pairs = accepted_shards(platform.store, "companion_pairs", platform.settings.variants)
    start, teacher = committed(platform.store, "editor"), accepted(platform.store, "syncnet")
    return produce(
        context,
        platform,
        "train",
        training_inputs(platform, config(platform.settings), {"init": start, "syncnet": teacher}, pairs=pairs),
        inputs=[*pairs, start, teacher],
        register="xdub-lip-expert",
    )
