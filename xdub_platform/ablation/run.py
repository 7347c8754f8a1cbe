"""Runs the ablations: every seed's chain up to its pairs, then the rows, several side by side; a killed run goes on."""

from __future__ import annotations

import logging
import os
import shlex
import tomllib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Event

import dagster as dg

from model_code.errors import InputError
from model_code.files import write_json
from model_code.metrics.ablation import judge_ordering, over_seeds
from model_code.report.ablations import AblatedRow, AblationResult, write_ablations
from xdub_platform.ablation.orderings import ORDERINGS
from xdub_platform.ablation.rows import ROWS, TABLES, Row
from xdub_platform.ablation.stages import JobFailed, Stages, changed
from xdub_platform.chain import Node, Status, Step, why_broken
from xdub_platform.locks import held
from xdub_platform.platform import Platform, build_platform
from xdub_platform.reporting import commit, machine
from xdub_platform.running import run_chain
from xdub_platform.settings import Settings, load_settings

log = logging.getLogger(__name__)
UP_TO_PAIRS = "+key:companion_pairs or +key:syncnet"
DECIDING = ("phases", "flow", "pairs", "benchmark", "corpus")
"""Sections of the settings that stand in the result; the command names what the environment sets of them."""
STEPPED = ("generator", "editor", "lip", "texture")
Watch = Callable[[Step], None]


@dataclass(frozen=True)
class Wanted:
    """What to run.

    Attributes:
        tables: Names in `TABLES`.
        seeds: Of the whole chain.
        steps_scale: Factor on the steps of the transformer's phases.
    """

    tables: tuple[str, ...]
    seeds: tuple[int, ...]
    steps_scale: float = 1.0

    @property
    def rows(self) -> list[Row]:
        """The rows of these tables."""
        return [row for row in ROWS if set(self.tables) & set(row.tables)]

    def command(self, profile: str) -> str:
        """What asks for this at the command line."""
        sections = tuple(f"XDUB_{section.upper()}" for section in DECIDING)
        ours = ((name, value) for name, value in sorted(os.environ.items()) if name.startswith(sections))
        own = "".join(f"{name}={shlex.quote(value)} " for name, value in ours)
        scale = "" if self.steps_scale == 1 else f" --steps-scale {self.steps_scale:g}"
        return f"{own}xdub ablate --profile {profile} --tables {','.join(self.tables)} --seeds {len(self.seeds)}{scale}"


def chosen_tables(names: str) -> tuple[str, ...]:
    """Table names from ``4,5,pairs``.

    Raises:
        InputError: There is no such table.
    """
    chosen = tuple(name.strip() for name in names.split(","))
    unknown = [name for name in chosen if name not in TABLES]
    if unknown:
        raise InputError(f"no table {', '.join(unknown)} among the ablations", f"choose from {', '.join(TABLES)}")
    return tuple(name for name in TABLES if name in chosen)


def seed_settings(settings: Settings, seed: int, steps_scale: float) -> Settings:
    """The settings of one seed, in a state root of its own."""
    scale = "" if steps_scale == 1 else f"-x{steps_scale:g}"
    root = settings.path("ablate", f"seed-{seed}{scale}")
    chosen = load_settings(profile=settings.profile, state_root=root, seed=seed)
    steps = {name: max(1, round(getattr(chosen.phases, name).steps * steps_scale)) for name in STEPPED}
    return changed(chosen, {"phases": {name: {"steps": number} for name, number in steps.items()}})


def run_ablations(
    settings: Settings, wanted: Wanted, prepare: Callable[[Settings], None], watch: Watch, output: Path
) -> tuple[AblationResult, list[str]]:
    """Runs every row under every seed; what is done is kept, and a killed run goes on where it was.

    Args:
        settings: Of the profile; each seed has a state root below its own.
        wanted: Rows, seeds and scale.
        prepare: Writes the corpus of a state root.
        watch: Told each step.
        output: JSON file of the result, written anew after every row. The page lies beside it, and so may a TOML
            file of the same name with explanations by ordering.

    Returns:
        The result, and a line for each row that failed; another run tries these again.

    Raises:
        InputError: Another run is at it, or an explanation is of no ordering.
        RuntimeError: The chain of a seed failed.
    """
    explanations = read_explanations(output.with_suffix(".toml"))
    values: dict[str, dict[str, dict[str, float]]] = {}
    seconds: dict[str, dict[str, float]] = {}
    failures: list[str] = []
    result = gathered(settings, wanted, values, seconds, explanations)
    with held(settings.path("ablate", ".lock"), 0.0) as free:
        if not free:
            raise InputError(f"another `xdub ablate` is at work on {settings.state_root}", "wait for it")
        platforms = {}
        for seed in wanted.seeds:
            own = seed_settings(settings, seed, wanted.steps_scale)
            make_chain(own, prepare, watch)
            platforms[seed] = build_platform(own)
        with rows_side_by_side(platforms, wanted, watch, settings.processes.parallel_runs) as waiting:
            for future in as_completed(waiting):
                row, seed = waiting[future]
                try:
                    metrics, took = future.result()
                except JobFailed as error:
                    failures.append(f"seed {seed}, {row.name}: {error}")
                    continue
                seconds.setdefault(row.name, {})[str(seed)] = took
                values.setdefault(row.name, {})[str(seed)] = {
                    name: value for name, value in metrics.items() if value is not None and name != "seconds"
                }
                result = gathered(settings, wanted, values, seconds, explanations)
                write(result, output)
    return result, failures


