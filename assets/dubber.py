"""The dubber: everything that serving needs, as one registered model."""

from typing import Any

import dagster as dg

from assets.editor import editor
from assets.gates import committed
from assets.lip_expert import lip_expert
from assets.produce import Metadata, Product, files_in, produce
from assets.texture_expert import texture_expert
from xdub_platform import pictures
from xdub_platform.base import base_digest
from xdub_platform.platform import Platform
from xdub_platform.settings import Settings

VERSION = "2"
PARTS = ("editor", "lip_expert", "texture_expert")


def config(settings: Settings) -> dict[str, Any]:
    """How the parts are put together and sampled."""
    return {
        "flow": settings.flow.model_dump(mode="json"),
        "dubbing": settings.dubbing.model_dump(mode="json"),
        "media": settings.media.model_dump(mode="json"),
        "phase": settings.phases.editor.window.model_dump(mode="json"),
        "backbones": settings.backbones.model_dump(mode="json"),
        "base": base_digest("codec", "audio_encoder"),
        "model_name": settings.mlflow.model_name,
    }


@dg.asset(
    deps=[editor, lip_expert, texture_expert],
    group_name="product",
    kinds={"pytorch", "mlflow", "dvc"},
    owners=["team:models"],
    tags={"xdub/stage": "9"},
)
def dubber(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult:
    """Editor, both experts, codec, audio encoder and settings in one folder, registered as the challenger."""
    parts = {name: committed(platform.store, name) for name in PARTS}
    return produce(
        context,
        platform,
        "dubber",
        {
            **config(platform.settings),
            **{name: str(part.path) for name, part in parts.items()},
            "versions": {name: part.version for name, part in parts.items()},
        },
        inputs=list(parts.values()),
        register=platform.settings.mlflow.model_name,
        describe=describe,
    )


def describe(product: Product) -> Metadata:
    """What the model's folder holds."""
    folder = product.dataset.path
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size / 1e6 for path in files_in(folder)}
    return {
        "files": pictures.table([{"file": name, "MB": megabytes} for name, megabytes in sizes.items()]),
        "sizes": pictures.inline(pictures.bars(sizes, "MB"), "sizes of the model's files"),
    }
