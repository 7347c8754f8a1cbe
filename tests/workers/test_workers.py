"""Workers end to end on a tiny base: SyncNet, identity, four training phases, pairs, dubber."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from pydantic import Field
from safetensors.torch import save_file

from model_code import base
from model_code.backbones.audio import AudioEncoder, AudioEncoderConfig
from model_code.backbones.codec import BlockCodec, BlockCodecConfig
from model_code.backbones.perceptual import PerceptualConfig, PerceptualEncoder
from model_code.config import MediaConfig, PairsConfig
from model_code.dubbing.model import DubbingPipelineModel
from model_code.errors import InputError
from model_code.faces.arcface import IResNet
from model_code.faces.landmarker import Landmarker
from model_code.media.sample import ClipSample
from model_code.media.shards import Shard, ShardWriter
from model_code.pairs.rendered import draw_rendered, render_pairs
from model_code.training.data import to_network
from model_code.workers import dubber, identity, pairs, run, syncnet, train
from tests.published import save_clip, save_umt5, save_vae, save_wav2vec2, save_whisper

SHAPE = {
    "dim": 24, "num_layers": 1, "num_heads": 2, "ffn_dim": 32, "freq_dim": 16, "in_channels": 12, "out_channels": 12,
    "audio_inner_dim": 16, "audio_heads": 2, "audio_layers": 1, "refiner_width": 8, "refiner_layers": 1,
}  # fmt: skip
FLOW = {"sampling_steps": 8, "audio_guidance": 1.0}
LORA = {"rank": 2, "alpha": 2}


@pytest.fixture(scope="module")
def clips() -> list[ClipSample]:
    config = PairsConfig(rendered_seconds=1.3)
    specs = [draw_rendered("w", index, config) for index in range(2)]
    return [pair.target for spec in specs for pair in render_pairs(spec, "w", MediaConfig())]


@pytest.fixture(scope="module")
def tiny_base(tmp_path_factory: pytest.TempPathFactory, clips: list[ClipSample]) -> Path:
    """A base with untrained networks and a fitted linear codec."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    codec = BlockCodec(BlockCodecConfig(channels=12, refiner_width=8, refiner_blocks=1))
    codec.fit(codec.to_blocks(to_network(clips[0].frames[:25])[None]).reshape(-1, 768))
    codec.save_pretrained(folder / "codec")
    AudioEncoder(AudioEncoderConfig(width=16)).save_pretrained(folder / "audio_encoder")
    Landmarker().save_pretrained(folder / "landmarker")
    PerceptualEncoder(PerceptualConfig(widths=(8, 16))).save_pretrained(folder / "perceptual")
    return folder


@pytest.fixture
def use_base(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "FOLDER", tiny_base)


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory, clips: list[ClipSample]) -> Path:
    folder = tmp_path_factory.mktemp("clips") / "0000"
    with ShardWriter(folder) as writer:
        for clip in clips:
            writer.add(clip.clip_id, clip.to_members())
        writer.commit([{**clip.row, "split": "train"} for clip in clips])
    return folder


def work(folder: Path, module: Any, config_type: type[run.WorkerConfig], **config: Any) -> tuple[Path, dict[str, Any]]:
    output = folder / "output"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**config, "output": str(output)}, default=str))
    assert run.main(config_type, module.work, ["--config", str(folder / "config.json")]) == 0
    result: dict[str, Any] = json.loads((output / "result.json").read_text())
    return output, result


def published(folder: Path) -> dict[str, Any]:
    """Networks of the classes that full strength uses, with 12 latent channels, 24 + 40 heard, 32 read."""
    save_vae(folder / "wan", 12)
    save_umt5(folder / "wan")
    (folder / "arcface").mkdir()
    save_file(IResNet((1, 1, 1, 1), (4, 4, 4, 4, 4), 8).state_dict(), folder / "arcface" / "model.safetensors")
    return {
        "codec": folder / "wan",
        "audio": [save_whisper(folder / "whisper"), save_wav2vec2(folder / "wav2vec2")],
        "text": folder / "wan",
        "identity": folder / "arcface",
        "perceptual": save_clip(folder / "clip"),
    }


