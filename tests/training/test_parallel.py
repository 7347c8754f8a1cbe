"""Several processes train one model as one would, go on after a kill, and end together."""

import os
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from model_code.backbones.transformer import DubbingTransformer
from model_code.config import FlowConfig, PhaseConfig, Sharding, TransformerConfig
from model_code.errors import InputError
from model_code.training.checkpoint import load_checkpoint
from model_code.training.data import EncodedClip, LatentTrack, TrainingSet
from model_code.training.loop import Curves, Trainer
from model_code.training.parallel import Team, in_one_piece, team
from model_code.training.phases import make_phase

SHAPE = TransformerConfig(
    dim=24, num_layers=2, num_heads=2, ffn_dim=32, freq_dim=16, in_channels=6, out_channels=6, context_channels=6,
    audio_dim=8, audio_inner_dim=16, audio_heads=2, audio_layers=1, patch_size=(1, 2, 2), positions=2,
    refiner_width=8, refiner_layers=1,
)  # fmt: skip
CONFIG = PhaseConfig(
    phase="generator", pixel_weighting=False, steps=6, batch_size=4, warmup_steps=2, checkpoint_every=2,
    own_estimates=0.5,
)  # fmt: skip


def clip(number: int) -> EncodedClip:
    generator = torch.Generator().manual_seed(number)
    tracks = {
        name: LatentTrack(
            torch.randn(channels, 10, 4, 4, generator=generator).half(),
            torch.randn(channels, 9, 4, 4, generator=generator).half(),
        )
        for name, channels in (("target", 6), ("masked", 6), ("face", 1), ("lip", 1))
    }
    return EncodedClip(f"c{number}", "s", tracks, torch.randn(74, 8, generator=generator).half())


def build() -> DubbingTransformer:
    torch.manual_seed(0)
    return DubbingTransformer.build(SHAPE)


def train(job: tuple[Path | None, int], own: Team = Team()) -> tuple[nn.Module, Curves]:
    """Trains up to a step, in a folder; what the other processes do too."""
    folder, until = job
    trainer = Trainer(
        build(), make_phase(CONFIG, FlowConfig()), TrainingSet([clip(n) for n in range(4)], 25, 16), CONFIG, folder,
        team=own,
    )  # fmt: skip
    curves = trainer.run(until)
    return in_one_piece(trainer.model, build), curves


def train_together(folder: Path | None, until: int, sharding: Sharding) -> tuple[nn.Module, Curves]:
    job = (folder, until)
    with team(2, sharding, "cpu", train, job) as own:
        return train(job, own)


@pytest.mark.parametrize("sharding", ["replicated", "sharded"])
def test_two_processes_train_as_one_does(tmp_path: Path, sharding: Sharding) -> None:
    alone, expected = train((None, 6))
    model, curves = train_together(tmp_path / "whole", 6, sharding)
    assert [row["step"] for row in curves.rows] == [row["step"] for row in expected.rows]
    for row, other in zip(curves.rows, expected.rows, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert row["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
        for value, wanted in zip(row["bins"], other["bins"], strict=True):
            assert value == (None if wanted is None else pytest.approx(wanted, rel=1e-4))
    for name, value in alone.state_dict().items():
        assert torch.allclose(value, model.state_dict()[name], atol=1e-5), name

    train_together(tmp_path / "killed", 3, sharding)
    checkpoint = load_checkpoint(tmp_path / "killed")
    assert checkpoint is not None
    assert checkpoint.step == 3
    resumed, again = train_together(tmp_path / "killed", 6, sharding)
    assert again.rows == curves.rows
    for name, value in model.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_one_process_goes_on_where_two_were(tmp_path: Path) -> None:
    expected, _ = train((None, 6))
    train_together(tmp_path, 3, "sharded")
    model, _ = train((tmp_path, 6))
    for name, value in expected.state_dict().items():
        assert torch.allclose(value, model.state_dict()[name], atol=1e-5), name


def lose_one(how: str, own: Team) -> None:
    """One process is lost while the other waits for it."""
    if not own.leads and how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if not own.leads:
        raise ValueError("this one cannot go on")
    own.wait()


@pytest.mark.parametrize(("how", "status"), [("killed", -9), ("failed", 1)])
def test_a_lost_process_ends_all_of_them(how: str, status: int) -> None:
    with (
        pytest.raises(RuntimeError, match=f"training process 1 of 2 ended with status {status}"),
        team(2, "replicated", "cpu", lose_one, how) as own,
    ):
        lose_one(how, own)


def wait(seconds: float, own: Team) -> None:
    """Waits for the leader, who never comes."""
    own.wait()


def test_the_leaders_failure_is_told_as_it_is() -> None:
    with pytest.raises(InputError, match="nothing to learn from"), team(2, "replicated", "cpu", wait, 0.0):
        raise InputError("nothing to learn from", "take in footage")


def test_a_batch_is_shared_out_evenly_or_refused() -> None:
    config = CONFIG.model_copy(update={"batch_size": 3})
    with pytest.raises(InputError, match="a batch of 3 for 2 processes"):
        Trainer(build(), make_phase(config, FlowConfig()), TrainingSet([clip(0)], 25, 16), config, team=Team(0, 2))


def test_accelerators_that_are_not_there_are_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with (
        pytest.raises(InputError, match="8 training processes for 1 accelerators"),
        team(8, "sharded", "cuda", wait, 0),
    ):
        pass
