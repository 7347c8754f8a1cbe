"""Promotion and rollback of the served model."""

import dagster as dg

from xdub_platform import pictures, promotion
from xdub_platform.chain import ACT, KIND_TAG
from xdub_platform.failures import input_error_fails_the_run
from xdub_platform.platform import Platform


class PromoteConfig(dg.Config):
    """Which version wants to be champion."""

    version: int | None = None
    """None is the version with the alias `challenger`."""


class RollBackConfig(dg.Config):
    """Which version becomes champion again."""

    version: int


@dg.op
def promote_model(context: dg.OpExecutionContext, config: PromoteConfig, platform: Platform) -> int:
    """Compares the challenger with the champion and moves the alias if it is better; returns the champion.

    A refusal is a result, not a failure: the run succeeds and says why.
    """
    with input_error_fails_the_run():
        return show(context, platform, promotion.promote(platform, config.version))


@dg.op
def roll_back_model(context: dg.OpExecutionContext, config: RollBackConfig, platform: Platform) -> int:
    """Makes a whole version champion again, whatever its scores; returns the champion.

    A damaged version fails the run: somebody asked for it and did not get it.
    """
    with input_error_fails_the_run():
        decision = promotion.roll_back(platform, config.version)
    champion = show(context, platform, decision)
    if not decision.accepted:
        raise dg.Failure(decision.reason, allow_retries=False)
    return champion


def show(context: dg.OpExecutionContext, platform: Platform, decision: promotion.Decision) -> int:
    """Puts a decision into the run and onto the dubber's page; returns the version that is champion now."""
    context.log.info(f"version {decision.challenger}: {decision.reason}")
    tables = promotion.score_tables(platform, decision)
    metadata = {
        "decision": "accepted" if decision.accepted else "refused",
        "reason": decision.reason,
        "challenger": decision.challenger,
        "champion_before": decision.champion or 0,
        "comparison": pictures.table(decision.table),
        "report": dg.MetadataValue.md(promotion.markdown(decision, tables)),
        "mlflow_run": decision.run_id or "",
    }
    context.log_event(dg.AssetObservation("dubber", metadata=metadata))
    context.add_output_metadata(metadata)
    return decision.challenger if decision.accepted else decision.champion or 0


@dg.job(tags={KIND_TAG: ACT})
def promote() -> None:
    """Makes the challenger champion if it is better by more than chance and worse in nothing."""
    promote_model()


@dg.job(tags={KIND_TAG: ACT})
def roll_back() -> None:
    """Makes an earlier version champion again; serving follows."""
    roll_back_model()
