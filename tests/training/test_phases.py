"""What each phase puts in and what loss comes out, with golden values."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig as PeftLora
from torch import Tensor, nn

from model_code.backbones.transformer import DubbingTransformer
from model_code.config import FlowConfig, LoraConfig, PhaseConfig, TransformerConfig
from model_code.diffusion.flow import add_noise
from model_code.diffusion.guidance import Guidance
from model_code.diffusion.sampler import sample
from model_code.diffusion.schedule import sampling_times
from model_code.errors import InputError
from model_code.training.data import Batch
from model_code.training.losses import region_weights, velocity_loss
from model_code.training.phases import Critics, Phase, make_phase

C, F, S = 4, 7, 4


class Recorder(nn.Module):
    """Predicts half of the noisy target and remembers what it was given."""

    def __init__(self, context_channels: int = 0) -> None:
        super().__init__()
        self.config = {"context_channels": context_channels}

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        reference: Tensor,
        audio: Tensor | None,
        text: Tensor | None = None,
        place: tuple[int, int, int, int] | None = None,
    ) -> Tensor:
        self.latents, self.timestep, self.reference, self.audio = latents, timestep, reference, audio
        self.text = text
        return 0.5 * latents[:, -C:]


class Decoder(nn.Module):
    """Takes latents' first channels for pixels."""

    latent_channels, spatial_factor, temporal_factor = C, 1, 4
    pixel_weights = torch.ones(C)

    def decode(self, latents: Tensor) -> Tensor:
        return latents[:, :3].repeat_interleave(4, dim=2)[:, :, 3:]


def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return Batch(
        clip_ids=tuple("abcd"),
        target=draw(4, C, F, S, S),
        audio=draw(4, F, 16, 8),
        face=draw(4, 1, F, S, S).sigmoid(),
        lip=draw(4, 1, F, S, S).sigmoid(),
        reference=draw(4, C, 1, S, S),
        features=draw(4, 50, 8),
        masked=draw(4, C, F, S, S),
        companion=draw(4, C, F, S, S),
    )


def phase(name: str, flow: FlowConfig = FlowConfig(), **changes: object) -> Phase:
    distance = lambda a, b: (a.flatten(1).mean(1) - b.flatten(1).mean(1)).square()  # noqa: E731
    critics = Critics(Decoder(), sync=distance, identity=distance, perceptual=distance)  # type: ignore[arg-type]
    config = PhaseConfig(phase=name, clip_frames=25, face_weight=0.3, lip_weight=0.3).model_copy(update=changes)  # type: ignore[arg-type]
    return make_phase(config, flow, critics)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


GOLDEN = {
    "base": 6.136706,
    "generator": 6.136706,
    "editor": 6.188072,
    "lip": 8.622633,
    "texture": 13.258926,
}
CHANGES: dict[str, dict[str, object]] = {
    "lip": {"shift": 1.5, "sync_weight": 0.05, "lora": LoraConfig()},
    "texture": {
        "shift": 0.2,
        "identity_weight": 0.05,
        "perceptual_weight": 0.05,
        "silence_probability": 1.0,
        "lora": LoraConfig(),
    },
}


def transformer(context_channels: int) -> DubbingTransformer:
    """A tiny transformer with weights drawn one by one, so that every part has a say."""
    config = TransformerConfig(
        dim=24, num_layers=2, num_heads=2, ffn_dim=32, freq_dim=16, in_channels=C, out_channels=C,
        context_channels=context_channels, audio_dim=8, audio_inner_dim=16, audio_heads=2, audio_layers=1,
        residual=False, patch_size=(1, 2, 2), positions=0,
        audio_modulation=False, refiner_layers=0, precondition=0.0,
    )  # fmt: skip
    model = DubbingTransformer.build(config)
    draw = generator(5)
    with torch.no_grad():
        for _, value in sorted(model.named_parameters()):
            value.copy_(0.2 * torch.randn(value.shape, generator=draw))
    return model


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_losses(name: str) -> None:
    strategy = phase(name, FlowConfig(noise_scale=1.0), **CHANGES.get(name, {}))
    result = strategy.training_step(transformer(C if name in ("base", "generator") else 0), batch(), generator())
    assert float(result.loss) == pytest.approx(GOLDEN[name], rel=1e-4)


