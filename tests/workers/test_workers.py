"""Workers end to end on a tiny base: SyncNet, identity, four training phases, pairs, dubber."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import weakref
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from pydantic import Field
from safetensors.torch import load_file, save_file

from model_code import base
from model_code.backbones.audio import AudioEncoder, AudioEncoderConfig
from model_code.backbones.codec import BlockCodec, BlockCodecConfig
from model_code.backbones.load import load_audio
from model_code.backbones.perceptual import PerceptualConfig, PerceptualEncoder
from model_code.backbones.transformer import DubbingTransformer
from model_code.config import BackbonesConfig, MediaConfig, PairsConfig, TransformerConfig
from model_code.dubbing.model import LORA_FILE, DubbingPipelineModel, save_transformer
from model_code.errors import InputError
from model_code.faces.arcface import IResNet
from model_code.faces.landmarker import Landmarker
from model_code.files import unfinished
from model_code.media import sample
from model_code.media.sample import ClipSample, SmallClip
from model_code.media.shards import Shard, ShardWriter
from model_code.media.video import read_audio, read_video
from model_code.metrics.syncnet import SyncNet, SyncNetConfig
from model_code.pairs.rendered import draw_rendered, render_pairs
from model_code.training.data import to_network
from model_code.training.identity import train_identity
from model_code.training.syncnet import SCORED, StoredExample, train_syncnet
from model_code.training.validation import hold_out
from model_code.workers import dubber, identity, pairs, run, syncnet, train
from model_code.workers.clips import training_clips
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
        writer.commit([{**clip.row, "split": "train", "n_frames": len(clip.frames)} for clip in clips])
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


@pytest.mark.parametrize(
    ("speakers", "kept", "told"),
    [
        ("abcdefabcdef", {0, 6}, "speakers it was not trained on"),
        ("aabbccddeeffgg", {0, 1, 12, 13}, "speakers it was not trained on"),
        ("abcdeabcde", {0, 6}, "other clips of the speakers it was trained on"),
        ("aa", {0}, "other clips of the speakers it was trained on"),
        ("a", {0}, "the only clip, which it was trained on"),
    ],
)
def test_the_accuracy_is_measured_on_what_was_kept_apart(speakers: str, kept: set[int], told: str) -> None:
    assert syncnet.kept_apart(speakers) == (kept, told)


@pytest.mark.usefixtures("use_base")
def test_a_syncnet_of_two_speakers_is_measured_on_a_clip_of_its_own(tmp_path: Path, shard: Path) -> None:
    _, result = work(tmp_path / "sync", syncnet, syncnet.SyncNetWorkerConfig, shards=[shard], steps=2)
    assert result["metrics"]["heldout_clips"] == 1
    assert result["metrics"]["clips"] + 1 == len(Shard(shard).rows)
    assert result["measured_on"] == "other clips of the speakers it was trained on"


@pytest.mark.usefixtures("use_base")
@pytest.mark.parametrize(
    ("worker", "config_type", "training"),
    [
        (syncnet, syncnet.SyncNetWorkerConfig, "train_syncnet"),
        (identity, identity.IdentityWorkerConfig, "train_identity"),
    ],
)
def test_large_footage_is_held_as_small_as_the_network_sees_it(
    worker: Any,
    config_type: type[run.WorkerConfig],
    training: str,
    tmp_path: Path,
    clips: list[ClipSample],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    large = tmp_path / "0000"
    with ShardWriter(large) as writer:
        for clip in clips:
            writer.add(clip.clip_id, replace(clip, frames=clip.frames.repeat(2, 1).repeat(2, 2)).to_members())
        writer.commit([{**clip.row, "split": "train", "n_frames": len(clip.frames)} for clip in clips])
    train_it, held = getattr(worker, training), list[Any]()

    def watched(train: list[Any], heldout: list[Any], *numbers: Any, **more: Any) -> Any:
        held.extend([*train, *heldout])
        return train_it(train, heldout, *numbers, **more)

    monkeypatch.setattr(worker, training, watched)
    work(tmp_path / "work", worker, config_type, shards=[large], steps=1)
    assert [clip.frames.shape[1:] for clip in held] == [(96, 96, 3)] * len(clips)
    assert not any(hasattr(clip, "occluder") for clip in held)  # the larger part of a clip at full strength
    small = held[0].frames.astype(int)
    assert min(np.abs(small - clip.frames).mean() for clip in clips if len(clip.frames) == len(small)) < 4


def test_clips_of_the_networks_size_are_held_as_they_are(shard: Path) -> None:
    for stored in training_clips([shard]):
        small, whole = SmallClip(stored, 96), stored.read()
        assert np.array_equal(small.frames, whole.frames)
        assert np.array_equal(small.audio, whole.audio)
        assert small.row["speaker_id"] == whole.row["speaker_id"]


@pytest.mark.usefixtures("use_base")
def test_syncnet_and_identity_hold_the_last_clips_that_they_looked_at(
    tmp_path: Path, shard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[weakref.ref[np.ndarray]] = []

    def decode(data: bytes) -> np.ndarray:
        frames = np.zeros((30, 96, 96, 3), np.uint8)
        decoded.append(weakref.ref(frames))
        return frames

    monkeypatch.setattr(sample, "from_mp4_bytes", decode)
    many = [replace(stored) for stored in training_clips([shard]) for _ in range(100)]
    people = [SmallClip(stored, 96) for stored in many]
    encoder = load_audio(BackbonesConfig())
    assert not decoded
    for clip in [*people, *people[-sample.KEPT :]]:
        assert clip.frames.shape == (30, 96, 96, 3)
    assert len(decoded) == len(people) > sample.KEPT, "the last ones were held"
    assert sum(frames() is not None for frames in decoded) <= sample.KEPT
    decoded.clear()
    heard = [StoredExample(SmallClip(stored, 96), encoder) for stored in many]
    train_syncnet(heard[:100], heard[100:], steps=1, batch_size=2)
    assert len(decoded) <= 2 + 24 + SCORED, "a step's, those of train_accuracy, and those that are scored"
    assert sum(frames() is not None for frames in decoded) <= sample.KEPT
    known = [replace(stored, row={**stored.row, "speaker_id": f"{n % 150}"}) for n, stored in enumerate(many)]
    decoded.clear()
    train_identity([SmallClip(stored, 96) for stored in known], [], steps=1, batch_size=2)
    assert len(decoded) < 0.6 * len(known), "of every third speaker"


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
    points = np.random.default_rng(0).uniform(20, 76, (30, 68, 2)).astype(np.float32)
    assert model.dub_crops(frames, np.zeros(19200, np.float32), 0, points).shape == frames.shape


@pytest.mark.slow
def test_two_processes_make_the_expert_that_one_makes(tmp_path: Path, shard: Path) -> None:
    """Each decodes its samples and asks its own SyncNet; what is frozen is shared out with the rest."""
    frozen = {"backbones": published(tmp_path / "published"), "features": tmp_path / "features"}
    shape = {**SHAPE, "text_dim": 32}
    torch.manual_seed(0)
    editor = DubbingTransformer.build(TransformerConfig.model_validate({**shape, "context_channels": 12}))
    for value in editor.parameters():
        torch.nn.init.normal_(value, std=0.1)  # a new head is zero, and no adapter would learn
    save_transformer(editor, tmp_path / "editor" / "transformer")
    SyncNet(SyncNetConfig(audio_features=64)).save_pretrained(tmp_path / "sync")
    phase = {
        "phase": "lip", "steps": 4, "batch_size": 2, "sync_weight": 0.05, "learning_rate": 1e-4, "lora": LORA,
        "inpaints": True,
    }  # fmt: skip
    made = [
        work(
            tmp_path / str(count), train, train.TrainConfig, phase=phase, shards=[shard], init=tmp_path / "editor",
            syncnet=tmp_path / "sync", transformer=shape, flow=FLOW, cache=tmp_path / "latents", processes=count,
            sharding="sharded", **frozen,
        )
        for count in (1, 2)
    ]  # fmt: skip
    (alone, expected), (together, result) = made
    for name in ("loss", "sync", "trained_parameters"):
        assert result["metrics"][name] == pytest.approx(expected["metrics"][name], rel=1e-4)
    adapters = load_file(together / "expert" / LORA_FILE)
    for name, value in load_file(alone / "expert" / LORA_FILE).items():
        assert torch.allclose(value, adapters[name], rtol=0, atol=1e-5), name


@pytest.mark.usefixtures("use_base")
def test_training_looks_at_clips_that_it_never_trains_on(tmp_path: Path, shard: Path) -> None:
    SyncNet(SyncNetConfig(audio_features=64)).save_pretrained(tmp_path / "sync")
    phase = {"phase": "generator", "steps": 4, "batch_size": 2, "validate_every": 2, "checkpoint_every": 2}
    shared = {"shards": [shard], "transformer": SHAPE, "flow": FLOW, "cache": tmp_path / "latents"}
    output, result = work(tmp_path / "run", train, train.TrainConfig, phase=phase, syncnet=tmp_path / "sync", **shared)
    clip_ids = {row["clip_id"] for row in Shard(shard).rows}
    assert result["metrics"]["clips"] == len(clip_ids) - 1
    assert {"validation_loss", "validation_sync_c", "samples_per_second"} <= set(result["metrics"])
    assert [row["step"] for row in result["curves"] if "validation_loss" in row] == [2, 4]
    rows = json.loads((output / "curves.json").read_text())
    assert [len(row["validation_bins"]) for row in rows if "validation_bins" in row] == [5, 5]
    assert "samples_per_second" not in rows[-1]
    assert result["videos"] == ["validation/step_000002.mp4", "validation/step_000004.mp4"]
    assert "validation/step_000004.png" in result["pictures"]
    video = output / result["videos"][-1]
    assert len(list(read_video(video).frames)) == 25
    held = next(clip for clip in training_clips([shard]) if is_heard(clip.read(), read_audio(video)))
    config = train.TrainConfig.model_validate_json((tmp_path / "run" / "config.json").read_text())
    learned, kept = train.read(config)
    assert [clip.clip_id for clip in kept] == [held.clip_id]  # type: ignore[union-attr]
    assert {clip.clip_id for clip in learned} == clip_ids - {held.clip_id}  # type: ignore[union-attr]
    again, same = work(tmp_path / "again", train, train.TrainConfig, phase=phase, syncnet=tmp_path / "sync", **shared)
    assert {path.name: path.read_bytes() for path in (again / "validation").iterdir()} == {
        path.name: path.read_bytes() for path in (output / "validation").iterdir()
    }
    assert same["metrics"]["validation_loss"] == result["metrics"]["validation_loss"]


def is_heard(clip: ClipSample, sound: np.ndarray) -> bool:
    """Whether a video's sound is that of a clip's beginning; AAC is lossy."""
    count = min(len(sound), len(clip.audio), 16_000)
    return bool(np.corrcoef(sound[:count], clip.audio[:count])[0, 1] > 0.9)


def test_pairs_of_one_clip_are_held_out_together() -> None:
    sources = [f"{clip}.{variant}" for variant in ("generated", "relit") for clip in "abcdefgh"]
    learned, held = hold_out(sources, 0.25, lambda name: name[0], lambda name: name[0] != "a")
    assert len(held) == 4
    assert {name[0] for name in held}.isdisjoint({name[0] for name in learned})
    assert sorted(learned + held) == sorted(sources)
    more, _ = hold_out([*sources, "x.relit"], 0.25, lambda name: name[0], lambda name: name[0] != "a")
    assert len(set(learned) - set(more)) <= 2
    with pytest.raises(InputError, match="set validate_every to 0"):
        hold_out(["a.relit", "a.generated"], 0.5, lambda name: name[0], lambda name: True)


def train_quietly(folder: Path, config: Path) -> None:
    """A worker's life, in a process of its own, with the base in `folder`."""
    base.FOLDER = folder
    sys.exit(run.main(train.TrainConfig, train.work, ["--config", str(config)]))


