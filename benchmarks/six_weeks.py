"""Six simulated weeks of one small installation, while a client asks its server at every moment.

    python -m benchmarks.six_weeks [--root FOLDER] [--output FILE]

Each week brings new footage and one mishap: bad files, a damaged champion, a worse model, two promotions at once, a
killed run. The log says what was accepted, refused, promoted and rolled back, and why. Whatever is expected is
checked; the exit status is 1 if anything was otherwise.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

from rich.console import Console

from assets.gates import verdict
from assets.produce import RESULT
from assets.shards import manifest
from benchmarks.customer import Customer, Reign, strangers
from benchmarks.kills import not_whole, processes_of
from model_code.avatars.corpus import corpus_specs, write_corpus
from model_code.errors import InputError
from tests.graph.test_whole_chain import EASY, SMALL, small
from tests.xdub_platform.serving import tiny
from tests.xdub_platform.serving.world import State, wait_for
from xdub_platform.chain import Node, Status, Step, execute
from xdub_platform.demo import prepare_corpus
from xdub_platform.instance import open_instance
from xdub_platform.platform import build_platform
from xdub_platform.promotion import Decision, promote, roll_back
from xdub_platform.repair import leftovers
from xdub_platform.running import chain_planner, run_chain
from xdub_platform.settings import Settings

PATIENCE = 600.0
"""Seconds after which something that does not happen is given up."""
MOMENT = 3.0
"""Seconds that the editor's worker lives before its run is killed."""
RUINOUS = {"steps": 6, "batch_size": 2, "learning_rate": 0.05, "warmup_steps": 0, "ema_decay": 0.0}
"""An editor trained so hard that it forgets what its start could do."""
CURVES = ("opening", "width", "pucker")
UNJUDGED = ("silence", *CURVES, *(f"{name}_wrong_audio" for name in CURVES), *(f"leak_{name}" for name in CURVES))
"""Lines without a tolerance here: curves of two clips tell too little. The primary score keeps its own rule."""


def settings_of(root: Path, *, ruinous: bool = False) -> Settings:
    """The smallest chain that starts from the shipped base, so that its scores mean something."""
    editor = RUINOUS if ruinous else {"steps": 4, "batch_size": 2}
    return small(
        root,
        clips_per_shard=8,
        transformer={},
        flow={},
        pairs={**SMALL["pairs"], "filters": EASY, "clip_fraction": 1.0},  # type: ignore[dict-item]
        corpus={**SMALL["corpus"], "heldout_heads": 2, "clips_per_head": 1},  # type: ignore[dict-item]
        gates={"max_quarantined": 0.7, "min_accepted": 0.0},
        phases={**SMALL["phases"], "editor": editor},  # type: ignore[dict-item]
        benchmark={"cases": 2, "seconds": 2.0, "silent_frames": 5},
        processes={"parallel_runs": 1, "training_threads": 2, "training_processes": 2},
        promotion={"tolerances": dict.fromkeys(UNJUDGED)},
    )


