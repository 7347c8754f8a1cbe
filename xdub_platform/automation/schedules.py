"""The schedule."""

from __future__ import annotations

import dagster as dg

from xdub_platform.automation.jobs import retrain
from xdub_platform.settings import Settings


def weekly_retrain(settings: Settings) -> dg.ScheduleDefinition:
    """Retrains when `automation.retrain_cron` says."""
    automation = settings.automation
    status = dg.DefaultScheduleStatus.RUNNING if automation.running else dg.DefaultScheduleStatus.STOPPED
    return dg.ScheduleDefinition(
        name="weekly_retrain",
        job=retrain,
        cron_schedule=automation.retrain_cron,
        execution_timezone=automation.timezone,
        default_status=status,
        description="Editor, experts, dubber and scores from all accepted pairs, then the promotion; never pairs.",
    )
