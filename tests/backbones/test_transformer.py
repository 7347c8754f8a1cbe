"""The dubbing transformer: wiring, storage, adapters, presets."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig

from model_code.backbones.attention import Attention, rotary_table, rotate
from model_code.backbones.presets import PRESETS
from model_code.backbones.transformer import DubbingTransformer, generator_to_editor, linear_gain
from model_code.config import TransformerConfig
from model_code.errors import InputError
from tests.tiny import random_transformer

SMALL = TransformerConfig(
    dim=24, num_layers=2, num_heads=2, ffn_dim=48, freq_dim=16, in_channels=4, out_channels=4, audio_dim=6,
    audio_window=3, audio_inner_dim=8, audio_heads=2, audio_layers=1, residual=False,
    positions=0, audio_modulation=False, refiner_width=8, refiner_layers=0, precondition=0.0,
)  # fmt: skip


def build(**changes: object) -> DubbingTransformer:
    return random_transformer(SMALL.model_copy(update=changes), std=0.2)


def inputs(reference_frames: int = 3, context: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "latents": torch.randn(2, 4 + context, 3, 4, 6, generator=generator),
        "timestep": torch.rand(2, 3, generator=generator),
        "reference": torch.randn(2, 4, reference_frames, 4, 6, generator=generator),
        "audio": torch.randn(2, 3, 3, 6, generator=generator),
    }


def test_everything_has_an_effect() -> None:
    model, given = build(), inputs()
    output = model(**given)
    assert output.shape == (2, 4, 3, 4, 6)
    for name in ("latents", "timestep", "reference", "audio"):
        changed = {**given, name: given[name] * 0.5}
        assert (model(**changed) - output).abs().max() > 1e-4, name


def test_preconditioned_noise_is_nothing_at_one_and_itself_at_zero() -> None:
    plain, model, given = build(), build(precondition=1.0), inputs()
    noise = torch.randn(given["latents"].shape, generator=torch.Generator().manual_seed(2))
    all_noise = {**given, "timestep": torch.ones(2, 3)}
    assert torch.equal(model(**all_noise), model(**{**all_noise, "latents": noise}))
    no_noise = {**given, "timestep": torch.zeros(2, 3)}
    assert torch.equal(model(**no_noise), plain(**no_noise))


def test_what_is_known_is_not_preconditioned() -> None:
    model, given = build(precondition=1.0, context_channels=4), inputs(context=4)
    given["timestep"] = torch.ones(2, 3)
    changed = given["latents"].clone()
    changed[:, :4] += 1
    assert (model(**given) - model(**{**given, "latents": changed})).abs().max() > 1e-4


@pytest.mark.parametrize(("t", "expected"), [(1.0, [3.0, 3.0]), (0.0, [5.0, 5.0]), (0.5, [4.9802, 4.9802])])
def test_residual_starts_from_the_best_linear_estimate(t: float, expected: list[float]) -> None:
    """Known 3, clean 5, no noise drawn: all known at t = 1, all noisy latents at t = 0, nearly them at 0.5."""
    model, given = build(precondition=0.1, residual=True, context_channels=4), inputs(context=4)
    for parameter in model.head.parameters():
        parameter.data.zero_()
    given["latents"][:, :4], given["latents"][:, 4:] = 3.0, (1 - t) * 5.0
    given["timestep"] = torch.full((2, 3), t)
    output = model(**given)
    assert [output.min().item(), output.max().item()] == pytest.approx(expected, abs=1e-4)


def test_a_transformer_of_another_meaning_is_refused() -> None:
    with pytest.raises(InputError, match="precondition=true"):
        build(precondition=True)


@pytest.mark.parametrize("noise_scale", [1.0, 0.1])
@pytest.mark.parametrize("t", [0.05, 0.3, 0.6, 0.95])
def test_linear_gain_is_the_best_one(t: float, noise_scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.linalg.qr(torch.randn(10_000, 2, generator=generator))[0].T * 100
    noisy = (1 - t) * clean + t * noise_scale * noise
    least_squares = (noisy @ clean) / (noisy @ noisy)
    assert float(linear_gain(torch.tensor(t), noise_scale)) == pytest.approx(float(least_squares), rel=1e-4)


def test_audio_of_a_frame_enters_at_that_frame() -> None:
    """One block, no way back through self-attention: only the frame's own output may change."""
    model, given = build(num_layers=1), inputs()
    changed = given["audio"].clone()
    changed[:, 1] += 1
    difference = (model(**{**given, "audio": changed}) - model(**given)).abs().amax((0, 1, 3, 4))
    assert difference[1] > 1e-4
    assert difference[0] == 0
    assert difference[2] == 0


