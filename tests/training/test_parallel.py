"""Several processes train one model as one would, go on after a kill, and end together."""

import os
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig as PeftLora
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from model_code.backbones.transformer import DubbingTransformer
from model_code.config import FlowConfig, LoraConfig, PhaseConfig, Sharding, TransformerConfig
from model_code.dubbing.model import LORA_FILE, save_expert
from model_code.errors import InputError
from model_code.training.checkpoint import load_checkpoint
from model_code.training.data import Batch, EncodedClip, LatentTrack, TrainingSet
from model_code.training.loop import Trainer
from model_code.training.parallel import Team, in_one_piece, team
from model_code.training.phases import Critics, Phase, make_phase
from model_code.training.record import Curves
from model_code.training.validation import losses_by_time

SHARDINGS: tuple[Sharding, ...] = ("replicated", "sharded")
SHAPE = TransformerConfig(
    dim=24, num_layers=2, num_heads=2, ffn_dim=32, freq_dim=16, in_channels=6, out_channels=6, context_channels=6,
    audio_dim=8, audio_inner_dim=16, audio_heads=2, audio_layers=1, patch_size=(1, 2, 2), positions=2,
    refiner_width=8, refiner_layers=1,
)  # fmt: skip
EXACT, NEAR = 1e-4, 2e-2
"""How near two processes' losses are to one's: in fp32, and in bf16 to those in fp32."""
GENERATOR = PhaseConfig(
    phase="generator", pixel_weighting=False, steps=6, batch_size=4, warmup_steps=2, checkpoint_every=2,
    own_estimates=0.5,
)  # fmt: skip
FRUGAL = GENERATOR.model_copy(update={"accumulate": 2, "gradient_checkpointing": True, "validate_every": 3})
EXPERT = {"lora": LoraConfig(rank=2, alpha=2, targets=("q", "v", "ffn.0")), "learning_rate": 1e-4}
LIP = FRUGAL.model_copy(update={**EXPERT, "phase": "lip", "sync_weight": 0.05})
TEXTURE = GENERATOR.model_copy(
    update={
        **EXPERT, "phase": "texture", "silence_probability": 0.5, "own_estimates": 1.0, "identity_weight": 0.05,
        "perceptual_weight": 0.05,
    }
)  # fmt: skip


def clip(number: int) -> EncodedClip:
    generator = torch.Generator().manual_seed(number)
    tracks = {
        name: LatentTrack(
            torch.randn(channels, 10, 4, 4, generator=generator).half(),
            torch.randn(channels, 9, 4, 4, generator=generator).half(),
        )
        for name, channels in (("target", 6), ("masked", 6), ("companion", 6), ("face", 1), ("lip", 1))
    }
    return EncodedClip(f"c{number}", "s", tracks, torch.randn(74, 8, generator=generator).half())


Job = tuple[PhaseConfig, Path | None, int]
"""A phase, a folder for checkpoints, the step to train up to."""


def build(config: PhaseConfig = GENERATOR) -> DubbingTransformer:
    torch.manual_seed(0)
    model = DubbingTransformer.build(SHAPE)
    if config.lora is not None:
        for value in model.requires_grad_(False).parameters():
            nn.init.normal_(value, std=0.2)  # a new head is zero, and no adapter would learn
        lora = PeftLora(
            r=config.lora.rank, lora_alpha=config.lora.alpha, target_modules=list(config.lora.targets),
            init_lora_weights=False,
        )  # fmt: skip
        model.add_adapter(lora, adapter_name=config.phase)
    return model


class Decoder(nn.Module):
    """Pixels that depend on every latent channel, by frozen weights of its own in every process."""

    def __init__(self) -> None:
        super().__init__()
        mix = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
        self.mix = nn.Parameter(mix, requires_grad=False)

    def decode(self, latents: Tensor) -> Tensor:
        pixels = torch.einsum("pc,bcfhw->bpfhw", self.mix, latents).tanh()
        return pixels.repeat_interleave(4, dim=2)[:, :, 3:]


def distance(one: Tensor, other: Tensor) -> Tensor:
    return (one.flatten(1).mean(1) - other.flatten(1).mean(1)).square()