Made = Future[tuple[dict[str, float | None], float]]
"""A row's metrics and the seconds of its jobs."""


@contextmanager
def rows_side_by_side(
    platforms: Mapping[int, Platform], wanted: Wanted, watch: Watch, parallel: int
) -> Iterator[dict[Made, tuple[Row, int]]]:
    """Every row under every seed, in the making; whoever leaves early ends the workers."""
    ended = Event()
    with ThreadPoolExecutor(parallel) as pool:
        # One row under all seeds before the next: rows of one seed share jobs, and would wait for each other.
        waiting = {
            pool.submit(make_row, platform, seed, row, wanted, watch, ended): (row, seed)
            for row in wanted.rows
            for seed, platform in platforms.items()
        }
        try:
            yield waiting
        finally:
            ended.set()
            pool.shutdown(cancel_futures=True)


def make_row(
    platform: Platform, seed: int, row: Row, wanted: Wanted, watch: Watch, ended: Event
) -> tuple[dict[str, float | None], float]:
    """One row under one seed: its metrics, and what its jobs took, those that others share included.

    Raises:
        JobFailed: A worker failed, or the chain lacks something that the row needs.
    """
    number = wanted.rows.index(row) + 1
    node = Node("ablation", f"seed {seed}, row {number} of {len(wanted.rows)}: {row.name}")
    stages = Stages(platform, lambda job, line: watch(Step(node, Status.RUNNING, line or job)), ended)
    try:
        metrics = stages.scored(row)["metrics"]
    except (JobFailed, dg.Failure) as error:
        reason = str(getattr(error, "description", None) or error)
        if not ended.is_set():
            watch(Step(node, Status.FAILED, reason))
        raise JobFailed(reason) from error
    except BaseException:
        ended.set()  # a defect or a farewell, not a row that failed: no other begins
        raise
    took = stages.seconds()
    watch(Step(node, Status.DONE if stages.launched else Status.FRESH, "", took))
    return metrics, took


def make_chain(settings: Settings, prepare: Callable[[Settings], None], watch: Watch) -> None:
    """Everything that the rows share: clips, SyncNet, identity encoder, generator, pairs.

    Raises:
        RuntimeError: A step failed.
    """
    prepare(settings)
    steps = run_chain(settings, selection=UP_TO_PAIRS, started_by="xdub ablate", watch=watch)
    if broken := why_broken(steps):
        raise RuntimeError(f"the chain in {settings.state_root} did not come to its pairs: {broken}")


def gathered(
    settings: Settings,
    wanted: Wanted,
    values: Mapping[str, Mapping[str, Mapping[str, float]]],
    seconds: Mapping[str, Mapping[str, float]],
    explanations: Mapping[str, str],
) -> AblationResult:
    """Rows with their spread, orderings with their verdicts, from what is there so far."""
    rows = [
        AblatedRow(
            name=row.name,
            title=row.title,
            tables=tuple(row.tables),
            paper=dict(row.tables),
            values={measure: over_seeds(found) for measure, found in by_measure(values.get(row.name, {})).items()},
            seconds=over_seeds(seconds.get(row.name, {})),
        )
        for row in wanted.rows
    ]
    return AblationResult(
        command=wanted.command(settings.profile),
        commit=commit(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=machine(),
        profile=settings.profile,
        seeds=wanted.seeds,
        steps_scale=wanted.steps_scale,
        tables={name: TABLES[name] for name in wanted.tables},
        rows=tuple(rows),
        orderings=tuple(
            judge_ordering(ordering, values, explanations.get(ordering.name, ""))
            for ordering in ORDERINGS
            if ordering.table in wanted.tables
        ),
        settings=settings.model_dump(mode="json", include=set(DECIDING)),
    )


def by_measure(seeds: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Seed -> measure -> value, the other way round."""
    found: dict[str, dict[str, float]] = {}
    for seed, measures in seeds.items():
        for measure, value in measures.items():
            found.setdefault(measure, {})[seed] = value
    return found


def read_explanations(path: Path) -> dict[str, str]:
    """Ordering -> why it came out as it did, from a TOML file that somebody wrote; nothing where there is none.

    Raises:
        InputError: An explanation is of no ordering, or no text.
    """
    if not path.is_file():
        return {}
    found = tomllib.loads(path.read_text(encoding="utf-8"))
    known = {ordering.name for ordering in ORDERINGS}
    bad = [name for name, text in found.items() if name not in known or not isinstance(text, str)]
    if bad:
        raise InputError(f"'{path}' explains {', '.join(bad)}", f"give text for one of {', '.join(sorted(known))}")
    return {str(name): str(text) for name, text in found.items()}


def write(result: AblationResult, output: Path) -> None:
    """The JSON file, and the page beside it."""
    write_json(output, result.model_dump(mode="json"))
    write_ablations(result, output.with_suffix(".html"))
