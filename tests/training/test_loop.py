"""The loop: it learns, resumes to the same bits, guards itself and stores no pickle."""

import json
from pathlib import Path

import pytest
import torch

from model_code.backbones.transformer import DubbingTransformer
from model_code.config import FlowConfig, PhaseConfig, TransformerConfig
from model_code.training.checkpoint import load_checkpoint
from model_code.training.data import EncodedClip, LatentTrack, TrainingSet
from model_code.training.loop import MAX_SKIPS, Trainer, learning_rate
from model_code.training.phases import make_phase

SHAPE = TransformerConfig(
    dim=24, num_layers=1, num_heads=2, ffn_dim=32, freq_dim=16, in_channels=6, out_channels=6, context_channels=6,
    audio_dim=8, audio_inner_dim=16, audio_heads=2, audio_layers=1, residual=False, patch_size=(1, 2, 2), positions=0,
        audio_modulation=False, refiner_width=8, refiner_layers=1,
)  # fmt: skip


def clips(count: int = 4, scale: float = 1.0) -> list[EncodedClip]:
    made = []
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        tracks = {
            name: LatentTrack(
                (0.5 + scale * torch.randn(channels, 10, 4, 4, generator=generator)).half(),
                (0.5 + scale * torch.randn(channels, 9, 4, 4, generator=generator)).half(),
            )
            for name, channels in (("target", 6), ("masked", 6), ("face", 1), ("lip", 1))
        }
        made.append(EncodedClip(f"c{number}", "s", tracks, torch.randn(74, 8, generator=generator).half()))
    return made


def trainer(folder: Path | None, scale: float = 1.0, **changes: object) -> Trainer:
    config = PhaseConfig(
        phase="generator", pixel_weighting=False, steps=6, batch_size=2, warmup_steps=2, checkpoint_every=2
    ).model_copy(update=changes)
    torch.manual_seed(0)
    model = DubbingTransformer.build(SHAPE)
    return Trainer(model, make_phase(config, FlowConfig()), TrainingSet(clips(scale=scale), 25, 16), config, folder)


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


def test_spikes_are_skipped_and_too_many_stop_the_run() -> None:
    run = trainer(None, steps=60)
    run.run(until=1)
    before = {name: value.detach().clone() for name, value in run.parameters.items()}
    run._update(torch.stack([value.sum() for value in run.parameters.values()]).sum() * float("nan"))
    assert run.curves.skipped == [1]
    for name, value in run.parameters.items():
        assert torch.equal(before[name], value)
    run.curves.skipped = list(range(run.step - MAX_SKIPS + 1, run.step))
    with pytest.raises(RuntimeError, match="lower the learning rate"):
        run._update(torch.stack([value.sum() for value in run.parameters.values()]).sum() * float("nan"))


def test_learning_rate_warms_up_and_decays() -> None:
    config = PhaseConfig(phase="base", steps=100, warmup_steps=10, learning_rate=1.0)
    assert learning_rate(config, 0) == pytest.approx(0.1)
    assert learning_rate(config, 100) == pytest.approx(0.1)
    assert learning_rate(config.model_copy(update={"schedule": "constant"}), 99) == 1.0