def test_the_generator_sees_masked_video_before_the_noisy_target() -> None:
    model, data = Recorder(C), batch()
    phase("generator").training_step(model, data, generator())
    assert model.latents.shape == (4, 2 * C, F, S, S)
    assert torch.equal(model.latents[:, :C], data.masked)
    assert torch.equal(model.reference, data.reference)


def test_the_editor_sees_the_companion_at_the_same_time() -> None:
    model, data = Recorder(), batch()
    phase("editor").training_step(model, data, generator())
    assert model.latents.shape == (4, C, F, S, S)
    assert torch.equal(model.reference, data.companion)


@pytest.mark.parametrize("name", ["lip", "texture"])
def test_an_expert_of_an_inpainting_model_sees_what_that_does(name: str) -> None:
    model, data = Recorder(C), batch()
    strategy = phase(name, inpaints=True, sync_weight=0.0, identity_weight=0.0, perceptual_weight=0.0)
    strategy.training_step(model, data, generator())
    assert torch.equal(model.latents[:, :C], data.masked)
    assert torch.equal(model.reference, data.reference)
    assert strategy.config.on_clips
    assert not phase(name).config.on_clips


def test_motion_frames_are_clean_and_not_learned() -> None:
    model, data = Recorder(), batch()
    strategy = phase("editor", motion_drop=0.0, audio_drop=0.0)
    inputs = strategy.inputs(data, generator(), with_context=False)
    assert (inputs.timestep[:, :2] == 0).all()
    assert torch.equal(inputs.latents[:, :, :2], data.target[:, :, :2])
    first = strategy.training_step(model, data, generator()).per_sample
    data.target[:, :, :2] += 5  # whatever the clean frames are, the prediction of them costs nothing
    again = strategy.training_step(model, data, generator()).per_sample
    assert torch.allclose(first, again)


def test_noise_has_the_flows_scale() -> None:
    full, tenth = (phase("editor", FlowConfig(noise_scale=scale)) for scale in (1.0, 0.1))
    wanted, given = (each.inputs(batch(), generator(), with_context=False) for each in (full, tenth))
    assert torch.allclose(given.noise, 0.1 * wanted.noise)
    moving = given.learned.bool()[:, None, :, None, None].expand_as(given.noise)
    clean = batch().target
    ratio = (given.noisy - add_noise(clean, torch.zeros_like(clean), given.timestep))[moving] / given.noise[moving]
    expected = given.timestep[:, None, :, None, None].expand_as(given.noise)[moving]
    assert torch.allclose(ratio, expected, atol=1e-3)


def test_silent_steps_see_estimates_made_with_sound() -> None:
    data, model = batch(), Recorder()
    strategy = phase("texture", silence_probability=1.0, own_estimates=1.0)
    inputs = strategy.inputs(data, generator(), with_context=False)
    assert inputs.audio is None
    strategy.from_own_estimates(model, data, inputs)
    assert model.audio is not None
    assert torch.equal(model.audio, data.audio)


def test_own_estimates_are_made_without_the_expert() -> None:
    """Sampling's first step is the plain editor's, whatever the adapter has learned by then."""
    data, model = batch(), transformer(0)
    strategy = phase("lip", own_estimates=1.0)
    inputs = strategy.inputs(data, generator(), with_context=False)
    plain = strategy.from_own_estimates(model, data, inputs).noisy
    model.requires_grad_(False)
    lora = PeftLora(r=2, lora_alpha=2, target_modules=["q", "v", "ffn.0"], init_lora_weights=False)
    model.add_adapter(lora, adapter_name="lip")
    before = model(inputs.latents, inputs.timestep, inputs.reference, inputs.audio)
    assert torch.equal(strategy.from_own_estimates(model, data, inputs).noisy, plain)
    assert torch.equal(model(inputs.latents, inputs.timestep, inputs.reference, inputs.audio), before)
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert trained
    assert all("lora" in name for name in trained)