def strategy(config: PhaseConfig) -> Phase:
    critics = Critics(Decoder(), sync=distance, identity=distance, perceptual=distance)  # type: ignore[arg-type]
    return make_phase(config, FlowConfig(), critics)


def train(job: Job, own: Team = Team()) -> tuple[nn.Module, Curves]:
    """What each of the processes does."""
    config, folder, until = job
    data = TrainingSet([clip(number) for number in range(4)], 25, 16)
    phase, held = strategy(config), TrainingSet([clip(9)], 25, 16)

    def validate(model: nn.Module, step: int) -> dict[str, Any]:
        return losses_by_time(model, phase, held, torch.device("cpu"))

    trainer = Trainer(build(config), phase, data, config, folder, team=own, validate=validate)
    shared = own.sharding == "sharded" and own.size > 1
    assert all(isinstance(value, DTensor) == shared for value in trainer.model.parameters()), "frozen weights too"
    first = trainer.model.blocks[0].self_attn.q
    seen = set()
    first.register_forward_pre_hook(lambda module, _: seen.add(module.weight.dtype))
    curves = trainer.run(until)
    gathered = torch.bfloat16 if config.precision == "bf16" and own.sharding == "sharded" else torch.float32
    assert seen <= {gathered}, seen
    assert {value.dtype for value in trainer.parameters.values()} == {torch.float32}
    return in_one_piece(trainer.model, trainer.parameters, lambda: build(config), own), curves


def train_together(job: Job, sharding: Sharding, folder: Path) -> tuple[nn.Module, Curves]:
    with team(2, sharding, "cpu", train, job, folder / "team") as own:
        made = train(job, own)
    assert not (folder / "team").exists()
    return made


def assert_near(curves: Curves, expected: Curves, near: float = EXACT) -> None:
    assert [row["step"] for row in curves.rows] == [row["step"] for row in expected.rows]
    for row, other in zip(curves.rows, expected.rows, strict=True):
        assert row.keys() == other.keys()
        assert row["loss"] == pytest.approx(other["loss"], rel=near)
        assert row["grad_norm"] == pytest.approx(other["grad_norm"], rel=10 * near)
        for name in ("bins", "validation_bins"):
            for value, wanted in zip(row.get(name, []), other.get(name, []), strict=True):
                assert value == (None if wanted is None else pytest.approx(wanted, rel=near))


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_two_processes_train_as_one_does(tmp_path: Path, sharding: Sharding) -> None:
    alone, expected = train((GENERATOR, None, 6))
    model, curves = train_together((GENERATOR, tmp_path / "whole", 6), sharding, tmp_path)
    assert_near(curves, expected)
    for name, value in alone.state_dict().items():
        assert torch.allclose(value, model.state_dict()[name], atol=1e-5), name

    killed = (GENERATOR, tmp_path / "killed", 3)
    train_together(killed, sharding, tmp_path)
    checkpoint = load_checkpoint(tmp_path / "killed")
    assert checkpoint is not None
    assert checkpoint.step == 3
    for _ in range(2):  # the second time nothing is left to do
        resumed, again = train_together((GENERATOR, tmp_path / "killed", 6), sharding, tmp_path)
        assert again.rows == curves.rows
        for name, value in model.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_two_processes_accumulate_as_one_pass_does(tmp_path: Path, sharding: Sharding) -> None:
    """Each with two passes of a sample, its blocks computed twice, and looks at held-out clips in between."""
    plain = FRUGAL.model_copy(update={"accumulate": 1, "gradient_checkpointing": False})
    alone, expected = train((plain, None, 6))
    model, curves = train_together((FRUGAL, tmp_path / "whole", 6), sharding, tmp_path)
    assert_near(curves, expected)
    assert [row["step"] for row in curves.rows if "validation_loss" in row] == [3, 6]
    for name, value in alone.state_dict().items():
        assert torch.allclose(value, model.state_dict()[name], atol=1e-5), name
    train_together((FRUGAL, tmp_path / "killed", 3), sharding, tmp_path)
    resumed, again = train_together((FRUGAL, tmp_path / "killed", 6), sharding, tmp_path)
    assert again == curves
    for name, value in model.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_in_bf16_weights_are_gathered_so_and_kept_in_fp32(tmp_path: Path) -> None:
    _, expected = train((FRUGAL, None, 4))
    low = FRUGAL.model_copy(update={"precision": "bf16"})
    _, curves = train_together((low, tmp_path, 4), "sharded", tmp_path)
    assert_near(curves, expected, NEAR)
    assert curves.rows[-1]["loss"] != expected.rows[-1]["loss"], "the first is that of an output that starts at zero"
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint is not None
    for values in (checkpoint.weights, checkpoint.average, checkpoint.optimizer):
        assert {value.dtype for value in values.values()} == {torch.float32}


