"""Sensors: footage that arrived becomes shards, pairs and a retrain; what failed reaches the webhook."""

import hashlib
import json
import time
from typing import Any

import dagster as dg
from dagster._core.event_api import EventLogCursor
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES

from assets.gates import refusal
from model_code.errors import InputError
from xdub_platform.automation.bucket import Bucket, digest
from xdub_platform.automation.footage import highest, new_pairs, unmade_shards
from xdub_platform.automation.jobs import fetch_footage, retrain, take_in_footage
from xdub_platform.automation.messages import failure_message
from xdub_platform.automation.webhook import post
from xdub_platform.chain import KIND_TAG, PLAN
from xdub_platform.partitions import shards
from xdub_platform.platform import Platform
from xdub_platform.repair import end_killed_runs
from xdub_platform.settings import AutomationSettings, Settings

MESSAGES_A_LOOK = 20
LOOK_SECONDS = 15.0
"""A look posts nothing more after this time: Dagster gives it 60 s, and the last message may take all its attempts."""
RUNS_A_LOOK = 500
"""A look goes through so many runs of `take_in_footage` for failed shards: each new one names all of those again."""
ASKED_TAG = "xdub/asked_for"
"""What a run was asked for; the same in every attempt."""


def new_footage(settings: Settings) -> dg.SensorDefinition:
    """From files at rest to a retrain."""

    @dg.sensor(
        name="new_footage",
        jobs=[fetch_footage, take_in_footage, retrain],
        minimum_interval_seconds=settings.automation.look_seconds,
        default_status=_status(settings),
        description=(
            "Files at rest in the incoming folder (or the bucket prefix) become a shard and its run; when enough hours "
            "of pairs were accepted since the last editor, a retrain."
        ),
    )
    def look(context: dg.SensorEvaluationContext, platform: Platform) -> dg.SensorResult:
        return look_for_footage(context, platform)

    return look


def look_for_footage(context: dg.SensorEvaluationContext, platform: Platform) -> dg.SensorResult:
    """One look.

    The cursor holds the highest shard that a run was asked for. It moves only together with that run, whose key names
    the shards: a daemon that dies in between neither loses nor doubles one. What a failed run was to make is asked for
    again, with what is new at once, else after a pause. Runs that were killed fail first: nothing waits for them.
    """
    end_killed_runs(platform.settings, context.instance)
    automation, told, requests = platform.settings.automation, list[str](), list[dg.RunRequest]()
    platform.ledger.take(platform.settings.incoming, platform.settings.clips_per_shard, automation.rest_seconds)
    every = platform.ledger.shards()
    asked = json.loads(context.cursor) if context.cursor else None
    new = unmade_shards(platform) if asked is None else [shard for shard in every if _beyond(shard, asked)]
    wanted = sorted({*new, *_broken(context.instance, platform)})
    if wanted:
        run_config = {"ops": {"run_take_in": {"config": {"shards": wanted}}}}
        key = f"{wanted[0]}..{wanted[-1]} ({len(wanted)}) {hashlib.sha256(' '.join(wanted).encode()).hexdigest()[:8]}"
        requests += _asked(context.instance, automation, take_in_footage, key, run_config)
    taking_in = bool(requests)
    told.append(f"{len(new)} new shards")
    if automation.incoming_url:
        try:
            objects = Bucket(platform.settings).waiting()
        except InputError as error:  # What lies here need not wait for the bucket.
            context.log.error(str(error))
            told.append(str(error))
        else:
            told.append(f"{len(objects)} new objects")
            # What waits gets less with every object that a run copies: another one would be asked for at every look.
            if objects and not _unfinished(context.instance, job_name=fetch_footage.name):
                requests += _asked(context.instance, automation, fetch_footage, f"objects-{digest(objects)}")
    pairs = new_pairs(platform)
    told.append(f"{pairs.hours:.4f} of {automation.retrain_after_hours:g} hours of new accepted pairs")
    if pairs.hours >= automation.retrain_after_hours and not taking_in:
        if _unfinished(context.instance, tags={KIND_TAG: PLAN}):
            told.append("a run is at work: the retrain waits for its pairs")
        else:
            requests.append(dg.RunRequest(job_name=retrain.name, run_key=f"retrain-{pairs.key}"))
    return dg.SensorResult(
        run_requests=requests,
        skip_reason=None if requests else dg.SkipReason("; ".join(told)),
        cursor=json.dumps(highest(every)),
        dynamic_partitions_requests=[shards.build_add_request(every)] if new else [],
    )


