"""The released system end to end, on tiny networks of its classes: import, assemble, dub, promote."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from model_code import base
from model_code.config import MediaConfig
from model_code.dubbing.assemble import assemble
from model_code.dubbing.dub import plan_dub
from model_code.dubbing.model import DubbingPipelineModel, read_config
from model_code.errors import InputError
from model_code.media.video import read_audio, stream_video
from tests.published import save_umt5, save_vae, save_wav2vec2, save_whisper
from tests.xdub_platform.planted import platform_on
from tests.xdub_platform.serving.tiny import write_face, write_speech
from xdub_platform.cli import app
from xdub_platform.dubbing import RegisteredDubber
from xdub_platform.platform import Platform, build_platform
from xdub_platform.promotion import promote, roll_back
from xdub_platform.repair import leftovers
from xdub_platform.settings import RELEASED_FLOW, load_settings
from xdub_platform.weights import assemble_dubber, import_weights

WEIGHTS = Path(__file__).resolve().parents[1] / "golden" / "plain" / "tiny_model.safetensors"
NAME = "xdub-dubber"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Backbones of the widths that the tiny checkpoint takes: 4 latent channels, 4 + 6 heard, 8 read."""
    folder = tmp_path_factory.mktemp("published")
    save_vae(folder / "wan", 4)
    save_umt5(folder / "wan", 8)
    heard = (str(save_whisper(folder / "whisper", 4)), str(save_wav2vec2(folder / "wav2vec2", 6)))
    return {"codec": str(folder / "wan"), "audio": heard, "text": str(folder / "wan"), "prompt": "a person speaks"}


def small(backbones: dict[str, Any]) -> dict[str, Any]:
    return {
        "backbones": backbones,
        "flow": {**RELEASED_FLOW, "sampling_steps": 2},
        "dubbing": {"stitching": "latents"},
        "transformer": {"precondition": 0.0},
        "media": {"crop_size": 96, "crop_scale": 1.45},
        "phases": {"editor": {"clip_frames": 9}},
    }


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory, published: dict[str, Any]) -> Platform:
    """A registry with imported weights, their licence not acknowledged, and a dubber of them: version 1."""
    platform = platform_on(
        tmp_path_factory.mktemp("released") / "state", **small({**published, "negative_prompt": "blur"})
    )
    import_weights(platform, WEIGHTS, "none published")
    done = assemble_dubber(platform)
    assert (done.model, done.version, done.weights, done.acknowledged) == (NAME, 1, 1, "")
    return platform


def test_a_real_file_is_dubbed(platform: Platform, tmp_path: Path) -> None:
    video, speech, out = write_face(tmp_path / "face.mp4", 12), tmp_path / "speech.wav", tmp_path / "out.mp4"
    write_speech(speech, 0.56)
    features = tmp_path / "features"
    dubber = RegisteredDubber(platform, "@released", "cpu", features)
    report = dubber.dub(video, speech, out)
    assert (report.frames, report.dubbed) == (14, 14)
    assert len(list(features.iterdir())) == 1
    samples, heard = read_audio(speech), read_audio(out)
    both = min(len(samples), len(heard))
    assert abs(len(samples) - len(heard)) <= 1100
    assert np.corrcoef(samples[:both], heard[:both])[0, 1] > 0.99

    plan = plan_dub(video, len(samples), base.load("landmarker"), MediaConfig(crop_scale=1.45))
    for index, (before, after) in enumerate(zip(stream_video(video), stream_video(out), strict=False)):
        outside = np.ones(before.y.shape, bool)
        x0, y0, x1, y1 = plan.boxes[index].astype(int)
        outside[max(y0, 0) : y1 + 2, max(x0, 0) : x1 + 2] = False
        error = (before.y.astype(float) - after.y)[outside]
        assert 10 * np.log10(255**2 / np.mean(error**2)) > 45
        assert np.abs(before.y.astype(float) - after.y)[~outside].max() > 20


