"""Everything Dagster loads: assets, checks, jobs, schedule, sensors, resources."""

from __future__ import annotations

import hashlib
import json
import warnings
from types import ModuleType

import dagster as dg

from assets import (
    benchmark_scores,
    clips,
    companion_pairs,
    dubber,
    editor,
    generator,
    identity_encoder,
    lip_expert,
    raw_corpus,
    syncnet,
    texture_expert,
)
from ops.promote import promote, roll_back
from ops.publish import publish
from xdub_platform.automation.freshness import freshness_policy
from xdub_platform.automation.jobs import JOBS
from xdub_platform.automation.schedules import weekly_retrain
from xdub_platform.automation.sensors import failures_to_webhook, new_footage
from xdub_platform.kubernetes import executor, with_step_tags
from xdub_platform.platform import build_platform
from xdub_platform.settings import Settings, load_settings

# Of a beta parameter that we do not give; Dagster's own default sensor warns of it wherever definitions are resolved.
warnings.filterwarnings("ignore", "Parameter `owners` of initializer")

#: One file for each stage, in the chain's order; each holds the asset of its own name, `config` and `VERSION`.
STAGES: tuple[ModuleType, ...] = (
    raw_corpus,
    clips,
    syncnet,
    identity_encoder,
    generator,
    companion_pairs,
    editor,
    lip_expert,
    texture_expert,
    dubber,
    benchmark_scores,
)


def stage_name(stage: ModuleType) -> str:
    """Name of a stage's asset."""
    return stage.__name__.rpartition(".")[2]


def code_version(stage: ModuleType, settings: Settings) -> str:
    """Hash of the hand-set version and of the settings that decide what the asset holds.

    A changed setting makes exactly the assets stale that read it.
    """
    text = json.dumps([stage.VERSION, stage.config(settings)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def build_definitions(settings: Settings) -> dg.Definitions:
    """The code location for one state root."""
    assets = [resolved(stage, settings) for stage in STAGES]
    assets = [with_step_tags(asset, settings) for asset in assets]
    return dg.Definitions(
        assets=assets,
        jobs=[*JOBS, promote, roll_back, publish],
        schedules=[weekly_retrain(settings)],
        sensors=[new_footage(settings), failures_to_webhook(settings)],
        resources={"platform": build_platform(settings)},
        executor=executor(settings),
    )


def resolved(stage: ModuleType, settings: Settings) -> dg.AssetsDefinition:
    """A stage's asset with what the settings say of it: code version and freshness policy."""
    name = stage_name(stage)
    asset: dg.AssetsDefinition = getattr(stage, name)
    version, policy = code_version(stage, settings), freshness_policy(name, settings)
    with warnings.catch_warnings():
        # Dagster calls mapping specs a preview; the alternative is to build every asset inside a function.
        warnings.simplefilter("ignore", dg.PreviewWarning)
        return asset.map_asset_specs(
            lambda spec: spec.replace_attributes(code_version=version, freshness_policy=policy)
        )


defs = build_definitions(load_settings())