def failures_to_webhook(settings: Settings) -> dg.SensorDefinition:
    """Every failed run, and so every blocking gate's rejection, as a message; each at least once."""

    @dg.sensor(
        name="failures_to_webhook",
        minimum_interval_seconds=settings.automation.look_seconds,
        default_status=_status(settings),
        description="Posts failed runs and gate rejections as JSON to `automation.webhook_url`.",
    )
    def look(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        return look_for_failures(context, settings)

    return look


def look_for_failures(context: dg.SensorEvaluationContext, settings: Settings) -> dg.SkipReason:
    """One look; the cursor moves past a failure once its message was taken, and starts at the first look.

    A message that was not taken ends the look, and so does its time, but neither fails it: Dagster forgets a failed
    look's cursor, and what was taken before would be sent again.
    """
    if not settings.automation.webhook_url:
        return dg.SkipReason("automation.webhook_url is not set")
    instance = context.instance
    failed = dg.DagsterEventType.RUN_FAILURE
    if context.cursor is None:
        latest = instance.fetch_run_status_changes(failed, limit=1)
        context.update_cursor(latest.cursor)
        return dg.SkipReason("tells of failures from now on")
    found = instance.fetch_run_status_changes(failed, limit=MESSAGES_A_LOOK, cursor=context.cursor, ascending=True)
    posted, ends = 0, time.monotonic() + LOOK_SECONDS
    for record in found.records:
        try:
            post(failure_message(instance, record.run_id), settings.automation)
        except InputError as error:
            context.log.error(str(error))
            return dg.SkipReason(str(error))
        context.update_cursor(EventLogCursor.from_storage_id(record.storage_id).to_string())
        posted += 1
        if time.monotonic() >= ends:
            break
    return dg.SkipReason(f"{posted} messages posted")


def _status(settings: Settings) -> dg.DefaultSensorStatus:
    return dg.DefaultSensorStatus.RUNNING if settings.automation.running else dg.DefaultSensorStatus.STOPPED


def _beyond(shard: str, asked: dict[str, int]) -> bool:
    kind, _, index = shard.rpartition("-")
    return int(index) > asked.get(kind, -1)


def _broken(instance: dg.DagsterInstance, platform: Platform) -> list[str]:
    """Shards for which the last run of `take_in_footage` that was asked for them failed, but for what the gate refused.

    Making those again would end the same.
    """
    ended: dict[str, dg.DagsterRunStatus] = {}
    for run in instance.get_runs(dg.RunsFilter(job_name=take_in_footage.name), limit=RUNS_A_LOOK):  # the newest first
        given: Any = run.run_config
        for shard in given.get("ops", {}).get("run_take_in", {}).get("config", {}).get("shards", ()):
            ended.setdefault(shard, run.status)
    failed = [shard for shard, status in ended.items() if status is dg.DagsterRunStatus.FAILURE]
    return [shard for shard in failed if not refusal(platform.store, f"clips/{shard}")]


def _asked(
    instance: dg.DagsterInstance,
    automation: AutomationSettings,
    job: dg.JobDefinition,
    key: str,
    run_config: dict[str, Any] | None = None,
) -> list[dg.RunRequest]:
    """Asks for a run, and for another one a while after it failed; nothing in between.

    Dagster starts one run for each run key, whatever becomes of it: the next one's names the failed one too.
    """
    last, run_key = _last_run(instance, dg.RunsFilter(job_name=job.name, tags={ASKED_TAG: key})), key
    if last and last.dagster_run.status is dg.DagsterRunStatus.FAILURE:
        if time.time() - last.update_timestamp.timestamp() < automation.again_after_seconds:
            return []
        run_key = f"{key} after {last.dagster_run.run_id}"
    return [dg.RunRequest(job_name=job.name, run_key=run_key, run_config=run_config, tags={ASKED_TAG: key})]


def _last_run(instance: dg.DagsterInstance, of: dg.RunsFilter) -> dg.RunRecord | None:
    return next(iter(instance.get_run_records(of, limit=1)), None)


def _unfinished(instance: dg.DagsterInstance, **of: Any) -> bool:
    """Whether a run of this kind (arguments of Dagster's `RunsFilter`) waits or is at work."""
    return _last_run(instance, dg.RunsFilter(**of, statuses=NOT_FINISHED_STATUSES)) is not None
