"""Flow matching, schedules, guidance and the sampler."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model_code.backbones.audio import window_indices
from model_code.config import FlowConfig
from model_code.diffusion.flow import (
    add_noise,
    clipped_estimate,
    sample_timesteps,
    shift,
    to_velocity,
    velocity_target,
)
from model_code.diffusion.guidance import Guidance, guided
from model_code.diffusion.sampler import replace_border, sample
from model_code.diffusion.schedule import check_experts, expert_windows, experts_by_step, sigmas
from model_code.errors import InputError
from model_code.training.losses import region_weights, velocity_loss

times = st.floats(0.01, 1.0)
seeds = st.integers(0, 10_000)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def density_at(t: Tensor, a: float) -> Tensor:
    """Of `sample_timesteps` at t in (0,1): logit(t') is normal with mean log a."""
    logit = torch.log(t) - torch.log1p(-t)
    return torch.exp(-0.5 * (logit - math.log(a)) ** 2) / (math.sqrt(2 * math.pi) * t * (1 - t))


@pytest.mark.parametrize(("a", "peak"), [(5.0, 0.921), (1.5, 0.684), (0.2, 0.079)])
def test_shifted_timesteps_peak_where_the_paper_needs_them(a: float, peak: float) -> None:
    grid = torch.linspace(1e-4, 1 - 1e-4, 100_001, dtype=torch.float64)
    density = density_at(grid, a)
    assert float(grid[density.argmax()]) == pytest.approx(peak, abs=5e-4)
    drawn = sample_timesteps(200_000, a, torch.Generator().manual_seed(0))
    histogram = torch.histc(drawn, 20, 0, 1) / 10_000
    expected = torch.stack([density_at(part, a).mean() for part in grid.chunk(20)])
    assert float((histogram - expected).abs().max()) < 0.1


@given(t=st.floats(0, 1), a=st.floats(0.1, 10))
def test_shift_is_inverted_by_its_reciprocal(t: float, a: float) -> None:
    value = torch.tensor(t, dtype=torch.float64)
    assert float(shift(shift(value, a), 1 / a)) == pytest.approx(t, abs=1e-9)


@given(seed=seeds, t=st.lists(times, min_size=3, max_size=3))
def test_one_step_estimate_is_exact_for_the_true_velocity(seed: int, t: list[float]) -> None:
    z0, noise = draw(seed, 1, 2, 3, 2, 2), draw(seed + 1, 1, 2, 3, 2, 2)
    time = torch.tensor([t], dtype=torch.float64)
    velocity = velocity_target(z0, noise)
    z_t = add_noise(z0, noise, time)
    torch.testing.assert_close(z_t - time[:, None, :, None, None] * velocity, z0)
    torch.testing.assert_close(clipped_estimate(z0, velocity, velocity, time), z0)
    torch.testing.assert_close(to_velocity(z0, z_t, time, "x"), velocity)


@given(seed=seeds, t=times)
def test_conversions_invert(seed: int, t: float) -> None:
    z_t, prediction = draw(seed, 2, 2, 1, 2, 2), draw(seed + 1, 2, 2, 1, 2, 2)
    time = torch.full((2,), t, dtype=torch.float64)
    torch.testing.assert_close(to_velocity(z_t - t * prediction, z_t, time, "x"), prediction)


def test_clipped_estimate_limits_the_step() -> None:
    z0, velocity, predicted = draw(0, 1, 1, 1, 1, 1), draw(1, 1, 1, 1, 1, 1), draw(2, 1, 1, 1, 1, 1)
    for t, used in ((0.3, 0.3), (0.9, 0.6)):
        estimate = clipped_estimate(z0, velocity, predicted, torch.tensor([t], dtype=torch.float64))
        torch.testing.assert_close(estimate, z0 + (velocity - predicted) * used)


def test_each_expert_acts_on_two_steps_of_the_shipped_schedule() -> None:
    flow = FlowConfig()
    windows = expert_windows(flow)
    check_experts(sigmas(flow.sampling_steps, flow.sampling_shift), windows)
    # The paper's windows at the release's 30 steps and shift 5.
    acting = experts_by_step(sigmas(30, 5.0), {"lip": (0.4, 0.8), "texture": (0.0, 0.3)})
    assert (acting.count(("lip",)), acting.count(("texture",))) == (10, 2)
    both = experts_by_step([1.0, 0.6, 0.3, 0.0], {"lip": (0.0, 1.0), "texture": (0.1, 0.6)})
    assert both == [("lip",), ("lip", "texture"), ("lip", "texture")]
    with pytest.raises(InputError, match="texture expert"):
        check_experts(sigmas(8, 1.5), windows)


def test_guidance_skips_branches_of_zero_weight() -> None:
    calls: list[int] = []

    def model(latents: Tensor, timestep: Tensor, reference: Tensor, audio: Tensor, text: Tensor | None) -> Tensor:
        calls.append(len(latents) // 2)
        return (
            latents * 0 + reference.mean((1, 2, 3, 4), keepdim=True) + audio.mean((1, 2, 3))[:, None, None, None, None]
        )

    z, reference, audio = draw(0, 2, 1, 2, 2, 2), draw(1, 2, 1, 2, 2, 2), draw(2, 2, 2, 3, 4)
    r = reference.mean((1, 2, 3, 4), keepdim=True).expand_as(z)
    s = audio.mean((1, 2, 3))[:, None, None, None, None].expand_as(z)
    for s_r, s_a, branches in ((1.0, 1.0, 1), (1.0, 1.5, 2), (2.5, 10.0, 3), (1.0, 0.0, 1), (0.0, 0.0, 1)):
        output = guided(model, Guidance.constant(s_r, s_a), 0.5, z, z.new_zeros(2, 2), reference, audio)
        torch.testing.assert_close(output, s_r * r + s_a * s)
        assert calls.pop() == branches


class PerfectModel:
    """Knows the clean latents; remembers what it was asked."""

    def __init__(self, clean: Tensor, kind: str) -> None:
        self.clean, self.kind = clean, kind
        self.times: list[Tensor] = []

    def __call__(
        self, latents: Tensor, timestep: Tensor, reference: Tensor, audio: Tensor, text: Tensor | None
    ) -> Tensor:
        self.times.append(timestep)
        if self.kind == "x":
            return self.clean
        return (latents - self.clean) / timestep.clamp_min(1e-9)[:, None, :, None, None]


def test_the_negative_text_goes_to_the_branch_without_reference_and_sound() -> None:
    z, reference, audio = torch.zeros(2, 1, 2, 2, 2), torch.ones(2, 1, 2, 2, 2), torch.ones(2, 2, 1, 1)
    text, negative = torch.full((2, 3, 4), 5.0), torch.full((2, 3, 4), -7.0)
    told: list[torch.Tensor] = []

    def model(latents, timestep, references, sounds, words):  # type: ignore[no-untyped-def]
        told.append(words)
        assert (words[:, 0, 0] < 0).tolist() == (references.flatten(1).sum(1) == 0).tolist()
        return latents

    guided(model, Guidance.release(), 0.5, z, z.new_zeros(2, 2), reference, audio, text, negative)
    assert told[0][:, 0, 0].tolist() == [-7.0] * 2 + [5.0] * 4
    guided(
        lambda latents, *given: told.append(given[3]) or latents,
        Guidance.release(), 0.5, z, z.new_zeros(2, 2), reference, audio, text,
    )  # fmt: skip
    assert told[1][:, 0, 0].tolist() == [5.0] * 6


def test_uniform_times_are_uniform_before_the_shift() -> None:
    drawn = sample_timesteps(200_000, 2.0, torch.Generator().manual_seed(0), uniform=True)
    before = drawn / (2.0 - drawn)
    assert before.mean() == pytest.approx(0.5, abs=0.005)
    assert before.var() == pytest.approx(1 / 12, abs=0.002)


@pytest.mark.parametrize("kind", ["x", "v"])
def test_sampler_reaches_the_clean_latents(kind: str) -> None:
    clean, noise = draw(0, 1, 2, 4, 4, 4), draw(1, 1, 2, 4, 4, 4)
    model = PerfectModel(clean, kind)
    asked: list[float] = []
    result = sample(
        model, noise, reference=clean, audio=draw(2, 1, 4, 2, 3), times=sigmas(5, 1.5), guidance=Guidance.constant(),
        prediction=kind, motion=clean[:, :, :2], border=True, before_step=lambda index, t: asked.append(t),  # type: ignore[arg-type]
    )  # fmt: skip
    torch.testing.assert_close(result, clean)
    assert asked == pytest.approx(sigmas(5, 1.5)[:-1].tolist())
    for t, timestep in zip(asked, model.times, strict=True):
        assert timestep[0].tolist() == pytest.approx([0, 0, t, t])


def test_noise_scale_is_less_noise_from_the_start() -> None:
    clean, noise = draw(0, 1, 2, 3, 4, 4), draw(1, 1, 2, 3, 4, 4)
    seen: list[torch.Tensor] = []

    def model(latents: torch.Tensor, *_: object) -> torch.Tensor:
        seen.append(latents)
        return clean

    sample(
        model, noise, reference=clean, audio=draw(2, 1, 3, 2, 3), times=sigmas(2, 1.0), guidance=Guidance.constant(),
        prediction="x", noise_scale=0.25,
    )  # fmt: skip
    torch.testing.assert_close(seen[0], 0.25 * noise)
    torch.testing.assert_close(seen[1], 0.5 * clean + 0.5 * 0.25 * noise)


def test_border_spares_motion_frames() -> None:
    z, source = torch.zeros(1, 1, 3, 5, 5), torch.ones(1, 1, 3, 5, 5)
    replaced = replace_border(z, source, first_frame=1)
    assert replaced.sum((0, 1, 3, 4)).tolist() == [0, 16, 16]
    assert replaced[0, 0, 1, 1:-1, 1:-1].sum() == 0


@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9), st.data())
def test_border_is_one_cell_of_every_frame_that_is_not_motion(
    frames: int, rows: int, columns: int, data: st.DataObject
) -> None:
    motion = data.draw(st.integers(0, frames))
    z, source = torch.zeros(1, 2, frames, rows, columns), torch.ones(1, 2, frames, rows, columns)
    replaced = replace_border(z, source, motion)
    inner = max(0, rows - 2) * max(0, columns - 2)
    expected = [0 if frame < motion else 2 * (rows * columns - inner) for frame in range(frames)]
    assert replaced.sum((0, 1, 3, 4)).tolist() == expected


