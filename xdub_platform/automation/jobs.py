"""Jobs that plan: each is one Dagster run which asks the planner what is stale and starts a run for every such node."""

import time
from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractContextManager

import dagster as dg
from dagster._core.storage.tags import MAX_RETRIES_TAG, RETRY_STRATEGY_TAG
from pydantic import Field

from assets.gates import refusal
from ops.promote import show
from xdub_platform import pictures
from xdub_platform.automation.footage import unmade_shards
from xdub_platform.automation.freshness import RETRAINED
from xdub_platform.automation.origin import origin
from xdub_platform.chain import ACT, KIND_TAG, PLAN, Status, Step, why_broken
from xdub_platform.failures import input_error_fails_the_run
from xdub_platform.links import file_link
from xdub_platform.locks import Owner, owned
from xdub_platform.platform import Platform
from xdub_platform.promotion import promote

PLANS = {KIND_TAG: PLAN, MAX_RETRIES_TAG: "3", RETRY_STRATEGY_TAG: "ALL_STEPS"}
"""Tags of jobs that plan. A killed one starts again: what it finished is fresh by then."""
FOOTAGE = ("raw_corpus", "clips", "companion_pairs")
NOTHING = dg.Out(dg.Nothing)
AFTER = {"after": dg.In(dg.Nothing)}


class ChainConfig(dg.Config):
    """What of the chain."""

    select: str = "*"


class FootageConfig(dg.Config):
    """Which shards, beside those without clips; none also takes in what is not at rest yet."""

    shards: list[str] = Field(default_factory=list)


def run_lock(context: dg.OpExecutionContext, platform: Platform) -> AbstractContextManager[None]:
    """A lock of this run's own, held while it works: `end_killed_runs` knows by it whether its process lives."""
    path = platform.settings.path("work", "jobs", f"{context.run_id}.lock")
    return owned(path, Owner(context.job_name, context.run_id))


def plan_and_run(
    context: dg.OpExecutionContext,
    platform: Platform,
    selection: str,
    *,
    shards: Collection[str] | None = None,
    rebase: bool = False,
) -> None:
    """Runs the planner inside a Dagster run, tells its log every step, and leaves a table of them all.

    Raises:
        dagster.Failure: A step broke, or the state root stayed locked; what a gate refused is told and no failure.
    """
    from xdub_platform.running import run_chain  # It loads the definitions, which load this module.

    settings, start = platform.settings, time.monotonic()
    told: dict[str, Status] = {}

    def watch(step: Step) -> None:
        if told.get(str(step.node)) != step.status and step.status is not Status.FRESH:
            context.log.info(f"{step.node}: {step.status} {step.reason}".rstrip())
        told[str(step.node)] = step.status

    with run_lock(context, platform), input_error_fails_the_run():
        steps = run_chain(
            settings,
            selection=selection,
            shards=shards,
            rebase=rebase,
            started_by=origin(context.run.tags),
            parent=context.run,
            instance=context.instance,
            wait_seconds=settings.automation.lock_wait_seconds,
            watch=watch,
        )
    metadata = {
        "steps": steps_table(steps),
        "made": sum(step.status is Status.DONE for step in steps),
        "refused_by_a_gate": sum(step.status is Status.REJECTED for step in steps),
        "report": write_report(platform, context, steps, time.monotonic() - start),
    }
    reason = why_broken(steps)
    if reason:
        raise dg.Failure(reason, metadata=metadata, allow_retries=False)
    context.add_output_metadata(metadata)


def keys(assets: Iterable[str]) -> str:
    """The assets of these names in Dagster's selection syntax."""
    return " or ".join(f"key:{name}" for name in assets)


def steps_table(steps: Sequence[Step]) -> dg.TableMetadataValue | dg.TextMetadataValue:
    """Every step that was not fresh: what, how it ended, why, how long, which run."""
    return pictures.table(
        [
            {
                "asset and partition": str(step.node),
                "status": step.status,
                "why": step.reason,
                "seconds": round(step.seconds, 1),
                "run": step.run_id or "",
            }
            for step in steps
            if step.status is not Status.FRESH
        ],
        limit=500,
    )