def test_new_model_ignores_audio_and_predicts_zero() -> None:
    assert DubbingTransformer.build(SMALL)(**inputs()).abs().max() == 0


def test_generator_becomes_an_editor() -> None:
    generator = build(context_channels=4)
    given = inputs(reference_frames=1, context=4)
    assert generator(**given).shape == (2, 4, 3, 4, 6)
    editor = generator_to_editor(generator)
    assert editor.config.context_channels == 0
    # With a masked video of zeros the two are the same function.
    given["latents"][:, :4] = 0
    plain = {**given, "latents": given["latents"][:, 4:]}
    torch.testing.assert_close(editor(**plain), generator(**given))
    residual = build(context_channels=4, residual=True)
    given = inputs(reference_frames=3, context=4)
    torch.testing.assert_close(generator_to_editor(residual)(**given), residual(**given))


def test_an_editors_companion_comes_through_tokens_channels_or_both() -> None:
    generator = build(context_channels=4, residual=True)
    given = inputs(reference_frames=3, context=4)
    other = {**given, "reference": given["reference"] * 0.5}
    both, channels = (generator_to_editor(generator, way) for way in ("both", "channels"))
    torch.testing.assert_close(both(**given), generator(**given))
    assert (both(**other) - both(**given)).abs().max() > 1e-4
    assert torch.equal(channels(**other), channels(**given))
    torch.testing.assert_close(channels(**given), generator(**{**given, "reference": None}))
    tokens = generator_to_editor(generator, "tokens")
    assert tokens.config.context_channels == 0
    plain = {**given, "latents": given["latents"][:, 4:]}
    other = {**plain, "reference": given["reference"] * 0.5}
    assert (tokens(**other) - tokens(**plain)).abs().max() > 1e-4
    with pytest.raises(InputError, match="channels alone"):
        generator_to_editor(build(context_channels=4), "channels")


def test_learned_places_and_sound_in_the_modulation_have_an_effect() -> None:
    given = inputs()
    plain = build()(**given)
    placed = build(positions=6)
    assert (placed(**given) - plain).abs().max() > 1e-3
    assert (placed(**given, place=(1, 0, 6, 6)) - placed(**given)).abs().max() > 1e-3
    heard = build(audio_modulation=True)
    for block in heard.blocks:
        torch.nn.init.zeros_(block.audio_attn.o.weight)
        torch.nn.init.zeros_(block.audio_attn.o.bias)
    louder = {**given, "audio": given["audio"] * 2}
    assert (heard(**louder) - heard(**given)).abs().max() > 1e-4


@torch.no_grad()
def test_times_keep_their_digits_under_autocast() -> None:
    model, given = build(), inputs()
    seen = []
    model.blocks[0].register_forward_pre_hook(lambda _, arguments: seen.append(arguments[1]))
    model(**given)
    with torch.autocast("cpu", torch.bfloat16):
        model(**given)
    assert torch.equal(*seen)


def test_a_part_of_the_grid_stands_where_it_stands_in_the_whole() -> None:
    model, given = build(), inputs()
    torch.testing.assert_close(model(**given, place=(0, 0, 4, 6)), model(**given))
    assert (model(**given, place=(4, 2, 12, 12)) - model(**given)).abs().max() > 1e-3


def test_refiner_starts_silent_and_sees_neighbours_of_its_frame_alone() -> None:
    given = inputs()
    bare = {"context_channels": 0, "refiner_layers": 2}
    torch.manual_seed(0)
    fresh = DubbingTransformer.build(SMALL.model_copy(update=bare))
    assert fresh(**given).abs().max() == 0
    refiner = build(**bare).refiner
    assert refiner is not None
    latents, output, embedded = torch.randn(1, 4, 3, 9, 9), torch.randn(1, 4, 3, 9, 9), torch.randn(1, 3, 24)
    changed = latents.clone()
    changed[:, :, 1, 0, 0] += 1
    difference = (refiner(changed, output, embedded) - refiner(latents, output, embedded)).abs().amax((0, 1))
    assert difference[[0, 2]].max() == 0
    assert difference[1, 4, 4] > 0  # two layers of two 3x3 convolutions reach four cells
    assert difference[1, 5:].max() == difference[1, :, 5:].max() == 0
    assert (refiner(latents, output, embedded * 2) - refiner(latents, output, embedded)).abs().max() > 1e-3