@given(st.integers(1, 5), st.integers(0, 4000), st.integers(1, 160))
def test_audio_windows_tile_the_sound_without_gap(half: int, start: int, latent_frames: int) -> None:
    """Two features a video frame, four frames a latent frame; the release's window is 8, wider ones overlap evenly."""
    window = 6 + 2 * half
    indices = window_indices(10**6, latent_frames, window, start)
    assert indices.shape == (latent_frames, window)
    centre = 2 * (start + 4 * torch.arange(latent_frames)) - 2
    wanted = (centre[:, None] - window // 2 + torch.arange(window)).clamp_min(0)
    assert indices.tolist() == wanted.tolist()
    later = window_indices(10**6, latent_frames, window, start + 4)
    assert later[:-1].tolist() == indices[1:].tolist(), "a clip that starts a latent frame later hears the same"
    few = window_indices(5, latent_frames, window, start)
    assert few.max() <= 4


@given(seed=seeds, motion=st.integers(0, 2))
def test_loss_masks_weigh_what_they_cover_and_motion_frames_not_at_all(seed: int, motion: int) -> None:
    clean, noise, error = (draw(seed + index, 2, 3, 3, 4, 4).float() for index in range(3))
    face = (draw(seed + 3, 2, 1, 3, 4, 4) > 0).float()
    lip = face * (draw(seed + 4, 2, 1, 3, 4, 4) > 0)
    learned = torch.ones(2, 3)
    learned[:, :motion] = 0
    weights = region_weights(face, lip, 0.3, 0.3)
    assert {round(weight, 4) for weight in weights.unique().tolist()} == {1.0, 1.3, 1.6}
    raw = velocity_target(clean, noise) + error
    loss = velocity_loss(raw, clean, noise, torch.tensor([0.2, 0.9]), weights, learned, "v", 4.0)
    kept = slice(motion, None)
    plain = (error.square() * (1 + 0.3 * face + 0.3 * lip))[:, :, kept].mean((1, 2, 3, 4))
    torch.testing.assert_close(loss, plain)


def test_sampler_refuses_what_cannot_be() -> None:
    z = torch.zeros(1, 1, 2, 2, 2)
    arguments = {
        "reference": z[:, :, :1],
        "audio": torch.zeros(1, 2, 1, 1),
        "times": sigmas(2, 1.0),
        "guidance": Guidance.constant(),
        "prediction": "x",
    }
    with pytest.raises(InputError, match="2 motion frames"):
        sample(PerfectModel(z, "x"), z, motion=z, **arguments)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="border"):
        sample(PerfectModel(z, "x"), z, border=True, **arguments)  # type: ignore[arg-type]
