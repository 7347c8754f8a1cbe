"""The editor: mask-free dubbing from pairs."""

from typing import Any

import dagster as dg

from assets.companion_pairs import companion_pairs
from assets.gates import accepted_shards, committed
from assets.generator import generator
from assets.produce import produce
from assets.training import phase_config, training_inputs, weights_for
from xdub_platform.platform import Platform
from xdub_platform.settings import Settings

VERSION = "1"


def config(settings: Settings) -> dict[str, Any]:
    """The phase's numbers and the kinds of pairs that it learns from."""
    return {**phase_config(settings, "editor", "codec", "audio_encoder"), "variants": list(settings.variants)}


@dg.asset(
    deps=[companion_pairs, generator],
    group_name="editor",
    kinds={"pytorch", "mlflow", "dvc"},
    owners=["team:models"],
    tags={"xdub/stage": "6"},
)
def editor(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult:
    """V from its companion V' (frame-concatenated) and V's sound, at high noise.

    Starts from the generator's weights, or registered ones that settings name, and refuses to train when no shard of
    pairs passed its gate.
    """
    pairs = accepted_shards(platform.store, "companion_pairs", platform.settings.variants)
    start = weights_for(platform, "editor") or {"init": committed(platform.store, "generator")}
    return produce(
        context,
        platform,
        "train",
        training_inputs(platform, config(platform.settings), start, pairs=pairs),
        inputs=[*pairs, *start.values()],
        register="xdub-editor",
    )