def test_a_refined_generator_becomes_an_editor() -> None:
    generator = build(context_channels=4, refiner_layers=1)
    given = inputs(reference_frames=1, context=4)
    given["latents"][:, :4] = 0
    plain = {**given, "latents": given["latents"][:, 4:]}
    torch.testing.assert_close(generator_to_editor(generator)(**plain), generator(**given))


def test_residual_context_has_the_outputs_channels() -> None:
    with pytest.raises(InputError, match="3 context and 4 output"):
        build(context_channels=3, residual=True)


def test_residual_generator_starts_as_its_masked_video() -> None:
    model = DubbingTransformer.build(SMALL.model_copy(update={"context_channels": 4, "residual": True}))
    given = inputs(reference_frames=1, context=4)
    torch.testing.assert_close(model(**given), given["latents"][:, :4])


def test_saved_model_and_gradient_checkpointing_give_the_same(tmp_path: Path) -> None:
    model, given = build(text_dim=5), inputs()
    given["text"] = torch.randn(2, 7, 5)
    output = model(**given)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(DubbingTransformer.from_pretrained(tmp_path)(**given), output)
    model.enable_gradient_checkpointing()
    model.train()
    torch.testing.assert_close(model(**given), output)
    model(**given).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_adapters_start_as_identity_and_switch_off(tmp_path: Path) -> None:
    model, given = build(), inputs()
    before = model(**given)
    model.add_adapter(LoraConfig(r=2, target_modules=["q", "k", "v", "o", "ffn.0", "ffn.2"]), adapter_name="lip")
    torch.testing.assert_close(model(**given), before)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    adapted = model(**given)
    assert (adapted - before).abs().max() > 1e-3
    model.disable_adapters()
    torch.testing.assert_close(model(**given), before)
    model.enable_adapters()
    model.save_lora_adapter(tmp_path, adapter_name="lip")
    fresh = build()
    fresh.load_lora_adapter(tmp_path, adapter_name="lip", prefix=None, use_safetensors=True)
    torch.testing.assert_close(fresh(**given), adapted)


def test_rotation_is_relative_and_its_gradient_right() -> None:
    """Products of rotated vectors depend on the difference of positions alone, in time and in space."""
    cos, sin = rotary_table(12, (4, 5, 6), (0, 0), torch.device("cpu"))
    torch.manual_seed(0)
    q, k = torch.randn(1, 1, 1, 12), torch.randn(1, 1, 1, 12)

    def product(a: tuple[int, int, int], b: tuple[int, int, int]) -> float:
        i, j = (p[0] * 30 + p[1] * 6 + p[2] for p in (a, b))
        return float((rotate(q, (cos[i : i + 1], sin[i : i + 1])) * rotate(k, (cos[j : j + 1], sin[j : j + 1]))).sum())

    assert product((0, 1, 2), (1, 2, 4)) == pytest.approx(product((2, 2, 1), (3, 3, 3)), abs=1e-5)
    x = torch.randn(1, 3, 2, 12, dtype=torch.float64, requires_grad=True)
    table = (cos[:3].double(), sin[:3].double())
    assert torch.autograd.gradcheck(lambda value: rotate(value, table), (x,))


def test_reference_stands_in_shifted_space() -> None:
    shifted = rotary_table(12, (2, 3, 4), (3, 4), torch.device("cpu"))[0].reshape(2, 3, 4, 12)
    wide = rotary_table(12, (2, 6, 8), (0, 0), torch.device("cpu"))[0].reshape(2, 6, 8, 12)
    torch.testing.assert_close(shifted, wide[:, 3:, 4:])


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("tiny", 3e6, 6e6), ("debug", 5e4, 5e5), ("xdub-paper-1b", 0.9e9, 1.5e9), ("xdub-wan-5b", 5e9, 7e9)],
)
def test_presets_have_the_stated_size(name: str, low: float, high: float) -> None:
    with torch.device("meta"):
        model = DubbingTransformer.build(PRESETS[name])
    assert low < sum(p.numel() for p in model.parameters()) < high


def test_impossible_shapes_are_named() -> None:
    with pytest.raises(InputError, match="width 25 with 2 heads"):
        DubbingTransformer.build(SMALL.model_copy(update={"dim": 25}))