@dataclass
class Weeks:
    """The state root, and the journal of what happened to it."""

    root: Path
    week: int = 1
    begin: float = field(default_factory=time.monotonic)
    rows: list[tuple[int, int, str, str, str]] = field(default_factory=list)
    checks: list[tuple[bool, str]] = field(default_factory=list)
    reigns: list[Reign] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.settings = settings_of(self.root)
        self.platform = build_platform(self.settings)
        self.console = Console(highlight=False)

    def note(self, what: str, which: str, why: str) -> None:
        """One line of the log."""
        self.rows.append((self.week, round(time.monotonic() - self.begin), what, which, why))
        self.console.print(*self.rows[-1], markup=False)

    def check(self, ok: bool, what: str) -> None:
        """One expectation; a failed one is told at once and ends in the exit status."""
        self.checks.append((ok, f"week {self.week}: {what}"))
        if not ok:
            self.console.print(f"NOT AS EXPECTED: {what}", markup=False, style="red")

    def champion(self) -> int:
        """The version that the alias names."""
        return int(self.platform.mlflow.model_version(self.settings.mlflow.model_name, "@champion").version)  # type: ignore[union-attr]

    def newest(self) -> int:
        """The version that was registered last."""
        return max(self.platform.mlflow.versions(self.settings.mlflow.model_name), default=0)

    def footage(self) -> list[Path]:
        """Drops two clips of two heads that no week before had; returns the videos."""
        corpus = self.settings.corpus.model_copy(update={"seed": 100 + self.week, "heldout_heads": 0})
        names = [f"week{self.week}_{index}" for index in range(corpus.training_heads)]
        drawn = zip(corpus_specs(corpus), names, strict=True)
        specs = [spec.model_copy(update={"name": name, "speaker_id": name}) for spec, name in drawn]
        write_corpus(self.settings.incoming, corpus, specs=specs, processes=1)
        return [self.settings.incoming / f"{name}.mp4" for name in names]

    def chain(self, *, ruinous: bool = False) -> list[Step]:
        """Takes in and makes everything stale, as a week's run does, and logs what came of the footage."""
        steps = run_chain(settings_of(self.root, ruinous=ruinous), started_by=f"week {self.week}")
        broken = [f"{step.node}: {step.reason}" for step in steps if step.status in (Status.FAILED, Status.BLOCKED)]
        self.check(not broken, f"the chain runs to its end {broken or ''}".rstrip())
        store = self.platform.store
        for name in sorted({*store.names("clips"), *store.names("companion_pairs")} - self.seen):
            self.seen.add(name)
            rows, refused = manifest(store.path(name)), verdict(store, name)
            taken = sum(bool(row.get("accepted", True)) for row in rows)
            told = f"refused by its gate: {refused}" if refused else "accepted"
            self.note(told, name, f"{taken} of {len(rows)} samples may be trained on")
            for row in (store.recorded(name, RESULT) or {}).get("quarantine", []):
                self.note("turned away", row["file"], f"{row['reason']}: {row['detail']}")
        self.note("registered", f"version {self.newest()}", "asks to be champion")
        return steps

    def decide(self, act: Callable[[], Decision], kind: str, expected: bool | None = None) -> Decision:
        """Promotes or rolls back, logs the decision, and checks that the alias says the same."""
        begin = time.monotonic()
        decision = act()
        self.log(decision.accepted, kind, decision.challenger, decision.reason, begin)
        if expected is not None:
            told = "accepted" if expected else "refused"
            self.check(decision.accepted == expected, f"{kind} version {decision.challenger}: {told}")
        stays = decision.challenger if decision.accepted else decision.champion
        self.check(self.champion() == stays, f"{kind} version {decision.challenger}: the alias agrees")
        return decision

    def log(self, accepted: bool, kind: str, version: int, reason: str, begin: float) -> None:
        """Notes a decision; an accepted one begins a reign."""
        if accepted:
            self.reigns.append(Reign(version, begin, time.monotonic()))
        done = {"promote": "promoted", "roll back": "rolled back"}[kind]
        self.note(done if accepted else f"refused to {kind}", f"version {version}", reason)

    def served(self, customer: Customer, version: int, why: str) -> None:
        """Waits for two more answers, and checks that they come from `version`."""
        # The job in hand may have begun before.
        count = len(customer.answers) + 1
        wait_for(lambda: len(customer.answers) >= count + 2, PATIENCE, "the server to answer")
        by = sorted({answer.version for answer in customer.answers[count:]})
        self.note("served", f"version {', '.join(map(str, by))}", why)
        self.check(by == [version], f"version {version} serves: {why}")

    def first_model(self) -> None:
        """Week 1: the first footage and a badly trained first model; there is nobody to compare it with."""
        prepare_corpus(self.settings, lambda done, total: None)
        self.chain(ruinous=True)
        self.decide(lambda: promote(self.platform), "promote", True)

    def bad_footage(self, customer: Customer) -> None:
        """Week 2: four files that may not be trained on among two that may; a sound training, a better model."""
        first, second = self.footage()
        old = self.settings.incoming / "speaker000_000.mp4"
        bad = {
            "corrupt": (first.read_bytes()[:2000], first),
            "not-a-video": (b"this is no video\n" * 100, first),
            "no-consent": (second.read_bytes() + b"\0", second),  # other bytes: it is no duplicate
            "seen-before": (old.read_bytes(), old),
        }
        for name, (content, like) in bad.items():
            video = first.with_name(f"week2_{name}.mp4")
            shutil.copy(like.with_suffix(".wav"), video.with_suffix(".wav"))
            card = json.loads(like.with_suffix(".json").read_text(encoding="utf-8"))
            if name == "no-consent":
                del card["consent"]
            video.with_suffix(".json").write_text(json.dumps(card), encoding="utf-8")
            video.write_bytes(content)
        self.chain()
        away = {which for _, _, what, which, _ in self.rows if what == "turned away"}
        self.check(away == {f"week2_{name}.mp4" for name in bad}, "exactly the bad files are turned away")
        decision = self.decide(lambda: promote(self.platform), "promote", True)
        self.served(customer, decision.challenger, "the better model came into serving without a restart")

    def damaged_champion(self, customer: Customer) -> None:
        """Week 3: a byte of the champion's files is flipped; every way out is tried, then the week's retrain."""
        champion, name = self.champion(), self.settings.mlflow.model_name
        tiny.damage(self.platform.mlflow, champion)
        self.note("damaged", f"version {champion}", "one byte of its weights in the registry was flipped")
        self.served(customer, champion, "the whole model that was loaded before the damage goes on")
        self.decide(lambda: roll_back(self.platform, 1), "roll back", True)
        self.served(customer, 1, "an earlier whole version")
        refused = self.decide(lambda: roll_back(self.platform, champion), "roll back", False)
        self.check("not the file that was registered" in refused.reason, "the refusal names the damage")
        self.platform.mlflow.set_alias(name, "champion", champion)
        self.note("moved by hand", f"version {champion}", "somebody points the alias at the damaged version")
        self.served(customer, 1, "the server does not load what is damaged")
        self.check(any("not the file that was" in told for told in customer.problems), "the readiness says why")
        with open_instance(self.settings) as instance:
            job = chain_planner(self.settings, instance, f"week {self.week}").job
            made = execute(job, instance, Node("dubber"), {}, str(uuid.uuid4()))
        self.check(made.status is Status.DONE, f"`dubber` is materialised again {made.reason}".rstrip())
        self.note("registered", f"version {self.newest()}", "`dubber` materialised again: the same bytes, whole")
        healed = self.decide(lambda: promote(self.platform), "promote", True)
        self.check("same model, whole" in healed.reason, "a new registration of the same bytes heals the champion")
        self.served(customer, healed.challenger, "the healed champion")
        self.footage()
        self.chain()
        self.decide(lambda: promote(self.platform), "promote")

    def worse_model(self, customer: Customer) -> None:
        """Week 4: the retrain ruins the editor."""
        champion = self.champion()
        self.footage()
        self.chain(ruinous=True)
        self.decide(lambda: promote(self.platform), "promote", False)
        self.served(customer, champion, "the worse model never came into serving")

    def two_promotions(self, customer: Customer) -> None:
        """Week 5: after a rollback two people promote two good versions in the same moment."""
        before = self.champion()
        self.footage()
        self.chain()
        self.decide(lambda: roll_back(self.platform, 1), "roll back", True)
        context = multiprocessing.get_context("spawn")
        barrier, told, begin = context.Barrier(2), context.Queue(), time.monotonic()
        both = [context.Process(target=rival, args=(self.settings, n, barrier, told)) for n in (before, self.newest())]
        for process in both:
            process.start()
        answers = [told.get(timeout=PATIENCE) for _ in both]
        for version, accepted, reason in sorted(answers, key=lambda answer: answer[1]):
            self.log(accepted, "promote", version, reason, begin)
        won = [version for version, accepted, _ in answers if accepted]
        lost = [version for version, _, reason in answers if "another promotion is at work" in reason]
        self.check(len(won) == len(lost) == 1, "of two promotions at once exactly one acts; the other says so")
        self.check([self.champion()] == won, "the champion is the one that won")
        self.served(customer, self.champion(), "the winner")
        for version in lost:
            self.decide(lambda version=version: promote(self.platform, version), "promote")  # type: ignore[misc]

    def killed_run(self, customer: Customer) -> None:
        """Week 6: SIGKILL ends the run while its editor trains; the next run takes up where it was."""
        champion = self.champion()
        self.footage()
        run = multiprocessing.get_context("spawn").Process(target=run_chain, args=(self.settings,))
        run.start()
        place = self.settings.path("work", "editor")
        wait_for(lambda: not run.is_alive() or any(place.rglob("worker.log")), PATIENCE, "the editor's worker")
        time.sleep(MOMENT)
        self.check(run.is_alive(), "the run is at work when it is killed")
        run.kill()
        run.join()
        self.note("killed", "the run of the chain", "SIGKILL while the editor's worker was at work")
        wait_for(lambda: not list(processes_of(self.root)), PATIENCE, "the workers of the killed run to end")
        self.check(not_whole(self.root) == [], "whatever can be read is whole")
        self.served(customer, champion, "a killed run is none of the server's business")
        for left in leftovers(self.settings, repair=True):
            self.note("cleared", left.what, left.why)
        steps = self.chain()
        again = {step.node.asset for step in steps if step.status is Status.DONE}
        self.check({"editor", "dubber", "benchmark_scores"} <= again, "the rerun makes what was missing")
        self.check(again.isdisjoint({"raw_corpus", "clips", "companion_pairs"}), "and nothing that was done before")
        self.check(leftovers(self.settings) == [], "nothing of the crash is left")
        decision = self.decide(lambda: promote(self.platform), "promote")
        self.served(customer, decision.challenger if decision.accepted else champion, "after the last decision")


