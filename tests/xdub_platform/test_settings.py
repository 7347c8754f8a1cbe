"""Settings: profiles, environment, refusals."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest

import assets.dubber
from assets.training import ASSETS
from model_code.config import BackbonesConfig
from model_code.errors import InputError
from xdub_platform.console import show_scores
from xdub_platform.platform import build_platform
from xdub_platform.settings import PROFILES, load_settings, unknown_environment


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_resolves_under_its_own_root(profile: str) -> None:
    settings = load_settings(profile=profile)
    assert settings.state_root == Path.cwd() / ".xdub" / profile
    assert settings.phases.editor.phase == "editor"


@pytest.mark.parametrize("profile", PROFILES)
def test_phases_keep_the_papers_shifts(profile: str) -> None:
    phases = load_settings(profile=profile).phases
    assert (phases.editor.shift, phases.lip.shift, phases.texture.shift) == (5.0, 1.5, 0.2)


def test_environment_wins_over_profile_field_by_field(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDUB_PROFILE", "embedded-full")
    monkeypatch.setenv("XDUB_PHASES__EDITOR__STEPS", "17")
    settings = load_settings()
    assert settings.phases.editor.steps == 17
    assert settings.phases.generator.steps == PROFILES["embedded-full"]["phases"]["generator"]["steps"]
    assert settings.phases.lip.lora is not None


def test_arguments_win_over_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDUB_STATE_ROOT", "/elsewhere")
    assert load_settings(state_root=tmp_path).state_root == tmp_path


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg", "postgresql+psycopg2"])
def test_postgres_addresses_name_the_installed_driver(scheme: str) -> None:
    address = f"{scheme}://user:word@host:5432/name"
    settings = load_settings(database={"url": address}, mlflow={"tracking_uri": address})
    assert settings.database.url == settings.mlflow_uri == "postgresql+psycopg2://user:word@host:5432/name"


def test_other_addresses_stay_as_they_are() -> None:
    assert load_settings(mlflow={"tracking_uri": "http://mlflow:5000"}).mlflow_uri == "http://mlflow:5000"


def test_unknown_names_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="COLOUR"):
        load_settings(colour="red")
    monkeypatch.setenv("XDUB_PHASES__EDITOR__STEP", "17")
    with pytest.raises(InputError, match="PHASES__EDITOR__STEP='17'"):
        load_settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [("XDUB_SERVING__DEVICES", "cuda:0"), ("XDUB_VARIANTS", "generated"), ("XDUB_KUBERNETES__GPUS", "{")],
)
def test_what_is_no_json_is_refused_by_name_and_value(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"{name}='{value}' is no JSON"):
        load_settings()


def test_null_in_the_environment_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDUB_PROMOTION__TOLERANCES__LEAK_WIDTH", "null")
    monkeypatch.setenv("XDUB_START__GENERATOR", "null")
    settings = load_settings(profile="cluster")
    assert settings.start.generator is None
    assert settings.promotion.tolerances.leak_width is None
    assert settings.promotion.tolerances.leak_opening == 0.05


def test_a_benchmark_has_a_case() -> None:
    with pytest.raises(InputError, match="BENCHMARK__CASES=0"):
        load_settings(benchmark={"cases": 0})


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("XDUB_DATABASE", "postgresql://xdub:HUNTER2@db/xdub", "XDUB_DATABASE is no JSON"),
        ("XDUB_DATABASE__URLL", "postgresql://xdub:HUNTER2@db/xdub", "setting DATABASE__URLL: Extra"),
        ("XDUB_AUTOMATION__WEBHOOK_URL", "wss://hook/HUNTER2", "setting AUTOMATION__WEBHOOK_URL: String"),
        ("XDUB_FLOW__NOISE_SCALE", "0.5", "settings: Value error, transformer.precondition"),
    ],
)
def test_a_refusal_shows_no_secret(monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str) -> None:
    monkeypatch.setenv("XDUB_DATABASE__URL", "postgresql://xdub:HUNTER2@db/xdub")
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=told) as refused:
        load_settings()
    assert "HUNTER2" not in "".join(traceback.format_exception(refused.value))


def test_the_terminal_shows_no_password(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = load_settings(state_root=tmp_path, mlflow={"tracking_uri": "postgresql://xdub:HUNTER2@db/mlflow"})
    show_scores(settings, tmp_path / "index.html")
    shown = capsys.readouterr().out
    assert "MLflow  $XDUB_MLFLOW__TRACKING_URI" in shown
    assert "HUNTER2" not in shown


def test_the_transformer_undoes_the_noise_that_it_is_shown() -> None:
    with pytest.raises(InputError, match=r"transformer\.precondition 0\.1 is not flow\.noise_scale 0\.5"):
        load_settings(flow={"noise_scale": 0.5})
    load_settings(flow={"noise_scale": 0.5}, transformer={"precondition": 0.5})
    load_settings(flow={"noise_scale": 0.5}, transformer={"precondition": 0.0})


def test_the_cluster_dubs_in_the_released_way_with_the_released_networks() -> None:
    settings = load_settings(profile="cluster")
    flow, heard = settings.flow, settings.backbones.audio
    assert (flow.guidance_schedule, flow.reference_guidance, flow.audio_guidance) == ("release", 2.5, 10.0)
    assert (flow.prediction, flow.sampling_steps, flow.sampling_shift, flow.border) == ("v", 30, 5.0, True)
    assert (settings.media.crop_size, settings.media.crop_scale) == (512, 1.45)
    assert assets.dubber.config(settings)["dubbing"] == {"stitching": "latents"}
    assert {phase.judged_every for _, phase in settings.phases} == {1}
    assert heard == ("openai/whisper-large-v2", "facebook/wav2vec2-base-960h")
    assert "base" not in (settings.backbones.codec, settings.backbones.text)
    assert load_settings(profile="embedded").backbones == BackbonesConfig()
    assert all(phase.reference_drop > 0 for _, phase in settings.phases), (
        "its guidance asks for a model without reference"
    )


@pytest.mark.parametrize(("profile", "expert"), [("embedded", 1), ("embedded-full", 1), ("cluster", 4)])
def test_experts_train_together_on_a_cluster_alone(profile: str, expert: int) -> None:
    """Elsewhere they run beside each other, whatever number of processes trains the editor."""
    settings = load_settings(profile=profile, processes={"training_processes": 4})
    workers = build_platform(settings).workers
    assert [workers.processes(asset) for asset in ASSETS.values()] == [4, 4, expert, expert]
    with pytest.raises(InputError, match="TRAINED_TOGETHER"):
        load_settings(processes={"trained_together": ["syncnet"]})


def test_misspelt_environment_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDUB_PHASE__EDITOR__STEPS", "17")
    assert unknown_environment() == ["XDUB_PHASE__EDITOR__STEPS"]