def test_first_tokens_alone_are_what_a_mask_would_make_of_them() -> None:
    torch.manual_seed(0)
    attention, x = Attention(12, 2, 1e-6), torch.randn(2, 7, 12)
    q, (k, v) = attention.norm_q(attention.q(x)).unflatten(-1, (2, -1)).transpose(1, 2), attention.keys_values(x)
    mask = torch.ones(7, 7, dtype=torch.bool)
    mask[:3, 3:] = False
    masked = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(attention(x, alone=3), attention.o(masked.transpose(1, 2).flatten(2)))
    assert (attention(x, alone=3) - attention(x)).abs().max() > 1e-3


@pytest.mark.parametrize(
    "changes",
    [
        {"reference_attention": "own"},
        {"reference_attention": "own", "spatial_attention": True, "text_dim": 5},
        {"reference_attention": "own", "positions": 4, "audio_modulation": True, "refiner_layers": 1},
        {"reference_attention": "own", "context_channels": 4, "residual": True, "precondition": 0.1},
    ],
    ids=["plain", "spatial and text", "places", "residual"],
)
def test_remembered_conditions_are_the_conditions(changes: dict[str, object]) -> None:
    """Whatever the time and the noisy latents: a place elsewhere in the grid too."""
    model, given = build(**changes), inputs(context=int(bool(changes.get("context_channels"))) * 4)
    given["text"] = torch.randn(2, 7, 5)
    place = (4, 2, 12, 12)
    known = {
        "reference": model.remember_reference(given["reference"], place),
        "audio": model.remember_sound(given["audio"]),
        "text": model.remember_text(given["text"]),
    }
    for seed in (0, 1):
        torch.manual_seed(seed)
        given |= {"latents": torch.randn_like(given["latents"]), "timestep": torch.rand(2, 3)}
        output = model(**given, place=place)
        assert output.abs().max() > 1e-2
        torch.testing.assert_close(model(**{**given, **known}, place=place), output, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("mode", ["full", "own"])
@torch.no_grad()
def test_the_last_block_makes_the_same_of_the_target_without_the_reference(mode: str) -> None:
    model = build(reference_attention=mode, spatial_attention=True)
    block, generator = model.blocks[1], torch.Generator().manual_seed(3)
    x, time = (torch.randn(2, 5, count, 24, generator=generator) for count in (6, 9))
    sound, rotary = torch.randn(4, 3, 24, generator=generator), rotary_table(12, (5, 2, 3), (0, 0), x.device)
    every = block(x, time, rotary, sound, None, 3)
    last = block(x, time, rotary, sound, None, 3, last=True)
    assert (every.shape, last.shape) == ((2, 5, 6, 24), (2, 2, 6, 24))
    torch.testing.assert_close(last, every[:, 3:], atol=1e-6, rtol=1e-5)


def test_only_a_reference_that_looks_at_itself_can_be_remembered() -> None:
    with pytest.raises(InputError, match="reference_attention 'full'"):
        build().remember_reference(inputs()["reference"])


def test_a_reference_that_looks_at_itself_trains() -> None:
    model, given = build(reference_attention="own", spatial_attention=True), inputs()
    assert (model(**given) - build(spatial_attention=True)(**given)).abs().max() > 1e-3
    given["reference"].requires_grad_()
    model(**given).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert given["reference"].grad is not None
    plain = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    model.enable_gradient_checkpointing()
    model.train()
    model(**given).square().mean().backward()
    for parameter, expected in zip(model.parameters(), plain, strict=True):
        torch.testing.assert_close(parameter.grad, expected)


def test_spatial_attention_stays_within_its_frame() -> None:
    model, given = build(num_layers=1, spatial_attention=True), inputs()
    for parameter in model.blocks[0].self_attn.o.parameters():
        parameter.data.zero_()
    latents = given["latents"].clone()
    latents[:, :, 1, 0, 0] += 1
    difference = (model(**{**given, "latents": latents}) - model(**given)).abs().amax((0, 1))
    assert difference[[0, 2]].max() == 0
    assert difference[1, 2:, 2:].max() > 1e-3
    for parameter in model.blocks[0].spatial_attn.o.parameters():
        parameter.data.zero_()
    alone = (model(**{**given, "latents": latents}) - model(**given)).abs().amax((0, 1))
    assert alone[1, 2:, 2:].max() == 0