def write_report(
    platform: Platform, context: dg.OpExecutionContext, steps: Sequence[Step], seconds: float
) -> dg.MetadataValue:
    """Brings the report up to date and links it."""
    from xdub_platform.reporting import write_chain_report
    from xdub_platform.running import chain_planner

    settings = platform.settings
    planner = chain_planner(settings, context.instance, "report")
    page = write_chain_report(platform, planner, steps, seconds, f"job {context.job_name}")
    return file_link(page, settings)


@dg.op(out=NOTHING)
def run_full_chain(context: dg.OpExecutionContext, config: ChainConfig, platform: Platform) -> None:
    """Takes in what lies in the incoming folder and makes everything selected that is stale."""
    plan_and_run(context, platform, config.select)


@dg.op(out=NOTHING)
def run_retrain(context: dg.OpExecutionContext, platform: Platform) -> None:
    """Editor, experts, dubber and scores from all accepted pairs; never pairs or what they are made with."""
    plan_and_run(context, platform, keys(RETRAINED), shards=())


@dg.op(out=NOTHING)
def run_take_in(context: dg.OpExecutionContext, config: FootageConfig, platform: Platform) -> None:
    """Clips, pairs and gates of new shards; what is made of the clips alone where it is missing or was refused."""
    from xdub_platform.running import HELD, take_in

    take_in(platform.settings, context.instance, platform.settings.automation.rest_seconds if config.shards else 0.0)
    shards = {*config.shards, *unmade_shards(platform)}  # those too whose own run broke
    wanting = [name for name in HELD if platform.store.get(name) is None or refusal(platform.store, name)]
    plan_and_run(context, platform, keys((*FOOTAGE, *wanting)), shards=shards)


@dg.op(out=NOTHING)
def run_rebase(context: dg.OpExecutionContext, platform: Platform) -> None:
    """A new generator, with the judges beside it, from all accepted clips; the pairs are stale from then on."""
    from xdub_platform.running import HELD

    plan_and_run(context, platform, keys(HELD), shards=(), rebase=True)


@dg.op(out=NOTHING, ins=AFTER)
def promote_if_better(context: dg.OpExecutionContext, platform: Platform) -> None:
    """Lets the promotion decide on the challenger, unless settings leave that to a person."""
    if not platform.settings.automation.promote_after_retrain:
        context.log.info("left to a person: automation.promote_after_retrain is off")
        return
    with run_lock(context, platform), input_error_fails_the_run():
        show(context, platform, promote(platform))


@dg.op(out=NOTHING)
def copy_objects(context: dg.OpExecutionContext, platform: Platform) -> None:
    """Copies objects at rest into the incoming folder."""
    from xdub_platform.automation.bucket import Bucket

    with run_lock(context, platform), input_error_fails_the_run():
        files = Bucket(platform.settings).fetch()
    context.add_output_metadata(
        {"files": pictures.table([{"object": file.key, "name": file.name, "bytes": file.size} for file in files])}
    )


@dg.job(tags=PLANS)
def full_chain() -> None:
    """Takes in new footage and makes everything that is stale, in the right order and partitions."""
    run_full_chain()


@dg.job(tags=PLANS)
def retrain() -> None:
    """Trains editor and experts on all accepted pairs, scores the new dubber and lets the promotion decide."""
    promote_if_better(run_retrain())


@dg.job(tags=PLANS)
def take_in_footage() -> None:
    """Makes clips and pairs of new shards and lets the gates judge them."""
    run_take_in()


@dg.job(tags=PLANS)
def rebase_generator() -> None:
    """Makes generator and judges anew from all clips; the next `full_chain` then makes every pair again."""
    run_rebase()


@dg.job(tags={KIND_TAG: ACT})
def fetch_footage() -> None:
    """Copies footage from the bucket into the incoming folder."""
    copy_objects()


JOBS = (full_chain, retrain, take_in_footage, rebase_generator, fetch_footage)
