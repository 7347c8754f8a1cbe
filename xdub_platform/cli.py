"""The `xdub` command. Heavy imports stay inside the commands, so that ``--help`` answers at once."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from model_code.errors import InputError
from xdub_platform.logs import log_as_told

if TYPE_CHECKING:
    from xdub_platform.settings import Settings

app = typer.Typer(
    name="xdub",
    help="Turn talking-head footage into a visual-dubbing model, and use it.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)
weights = typer.Typer(name="weights", help="Weights that others published.", no_args_is_help=True)
app.add_typer(weights)

Receipt = Annotated[Path | None, typer.Option(help="Write what the data registry now holds as JSON.")]
Profile = Annotated[str | None, typer.Option(help="embedded, embedded-full, workstation or cluster.")]


def main() -> None:
    """Entry point: bad input ends in one line and exit code 2, a database or MLflow that is away in one and 3."""
    for name, value in (("DO_NOT_TRACK", "1"), ("GX_ANALYTICS_ENABLED", "false"), ("DAGSTER_DISABLE_TELEMETRY", "1")):
        os.environ.setdefault(name, value)
    log_as_told()
    try:
        app()
    except InputError as error:
        typer.echo(f"xdub: {error}", err=True)
        sys.exit(2)
    except Exception as error:
        from xdub_platform.failures import database_is_away, mlflow_is_away

        if database_is_away(error):
            away = f"the database does not answer ({' '.join(str(error).split())[:200]})"
        elif mlflow_is_away(error):
            away = "the MLflow server at $XDUB_MLFLOW__TRACKING_URI does not answer"
        else:
            raise
        typer.echo(f"xdub: {away}: start it and run this again", err=True)
        sys.exit(3)


@app.command()
def demo(profile: Profile = None) -> None:
    """Run the whole chain on a procedural corpus, and write the report."""
    from xdub_platform.chain import why_broken
    from xdub_platform.console import Progress, show_scores, show_steps
    from xdub_platform.demo import prepare_corpus, write_run_report
    from xdub_platform.running import run_chain

    settings = _settings(profile)
    started = time.monotonic()
    with Progress() as progress:
        prepare_corpus(settings, progress.corpus)
        steps = run_chain(settings, started_by="xdub demo", watch=progress.watch)
    seconds = time.monotonic() - started
    show_steps(steps, seconds)
    show_scores(settings, write_run_report(settings, steps, seconds, "xdub demo"))
    if why_broken(steps):
        raise typer.Exit(1)


@app.command()
def ingest(
    paths: Annotated[
        list[Path], typer.Argument(help="Videos or folders of videos, with NAME.json (and NAME.wav) beside them.")
    ],
    profile: Profile = None,
) -> None:
    """Drop footage into the incoming folder and take it in as new shards of clips."""
    from xdub_platform.chain import why_broken
    from xdub_platform.console import Progress, show_quarantine, show_steps
    from xdub_platform.demo import drop
    from xdub_platform.running import run_chain

    settings = _settings(profile)
    started = time.monotonic()
    drop(settings, paths)
    with Progress() as progress:
        steps = run_chain(
            settings, selection="key:raw_corpus or key:clips", started_by="xdub ingest", watch=progress.watch
        )
    show_steps(steps, time.monotonic() - started)
    show_quarantine(settings, steps)
    if why_broken(steps):
        raise typer.Exit(1)


@app.command()
def corpus(receipt: Receipt = None, profile: Profile = None) -> None:
    """Write the procedural corpus into the incoming folder, where it is not there yet."""
    from xdub_platform.console import Progress
    from xdub_platform.demo import prepare_corpus
    from xdub_platform.receipts import write_corpus_receipt

    settings = _settings(profile)
    with Progress() as progress:
        prepare_corpus(settings, progress.corpus)
    if receipt:
        write_corpus_receipt(settings, receipt)


@app.command()
def run(
    select: Annotated[str, typer.Option(help="Assets in Dagster's selection syntax, such as 'key:editor+'.")] = "*",
    plan: Annotated[bool, typer.Option("--plan", help="Only say what would run and why; takes nothing in.")] = False,
    receipt: Receipt = None,
    profile: Profile = None,
) -> None:
    """Make everything selected that is stale; with a model to score, write the report."""
    from xdub_platform.chain import why_broken
    from xdub_platform.console import Progress, show_plan, show_scores, show_steps
    from xdub_platform.demo import write_run_report
    from xdub_platform.instance import open_instance
    from xdub_platform.platform import build_platform
    from xdub_platform.running import chain_planner, run_chain

    settings = _settings(profile)
    if plan:
        with open_instance(settings) as instance:
            show_plan(chain_planner(settings, instance, "xdub run").plan(select))
        waiting = build_platform(settings).ledger.waiting(settings.incoming)
        if waiting:
            typer.echo(f"new files in {settings.incoming}: {len(waiting)}; a run takes them in first")
        return
    started = time.monotonic()
    with Progress() as progress:
        steps = run_chain(settings, selection=select, started_by="xdub run", watch=progress.watch)
    seconds = time.monotonic() - started
    show_steps(steps, seconds)
    if any(step.node.asset == "benchmark_scores" for step in steps):
        show_scores(settings, write_run_report(settings, steps, seconds, "xdub run"))
    if receipt:
        from xdub_platform.receipts import write_receipt

        write_receipt(settings, steps, receipt)
    if why_broken(steps):
        raise typer.Exit(1)


@app.command()
def dub(
    video: Annotated[Path, typer.Argument(help="Any video that ffmpeg reads.")],
    audio: Annotated[Path, typer.Argument(help="The new speech.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the dubbed mp4 goes.")],
    version: Annotated[str, typer.Option(help="Model version: @champion, @challenger or a number.")] = "@champion",
    seed: Annotated[int, typer.Option(help="Decides the noise.")] = 0,
    speaker: Annotated[
        str,
        typer.Option(
            help="Which face: its number from the left in every shot, or sync: the one whose lips fit the video's own "
            "sound; if left out: the largest."
        ),
    ] = "",
    profile: Profile = None,
) -> None:
    """Dub VIDEO to the speech in AUDIO with the registered model."""
    from model_code.dubbing.speaker import parse_speaker
    from xdub_platform.dubbing import dub_with_registered

    chosen = parse_speaker(speaker)
    told = dub_with_registered(_settings(profile), video, audio, output, version, seed, chosen)
    for line in told:
        typer.echo(line)


@app.command()
def benchmark(
    heads_seed: Annotated[int | None, typer.Option(help="Draw fresh heads and sentences from this seed.")] = None,
    version: Annotated[str, typer.Option(help="Model version: @champion, @challenger or a number.")] = "@champion",
    cases: Annotated[int | None, typer.Option(min=1, help="Number of clips.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="Folder for scores.json and cases/: a new or empty one, or an earlier benchmark's."
        ),
    ] = None,
    profile: Profile = None,
) -> None:
    """Score a registered model on held-out or freshly drawn heads."""
    from xdub_platform.console import show_score_table
    from xdub_platform.dubbing import benchmark_registered

    folder, scores = benchmark_registered(_settings(profile), heads_seed, version, cases, output)
    show_score_table(scores)
    typer.echo(f"scores: {folder / 'scores.json'}")
    typer.echo(f"cases:  {folder / 'cases'}")


@app.command()
def bench(
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds of the whole chain.")] = 3,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the pooled scores go.")] = Path(
        "docs/results/bench.json"
    ),
    profile: Profile = "embedded-full",
) -> None:
    """Run the full settings with several seeds and pool their scores; a killed run goes on where it was."""
    from xdub_platform.bench import run_bench
    from xdub_platform.console import Progress, show_score_table
    from xdub_platform.demo import prepare_corpus

    with Progress() as progress:
        result = run_bench(
            _settings(profile),
            range(seeds),
            lambda settings: prepare_corpus(settings, progress.corpus),
            progress.watch,
            output,
        )
    show_score_table(result["scores"])
    typer.echo(f"results: {output}")


@app.command()
def ablate(
    tables: Annotated[
        str, typer.Option(help="The paper's tables 4, 5, 6, 7, 8, 10, and pairs.")
    ] = "4,5,6,7,8,10,pairs",
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds of the whole chain.")] = 3,
    steps_scale: Annotated[float, typer.Option(min=0.001, help="Factor on the steps of the training phases.")] = 1.0,
    output: Annotated[Path, typer.Option("-o", "--output", help="JSON of the result; the page lies beside it.")] = Path(
        "docs/results/ablations.json"
    ),
    profile: Profile = None,
) -> None:
    """Run the paper's ablations with several seeds, for hours; a killed run goes on where it was."""
    from xdub_platform.ablation.run import Wanted, chosen_tables, run_ablations
    from xdub_platform.console import Progress, show_ablations
    from xdub_platform.demo import prepare_corpus

    wanted = Wanted(chosen_tables(tables), tuple(range(seeds)), steps_scale)
    with Progress() as progress:
        result, failures = run_ablations(
            _settings(profile),
            wanted,
            lambda settings: prepare_corpus(settings, progress.corpus),
            progress.watch,
            output,
        )
    show_ablations(result)
    for failure in failures:
        typer.echo(f"failed: {failure}", err=True)
    typer.echo(f"results: {output}\npage:    {output.with_suffix('.html')}")
    if failures:
        raise typer.Exit(1)


