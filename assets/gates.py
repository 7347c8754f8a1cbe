"""What enforces the gates: every asset that trains asks here what it may read.

A gate's verdict lies in the registry beside the data it speaks of and counts for exactly that version. Asset
checks only display it: a run started by hand in the UI cannot walk around it.
"""

from __future__ import annotations

from typing import Any

import dagster as dg

from xdub_platform.links import file_link
from xdub_platform.partitions import is_heldout
from xdub_platform.resources.quality import GateResult
from xdub_platform.resources.store import Dataset, DvcStore
from xdub_platform.settings import Settings

GATE = "gate"


def verdict(store: DvcStore, name: str) -> str | None:
    """Why the present version of a gated dataset must not be built upon; None if it may be."""
    if store.get(name) is None:
        return "there is no such dataset"
    if store.recorded(name, GATE) is None:
        return "no gate has judged this version"
    return refusal(store, name)


def refusal(store: DvcStore, name: str) -> str | None:
    """Why its gate, or that of the clips it was made from, turned the present version away; None if none did."""
    gate = store.recorded(name, GATE)
    if gate is not None and not gate["passed"]:
        return "; ".join(gate["failures"])
    if not name.startswith("companion_pairs/"):
        return None
    clips = f"clips/{name.split('/')[1]}"
    why = refusal(store, clips)
    return f"{clips}: {why}" if why else None


def accepted(store: DvcStore, name: str) -> Dataset:
    """A gated dataset or model.

    Raises:
        dagster.Failure: It is missing or its gate failed.
    """
    reason = verdict(store, name)
    dataset = store.get(name)
    if reason or dataset is None:
        raise dg.Failure(f"{name} is not accepted: {reason}", allow_retries=False)
    return dataset


def committed(store: DvcStore, name: str) -> Dataset:
    """A dataset or model that no gate judges.

    Raises:
        dagster.Failure: It was never made.
    """
    dataset = store.get(name)
    if dataset is None:
        raise dg.Failure(f"{name} was never made", allow_retries=False)
    return dataset


def accepted_shards(store: DvcStore, asset: str, variants: tuple[str, ...] | None = None) -> list[Dataset]:
    """The shards of `asset` that may be trained on: gate passed, identities not held out.

    Args:
        store: The data registry.
        asset: ``clips`` or ``companion_pairs``.
        variants: Variants of pairs that are wanted; None takes all.

    Raises:
        dagster.Failure: No shard is accepted; the description says why each was refused.
    """
    names = [name for name in store.names(asset) if not is_heldout(name.split("/")[1])]
    if variants is not None:
        names = [name for name in names if name.split("/")[-1] in variants]
    reasons = {name: verdict(store, name) for name in names}
    found = [store.get(name) for name in names if reasons[name] is None]
    shards = [dataset for dataset in found if dataset is not None]
    if not shards:
        told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items()) or "none was made yet"
        raise dg.Failure(f"no shard of {asset} is accepted ({told})", allow_retries=False)
    return shards


def check_result(check: str, gate: GateResult, settings: Settings) -> dg.AssetCheckResult:
    """A gate as Dagster shows it."""
    metadata: dict[str, Any] = {
        "expectations": dg.MetadataValue.md(_markdown(gate)),
    }
    if gate.docs:
        metadata["data_docs"] = file_link(gate.docs, settings)
    warned = gate.passed and bool(gate.warnings)
    return dg.AssetCheckResult(
        check_name=check,
        passed=gate.passed and not warned,
        severity=dg.AssetCheckSeverity.WARN if warned else dg.AssetCheckSeverity.ERROR,
        description="; ".join(gate.failures or gate.warnings) or "all expectations hold",
        metadata=metadata,
    )


def _markdown(gate: GateResult) -> str:
    lines = ["| expectation | ok | unexpected % |", "|---|---|---|"]
    lines += [
        f"| {row['expectation']} | {'yes' if row['ok'] else '**no**'} | {row['unexpected %']} |" for row in gate.rows
    ]
    return "\n".join(lines)