@pytest.mark.slow
def test_training_that_is_killed_ten_times_ends_with_the_same_bytes(
    tmp_path: Path, shard: Path, tiny_base: Path
) -> None:
    """SIGKILL at random moments: while it encodes, resumes, trains, looks at held-out clips, writes checkpoints."""
    moments, context = random.Random(), get_context("forkserver")
    context.set_forkserver_preload([__name__])  # workers have imported everything: they are killed at work
    phase = {"phase": "generator", "steps": 400, "batch_size": 2, "checkpoint_every": 3, "validate_every": 40}

    def start(folder: Path) -> ForkServerProcess:
        folder.mkdir(exist_ok=True)
        config = {
            "phase": phase, "shards": [str(shard)], "transformer": SHAPE, "flow": FLOW, "output": str(folder / "output")
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config))
        worker = context.Process(target=train_quietly, args=(tiny_base, folder / "config.json"))
        worker.start()
        return worker

    def finish(folder: Path) -> dict[str, bytes]:
        worker = start(folder)
        worker.join()
        assert worker.exitcode == 0
        files = (path for path in (folder / "output").rglob("*") if path.is_file() and path.name != "result.json")
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}

    def newest(folder: Path) -> int:
        return max((int(path.name[5:]) for path in folder.glob("checkpoints/step_*")), default=-1)

    reached = []
    for number in range(10):
        before, worker = newest(tmp_path / "struck"), start(tmp_path / "struck")
        while number % 2 and newest(tmp_path / "struck") == before and worker.is_alive():
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.25))
        worker.kill()
        worker.join()
        assert worker.exitcode == -signal.SIGKILL
        reached.append(newest(tmp_path / "struck"))
    assert reached == sorted(reached)
    assert reached[-1] > reached[0]
    struck, calm = finish(tmp_path / "struck"), finish(tmp_path / "calm")
    assert any(name.endswith(".safetensors") for name in calm)
    assert {name for name in calm.keys() | struck.keys() if calm.get(name) != struck.get(name)} == set()


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


