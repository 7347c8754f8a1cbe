"""Who becomes champion: the one way in which the alias that serving follows is moved.

A challenger takes over only if its files are whole, it was scored on the same benchmark as the champion, it is
better on the primary score by more than chance, and no line of the table falls below its tolerance. Every
decision, accepted or refused, is an MLflow run named ``promotion`` and a tag on the version.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from model_code.errors import InputError
from xdub_platform.integrity import whole
from xdub_platform.licences import is_open
from xdub_platform.locks import held
from xdub_platform.platform import Platform
from xdub_platform.resources.mlflow import TAG_LENGTH
from xdub_platform.scores import Scored, record_scores, recorded_scores
from xdub_platform.settings import PromotionSettings, Settings

log = logging.getLogger(__name__)

RUN = "promotion"
WITHDRAWN = "promotion.withdrawn"
"""Version tag: it was champion until a rollback, and returns only when somebody names it."""
SHOWN = ("opening", "width", "pucker", "leak_opening", "lip_gain", "outside_psnr", "identity_ratio", "silence")


@dataclass(frozen=True)
class Decision:
    """What was decided about a version.

    Attributes:
        accepted: Whether the version is champion now (in a plan: whether it would be).
        reason: Why, in one line.
        challenger: The version that asked.
        champion: The champion it was held against; None if there was none.
        table: One row for each line of the score table: ``measure``, ``label``, ``unit``, ``champion``,
            ``challenger``, ``better_by`` (negative is worse), ``tolerance``, ``ok``.
        at: UTC time, ISO 8601.
        run_id: MLflow run with the record; None for a plan.
    """

    accepted: bool
    reason: str
    challenger: int
    champion: int | None
    table: list[dict[str, Any]]
    at: str
    run_id: str | None = None


def promote(platform: Platform, version: int | None = None) -> Decision:
    """Makes a version champion if it is better than the present one.

    Args:
        platform: Resources.
        version: The challenger; None takes the version with the alias ``challenger``.

    Raises:
        InputError: There is no such version, or another promotion is at work.
    """
    with promotion_lock(platform.settings) as check_lock:
        return _carry_out(platform, _judge(platform, version, rescore=True), "promote", check_lock)


def plan_promotion(platform: Platform, version: int | None = None) -> Decision:
    """What `promote` would decide; scores, moves and records nothing.

    Raises:
        InputError: There is no such version.
    """
    return _judge(platform, version, rescore=False)


def roll_back(platform: Platform, version: int) -> Decision:
    """Makes any whole version champion, whatever its scores.

    The version that it replaces is withdrawn: it does not come back by itself with the next promotion.

    Raises:
        InputError: There is no such version, or another promotion is at work.
    """
    with promotion_lock(platform.settings) as check_lock:
        champion, asked = _number(platform, "@champion"), _existing(platform, str(version))
        reason = unfit(platform, asked)
        table: list[dict[str, Any]] = []
        if asked == champion:
            reason = f"version {asked} is champion already"
        elif champion is not None:
            mine, theirs = recorded_scores(platform, asked), recorded_scores(platform, champion)
            if mine and theirs and mine.benchmark == theirs.benchmark:
                table = compare(platform.settings.promotion, mine, theirs)
        told = reason or f"rolled back from {f'version {champion}' if champion else 'no champion'} as asked"
        decision = Decision(reason is None, told, asked, champion, table, _now())
        return _carry_out(platform, decision, "roll_back", check_lock)


@contextmanager
def promotion_lock(settings: Settings) -> Iterator[Callable[[], None]]:
    """Lets one promotion at a time at the registry; yields what checks that the lock is still held.

    Processes on one machine meet at a file in the state root; machines that share a Postgres database meet there.

    Raises:
        InputError: Another promotion is at work.
    """
    busy = InputError("another promotion is at work", "wait until it is done, then look at `xdub status`")
    with held(settings.path(".promotion.lock"), 0.0) as free:
        if not free:
            raise busy
        addresses = (settings.database.url, settings.mlflow_uri)
        postgres = next((url for url in addresses if url and url.startswith("postgresql")), None)
        if postgres is None:
            yield lambda: None
            return
        from sqlalchemy import NullPool, create_engine, text
        from sqlalchemy.exc import DBAPIError

        key = int.from_bytes(hashlib.sha256(f"xdub {settings.mlflow.model_name}".encode()).digest()[:8], signed=True)
        # The lock is the connection's: it is gone when this process is, however it ends.
        engine = create_engine(postgres, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:

            def check() -> None:
                try:
                    connection.execute(text("SELECT 1"))
                except DBAPIError as error:
                    raise InputError(
                        "the database that holds the promotion's lock was lost", "promote again"
                    ) from error

            if not connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": key}):
                raise busy
            yield check


def unfit(platform: Platform, version: int) -> str | None:
    """Why a version may not be champion, whatever its scores; None if it may."""
    found = platform.mlflow.model_version(platform.settings.mlflow.model_name, str(version))
    if found is None:
        return f"version {version} is not registered"
    if is_open(found.tags):
        return (
            f"version {version} holds weights under a licence that nobody has acknowledged: read it, then set the "
            f"tag licence.acknowledged of version {version} to your name"
        )
    return whole(platform, version)


def compare(settings: PromotionSettings, mine: Scored, theirs: Scored) -> list[dict[str, Any]]:
    """The challenger's and the champion's shipped rows, line by line; see `Decision.table`."""
    from model_code.metrics.scores import BARS

    tolerances = settings.tolerances.model_dump()
    table = []
    for bar in BARS:
        champion, challenger = theirs.values.get(bar.measure), mine.values.get(bar.measure)
        if champion is None and challenger is None:
            continue
        tolerance = None if bar.measure == settings.primary else tolerances.get(bar.measure)
        better_by = None if champion is None or challenger is None else _better_by(bar.sense, challenger, champion)
        ok = True
        if tolerance is not None and champion is not None:
            ok = better_by is not None and better_by >= -tolerance
        table.append(
            {
                "measure": bar.measure,
                "label": bar.label,
                "unit": bar.unit,
                "champion": champion,
                "challenger": challenger,
                "better_by": better_by,
                "tolerance": tolerance,
                "ok": ok,
            }
        )
    return table


def objections(settings: PromotionSettings, table: Sequence[dict[str, Any]], mine: Scored, theirs: Scored) -> list[str]:
    """What speaks against the challenger; nothing if it should become champion."""
    found = []
    name, spread = settings.primary, settings.seed_spread
    new, old = mine.values.get(name), theirs.values.get(name)
    if new is None:
        return [f"the challenger has no value of the primary score, {name}"]
    # A champion without one (a mouth that never moves correlates with nothing) is worse than any value.
    if old is not None:
        gain = next(row["better_by"] for row in table if row["measure"] == name)
        if gain <= spread:
            found.append(f"{name} {new:.3f} against {old:.3f} is not better by more than the seed spread of {spread:g}")
        elif (interval := gain_interval(name, mine, theirs)) is not None and interval[0] <= 0:
            found.append(
                f"the gain of {gain:.3f} in {name} may be the choice of cases: "
                f"{interval[0]:.3f} to {interval[1]:.3f} when they are drawn again"
            )
    for row in table:
        if not row["ok"]:
            told = (
                "has no value any more"
                if row["better_by"] is None
                else f"falls by {-row['better_by']:.3f}, more than its tolerance of {row['tolerance']:g}"
            )
            found.append(f"{row['measure']} {told}")
    return found


def gain_interval(measure: str, mine: Scored, theirs: Scored) -> tuple[float, float] | None:
    """95 % interval of the gain in a measure when the cases, the same for both, are drawn again.

    None where a model has no scores of single cases, the measure none that add up, or the cases too few heads.
    """
    from model_code.metrics.scores import BARS, CaseRecord, row_measures
    from model_code.seeding import rng_for

    if mine.detail is None or theirs.detail is None:
        return None
    sense = next(bar.sense for bar in BARS if bar.measure == measure)
    both = []
    for scored in (mine.detail, theirs.detail):
        records = [CaseRecord.model_validate(record) for record in scored["records"]]
        both.append(row_measures(records, scored["scores"]["final"]).get(measure))
    challenger, champion = both
    if challenger is None or champion is None:
        return None
    gain = challenger.minus(champion, rng_for("promotion", mine.benchmark, measure))
    if gain.low is None or gain.high is None:
        return None
    return (-gain.high, -gain.low) if sense == "low" else (gain.low, gain.high)


def markdown(decision: Decision, details: Sequence[tuple[str, Scored | None]] = ()) -> str:
    """A decision for people: verdict, comparison, and the whole score table of each model in `details`."""
    verdict = "accepted" if decision.accepted else "refused"
    against = f"champion version {decision.champion}" if decision.champion else "no champion"
    lines = [f"**Version {decision.challenger} {verdict}** (against {against}, {decision.at})", "", decision.reason]
    if decision.table:
        lines += ["", "| score | champion | challenger | better by | tolerance | ok |", "|---|---|---|---|---|---|"]
        lines += [
            f"| {row['label']}{' (' + row['unit'] + ')' if row['unit'] else ''} | {_cell(row['champion'])} "
            f"| {_cell(row['challenger'])} | {_cell(row['better_by'], '+')} | {_cell(row['tolerance'])} "
            f"| {'yes' if row['ok'] else '**no**'} |"
            for row in decision.table
        ]
    for title, scored in details:
        if scored and scored.detail:
            lines += ["", f"{title}:", "", f"| | {' | '.join(SHOWN)} |", "|---" * (len(SHOWN) + 1) + "|"]
            lines += [
                f"| {name} | {' | '.join(_cell(row.get(each, {}).get('value')) for each in SHOWN)} |"
                for name, row in scored.detail["scores"]["rows"].items()
            ]
    return "\n".join(lines) + "\n"


def score_tables(platform: Platform, decision: Decision) -> list[tuple[str, Scored | None]]:
    """Both models' recorded scores, with a title each."""
    numbers = {"Challenger": decision.challenger, "Champion": decision.champion}
    return [
        (f"{title}, version {number}", recorded_scores(platform, number))
        for title, number in numbers.items()
        if number is not None
    ]


