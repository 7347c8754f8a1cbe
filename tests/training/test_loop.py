"""The loop: it learns, resumes to the same bits, guards itself and stores no pickle."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model_code.config import FlowConfig, PhaseConfig
from model_code.training.checkpoint import load_checkpoint
from model_code.training.data import TrainingSet
from model_code.training.loop import Trainer, learning_rate
from model_code.training.phases import GeneratorPhase
from model_code.training.speed import matmul_peak
from model_code.training.step import ModelInputs
from model_code.training.validation import losses_by_time
from tests.training.small import clips, trainer


def test_a_killed_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    whole = trainer(None)
    whole.run()
    first = trainer(tmp_path)
    first.run(until=3)
    second = trainer(tmp_path)
    assert second.step == 3
    curves = second.run()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
    assert curves.rows == whole.curves.rows


def test_a_run_killed_while_writing_uses_the_last_whole_checkpoint(tmp_path: Path) -> None:
    trainer(tmp_path).run(until=3)
    torn = tmp_path / ".step_000009.1"
    torn.mkdir()
    (torn / "weights.safetensors").write_bytes(b"half")
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.step == 3


def test_checkpoints_hold_safetensors_and_json_only(tmp_path: Path) -> None:
    trainer(tmp_path).run(until=2)
    files = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {"weights.safetensors", "average.safetensors", "optimizer.safetensors", "state.json"}
    json.loads(next(tmp_path.rglob("state.json")).read_text())


def test_a_finished_run_has_the_averaged_weights(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.run()
    for name, value in run.parameters.items():
        assert torch.equal(value, run.average[name])


def test_it_learns() -> None:
    run = trainer(None, scale=0.1, steps=40, learning_rate=3e-3, schedule="constant")
    rows = run.run().rows
    assert rows[-1]["flow"] < 0.9 * rows[0]["flow"]
    assert len(rows[0]["bins"]) == 5


def test_learning_rate_warms_up_and_decays() -> None:
    config = PhaseConfig(phase="base", steps=100, warmup_steps=10, learning_rate=1.0)
    assert learning_rate(config, 0) == pytest.approx(0.1)
    assert learning_rate(config, 100) == pytest.approx(0.1)
    assert learning_rate(config.model_copy(update={"schedule": "constant"}), 99) == 1.0


def test_how_fast_it_is_stands_beside_the_curves(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    curves = run.run()
    assert [entry["step"] for entry in curves.speed] == [row["step"] for row in curves.rows]
    assert all(entry["samples_per_second"] > 0 for entry in curves.speed)
    assert all(0 < entry["model_flops_utilisation"] < 1 for entry in curves.speed)
    assert set(curves.told()[-1]) >= {"step", "flow", "grad_norm", "samples_per_second", "model_flops_utilisation"}
    assert "bins" not in curves.told()[-1]
    assert not any("samples_per_second" in row for row in curves.rows)
    again = trainer(tmp_path)
    assert again.curves.speed == curves.speed
    again.curves.speed = []
    assert again.curves == curves


@pytest.mark.parametrize("name", ["generator", "texture"])
def test_the_meter_counts_what_torch_counts(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """One step of the transformer; half of the samples are estimated first, for a late expert several times."""
    run = trainer(None, own_estimates=0.5)
    config = run.config.model_copy(update={"phase": name})
    run = Trainer(run.model, GeneratorPhase(config, FlowConfig()), run.data, config, None)
    counted, end = [], run.meter.end

    def count(inputs: ModelInputs) -> None:
        counted.append(run.meter.flops(inputs))
        end(inputs)

    monkeypatch.setattr(run.meter, "end", count)
    run.model.train()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run._one_step(run.phase.draw(run.data, 0))
    assert counted == [pytest.approx(counter.get_total_flops(), rel=0.02)]
    assert matmul_peak(torch.device("cpu"), "fp32") > 1e8


def look(run: list[int], held: TrainingSet) -> Any:
    """A validation that notes its steps."""

    def validate(model: nn.Module, step: int) -> dict[str, Any]:
        run.append(step)
        return losses_by_time(model, trainer(None).phase, held, torch.device("cpu"))

    return validate


def test_validation_looks_at_the_averaged_weights_and_changes_nothing(tmp_path: Path) -> None:
    held, steps = TrainingSet(clips(6)[4:], 25, 16), []  # type: ignore[var-annotated]
    plain = trainer(None)
    curves = plain.run()
    watched = trainer(tmp_path, validate=look(steps, held), validate_every=4)
    rows = watched.run().rows
    assert steps == [4, 6]
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, watched.model.state_dict()[name]), name
    assert [{key: value for key, value in row.items() if "validation" not in key} for row in rows] == curves.rows
    assert ["validation_loss" in row for row in rows] == [row["step"] in (4, 6) for row in rows]
    found = losses_by_time(plain.model, plain.phase, held, torch.device("cpu"))
    assert {key: rows[-1][key] for key in found} == found
    assert found["validation_loss"] == pytest.approx(sum(found["validation_bins"]) / 5)
    assert found["validation_bins"] != rows[3]["validation_bins"]