def rival(settings: Settings, version: int, barrier: Barrier, told: Queue[tuple[int, bool, str]]) -> None:
    """A promotion in a process of its own, at the moment when the other one is ready too."""
    platform = build_platform(settings)
    platform.mlflow.versions(settings.mlflow.model_name)  # what must be loaded first is loaded
    barrier.wait(PATIENCE)
    try:
        decision = promote(platform, version)
        told.put((version, decision.accepted, decision.reason))
    except InputError as error:
        told.put((version, False, str(error)))


def main(root: Path, output: Path) -> int:
    """Lives through the weeks and writes the log; 0 if all was as expected."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    weeks = Weeks(root / "state")
    weeks.first_model()
    state = State(weeks.settings, weeks.platform.mlflow, (root, root, root))  # its models are not used here
    with state.serving(model_check_seconds=1) as server:
        face, speech = tiny.write_face(root / "face.mp4"), tiny.write_speech(root / "speech.wav")
        customer = Customer(str(server.client.base_url), face, speech)
        customer.start()
        mishaps = weeks.bad_footage, weeks.damaged_champion, weeks.worse_model, weeks.two_promotions, weeks.killed_run
        for weeks.week, mishap in enumerate(mishaps, 2):
            mishap(customer)
        customer.over.set()
        customer.join()
    odd = strangers(customer.answers, weeks.reigns)
    weeks.check(not odd, f"every answer came from the one whole champion {odd or ''}".rstrip())
    weeks.check(not customer.faults, f"no request failed {customer.faults or ''}".rstrip())
    output.write_text(markdown(weeks, customer), encoding="utf-8")
    return int(not all(ok for ok, _ in weeks.checks))


def markdown(weeks: Weeks, customer: Customer) -> str:
    """The log for people."""
    commit = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], text=True).strip()
    seconds = time.monotonic() - weeks.begin
    failed = [what for ok, what in weeks.checks if not ok]
    lines = [
        "# Six simulated weeks",
        f"`python -m benchmarks.six_weeks` at commit {commit}, {datetime.now(UTC):%Y-%m-%d}: {seconds:.0f} s on two "
        f"CPU cores. {len(weeks.checks) - len(failed)} of {len(weeks.checks)} expectations met.",
        "",
        "The smallest chain that starts from the shipped base: a few optimiser steps a phase, a benchmark of two "
        "clips. The first week's and the fourth week's editor are ruined on purpose, by a learning rate of "
        f"{RUINOUS['learning_rate']}. Scores, decisions and reasons are the real benchmark's and the promotion's.",
    ]
    for week in range(1, weeks.week + 1):
        lines += ["", f"## Week {week}", "| second | what | which | why |", "|---|---|---|---|"]
        lines += [
            f"| {second} | {what} | {which} | {why.replace(str(weeks.root), 'STATE').replace('|', '/')} |"
            for number, second, what, which, why in weeks.rows
            if number == week
        ]
    asked = ", ".join(f"{count} x {status}" for status, count in sorted(customer.statuses.items()))
    told = f"One process from week 2 to week 6. Answers to the client: {asked}. It always asks for the same dub:"
    lines += ["", "## The server", told, "", "| version | dubs | SHA-256 of each |", "|---|---|---|"]
    counted = Counter((answer.version, answer.digest) for answer in customer.answers)
    lines += [f"| {version} | {count} | {digest} |" for (version, digest), count in sorted(counted.items())]
    lines += ["", "## Expectations"]
    lines += [f"- {'' if ok else '**not met** '}{what}" for ok, what in weeks.checks]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(tempfile.gettempdir()) / "xdub-six-weeks")
    parser.add_argument("--output", type=Path, default=Path("docs/results/six_weeks.md"))
    given = parser.parse_args()
    sys.exit(main(given.root, given.output))