def _judge(platform: Platform, version: int | None, *, rescore: bool) -> Decision:
    settings = platform.settings.promotion
    champion = _number(platform, "@champion")
    challenger = _existing(platform, "@challenger" if version is None else str(version))

    def decide(accepted: bool, reason: str, table: list[dict[str, Any]] | None = None) -> Decision:
        return Decision(accepted, reason, challenger, champion, table or [], _now())

    if challenger == champion:
        return decide(False, f"version {challenger} is champion already")
    versions = platform.mlflow.versions(platform.settings.mlflow.model_name)
    withdrawn = versions.get(challenger, {}).get(WITHDRAWN)
    if version is None and withdrawn:
        return decide(False, f"version {challenger} was rolled back at {withdrawn}: name it to promote it after all")
    if reason := unfit(platform, challenger):
        return decide(False, reason)
    mine = recorded_scores(platform, challenger)
    if mine is None or mine.detail is None:
        return decide(False, f"version {challenger} has no scores: materialise `benchmark_scores`")
    if champion is None:
        return decide(True, "the first champion: it is whole and has scores, and there is nobody to compare it with")
    damage = whole(platform, champion)
    data = [versions.get(each, {}).get("dvc.version") for each in (challenger, champion)]
    if damage and data[0] is not None and data[0] == data[1]:
        return decide(True, f"the champion is damaged ({damage}), and this is the same model, whole")
    if "version" not in mine.detail["benchmark"]:  # the champion's may be those of other code, which nothing tells
        return decide(False, f"nothing says which code scored version {challenger}: materialise `benchmark_scores`")
    note = f"the champion is damaged ({damage}) and is judged by its recorded scores; " if damage else ""
    theirs = recorded_scores(platform, champion, mine.benchmark)
    if theirs is None:
        wanting = f"champion version {champion} has no scores on the benchmark of version {challenger}"
        if damage:
            return decide(False, f"{wanting} and is damaged ({damage}): roll back to a whole version")
        if not rescore:
            return decide(False, f"{wanting}: `xdub promote` scores it first, then decides")
        try:
            theirs = _rescore(platform, champion, mine)
        except InputError as error:
            return decide(False, f"{wanting} and cannot be scored on it: {error}")
    table = compare(settings, mine, theirs)
    against = objections(settings, table, mine, theirs)
    if against:
        return decide(False, note + "; ".join(against), table)
    gain = next(row["better_by"] for row in table if row["measure"] == settings.primary)
    better = "has a value now" if gain is None else f"is better by {gain:.3f}"
    return decide(True, f"{note}{settings.primary} {better} and every line keeps within its tolerance", table)


