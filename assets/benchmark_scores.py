"""Scores on held-out identities and speech against the renderer's exact reference dub."""

from typing import Any

import dagster as dg

from assets.dubber import dubber
from assets.gates import committed
from assets.generator import generator
from assets.produce import Gate, Metadata, Product, produce
from assets.syncnet import syncnet
from xdub_platform import pictures
from xdub_platform.base import base_digest
from xdub_platform.platform import Platform
from xdub_platform.resources.quality import GateResult
from xdub_platform.scores import record_scores
from xdub_platform.settings import Settings

VERSION = "6"
CHECK = "benchmark_gate"
SHOWN = ("opening", "width", "pucker", "leak_opening", "lip_gain", "outside_psnr", "identity_ratio", "silence")


def config(settings: Settings) -> dict[str, Any]:
    """Which cases are scored."""
    benchmark = settings.benchmark.model_copy(update={"seed": settings.seed + settings.benchmark.seed})
    return {
        "benchmark": benchmark.model_dump(mode="json"),
        "corpus": settings.corpus.model_dump(mode="json"),
        "media": settings.media.model_dump(mode="json"),
        "flow": settings.flow.model_dump(mode="json"),
        "phase": settings.phases.generator.window.model_dump(mode="json"),
        "backbones": settings.backbones.model_dump(mode="json"),
        "base": base_digest(
            "codec", "audio_encoder", "landmarker", "prior", "perceptual", "mouth_reader", "identity_judge"
        ),
    }


@dg.asset(
    deps=[dubber, generator, syncnet],
    group_name="product",
    kinds={"mlflow", "dvc"},
    owners=["team:models"],
    tags={"xdub/stage": "10"},
    check_specs=[
        dg.AssetCheckSpec(
            CHECK, asset="benchmark_scores", blocking=False, description="The rows of the score table that have a bar."
        )
    ],
)
def benchmark_scores(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult:
    """Copying the input, the base in both tasks, generator, editor, + lip, + texture.

    Each dubs held-out clips to held-out speech; evaluators that taught nothing score them.
    """
    models = {name: committed(platform.store, name) for name in ("dubber", "generator", "syncnet")}
    return produce(
        context,
        platform,
        "benchmark",
        {
            **config(platform.settings),
            **{name: str(model.path) for name, model in models.items()},
            "versions": {name: model.version for name, model in models.items()},
            "device": platform.settings.processes.device,
            "cache": str(platform.settings.path("cache")),
            "processes": platform.settings.processes.parallel_runs,
        },
        inputs=list(models.values()),
        gate=Gate(CHECK, judge),
        describe=lambda product: {**describe(product), **to_registry(platform, models["dubber"].version)},
    )


def to_registry(platform: Platform, dubber_version: str) -> Metadata:
    """Writes the scores to the registered version that holds the dubber's bytes, for promotion to compare.

    Raises:
        dagster.Failure: The dubber was never registered.
    """
    versions = platform.mlflow.versions(platform.settings.mlflow.model_name)
    same = [version for version, tags in versions.items() if tags.get("dvc.version") == dubber_version]
    made = platform.store.get("benchmark_scores")
    if not same or made is None:
        raise dg.Failure(f"no registered version holds the dubber {dubber_version}: materialise `dubber` again")
    digest = record_scores(platform, max(same), {**config(platform.settings), "version": VERSION}, made.path)
    return {"model_version": max(same), "benchmark": digest}


def judge(platform: Platform, product: Product) -> GateResult:
    """The benchmark gate: shown as a warning; what promotes a model is the promotion job."""
    met = product.result.get("verdicts", {})
    rows = tuple(
        {"expectation": name, "ok": bool(ok), "unexpected %": 0.0 if ok else 100.0, "critical": False}
        for name, ok in met.items()
    )
    missed = tuple(f"{name} misses its bar" for name, ok in met.items() if not ok)
    return GateResult(True, (), missed, rows)


def describe(product: Product) -> Metadata:
    """The score table."""
    rows = product.result["scores"]["rows"]
    table = [
        {"row": name, **{key: measures.get(key, {}).get("value") for key in SHOWN}} for name, measures in rows.items()
    ]
    return {"scores": pictures.table(table), "cases": product.result["scores"]["cases"]}
