"""`xdub plan`: a profile's plan, as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from model_code.errors import InputError
from xdub_platform.settings import Settings

if TYPE_CHECKING:
    from model_code.planning.plan import Plan, Recipe


def recipe_of(settings: Settings) -> Recipe:
    """What a plan needs to know of the settings."""
    from model_code.planning.plan import Recipe

    phases = settings.phases
    return Recipe(
        media=settings.media,
        transformer=settings.transformer,
        backbones=settings.backbones,
        flow=settings.flow,
        phases=(phases.generator, phases.editor, phases.lip, phases.texture),
        pairs=settings.pairs,
        variants=settings.variants,
        clips_per_shard=settings.clips_per_shard,
    )


def plan_of(settings: Settings, preset: str | None = None, **assumptions: Any) -> Plan:
    """The plan of the settings.

    Args:
        settings: Of a profile.
        preset: A transformer in place of theirs, by its name in `model_code.backbones.presets`.
        **assumptions: Fields of `model_code.planning.plan.Assumptions`.

    Raises:
        InputError: An assumption is out of range, or preset or accelerator are not known.
    """
    from model_code.backbones.presets import PRESETS
    from model_code.planning.plan import Assumptions, make_plan

    try:
        assumed = Assumptions(**assumptions)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{first['loc'][0]} {first['input']!r}", first["msg"]) from error
    recipe = recipe_of(settings)
    if preset is not None:
        if preset not in PRESETS:
            raise InputError(f"preset '{preset}' is not known", f"one of {', '.join(PRESETS)}")
        recipe = recipe.model_copy(update={"transformer": PRESETS[preset]})
    return make_plan(recipe, assumed)


def settings_of(plan: Plan, settings: Settings) -> dict[str, str]:
    """Environment variables that make the settings train as it is planned; only those that differ."""
    found = {}
    for name, value in plan.settings.items():
        now: Any = settings
        for part in name.split("."):
            now = getattr(now, part)
        if now != value:
            found[f"XDUB_{name.replace('.', '__').upper()}"] = str(value).lower()
    return found


def show(plan: Plan, settings: Settings) -> None:
    """The plan's tables: parameters, phases, memory, data; and what to set in `settings` for it."""
    console = Console()
    for table in (_parameters(plan), _stages(plan), _memory(plan), _data(plan)):
        console.print(table)
    for line in _remarks(plan):
        console.print(line, highlight=False, markup=False)
    wanted = settings_of(plan, settings)
    if wanted:
        console.print(f"To train so on {plan.assumptions.accelerators} accelerators, set:", highlight=False)
    for name, text in wanted.items():
        console.print(f"  {name}={text}", highlight=False, markup=False)


def _parameters(plan: Plan) -> Table:
    table = Table("part", "parameters", title="The generator's transformer")
    for name, count in plan.parameters.items():
        table.add_row(name, _short(count))
    table.add_section()
    table.add_row("all", _short(plan.parameter_count))
    table.add_row(f"{plan.codec.name} (frozen)", _short(plan.codec.parameters))
    table.columns[1].justify = "right"
    return table


def _stages(plan: Plan) -> Table:
    assumed = plan.assumptions
    title = f"{assumed.accelerators} x {plan.accelerator.name} at {assumed.utilisation:.0%} of the dense peak"
    table = Table("", "precision", "steps", "FLOPs a step", "FLOPs", "GPU-hours", "days", "paper's days", title=title)
    told: set[str] = set()
    for stage in plan.stages:
        paper = plan.paper_days.get(stage.stage)
        table.add_row(
            stage.name,
            stage.precision,
            str(stage.steps or ""),
            _short(stage.step_flops) if stage.step_flops else "",
            _short(stage.flops) + (f" + {_short(stage.recomputed)}" if stage.recomputed else ""),
            f"{stage.accelerator_hours:,.1f}",
            f"{stage.days:.2f}",
            "" if paper is None else "with it" if stage.stage in told else f"about {paper:g}",
        )
        told.add(stage.stage)
    table.add_section()
    hours, days = (sum(values) for values in zip(*((s.accelerator_hours, s.days) for s in plan.stages), strict=True))
    paper_days = sum(plan.paper_days.values())
    table.add_row("all", "", "", "", "", f"{hours:,.1f}", f"{days:.2f}", f"about {paper_days:g}")
    for column in table.columns[2:]:
        column.justify = "right"
    return table