def _rescore(platform: Platform, champion: int, like: Scored) -> Scored:
    """Scores the champion on the benchmark that scored the challenger.

    Raises:
        InputError: The benchmark failed, or it cannot be had again.
    """
    from assets.benchmark_scores import VERSION
    from model_code.config import BenchmarkConfig, CorpusConfig, MediaConfig
    from xdub_platform.dubbing import benchmark_registered

    assert like.detail is not None
    identity = like.detail["benchmark"]
    if identity["version"] != VERSION:
        raise InputError(
            f"version {identity['version']} of the benchmark scored the challenger, and this is version {VERSION}",
            "score the challenger anew: materialise `benchmark_scores`",
        )
    log.info("scoring the champion, version %d, on the challenger's benchmark", champion)
    benchmark = BenchmarkConfig.model_validate(identity["benchmark"])
    settings = platform.settings.model_copy(
        update={
            "benchmark": benchmark,
            "corpus": CorpusConfig.model_validate(identity["corpus"]),
            "media": MediaConfig.model_validate(identity["media"]),
        }
    )
    output = settings.path("benchmarks", f"promotion-v{champion}-{like.benchmark}")
    folder, _ = benchmark_registered(settings, benchmark.heads_seed, str(champion), None, output)
    digest = record_scores(platform, champion, identity, folder)
    shutil.rmtree(folder, ignore_errors=True)
    found = recorded_scores(platform, champion, like.benchmark)
    if found is None:
        raise InputError(
            f"what scores now is benchmark {digest}, no longer {like.benchmark} (other judges or other cases)",
            "score the challenger anew: materialise `benchmark_scores`",
        )
    return found