@pytest.mark.parametrize(("name", "context"), [("editor", 0), ("generator", C)])
def test_own_estimates_are_noised_in_the_targets_place(name: str, context: int) -> None:
    """The model says half of its noise at t = 1; half of the frames are motion frames, which stay the target's."""
    data, strategy = batch(), phase(name, motion_drop=0.0, own_estimates=1.0)
    plain = strategy.inputs(data, generator(), with_context=bool(context))
    inputs = strategy.from_own_estimates(Recorder(context), data, plain)
    t = plain.t[:, None, None, None, None]
    expected = (1 - t) * 0.5 * plain.noise + t * plain.noise
    assert torch.allclose(inputs.noisy[:, :, 2:], expected[:, :, 2:], atol=1e-6)
    assert torch.equal(inputs.noisy[:, :, :2], data.target[:, :, :2])
    assert torch.equal(inputs.latents[:, context:], inputs.noisy)
    assert torch.equal(inputs.latents[:, :context], plain.latents[:, :context])
    assert torch.equal(inputs.timestep, plain.timestep)
    losses = [strategy.training_step(Recorder(context), batch(), generator()).per_sample for _ in range(2)]
    assert torch.equal(*losses)


def test_a_share_of_the_samples_is_noised_from_own_estimates() -> None:
    data, strategy = batch(), phase("editor", own_estimates=0.5)
    plain = strategy.inputs(data, generator(), with_context=False)
    changed = (strategy.from_own_estimates(Recorder(), data, plain).noisy != plain.noisy).flatten(1).any(1)
    assert changed.tolist() == [True, True, False, False]


def test_what_sampling_shows_first_is_what_own_estimates_show() -> None:
    """The state after the sampler's first step is the training input of the same time and noise."""
    data, model = batch(), Recorder()
    strategy = phase("editor", motion_frames=0, audio_drop=0.0, own_estimates=1.0)
    plain = strategy.inputs(data, generator(), with_context=False)
    plain = replace(plain, timestep=torch.full_like(plain.timestep, 0.7), t=torch.full_like(plain.t, 0.7))
    trained = strategy.from_own_estimates(model, data, plain).noisy
    shown: list[Tensor] = []

    def watched(latents: Tensor, timestep: Tensor, *rest: Any) -> Tensor:
        shown.append(latents)
        return model(latents, timestep, *rest)

    sample(
        watched,
        plain.noise / strategy.flow.noise_scale,
        reference=plain.reference,
        audio=data.audio,
        times=torch.tensor([1.0, 0.7, 0.0]),
        guidance=Guidance.constant(),
        prediction="x",
        noise_scale=strategy.flow.noise_scale,
    )
    assert torch.allclose(shown[1], trained, atol=1e-6)


def test_an_expert_is_shown_what_all_steps_before_its_window_make() -> None:
    """Five steps at shift 0.6: one before the lip expert acts, three before the texture expert does."""
    data, seen = batch(), {}
    for name in ("editor", "lip", "texture"):
        strategy, model, times = phase(name, motion_drop=0.0, own_estimates=1.0), Recorder(), []
        model.register_forward_hook(lambda model, given, said, times=times: times.append(model.timestep[0].tolist()))
        plain = strategy.inputs(data, generator(), with_context=False)
        inputs = strategy.from_own_estimates(model, data, plain)
        seen[name] = [round(max(step), 3) for step in times]
        assert all(step[:2] == [0.0, 0.0] for step in times)
        assert torch.equal(inputs.noisy[:, :, :2], data.target[:, :, :2])
    assert seen == {"editor": [1.0], "lip": [1.0], "texture": [1.0, 0.706, 0.474]}
    # Half of the noise, half of what that leaves at 0.706, half of what that leaves at 0.474.
    noise, t, estimate = plain.noise, plain.t[:, None, None, None, None], 1.0
    for time in sampling_times(strategy.flow)[:3].tolist():
        estimate = 0.5 * ((1 - time) * estimate + time)
    assert torch.allclose(inputs.noisy[:, :, 2:], (((1 - t) * estimate + t) * noise)[:, :, 2:], atol=1e-6)


