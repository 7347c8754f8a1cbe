"""The texture expert: a LoRA on the editor at low noise."""

from typing import Any

import dagster as dg

from assets.companion_pairs import companion_pairs
from assets.editor import editor
from assets.gates import accepted_shards, committed
from assets.identity_encoder import identity_encoder
from assets.produce import produce
from assets.training import phase_config, training_inputs
from xdub_platform.platform import Platform
from xdub_platform.settings import Settings

VERSION = "2"


def config(settings: Settings) -> dict[str, Any]:
    """The phase's numbers and the kinds of pairs that it learns from."""
    return {
        **phase_config(settings, "texture", "codec", "audio_encoder", "perceptual"),
        "variants": list(settings.variants),
    }


@dg.asset(
    deps=[companion_pairs, editor, identity_encoder],
    group_name="editor",
    kinds={"pytorch", "mlflow", "dvc"},
    owners=["team:models"],
    tags={"xdub/stage": "8"},
)
def texture_expert(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult:
    """LoRA that acts for t in the texture window.

    Identity and perceptual losses in silent steps, the editor's loss always.
    """
    pairs = accepted_shards(platform.store, "companion_pairs", platform.settings.variants)
    start, teacher = committed(platform.store, "editor"), committed(platform.store, "identity_encoder")
    return produce(
        context,
        platform,
        "train",
        training_inputs(platform, config(platform.settings), {"init": start, "identity": teacher}, pairs=pairs),
        inputs=[*pairs, start, teacher],
        register="xdub-texture-expert",
    )