def _carry_out(platform: Platform, decision: Decision, kind: str, check_lock: Callable[[], None]) -> Decision:
    """Writes a decision down and moves the alias if it was accepted."""
    name, client = platform.settings.mlflow.model_name, platform.mlflow.client()
    tables = score_tables(platform, decision)
    tags = {
        "promotion.kind": kind,
        "promotion.accepted": str(decision.accepted).lower(),
        "promotion.challenger": str(decision.challenger),
        "promotion.champion": str(decision.champion or ""),
        "promotion.reason": decision.reason[:TAG_LENGTH],
    }
    # A run that is not FINISHED is a promotion that did not come to its end.
    with platform.mlflow.run(RUN, tags=tags) as run:
        decision = replace(decision, run_id=run.run_id)
        run.text("decision.md", markdown(decision, tables))
        scores = {title: scored.detail["scores"] for title, scored in tables if scored and scored.detail}
        run.text("decision.json", json.dumps({**asdict(decision), "kind": kind, "scores": scores}, indent=1))
        if decision.accepted:
            check_lock()
            move_champion(platform, decision, withdraw=kind == "roll_back")
            if WITHDRAWN in platform.mlflow.versions(name)[decision.challenger]:
                client.delete_model_version_tag(name, str(decision.challenger), WITHDRAWN)
        verdict = "accepted" if decision.accepted else "refused"
        told = f"{kind} {verdict} at {decision.at}: {decision.reason}"
        client.set_model_version_tag(name, str(decision.challenger), "promotion", told[:TAG_LENGTH])
        client.set_model_version_tag(name, str(decision.challenger), "promotion.run", run.run_id)
    return decision


def move_champion(platform: Platform, decision: Decision, *, withdraw: bool = False) -> None:
    """Points the alias at an accepted challenger if the old one is still the one that was judged.

    Args:
        platform: Resources.
        decision: What was decided.
        withdraw: Whether the old one may not come back by itself.

    Raises:
        InputError: Somebody who does not take the lock moved it meanwhile.
    """
    present = _number(platform, "@champion")
    if present != decision.champion:
        raise InputError(
            f"the champion became version {present or 'none'} while version {decision.challenger} was compared with "
            f"{decision.champion or 'none'}",
            "promote again",
        )
    name = platform.settings.mlflow.model_name
    if withdraw and decision.champion is not None:  # first: a crash must not leave it as one that may come back
        platform.mlflow.client().set_model_version_tag(name, str(decision.champion), WITHDRAWN, decision.at)
    platform.mlflow.set_alias(name, "champion", decision.challenger)


def _number(platform: Platform, version: str) -> int | None:
    found = platform.mlflow.model_version(platform.settings.mlflow.model_name, version)
    return int(found.version) if found else None


def _existing(platform: Platform, version: str) -> int:
    number = _number(platform, version)
    if number is None:
        name = platform.settings.mlflow.model_name
        raise InputError(f"no version {version} of {name} is registered", "see `xdub status`, or `xdub run` first")
    return number


def _better_by(sense: str, challenger: float, champion: float) -> float:
    return {
        "high": challenger - champion,
        "low": champion - challenger,
        "zero": abs(champion) - abs(challenger),
    }[sense]


def _cell(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.4g}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