@pytest.mark.slow
@pytest.mark.usefixtures("use_base")
@pytest.mark.parametrize("networks", ["shipped", "published"])
def test_the_chain_from_clips_to_a_dubber(tmp_path: Path, shard: Path, networks: str) -> None:
    frozen: dict[str, Any] = {}
    if networks == "published":
        frozen = {"backbones": published(tmp_path / "published"), "features": tmp_path / "features"}
    sync, result = work(tmp_path / "sync", syncnet, syncnet.SyncNetWorkerConfig, shards=[shard], steps=5, **frozen)
    assert 0 <= result["metrics"]["accuracy"] <= 1
    person, result = work(tmp_path / "identity", identity, identity.IdentityWorkerConfig, shards=[shard], steps=5)
    assert result["metrics"]["speakers"] == 2

    def phase(name: str, **more: Any) -> dict[str, Any]:
        return {"phase": name, "steps": 4, "batch_size": 2, "checkpoint_every": 2, **more}

    shape = {**SHAPE, "text_dim": 32} if frozen else SHAPE
    shared: dict[str, Any] = {"transformer": shape, "flow": FLOW, "cache": tmp_path / "latents", **frozen}
    generator, result = work(
        tmp_path / "generator", train, train.TrainConfig, phase=phase("generator"), shards=[shard], **shared
    )
    assert result["metrics"]["steps"] == 4
    assert (generator / "samples.png").is_file()
    filters = {"identity_cosine": -1.0, "mouth_distance": 0.0, "aspect_mean": 1.0}
    made = []
    for variant in ("generated", "relit", "rendered"):
        numbers = {
            "filters": filters, "sampling_steps": 2, "rendered_per_shard": 2, "rendered_seconds": 1.2,
            "relit_fraction": 0.5,
        }  # fmt: skip
        output, result = work(
            tmp_path / variant, pairs, pairs.PairsWorkerConfig, variant=variant, shard="0000", clips=shard,
            generator=generator, identity=person, generator_version="v1", pairs=numbers, flow=FLOW,
            **frozen,
        )  # fmt: skip
        rows = Shard(output).rows
        assert result["metrics"]["pairs"] == len(rows)
        assert all(row["variant"] == variant and row["accepted"] for row in rows)
        made.append(output)
    assert {row["driving_clip_id"] for row in Shard(made[0]).rows} <= {clip["clip_id"] for clip in Shard(shard).rows}
    editor, _ = work(
        tmp_path / "editor", train, train.TrainConfig, phase=phase("editor"), pairs=made, init=generator, **shared
    )
    lip_phase = phase("lip", shift=1.5, sync_weight=0.05, lora=LORA)
    lip, result = work(
        tmp_path / "lip", train, train.TrainConfig, phase=lip_phase, pairs=made, init=editor, syncnet=sync, **shared
    )
    assert "sync" in result["curves"][-1]
    texture_phase = phase(
        "texture", shift=0.2, identity_weight=0.05, perceptual_weight=0.05, silence_probability=1.0, lora=LORA
    )
    texture, result = work(
        tmp_path / "texture", train, train.TrainConfig, phase=texture_phase, pairs=made, init=editor,
        identity=person, **shared,
    )  # fmt: skip
    assert {"identity", "perceptual"} <= set(result["curves"][-1])
    folder, _ = work(
        tmp_path / "dubber", dubber, dubber.DubberWorkerConfig, editor=editor, lip_expert=lip, texture_expert=texture,
        flow=FLOW, **frozen,
    )  # fmt: skip
    assert (tmp_path / "features").is_dir() == bool(frozen)
    model = DubbingPipelineModel.from_pretrained(folder)
    frames = np.zeros((30, 96, 96, 3), np.uint8)
    assert model.dub_crops(frames, np.zeros(19200, np.float32), 0).shape == frames.shape


class NapConfig(run.WorkerConfig):
    """A worker that counts how often it worked."""

    nap: int = Field(0)


def napping(config: NapConfig, progress: run.Progress) -> dict[str, Any]:
    """Counts."""
    count = config.output.parent / "count"
    count.write_text(str(int(count.read_text()) + 1 if count.is_file() else 1))
    progress("nap", 1, 1, {"nan": float("nan")})
    return {"metrics": {"value": float("nan"), "list": [1.0, float("inf")]}}


def test_a_finished_worker_returns_at_once(tmp_path: Path) -> None:
    config = NapConfig(output=tmp_path / "out")
    first, second = run.run(config, napping), run.run(config, napping)
    assert (tmp_path / "count").read_text() == "1"
    assert second == first
    assert first["metrics"]["value"] is None
    assert first["metrics"]["list"] == [1.0, None]


def test_two_workers_do_not_share_an_output(tmp_path: Path) -> None:
    config = NapConfig(output=tmp_path / "out")
    with FileLock(tmp_path / "out.lock"), pytest.raises(InputError, match="another worker"):
        run.run(config, napping)


@pytest.mark.parametrize(
    ("text", "told"),
    [("{", "JSON"), ('{"output": "x", "colour": 1}', "colour"), ("{}", "output"), (None, "cannot be read")],
)
def test_a_bad_config_is_one_clear_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str | None, told: str
) -> None:
    path = tmp_path / "config.json"
    if text is not None:
        path.write_text(text)
    assert run.main(NapConfig, napping, ["--config", str(path)]) == 2
    assert told in caplog.records[-1].getMessage()


def test_a_worker_dies_with_its_parent(tmp_path: Path) -> None:
    child = (
        "import time; from model_code.lifetime import die_with_parent\n"
        "die_with_parent(); print(1, flush=True); time.sleep(60)"
    )
    parent = (
        "import subprocess, sys, time\n"
        f"p = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE)\n"
        "p.stdout.readline(); print(p.pid, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE)
    assert process.stdout is not None
    number = int(process.stdout.readline())
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    for _ in range(100):
        status = Path(f"/proc/{number}/stat")
        if not status.exists() or status.read_text().split()[2] == "Z":
            return
        time.sleep(0.1)
    os.kill(number, signal.SIGKILL)
    pytest.fail("the worker outlived its parent")
