"""What the terminal shows."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from model_code.report.ablations import AblationResult
from xdub_platform.chain import Node, Planner, Status, Step
from xdub_platform.doctor import Finding
from xdub_platform.platform import build_platform
from xdub_platform.repair import Leftover
from xdub_platform.settings import Settings

COUNTED = re.compile(r"(?P<what>.+?) (?P<done>\d+)/(?P<total>\d+)")
"""How a worker says how far it is."""
COLOURS = {
    Status.DONE: "green",
    Status.FRESH: "dim",
    Status.FAILED: "red",
    Status.REJECTED: "magenta",
    Status.BLOCKED: "yellow",
    Status.RUNNING: "cyan",
}
ROWS = {
    "copy": "copying the input",
    "base": "base, filling",
    "base_editor": "base, editing",
    "generator": "generator",
    "editor": "editor",
    "lip": "+ lip expert",
    "texture": "+ texture expert",
    "exact": "exact reference",
}
COLUMNS = {
    "opening": "opening",
    "width": "width",
    "pucker": "pucker",
    "leak_opening": "leak",
    "lip_gain": "lips dB",
    "outside_psnr": "outside dB",
    "identity_ratio": "identity",
    "silence": "silence",
}


class Progress:
    """One line for each run while it goes on, and one that stays when it ended."""

    def __init__(self) -> None:
        self.bars = Bars(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn()
        )
        self.tasks: dict[Node, TaskID] = {}
        self.corpus_task: TaskID | None = None

    def __enter__(self) -> Progress:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def corpus(self, done: int, total: int) -> None:
        """Shows how much of the procedural corpus is written."""
        if self.corpus_task is None:
            self.corpus_task = self.bars.add_task("corpus", total=total)
        self.bars.update(self.corpus_task, completed=done, total=total)

    def watch(self, step: Step) -> None:
        """Follows a planner's run."""
        name = escape(str(step.node))
        if step.status is Status.RUNNING:
            if step.node not in self.tasks:
                self.tasks[step.node] = self.bars.add_task(name, total=None)
            counted = COUNTED.match(step.reason)
            self.bars.update(
                self.tasks[step.node],
                description=f"{name} [dim]{escape(counted['what'] if counted else step.reason)}[/dim]",
                completed=int(counted["done"]) if counted else 0,
                total=int(counted["total"]) if counted else None,
            )
            return
        task = self.tasks.pop(step.node, None)
        if task is not None:
            self.bars.remove_task(task)
        if step.status is not Status.FRESH:
            colour = COLOURS[step.status]
            time = f"{step.seconds:6.1f} s" if step.seconds else " " * 8
            self.bars.console.print(f"[{colour}]{step.status:8}[/{colour}] {time}  {name}", highlight=False)
            if step.status is not Status.DONE:
                self.bars.console.print(f"         {step.reason}", style=colour, markup=False, highlight=False)


def show_steps(steps: Sequence[Step], seconds: float) -> None:
    """One line for each asset."""
    table = Table("asset", "partitions", "made", "reused", "refused", "time")
    for asset in dict.fromkeys(step.node.asset for step in steps):
        own = [step for step in steps if step.node.asset == asset]
        counts = Counter(step.status for step in own)
        bad = sum(counts[status] for status in (Status.FAILED, Status.REJECTED, Status.BLOCKED))
        time = sum(step.seconds for step in own)
        table.add_row(
            asset, str(len(own)), str(counts[Status.DONE]), str(counts[Status.FRESH]), str(bad), f"{time:.1f} s"
        )
    console = Console()
    console.print(table)
    for step in steps:
        if step.status in (Status.FAILED, Status.REJECTED):
            console.print(f"{step.node} {step.status}: {step.reason}", style=COLOURS[step.status], markup=False)
    console.print(f"{seconds:.0f} s in all", highlight=False)


def show_plan(steps: Sequence[Step]) -> None:
    """What would run and why."""
    table = Table("asset and partition", "would run", "because")
    for step in steps:
        table.add_row(escape(str(step.node)), "yes" if step.status is Status.RUNNING else "", escape(step.reason))
    Console().print(table)