@pytest.mark.parametrize(("sharding", "config"), [("replicated", GENERATOR), ("sharded", TEXTURE)])
def test_two_processes_go_back_together(tmp_path: Path, sharding: Sharding, config: PhaseConfig) -> None:
    """One sample of a step is no number; only one of the two processes has it."""
    job = (config.model_copy(update={"skips_before_rollback": 2, "steps": 8}), tmp_path / "run", 8)
    with team(2, sharding, "cpu", train_poisoned, job, tmp_path / "team") as own:
        curves = train_poisoned(job, own)
    assert curves.rollbacks == [[7, 4]]
    assert [row["step"] for row in curves.rows] == list(range(1, 9))


class Poisoned(TrainingSet):
    """From step 5 on the first seed's first sample is no number."""

    def batch(self, seed: int, step: int, size: int, reference_frames: int = 1, frames: int | None = None) -> Batch:
        made = super().batch(seed, step, size, reference_frames, frames)
        if seed == 0 and step >= 5:
            made.target[0] *= float("nan")
        return made


def train_poisoned(job: Job, own: Team) -> Curves:
    """What each of the processes does."""
    config, folder, until = job
    data = Poisoned([clip(number) for number in range(4)], 25, 16)
    return Trainer(build(config), strategy(config), data, config, folder, team=own).run(until)


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_a_sample_for_each_process_is_enough(sharding: Sharding, tmp_path: Path) -> None:
    """One of two samples is noised from an own estimate: one process has it, the other none."""
    small = GENERATOR.model_copy(update={"batch_size": 2})
    _, expected = train((small, None, 2))
    _, curves = train_together((small, None, 2), sharding, tmp_path)
    assert_near(curves, expected)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("config", [LIP, TEXTURE], ids=["lip", "texture"])
def test_an_expert_is_trained_together_too(config: PhaseConfig, sharding: Sharding, tmp_path: Path) -> None:
    """Adapters alone are trained, critics look at decoded frames, and what listens has no part in silent steps."""
    begun, (alone, expected) = build(config).state_dict(), train((config, None, 6))
    model, curves = train_together((config, tmp_path / "whole", 6), sharding, tmp_path)
    assert_near(curves, expected)
    assert_same_expert(model, alone)
    learned = {name: value for name, value in model.state_dict().items() if "lora_" in name}
    assert all(not torch.equal(value, begun[name]) for name, value in learned.items())
    checkpoint = load_checkpoint(tmp_path / "whole")
    assert checkpoint is not None
    assert checkpoint.weights.keys() == checkpoint.average.keys() == learned.keys()
    save_expert(model, config.phase, tmp_path / "expert")  # type: ignore[arg-type]
    saved = load_file(tmp_path / "expert" / LORA_FILE)
    assert saved.keys() == {name.replace(f".{config.phase}.", ".") for name in learned}
    assert all(torch.equal(saved[name.replace(f".{config.phase}.", ".")], value) for name, value in learned.items())

    train_together((config, tmp_path / "killed", 3), sharding, tmp_path)
    shutil.copytree(tmp_path / "killed", tmp_path / "fewer")
    resumed, again = train_together((config, tmp_path / "killed", 6), sharding, tmp_path)
    assert again == curves
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in model.state_dict().items())
    fewer, rest = train((config, tmp_path / "fewer", 6))
    assert_near(rest, expected)
    assert_same_expert(fewer, alone)


def assert_same_expert(model: nn.Module, expected: nn.Module) -> None:
    """Adapters that differ by rounding, on the very same model."""
    for name, value in expected.state_dict().items():
        near = 1e-5 if "lora_" in name else 0.0
        assert torch.allclose(value, model.state_dict()[name], rtol=0, atol=near), name