def killed_at_work(config: run.WorkerConfig, progress: run.Progress) -> dict[str, Any]:
    """Dies while it writes a file in a folder of its output."""
    (config.output / "deep").mkdir()
    with unfinished(config.output / "deep" / "model.safetensors") as partial:
        partial.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    return {}


def test_a_rerun_leaves_nothing_of_a_killed_worker_in_the_output(tmp_path: Path) -> None:
    config = NapConfig(output=tmp_path / "out")
    process = get_context("fork").Process(target=run.run, args=(config, killed_at_work))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    (left,) = (config.output / "deep").iterdir()
    left.rename(left.with_name(left.name.replace(socket.gethostname(), "another.machine-0")))
    (config.output / ".film.mp4.part").write_bytes(b"a browser's download in the folder that the user named")
    run.run(config, napping)
    files = [path for path in config.output.rglob("*") if path.is_file()]
    assert sorted(path.name for path in files) == [".film.mp4.part", "result.json"]


def test_what_lies_beside_the_output_stays_but_for_unfinished_shards(tmp_path: Path) -> None:
    output = tmp_path / "results [1]"
    users = [tmp_path / name for name in (".results [1].old", ".results [1].2025.bak", ".results 1.a.xdub-partial")]
    for folder in users:
        folder.mkdir()
        (folder / "scores.json").write_text("{}")
    _write_no_further(tmp_path / "results [1].b")
    (others,) = {*tmp_path.iterdir()} - {*users}
    users.append(others)
    (others / "scores.json").write_text("{}")
    _write_no_further(output)
    assert len(list(tmp_path.iterdir())) == len(users) + 1
    run.run(NapConfig(output=output), napping)
    assert all((folder / "scores.json").is_file() for folder in users)
    assert {*tmp_path.iterdir()} == {*users, output, tmp_path / "results [1].lock", tmp_path / "count"}


def _write_no_further(output: Path) -> None:
    """Leaves what a worker leaves that is killed while it writes a shard."""
    writer = ShardWriter(output)
    writer.add("a", {"crop.mp4": b"half"})


def test_a_worker_killed_between_two_shards_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old shard stands aside and the new one is not yet in its place."""
    output = tmp_path / "out"
    output.mkdir()
    replace_it = os.replace

    def killed(source: Path, target: Path) -> None:
        if target == output:
            raise KeyboardInterrupt
        replace_it(source, target)

    writer = ShardWriter(output)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            writer.commit([])
    assert len([path for path in tmp_path.iterdir() if path.name.startswith(".out.")]) == 2
    run.run(NapConfig(output=output), napping)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "out.lock", "count"}


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