@app.command()
def promote(
    version: Annotated[
        int | None, typer.Argument(help="Version that wants to be champion; if left out: the challenger.")
    ] = None,
    rollback: Annotated[int | None, typer.Option(help="Make this whole version champion, whatever its scores.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only say what would be decided and why.")] = False,
    profile: Profile = None,
) -> None:
    """Make the challenger champion if it is better by more than chance and worse in nothing; 1 if refused."""
    from rich.console import Console
    from rich.markdown import Markdown

    from xdub_platform import promotion
    from xdub_platform.platform import build_platform

    if rollback is not None and (version is not None or plan):
        raise InputError("--rollback stands alone", "name the version once, without --plan")
    platform = build_platform(_settings(profile))
    if rollback is not None:
        decision = promotion.roll_back(platform, rollback)
    else:
        decision = (promotion.plan_promotion if plan else promotion.promote)(platform, version)
    Console().print(Markdown(promotion.markdown(decision)))
    if not decision.accepted:
        raise typer.Exit(1)


@app.command()
def prune(
    keep: Annotated[int, typer.Option(min=1, help="How many of the newest versions of each model stay.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    profile: Profile = None,
) -> None:
    """Remove old versions of models, and old data, that no alias, published tag or present dataset needs."""
    from xdub_platform.platform import build_platform
    from xdub_platform.prune import prune as clear

    pruned = clear(build_platform(_settings(profile)), keep, dry_run)
    for each in pruned:
        typer.echo(f"{each.size / 1e6:10,.1f} MB  {each.what}")
    total = sum(each.size for each in pruned) / 1e6
    typer.echo(f"{total:10,.1f} MB {'would be' if dry_run else 'are'} free")


@weights.command("import")
def import_weights(
    path: Annotated[Path, typer.Argument(help="X-Dub's released .safetensors, or a Wan2.2 folder (diffusers).")],
    licence: Annotated[
        str, typer.Option(prompt="Licence of these weights (X-Dub's release states none)", help="As published.")
    ],
    acknowledge: Annotated[str, typer.Option(help="Your name: you read this licence and accept it.")] = "",
    profile: Profile = None,
) -> None:
    """Check, convert and register published weights; promotion asks that their licence be acknowledged."""
    from xdub_platform.platform import build_platform
    from xdub_platform.weights import import_weights as take

    if not licence.strip():
        raise InputError("no licence is stated", "say which one, or in words that none is published")
    done = take(build_platform(_settings(profile)), path, licence.strip(), acknowledge.strip())
    typer.echo(f"{done.model} version {done.version} (@{done.kind}): {done.parameters:,} parameters")
    if not acknowledge.strip():
        typer.echo(f"licence not acknowledged: set the tag licence.acknowledged of version {done.version} to your name")


@weights.command("assemble")
def assemble_dubber(
    version: Annotated[str, typer.Option(help="Imported weights: @xdub or a number.")] = "@xdub",
    profile: Profile = "cluster",
) -> None:
    """Make a dubber of imported weights and the profile's backbones; it carries the weights' licence."""
    from xdub_platform.platform import build_platform
    from xdub_platform.weights import assemble_dubber as put_together

    done = put_together(build_platform(_settings(profile)), version)
    typer.echo(f"{done.model} version {done.version} (@released), of weights version {done.weights}")
    typer.echo(f"dub with it: xdub dub VIDEO AUDIO -o OUT --version {done.version} --profile {profile}")
    if not done.acknowledged:
        typer.echo(f"licence not acknowledged: set the tag licence.acknowledged of version {done.version} to your name")


@app.command()
def status(profile: Profile = None) -> None:
    """What is fresh, stale or missing, and which model is champion."""
    from xdub_platform.console import show_status
    from xdub_platform.instance import open_instance
    from xdub_platform.running import chain_planner

    settings = _settings(profile)
    with open_instance(settings) as instance:
        show_status(settings, chain_planner(settings, instance, "xdub status"))


@app.command()
def plan(
    accelerator: Annotated[str, typer.Option(help="a100, h100, h200, b200, l40s or mi300x.")] = "h100",
    accelerators: Annotated[int, typer.Option(min=1, help="How many work together.")] = 32,
    utilisation: Annotated[float, typer.Option(help="Share of the dense peak that is reached.")] = 0.4,
    precision: Annotated[
        str | None, typer.Option(help="fp32 or bf16 for everything; if left out: as it is set.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="A transformer in place of the settings', by name.")] = None,
    hours: Annotated[float, typer.Option(help="Footage in hours.")] = 600.0,
    file_seconds: Annotated[float, typer.Option(help="Length of a file of footage.")] = 10.0,
    footage_mbit: Annotated[float, typer.Option(help="Mbit/s of the footage.")] = 5.0,
    accepted: Annotated[float, typer.Option(help="Share of the pairs that pass; the paper's 400 of 600.")] = 0.667,
    json: Annotated[Path | None, typer.Option(help="Write the plan here too.")] = None,
    profile: Profile = "cluster",
) -> None:
    """What training with these settings would take, from the settings alone, beside the paper's figures."""
    from model_code.files import write_text
    from xdub_platform.planning import plan_of, show

    settings = _settings(profile)
    made = plan_of(
        settings,
        preset,
        accelerator=accelerator,
        accelerators=accelerators,
        utilisation=utilisation,
        precision=precision,
        hours=hours,
        file_seconds=file_seconds,
        footage_mbit=footage_mbit,
        accepted=accepted,
    )
    show(made, settings)
    if json is not None:
        write_text(json, made.model_dump_json(indent=2) + "\n")


@app.command()
def doctor(
    repair: Annotated[bool, typer.Option("--repair", help="Clear what a crash left; nothing committed.")] = False,
    profile: Profile = None,
) -> None:
    """Check this installation, and list what a crash left."""
    from xdub_platform.console import show_findings, show_leftovers
    from xdub_platform.doctor import findings
    from xdub_platform.repair import leftovers

    settings = _settings(profile)
    found = findings(settings)
    show_findings(found)
    show_leftovers(leftovers(settings, repair), repair)
    if any(finding.needed and not finding.ok for finding in found):
        raise typer.Exit(1)


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    new_key: Annotated[str | None, typer.Option(help="Make an API key of this name, show it once, and end.")] = None,
    revoke_key: Annotated[str | None, typer.Option(help="Make the key of this name worthless, and end.")] = None,
    profile: Profile = None,
) -> None:
    """Serve the champion: a job API and a page to try it."""
    from xdub_platform.serving.keys import Keys

    settings = _settings(profile)
    if new_key is not None:
        typer.echo(Keys.of(settings).add(new_key))
        return
    if revoke_key is not None:
        Keys.of(settings).revoke(revoke_key)
        return
    from xdub_platform.serving.run import run_server

    run_server(settings, host, port)


@app.command()
def ui(port: Annotated[int, typer.Option(help="Port of Dagster's UI.")] = 3000, profile: Profile = None) -> None:
    """Open Dagster's UI on this state."""
    from xdub_platform.instance import dagster_environment

    settings = _settings(profile)
    environment = {
        **os.environ,
        **dagster_environment(settings),
        "XDUB_PROFILE": settings.profile,
        "XDUB_STATE_ROOT": str(settings.state_root),
    }
    command = [
        str(Path(sys.executable).with_name("dagster")),
        "dev",
        "-m",
        "xdub_platform.definitions",
        "-p",
        str(port),
    ]
    os.execve(command[0], command, environment)


def _settings(profile: str | None) -> Settings:
    from xdub_platform.settings import load_settings

    return load_settings(profile=profile) if profile else load_settings()