def test_it_dubs_in_the_released_way_and_is_whole_in_its_folder(platform: Platform) -> None:
    folder = platform.mlflow.model_path(NAME, "1")
    assert folder is not None
    config = read_config(folder)
    flow = config.flow
    assert (flow.guidance_schedule, flow.audio_guidance, flow.reference_guidance, flow.border) == (
        "release",
        10,
        2.5,
        True,
    )
    assert (config.codec, config.stitching, config.crop_scale) == ("wan", "latents", 1.45)
    assert (config.window_frames, config.overlap_frames) == (9, 5)
    assert (config.prompt, config.negative_prompt) == ("a person speaks", "blur")
    model = DubbingPipelineModel.from_pretrained(folder)
    assert model.prompts is not None
    assert model.prompts.negative is not None
    frames = np.random.default_rng(0).integers(0, 256, (9, 96, 96, 3), dtype=np.uint8)
    sound = np.random.default_rng(1).normal(0, 0.1, 9 * 640).astype(np.float32)
    dubbed = model.dub_crops(frames, sound, 0)
    assert not np.array_equal(dubbed, model.dub_crops(frames, np.zeros_like(sound), 0)), "it does not hear"
    model.prompts = model.prompts.__class__(model.prompts.prompt)
    assert not np.array_equal(dubbed, model.dub_crops(frames, sound, 0)), "the negative prompt is not read"


def test_a_licence_goes_with_the_weights_into_the_dubber(platform: Platform) -> None:
    tags = platform.mlflow.versions(NAME)[1]
    assert (tags["licence"], tags["licence.required"], tags["weights.kind"]) == ("none published", "true", "xdub")
    assert tags["part.weights"] == f"{NAME}-weights/1"
    for decision in (promote(platform, 1), roll_back(platform, 1)):
        assert not decision.accepted
        assert "set the tag licence.acknowledged of version 1" in decision.reason
    platform.mlflow.client().set_model_version_tag(f"{NAME}-weights", "1", "licence.acknowledged", "A. Person")
    again = assemble_dubber(platform)
    assert (again.version, again.acknowledged) == (2, "A. Person")
    assert roll_back(platform, 2).accepted


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"codec": "/no/such/wan"}, "'/no/such/wan' is no folder"),
        ({"codec": "base"}, "160 latent channels for a transformer that takes 4"),
        ({"text": None}, "a transformer that reads, and no text encoder"),
        ({"audio": "whisper alone"}, "4 audio features for a transformer that takes 10"),
        ({"audio": "codec"}, "holds AutoencoderKLWan|holds no config.json|no class that it names"),
    ],
)
def test_what_does_not_fit_is_told_in_a_line(
    platform: Platform, published: dict[str, Any], wrong: dict[str, Any], told: str
) -> None:
    named = {"whisper alone": (published["audio"][0],), "codec": (published["codec"] + "/vae",)}
    chosen = {name: named.get(value, value) for name, value in wrong.items()}
    other = build_platform(load_settings(state_root=platform.settings.state_root, **small({**published, **chosen})))
    with pytest.raises(InputError, match=told):
        assemble_dubber(other)
    assert not any(platform.settings.path("work", "assemble").iterdir())


def test_repair_clears_what_a_killed_assembly_left_and_leaves_a_living_one(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = platform.settings.path("work", "assemble")

    def while_repaired(transformer: Path, backbones: Any, config: Any, folder: Path, features: Path) -> Any:
        (mine,) = (path for path in work.iterdir() if path.is_dir())
        shutil.copytree(transformer, mine / "parts" / "weights" / "transformer")
        shutil.copytree(mine, work / "killed")
        assert [leftover.what for leftover in leftovers(platform.settings, repair=True)] == ["work/assemble/killed"]
        assert [path for path in work.iterdir() if path.is_dir()] == [mine]
        return assemble(mine / "parts" / "weights" / "transformer", backbones, config, folder, features)

    monkeypatch.setattr("model_code.dubbing.assemble.assemble", while_repaired)
    assemble_dubber(platform)
    assert not any(work.iterdir())


def test_the_command_needs_imported_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    platform_on(tmp_path / "state")
    monkeypatch.setenv("XDUB_STATE_ROOT", str(tmp_path / "state"))
    refused = CliRunner().invoke(app, ["weights", "assemble", "--profile", "embedded"])
    assert "no version @xdub of xdub-dubber-weights is registered" in str(refused.exception)
