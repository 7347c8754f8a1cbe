"""The plan as a whole: what it must say of the cluster's settings, and how it follows its assumptions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model_code.backbones.codec import BlockCodec
from model_code.config import MediaConfig, TransformerConfig
from model_code.errors import InputError
from model_code.media.sample import ClipSample
from model_code.planning.plan import Assumptions, Plan, make_plan, phase_samples
from model_code.planning.storage import clip_bytes, crop_bits, latent_bytes, partitions
from model_code.training.data import encode_track
from model_code.training.parallel import Team
from xdub_platform.planning import plan_of, recipe_of, settings_of
from xdub_platform.settings import load_settings


@pytest.fixture(scope="module")
def cluster() -> Plan:
    return plan_of(load_settings(profile="cluster"), precision="bf16")


def test_the_cluster_is_the_release(cluster: Plan) -> None:
    assert cluster.codec.name == "Wan2.2 VAE"
    assert cluster.backbones.audio == ("openai/whisper-large-v2", "facebook/wav2vec2-base-960h")
    assert {phase.phase: phase.tokens for phase in cluster.phases} == {
        "generator": 2048,
        "editor": 10_240,
        "lip": 10_240,
        "texture": 10_240,
    }
    steps = {stage.name: stage.steps for stage in cluster.stages if stage.steps}
    assert steps == {"generator": 15_000, "editor": 4000, "lip": 1000, "texture": 1000}


def test_a_whole_training_does_not_fit_beside_its_states_on_80_gb(cluster: Plan) -> None:
    editor = cluster.phases[1]
    ddp, fsdp = editor.ways
    assert ddp.states > 80e9 > fsdp.states
    assert editor.chosen == fsdp
    assert editor.gradient_checkpointing
    assert editor.samples * editor.accumulate == 256 / 32
    assert editor.peak < 80e9


def test_every_accelerator_has_the_codec_and_the_whole_batch(cluster: Plan) -> None:
    eight = plan_of(load_settings(profile="cluster"), accelerators=8, precision="bf16")
    for phase, other in zip(cluster.phases, eight.phases, strict=True):
        for way, same in zip(phase.ways, other.ways, strict=True):
            assert way.batch == same.batch > 1e9
            assert way.states > 4 * cluster.codec.parameters
    assert cluster.phases[1].ways[0].batch > 6e9


def test_six_flops_a_parameter_and_token_is_near(cluster: Plan) -> None:
    """The rule of thumb holds for what all tokens pass; attention is far from negligible at 10,240 tokens."""
    editor = next(stage for stage in cluster.stages if stage.name == "editor")
    assert editor.step_flops is not None
    rule = 6 * cluster.parameter_count * 10_240 * 256
    assert 0.7 < editor.step_flops / rule < 1.5


def test_hours_follow_peak_utilisation_and_footage(cluster: Plan) -> None:
    settings = load_settings(profile="cluster")
    faster = plan_of(settings, precision="bf16", utilisation=0.8)
    more = plan_of(settings, precision="bf16", hours=1200.0)
    single = plan_of(settings, precision="fp32")
    for before, after, again, fp32 in zip(cluster.stages, faster.stages, more.stages, single.stages, strict=True):
        assert after.accelerator_hours == pytest.approx(before.accelerator_hours / 2)
        assert again.accelerator_hours == pytest.approx(before.accelerator_hours * (1 if before.steps else 2), rel=0.01)
        assert fp32.accelerator_hours > 10 * before.accelerator_hours
        assert before.days == pytest.approx(before.accelerator_hours / 24 / 32)
    assert more.partitions.shards == 2 * cluster.partitions.shards
    assert more.storage["clips"] == pytest.approx(2 * cluster.storage["clips"])


def test_a_larger_accelerator_needs_no_checkpointing() -> None:
    settings = load_settings(profile="cluster")
    assert not plan_of(settings, accelerator="mi300x", precision="bf16").phases[1].gradient_checkpointing
    small = plan_of(settings, accelerator="l40s", accelerators=1, precision="bf16").phases[1]
    assert small.chosen is None
    assert small.samples == 0


def test_the_plan_names_the_settings_that_the_trainer_reads(cluster: Plan) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDUB_PHASES__EDITOR__GRADIENT_CHECKPOINTING", "false")
        patch.setenv("XDUB_PHASES__EDITOR__PRECISION", "fp32")
        settings = load_settings(profile="cluster")
        wanted = settings_of(cluster, settings)
        assert wanted["XDUB_PHASES__EDITOR__GRADIENT_CHECKPOINTING"] == "true"
        assert wanted["XDUB_PHASES__EDITOR__PRECISION"] == "bf16"
        assert "XDUB_PROCESSES__SHARDING" not in wanted  # it is set already
        for name, value in wanted.items():
            patch.setenv(name, value)
        followed = load_settings(profile="cluster")
    for memory in cluster.phases:
        phase = getattr(followed.phases, memory.phase)
        assert (phase.accumulate, phase.gradient_checkpointing) == (memory.accumulate, memory.gradient_checkpointing)
        Team(size=32).check(phase.batch_size, phase.accumulate)
    assert settings_of(cluster, followed) == {}


def test_the_cluster_profile_trains_as_its_accelerators_allow() -> None:
    settings = load_settings(profile="cluster")
    assert settings_of(plan_of(settings, accelerators=settings.processes.training_processes), settings) == {}


def test_passes_are_even() -> None:
    """Three samples fit, eight are due: four passes of two, not three of which one is smaller."""
    settings = load_settings(profile="cluster")
    for accelerators in (8, 16, 32):
        for phase in plan_of(settings, accelerators=accelerators, precision="bf16").phases:
            batch = getattr(settings.phases, phase.phase).batch_size
            assert phase.samples * phase.accumulate * accelerators == batch


def test_the_embedded_profile_sees_parts_first() -> None:
    settings = load_settings(profile="embedded")
    recipe = recipe_of(settings)
    generator = recipe.phases[0]
    (early, part), (late, whole) = phase_samples(generator, settings.transformer, 96, 8)
    assert early == generator.whole_from
    assert early + late == 1
    assert (part.rows, part.frames, whole.rows, whole.frames) == (8, 4, 12, 7)
    plan = make_plan(recipe, Assumptions(hours=0.1, accelerators=1))
    assert plan.codec.name == "BlockCodec"
    assert all(phase.samples == 16 or phase.phase in ("lip", "texture") for phase in plan.phases)


def test_a_preset_takes_the_settings_place() -> None:
    plan = plan_of(load_settings(profile="cluster"), "xdub-paper-1b", precision="bf16")
    assert plan.parameter_count == pytest.approx(1.074e9, rel=0.001)
    assert plan.codec.name == "Wan2.1 VAE"


@pytest.mark.parametrize(
    ("preset", "assumed", "said"),
    [
        (None, {"accelerator": "abacus"}, "accelerator 'abacus' is not known"),
        (None, {"utilisation": 1.5}, "utilisation 1.5"),
        (None, {"precision": "fp8"}, "precision 'fp8'"),
        ("huge", {}, "preset 'huge' is not known"),
    ],
)
def test_what_cannot_be_planned_is_named(preset: str | None, assumed: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        plan_of(load_settings(profile="embedded"), preset, **assumed)


def test_channels_that_no_codec_has_are_named() -> None:
    recipe = recipe_of(load_settings(profile="embedded"))
    wrong = recipe.model_copy(update={"transformer": TransformerConfig(in_channels=24, out_channels=24)})
    with pytest.raises(InputError, match="24 latent channels"):
        make_plan(wrong, Assumptions())


def test_shards_and_partitions() -> None:
    spread = partitions(hours=600, file_seconds=10, clips_per_shard=2000, variants=3)
    assert (spread.files, spread.shards, spread.total) == (216_000, 108, 108 + 108 + 324)
    assert spread.within_limit
    assert not partitions(600, 1, 10, 3).within_limit


def test_a_clips_bytes_are_its_members_plus_pictures() -> None:
    frames = np.zeros((50, 96, 96, 3), np.uint8)
    clip = ClipSample(
        "c", {}, frames, np.zeros((50, 68, 2), np.float32), np.zeros(50, np.float32), np.zeros(32_000, np.float32),
        np.zeros((50, 4), np.float32),
    )  # fmt: skip
    members = {name: len(data) for name, data in clip.to_members().items() if name != "crop.mp4"}
    picture = 50 * 96 * 96 * crop_bits(96) / 8
    assert clip_bytes(MediaConfig(), 2.0) - picture == pytest.approx(sum(members.values()), rel=0.02)


def test_cached_latents_are_two_videos_and_two_masks() -> None:
    track = encode_track(np.zeros((101, 96, 96, 3), np.uint8), BlockCodec().eval())
    video = sum(tensor.numel() * tensor.element_size() for tensor in (track.singles, track.blocks))
    masks, sound = video / 160, 4 * 50 * 64 * torch.half.itemsize
    predicted = latent_bytes(MediaConfig(), TransformerConfig(), 8, 4.0)
    assert predicted == pytest.approx(2 * video + 2 * masks + sound, rel=0.05)