def show_status(settings: Settings, planner: Planner) -> None:
    """Every node's state, and the registered champion."""
    platform = build_platform(settings)
    table = Table("asset", "partition", "state", "why")
    for step in planner.plan():
        rejected = planner.rules.rejected(step.node)
        state = (
            "rejected"
            if rejected
            else "fresh"
            if step.status is Status.FRESH
            else "missing"
            if step.reason == "never made"
            else "stale"
        )
        colour = {"fresh": "green", "stale": "yellow", "missing": "dim", "rejected": "red"}[state]
        table.add_row(
            step.node.asset, step.node.partition or "", f"[{colour}]{state}[/{colour}]", escape(rejected or step.reason)
        )
    console = Console()
    console.print(table)
    name = settings.mlflow.model_name
    for alias in ("champion", "challenger"):
        version = platform.mlflow.model_version(name, f"@{alias}")
        told = f"version {version.version}, data {version.tags.get('dvc.version', '?')}" if version else "none"
        console.print(f"{alias} of {name}: {told}", highlight=False)


def show_findings(found: Sequence[Finding]) -> None:
    """The doctor's list."""
    table = Table("", "what", "found")
    for finding in found:
        sign = (
            "[green]ok[/green]"
            if finding.ok
            else "[red]missing[/red]"
            if finding.needed
            else "[yellow]optional[/yellow]"
        )
        table.add_row(sign, finding.name, finding.told)
    Console().print(table)


def show_leftovers(found: Sequence[Leftover], cleared: bool) -> None:
    """What a crash left; nothing is shown where it left nothing."""
    if not found:
        return
    table = Table("", "what a crash left", "which", "why")
    for leftover in found:
        done = "[green]cleared[/green]" if cleared else "[yellow]--repair clears[/yellow]"
        state = done if leftover.clear else "[red]left alone[/red]"
        table.add_row(state, leftover.kind, escape(leftover.what), escape(leftover.why))
    Console().print(table)


def show_quarantine(settings: Settings, steps: Sequence[Step]) -> None:
    """Which files were turned away, and why."""
    store = build_platform(settings).store
    for step in steps:
        if step.node.asset == "clips" and step.status is not Status.FRESH:
            record = store.recorded(f"clips/{step.node.partition}", "result") or {}
            for row in record.get("quarantine", []):
                Console().print(f"quarantined {row['file']}: {row['reason']}", highlight=False, markup=False)


def show_score_table(scores: Mapping[str, Any]) -> None:
    """The score table of one benchmark."""
    table = Table("", *COLUMNS.values(), title=f"{scores.get('cases', '?')} held-out clips")
    for row, measures in scores["rows"].items():
        values = [measures.get(name, {}).get("value") for name in COLUMNS]
        table.add_row(ROWS.get(row, row), *("-" if value is None else f"{value:.2f}" for value in values))
    Console().print(table)


def show_ablations(result: AblationResult) -> None:
    """What became of each ordering."""
    table = Table("ordering", "table", "measure", "difference", "spread", "holds")
    for ordering in result.orderings:
        table.add_row(escape(ordering.title), ordering.table, "", "", "", ordering.verdict, style="bold")
        for claim in ordering.claims:
            difference = claim.difference
            numbers = ("-" if value is None else f"{value:.3g}" for value in (difference.mean, difference.spread))
            verdict = f"({claim.verdict})" if claim.beside else claim.verdict
            table.add_row(f"  {claim.better} over {claim.worse}", "", claim.measure, *numbers, verdict)
    Console().print(table)


def show_scores(settings: Settings, page: Path) -> None:
    """Scores of the demo, and where everything lies."""
    path = page.with_name("scores.json")
    if path.is_file():
        show_score_table(json.loads(path.read_text(encoding="utf-8")))
    console = Console()
    for name, place in (
        ("report", page),
        ("scores", path),
        ("data", settings.path("registry")),
        ("MLflow", settings.mlflow_shown),
    ):
        console.print(f"{name:7} {place}", highlight=False, soft_wrap=True)