@pytest.mark.parametrize("name", ["lip", "texture"])
def test_pixel_losses_see_the_models_estimate_whatever_it_was_noised_from(name: str) -> None:
    """An error of z0 is decoded as it is, up to the clip, from own estimates too; motion frames are the target's."""
    data = batch()
    strategy = phase(name, motion_drop=0.0, own_estimates=1.0, pixel_t_max=1.0)
    inputs = strategy.inputs(data, generator(), with_context=False)
    inputs = strategy.from_own_estimates(Recorder(), data, inputs)
    wanted = data.target[:, :, : strategy.config.pixel_latent_frames].clone()
    wanted[:, :, 2:] += 0.1
    assert torch.allclose(strategy.decoded(data.target + 0.1, data, inputs), Decoder().decode(wanted), atol=1e-3)


def test_own_estimates_need_clean_predictions() -> None:
    config = PhaseConfig(phase="editor", own_estimates=0.5)
    with pytest.raises(InputError, match=r"own_estimates 0\.5 with prediction v"):
        make_phase(config, FlowConfig(prediction="v"), Critics(Decoder()))


def test_motion_frames_are_dropped_half_of_the_time() -> None:
    strategy, data = phase("editor"), batch()
    dropped = torch.cat(
        [strategy.inputs(data, generator(seed), with_context=False).learned[:, 0] for seed in range(100)]
    )
    assert 0.4 < float(dropped.mean()) < 0.6


def test_dropped_audio_is_zero() -> None:
    model = Recorder()
    phase("editor", audio_drop=1.0).training_step(model, batch(), generator())
    assert model.audio is not None
    assert not model.audio.any()


def test_texture_losses_are_on_silent_steps_only() -> None:
    model = Recorder()
    silent = phase("texture", **CHANGES["texture"]).training_step(model, batch(), generator())
    assert model.audio is None
    assert {"identity", "perceptual"} <= set(silent.parts)
    heard = phase("texture", **{**CHANGES["texture"], "silence_probability": 0.0})
    result = heard.training_step(model, batch(), generator())
    assert model.audio is not None
    assert set(result.parts) == {"loss", "flow"}


def test_the_lip_phase_needs_a_syncnet() -> None:
    strategy = phase("lip", **CHANGES["lip"])
    strategy.critics.sync = None
    with pytest.raises(ValueError, match="SyncNet"):
        strategy.training_step(Recorder(), batch(), generator())


def test_the_base_fills_a_mask_or_edits_a_companion() -> None:
    base = phase("base")

    class Data:
        def batch(self, *_: object, **__: object) -> Batch:
            return batch()

    drawn = [base.draw(Data(), step) for step in range(40)]  # type: ignore[arg-type]
    edited = [each for each in drawn if each.reference.shape[2] == F]
    assert 6 < len(edited) < 24
    assert all(each.masked is each.companion is each.reference for each in edited)


def test_an_editor_with_context_channels_gets_the_companion_twice() -> None:
    model, data = Recorder(C), batch()
    phase("editor").training_step(model, data, generator())
    assert data.companion is not None
    assert torch.equal(model.latents[:, :C], data.companion)
    assert torch.equal(model.reference, data.companion)


