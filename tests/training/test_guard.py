"""Updates that would do harm are skipped; when that does not help, the run goes back and on with other data."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from model_code.training import loop
from model_code.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from model_code.training.data import Batch, TrainingSet
from model_code.training.loop import Trainer
from model_code.training.phases import GeneratorPhase
from model_code.training.step import ModelInputs, StepResult
from tests.training.small import clips, trainer

STEPS = 14
SETTINGS: dict[str, Any] = {"steps": STEPS, "skips_before_rollback": 3}


class PoisonedPhase(GeneratorPhase):
    """From step 5 on the first seed's loss is not a number."""

    def draw(self, data: TrainingSet, step: int) -> Batch:
        self.poisoned = step >= 5 and self.config.seed == 0
        return super().draw(data, step)

    def losses(self, model: nn.Module, batch: Batch, inputs: ModelInputs, part: slice = slice(None)) -> StepResult:
        result = super().losses(model, batch, inputs, part)
        if self.poisoned:
            result.loss = result.loss * math.nan
        return result


class PoisonedData(TrainingSet):
    """Windows of some steps are far too large, for the first `seeds` that ask."""

    def __init__(self, bad: range, size: float, seeds: int = 1) -> None:
        super().__init__(clips(), 25, 16)
        self.bad, self.size, self.seeds, self.asked = bad, size, seeds, [0]

    def batch(self, seed: int, step: int, size: int, reference_frames: int = 1, frames: int | None = None) -> Batch:
        if seed not in self.asked:
            self.asked.append(seed)
        made = super().batch(seed, step, size, reference_frames, frames)
        if step in self.bad and self.asked.index(seed) < self.seeds:
            made.target = made.target * self.size
        return made


def same(first: Trainer, second: Trainer) -> bool:
    weights = second.model.state_dict()
    return first.curves == second.curves and all(
        torch.equal(value, weights[name]) for name, value in first.model.state_dict().items()
    )


def test_losses_that_are_no_numbers_send_the_run_back(tmp_path: Path) -> None:
    run = trainer(tmp_path, phase=PoisonedPhase, **SETTINGS)
    curves = run.run()
    assert curves.rollbacks == [[8, 4]]  # 5, 6 and 7 were skipped, nothing was written after 4
    assert curves.skipped == []
    assert run.phase.config.seed != 0
    assert [row["step"] for row in curves.rows] == list(range(1, STEPS + 1))
    assert all(torch.isfinite(value).all() for value in run.model.state_dict().values())


def test_a_few_bad_updates_are_only_skipped(tmp_path: Path) -> None:
    run = trainer(tmp_path, data=PoisonedData(range(5, 7), math.inf), **SETTINGS)
    before = run.run(until=5) and {name: value.detach().clone() for name, value in run.parameters.items()}
    run.run(until=7)
    for name, value in run.parameters.items():
        assert torch.equal(before[name], value)
    assert run.run().skipped == [5, 6]
    assert run.curves.rollbacks == []


def test_data_that_makes_gradients_spike_sends_the_run_back(tmp_path: Path) -> None:
    poison = PoisonedData(range(32, 60), 1e4)
    run = trainer(tmp_path, data=poison, **{**SETTINGS, "steps": 40, "checkpoint_every": 10})
    assert run.run().rollbacks == [[35, 30]]
    assert len(poison.asked) == 2


class Killed(BaseException):
    """A kill at a moment of the test's choice."""