@pytest.mark.slow
def test_one_process_goes_on_where_two_were(tmp_path: Path) -> None:
    expected, _ = train((GENERATOR, None, 6))
    train_together((GENERATOR, tmp_path, 3), "sharded", tmp_path)
    model, _ = train((GENERATOR, tmp_path, 6))
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
def test_a_lost_process_ends_all_of_them(how: str, status: int, tmp_path: Path) -> None:
    lost = team(2, "replicated", "cpu", lose_one, how, tmp_path / "team")
    with pytest.raises(RuntimeError, match=f"training process 1 of 2 ended with status {status}"), lost as own:
        lose_one(how, own)
    assert not (tmp_path / "team").exists()


UNAWARE = """
import operator, sys, time
from pathlib import Path
from model_code import team
if __name__ == "__main__":
    team.PARTING = 0.5
    members = [team.Member(0, 2), team.Member(1, 2)]
    with team.started(members, "training", "cpu", operator.truediv, 1, Path(sys.argv[1])):
        time.sleep(120)
"""


def test_a_leader_that_does_not_notice_is_ended(tmp_path: Path) -> None:
    """It sleeps, as one that waits in a library would, while the other fails."""
    script = tmp_path / "unaware.py"
    script.write_text(UNAWARE, encoding="utf-8")
    done = subprocess.run([sys.executable, str(script), str(tmp_path / "team")], capture_output=True, timeout=60)
    assert done.returncode == 1
    assert b"training process 1 of 2 ended with status 1" in done.stderr


def stay(pid_file: Path, own: Team) -> None:
    """Tells who it is, and stays."""
    if not own.leads:
        pid_file.write_text(str(os.getpid()))
        time.sleep(120)
    own.wait()


def lead(pid_file: Path) -> None:
    """A leader that waits for the others."""
    with team(2, "replicated", "cpu", stay, pid_file, pid_file.with_name("team")) as own:
        own.wait()


def test_a_killed_leader_takes_the_others_along(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    leader = get_context("spawn").Process(target=lead, args=(pid_file,))
    leader.start()
    until = time.monotonic() + 60
    while not (pid_file.is_file() and pid_file.read_text()):
        assert time.monotonic() < until
        time.sleep(0.1)
    leader.kill()
    leader.join()
    while Path(f"/proc/{pid_file.read_text()}/stat").is_file():
        assert time.monotonic() < until
        time.sleep(0.1)
    again = team(2, "replicated", "cpu", lose_one, "killed", tmp_path / "team")  # what it left is no hindrance
    with pytest.raises(RuntimeError, match="status -9"), again as own:
        own.wait()


def take_turns(told: Path, own: Team) -> None:
    """Tells when its turn begins and when it ends."""
    with own.in_turn():
        for _ in range(2):
            with told.open("a") as file:
                file.write(str(own.rank))
            time.sleep(0.2)


def test_one_process_after_another(tmp_path: Path) -> None:
    """Networks are loaded so: each takes a machine's memory until it is on its accelerator."""
    with team(2, "replicated", "cpu", take_turns, tmp_path / "told", tmp_path / "team") as own:
        take_turns(tmp_path / "told", own)
    assert (tmp_path / "told").read_text() == "0011"


def wait_for_all(nothing: None, own: Team) -> None:
    """Waits for the leader, who never comes."""
    own.wait()


def test_the_leaders_failure_is_told_as_it_is(tmp_path: Path) -> None:
    others = team(2, "replicated", "cpu", wait_for_all, None, tmp_path / "team")
    with pytest.raises(InputError, match="nothing to learn from"), others:
        raise InputError("nothing to learn from", "take in footage")


def test_a_batch_is_shared_out_evenly_or_refused() -> None:
    config = GENERATOR.model_copy(update={"batch_size": 3})
    with pytest.raises(InputError, match="a batch of 3 for 2 processes"):
        Trainer(build(), make_phase(config, FlowConfig()), TrainingSet([clip(0)], 25, 16), config, team=Team(0, 2))
    with pytest.raises(InputError, match="a batch of 4 for 2 processes in 4 passes"):
        Team(0, 2).check(4, 4)


def test_accelerators_that_are_not_there_are_missed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    many = team(8, "sharded", "cuda", wait_for_all, None, tmp_path / "team")
    with pytest.raises(InputError, match="8 training processes for 1 accelerators"), many:
        pass
