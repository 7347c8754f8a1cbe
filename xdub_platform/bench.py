"""The long benchmark: several seeds of the whole chain, their cases pooled, one table with intervals."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from model_code.files import write_json
from model_code.metrics.scores import load_records, summarise, verdicts
from xdub_platform.chain import Step, why_broken
from xdub_platform.definitions import STAGES, code_version
from xdub_platform.platform import build_platform
from xdub_platform.reporting import commit, machine
from xdub_platform.running import run_chain
from xdub_platform.settings import Settings, load_settings

WITHOUT_RENDERED = ("generated", "relit")
RECORDS = "records.jsonl"


def run_bench(
    settings: Settings,
    seeds: Sequence[int],
    prepare: Callable[[Settings], None],
    watch: Callable[[Step], None],
    output: Path,
) -> dict[str, Any]:
    """Runs the chain once for each seed, and for the first one also without rendered pairs; resumable.

    Args:
        settings: Of the profile; each seed gets a state root of its own below its state root.
        seeds: Seeds of the whole chain.
        prepare: Writes the corpus of a state root.
        watch: Told each step.
        output: JSON file of the pooled result.

    Returns:
        What is written: scores pooled over seeds, those without rendered pairs, command, commit and machine.

    Raises:
        RuntimeError: a step of the chain failed; what is done is kept.
    """
    done = [_run(settings, seed, settings.variants, prepare, watch) for seed in seeds]
    alone = _run(settings, seeds[0], WITHOUT_RENDERED, prepare, watch)
    scores = _pooled(done)
    result = {
        "command": f"xdub bench --profile {settings.profile} --seeds {len(seeds)}",
        "commit": commit(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "seeds": list(seeds),
        "scores": scores,
        "verdicts": verdicts(scores, "bench"),
        "without_rendered": _pooled([alone]),
        "settings": {name: value for name, value in settings.without_secrets().items() if name != "state_root"},
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output, result)
    return result


def _run(
    settings: Settings,
    seed: int,
    variants: Sequence[str],
    prepare: Callable[[Settings], None],
    watch: Callable[[Step], None],
) -> Path:
    """The benchmark's records of one seed and choice of variants; kept as long as all that makes them is the same."""
    root = settings.path(f"seed-{seed}")
    chosen = load_settings(profile=settings.profile, state_root=root, seed=seed, variants=tuple(variants))
    records = records_of(chosen)
    if records.is_file():
        return records
    prepare(chosen)
    steps = run_chain(chosen, started_by="xdub bench", watch=watch)
    broken = why_broken(steps)
    dataset = build_platform(chosen).store.get("benchmark_scores")
    if broken or dataset is None:
        raise RuntimeError(f"seed {seed} of the benchmark did not finish: {broken or 'no scores'}")
    records.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(dataset.path / RECORDS, records.with_suffix(".part"))
    records.with_suffix(".part").replace(records)
    return records


def records_of(settings: Settings) -> Path:
    """Where the records of a seed's chain are kept: a folder named by the code and settings of every stage."""
    made_by = [code_version(stage, settings) for stage in STAGES]
    version = hashlib.sha256(" ".join([*made_by, *settings.variants]).encode()).hexdigest()[:12]
    return settings.path("bench") / version / RECORDS


def _pooled(paths: Sequence[Path]) -> dict[str, Any]:
    return summarise(load_records(*paths), final="texture")