def kill_after(count: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kills at the start of the n-th call of a function that the loop calls."""
    original, calls = getattr(loop, name), [0]

    def counted(*arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == count:
            raise Killed
        return original(*arguments, **named)

    monkeypatch.setattr(loop, name, counted)


@pytest.mark.parametrize(
    ("name", "count"),
    # Learning rates are asked for once a step: before, during and after the skips, and after going back.
    [("learning_rate", 5), ("learning_rate", 7), ("learning_rate", 10), ("learning_rate", 13), ("go_back_to", 1)],
)
def test_a_run_killed_around_going_back_ends_with_the_same_bits(
    name: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trainer(tmp_path / "whole", phase=PoisonedPhase, **SETTINGS)
    whole.run()
    with monkeypatch.context() as patch:
        kill_after(count, name, patch)
        with pytest.raises(Killed):
            trainer(tmp_path / "killed", phase=PoisonedPhase, **SETTINGS).run()
    again = trainer(tmp_path / "killed", phase=PoisonedPhase, **SETTINGS)
    again.run()
    assert same(whole, again)


def test_a_checkpoint_that_does_not_help_is_no_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other data from step 4 diverge too: the run goes back to step 2, also if it is killed just then."""

    def run(folder: Path) -> Trainer:
        return trainer(folder, data=PoisonedData(range(5, 9), math.inf, seeds=2), **SETTINGS)

    whole = run(tmp_path / "whole")
    assert whole.run().rollbacks == [[8, 4], [8, 2]]
    with monkeypatch.context() as patch:
        # The header of step 2 is new, step 4 is not yet removed.
        patch.setattr("model_code.training.checkpoint.shutil.rmtree", removes_all_but("step_000004"))
        with pytest.raises(Killed):
            run(tmp_path / "killed").run()
    assert (tmp_path / "killed" / "step_000004").is_dir()
    again = run(tmp_path / "killed")
    again.run()
    assert again.curves.rollbacks == whole.curves.rollbacks


def removes_all_but(name: str) -> Any:
    import shutil

    original = shutil.rmtree

    def remove(path: Path, **named: Any) -> None:
        if path.name == name:
            raise Killed
        original(path, **named)

    return remove


def test_going_back_too_often_stops_the_run(tmp_path: Path) -> None:
    run = trainer(tmp_path, data=PoisonedData(range(5, STEPS), math.inf, seeds=99), max_rollbacks=2, **SETTINGS)
    with pytest.raises(RuntimeError, match=r"after going back 2 times; lower the learning rate"):
        run.run()


def test_without_checkpoints_there_is_nothing_to_go_back_to() -> None:
    with pytest.raises(RuntimeError, match=r"3 updates in a row skipped before step 8, after going back 0 times"):
        trainer(None, phase=PoisonedPhase, **SETTINGS).run()


def test_a_run_that_diverges_at_once_begins_again_with_other_data(tmp_path: Path) -> None:
    run = trainer(tmp_path, data=PoisonedData(range(STEPS), math.inf), **SETTINGS)
    assert run.run().rollbacks == [[3, 0]]


def checkpoint(step: int) -> Checkpoint:
    values = {"w": torch.full((64,), float(step))}
    return Checkpoint(step, values, values, {"exp_avg.w": values["w"]}, {"rows": []})


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("harm", [truncate, flip, Path.unlink])
@pytest.mark.parametrize("part", ["weights.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_passed_over_and_the_last_good_one_stays(
    harm: Any, part: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if part == "state.json" and harm is flip:
        harm = lambda path: path.write_text(json.dumps({"step": 4}))  # noqa: E731 - a flipped bit may keep it valid
    for step in (2, 4):
        save_checkpoint(tmp_path, checkpoint(step), keep=2)
    harm(tmp_path / "step_000004" / part)
    with caplog.at_level(logging.WARNING):
        found = load_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 2
    assert found.weights["w"].eq(2).all()
    # Without its header a checkpoint was never committed.
    assert ("step_000004' is damaged" in caplog.text) == (harm is not Path.unlink or part != "state.json")
    save_checkpoint(tmp_path, checkpoint(6), keep=2)
    harm(tmp_path / "step_000006" / part)
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 2


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(tmp_path: Path) -> None:
    whole = trainer(None)
    whole.run()
    trainer(tmp_path).run(until=4)
    truncate(tmp_path / "step_000004" / "weights.safetensors")
    again = trainer(tmp_path)
    assert again.step == 2
    again.run()
    assert same(whole, again)


def test_only_the_last_checkpoints_stay(tmp_path: Path) -> None:
    trainer(tmp_path / "two").run()
    trainer(tmp_path / "three", keep_checkpoints=3).run()
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["step_000004", "step_000006"]
    assert len(list((tmp_path / "three").iterdir())) == 3