def _memory(plan: Plan) -> Table:
    title = "Memory of one accelerator in GB"
    table = Table("", "tokens", "learn", "", "states", "batch", "a sample", "checkpointed", "chosen", title=title)
    for phase in plan.phases:
        for way in phase.ways:
            first = way is phase.ways[0]
            chosen = ""
            if phase.chosen == way:
                how = ", checkpointed" if phase.gradient_checkpointing else ""
                chosen = f"{phase.samples} at once{how}: {_gb(phase.peak)}"
            table.add_row(
                phase.phase if first else "",
                f"{phase.tokens:,}" if first else "",
                _short(phase.trained) if first else "",
                way.sharding,
                _gb(way.states),
                _gb(way.batch),
                _gb(way.sample),
                _gb(way.sample_checkpointed),
                chosen,
            )
    for column in (table.columns[index] for index in (1, 2, 4, 5, 6, 7)):
        column.justify = "right"
    return table


def _data(plan: Plan) -> Table:
    assumed, spread = plan.assumptions, plan.partitions
    table = Table("", "planned", "paper", title=f"{assumed.hours:g} hours of footage")
    made = ", ".join(f"{name} {hours:,.1f}" for name, hours in plan.pair_hours.items())
    table.add_row("hours of pairs made", made, "")
    table.add_row("hours of pairs accepted", f"{plan.accepted_hours:,.0f}", "400 generated, about 10 rendered")
    for name, count in plan.storage.items():
        table.add_row(name, f"{_short(count)}B", "")
    table.add_row("all of it", f"{_short(sum(plan.storage.values()))}B", "")
    table.add_row("files", f"{spread.files:,} of {assumed.file_seconds:g} s", "")
    table.add_row("shards", f"{spread.shards:,}", "")
    parts = ", ".join(f"{name} {count:,}" for name, count in spread.per_asset.items())
    table.add_row("partitions", f"{spread.total:,} ({parts})", "")
    return table


def _remarks(plan: Plan) -> list[str]:
    """What a reader would miss in the tables."""
    frozen = plan.backbones
    heard, read = " + ".join(frozen.audio), frozen.text or "none"
    lines = [f"Frozen networks: codec {frozen.codec}; sound {heard}; text {read}."]
    shares = ", ".join(f"{name} {share:.0%}" for name, share in plan.paper_utilisation.items())
    lines.append(f"The paper's days on 32 of these would take these shares of the bf16 peak for our FLOPs: {shares}.")
    single = [stage.name for stage in plan.stages if stage.precision == "fp32"]
    if single:
        gain = plan.accelerator.bf16_tflops / plan.accelerator.fp32_tflops
        lines.append(f"In fp32: {', '.join(single)}. --precision bf16 plans them at a peak {gain:.0f} times as high.")
    for phase in plan.phases:
        if phase.chosen is None:
            lines.append(f"{phase.phase}: not even one sample fits into {plan.accelerator.memory_gb:g} GB.")
    if not plan.partitions.within_limit:
        lines.append("An asset has more partitions than Dagster bears: raise clips_per_shard.")
    return lines


def _gb(count: float) -> str:
    return f"{count / 1e9:,.2f}" if count < 1e10 else f"{count / 1e9:,.1f}"


def _short(count: float) -> str:
    """1234567 as 1.23 M; beyond 10^15 P, E and Z."""
    for power, sign in ((21, "Z"), (18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if count >= 10**power:
            return f"{count / 10**power:.3g} {sign}"
    return f"{count:.3g} "
