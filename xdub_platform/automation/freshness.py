"""When an asset counts as overdue."""

from __future__ import annotations

from datetime import timedelta

import dagster as dg

from xdub_platform.settings import Settings

RETRAINED = ("editor", "lip_expert", "texture_expert", "dubber", "benchmark_scores")
"""What a retrain makes again; footage and what pairs are made with come when they come."""
WARN_SHARE = 0.85


def freshness_policy(asset: str, settings: Settings) -> dg.FreshnessPolicy | None:
    """The policy of an asset; None where nothing promises a new one."""
    if asset not in RETRAINED:
        return None
    overdue = timedelta(days=settings.automation.fresh_days)
    return dg.FreshnessPolicy.time_window(fail_window=overdue, warn_window=overdue * WARN_SHARE)
