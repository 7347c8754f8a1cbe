"""What started a run, in its tags."""

from __future__ import annotations

from collections.abc import Mapping

from dagster._core.run_coordinator import QueuedRunCoordinator, SubmitRunContext
from dagster._core.storage.dagster_run import DagsterRun
from dagster._core.storage.tags import BACKFILL_ID_TAG, PARENT_RUN_ID_TAG, SCHEDULE_NAME_TAG, SENSOR_NAME_TAG

from xdub_platform.chain import KIND_TAG, MAKE, STARTED_BY_TAG

BY_HAND = "Dagster UI"


def origin(tags: Mapping[str, str]) -> str:
    """Who or what asked for a run, by the tags that Dagster gave it."""
    if STARTED_BY_TAG in tags:
        return tags[STARTED_BY_TAG]
    for tag, what in (
        (SCHEDULE_NAME_TAG, "schedule"),
        (SENSOR_NAME_TAG, "sensor"),
        (BACKFILL_ID_TAG, "backfill"),
        (PARENT_RUN_ID_TAG, "re-execution of"),
    ):
        if tag in tags:
            return f"{what} {tags[tag]}"
    return BY_HAND


class AttributedRunCoordinator(QueuedRunCoordinator):
    """Dagster's queue; every run that enters it says what started it and of which kind it is."""

    def submit_run(self, context: SubmitRunContext) -> DagsterRun:
        """Tags the run and queues it."""
        run = context.dagster_run
        self._instance.add_run_tags(run.run_id, {KIND_TAG: MAKE, STARTED_BY_TAG: origin(run.tags), **run.tags})
        return super().submit_run(context)
