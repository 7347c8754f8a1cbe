"""What the webhook is told of a failed run."""

from __future__ import annotations

from typing import Any

import dagster as dg

from xdub_platform.chain import PLAN_TAG, STARTED_BY_TAG, failed_gates, failure_line

ASSET_RUN = "__ASSET_JOB"


def failure_message(instance: dg.DagsterInstance, run_id: str) -> dict[str, Any]:
    """Which run failed and why, in one line; a gate's rejection is told from what broke.

    Keys: ``kind`` (``gate_rejected`` or ``run_failed``), ``run_id``, ``job`` or None, ``assets``, ``partition``,
    ``started_by``, ``plan`` (the planner's run), ``reason``.
    """
    run = instance.get_run_by_id(run_id)
    assert run is not None, f"the event log names run {run_id}, which is not there"
    entries = instance.all_logs(run_id)
    events = [entry.dagster_event for entry in entries if entry.dagster_event is not None]
    refused = failed_gates(events)
    told = "; ".join(f"{check.check_name}: {check.description}" for check in refused)
    asset_run = run.job_name.startswith(ASSET_RUN)
    return {
        "kind": "gate_rejected" if refused else "run_failed",
        "run_id": run_id,
        "job": None if asset_run else run.job_name,
        "assets": sorted(key.to_user_string() for key in run.asset_selection or ()),
        "partition": run.tags.get("dagster/partition"),
        "started_by": run.tags.get(STARTED_BY_TAG),
        "plan": run.tags.get(PLAN_TAG),
        "reason": told or failure_line(events),
    }