def test_parts_of_the_lower_face_until_the_last_steps() -> None:
    strategy = phase("generator", cells=2, short_frames=13, whole_from=0.5, steps=10)
    asked = []

    class Data:
        def batch(self, seed: int, step: int, size: int, *, frames: int | None = None) -> Batch:
            asked.append(frames)
            return batch()

    early, late = (strategy.draw(Data(), step) for step in (4, 5))  # type: ignore[arg-type]
    assert asked == [13, None]
    assert late.place is None
    assert early.place is not None
    top, left, rows, columns = early.place
    assert (rows, columns) == (S, S)
    assert torch.equal(early.target, batch().target[..., top : top + 2, left : left + 2])
    assert early.lip.shape[-2:] == (2, 2)


def test_losses_on_pixels_need_whole_faces() -> None:
    with pytest.raises(ValueError, match="whole faces"):
        phase("lip", cells=2, sync_weight=0.1)


def test_channels_count_by_their_worth_in_pixels() -> None:
    strategy, data = phase("editor", audio_drop=0.0), batch()
    plain = strategy.training_step(Recorder(), data, generator()).per_sample
    codec = strategy.critics.codec
    assert codec is not None
    codec.pixel_weights = torch.tensor([4.0, 0.0, 0.0, 0.0])  # type: ignore[misc]
    del strategy.channel_weights
    weighted = strategy.training_step(Recorder(), data, generator()).per_sample
    assert not torch.allclose(plain, weighted)
    data.target[:, 1:] += 3  # worth nothing
    again = strategy.training_step(Recorder(), data, generator()).per_sample
    torch.testing.assert_close(again, weighted)


def test_velocity_loss_of_a_perfect_prediction_is_zero_and_of_a_wrong_one_weighted() -> None:
    clean, noise = torch.zeros(2, C, F, S, S), torch.ones(2, C, F, S, S)
    t = torch.tensor([0.25, 0.8])
    weights = region_weights(torch.ones(2, 1, F, S, S), torch.ones(2, 1, F, S, S), 0.3, 0.3)
    learned = torch.ones(2, F)
    assert velocity_loss(clean, clean, noise, t, weights, learned, "x", 4.0).eq(0).all()
    wrong = velocity_loss(clean + 1, clean, noise, t, weights, learned, "x", 4.0)
    assert wrong.tolist() == pytest.approx([1.6 * 4.0, 1.6 / 0.64])
    assert velocity_loss(noise - clean, clean, noise, t, weights, learned, "v", 4.0).eq(0).all()


def test_x_and_v_agree_on_the_same_error() -> None:
    """An error e of z0 is an error -e/t of v, so below the cap both parameterisations cost the same."""
    draw = generator()
    clean, noise, error = (torch.randn(1, C, F, S, S, generator=draw) for _ in range(3))
    t, weights, learned = torch.tensor([0.7]), torch.ones(1, 1, F, S, S), torch.ones(1, F)
    noisy = add_noise(clean, noise, t)
    as_x = velocity_loss(clean + error, clean, noise, t, weights, learned, "x", 4.0)
    as_v = velocity_loss((noisy - (clean + error)) / 0.7, clean, noise, t, weights, learned, "v", 4.0)
    assert torch.allclose(as_x, as_v, rtol=1e-4)


def test_pixel_losses_decode_the_clipped_estimate() -> None:
    strategy, data = phase("lip", **CHANGES["lip"], motion_drop=1.0), batch()
    inputs = strategy.inputs(data, generator(), with_context=False)
    exact = strategy.decoded(data.target, data, inputs)
    assert exact.shape == (4, 3, 13, S, S)
    assert torch.allclose(exact, Decoder().decode(data.target[:, :, :4]), atol=1e-4)


def test_every_sample_is_told_the_text() -> None:
    model, text = Recorder(), torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    config = PhaseConfig(phase="editor", own_estimates=0.5, pixel_weighting=False)
    make_phase(config, FlowConfig(), text=text).training_step(model, batch(), torch.Generator().manual_seed(0))
    assert model.text is not None
    assert torch.equal(model.text, text.expand(4, 3, 5))
    make_phase(config, FlowConfig()).training_step(model, batch(), torch.Generator().manual_seed(0))
    assert model.text is None
