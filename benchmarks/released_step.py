"""``python -m benchmarks.released_step``: our denoiser beside the release, written plainly, and beside diffusers' Wan.

One random model in the released form, cut down to width 512 and four blocks with all else in proportion; latents of
512x512 pixels and nine frames (the release takes 77: their attention is the greater part there), the three branches of
guidance, one thread. Times are CPU seconds of this process, so that other work on the machine does not count. The last
lines are whole dubs of 30 steps; the plain one runs every block at every step.

A late start and reused steps are another computation, not the same output; ``benchmarks.reuse`` says on the shipped
base what they cost in quality. The inputs of random blocks change far more from step to step than trained ones', so
that a threshold says nothing here: it is set to let about as large a share of the blocks run as the base's 0.2 does.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from benchmarks.plain_xdub import PlainConfig, PlainXDub, denoise, random_weights
from benchmarks.timing import race
from model_code.backbones.transformer import DubbingTransformer
from model_code.config import FlowConfig, ReferenceAttention, TransformerConfig
from model_code.diffusion.branches import Branches
from model_code.diffusion.guidance import Guidance, guided
from model_code.diffusion.sampler import sample
from model_code.diffusion.schedule import sampling_times

FRAMES, ROUNDS, T = 3, 8, 0.6
STEP, DUB = (32, 512), (32, 77)
"""Sides of the latents in cells, and words; the dub has the release's one word for ten target tokens."""
SHAPE = TransformerConfig(
    dim=512, num_layers=4, num_heads=4, ffn_dim=2048, freq_dim=256, in_channels=48, out_channels=48, text_dim=640,
    audio_dim=320, audio_window=8, audio_inner_dim=256, audio_heads=4, audio_layers=4, positions=0,
    audio_modulation=False, residual=False, context_fill="grey", refiner_layers=0, precondition=0.0,
)  # fmt: skip
RELEASE = FlowConfig(
    prediction="v", sampling_steps=30, sampling_shift=5.0, noise_scale=1.0, temperature=1.0, reference_guidance=2.5,
    audio_guidance=10.0, guidance_schedule="release", border=True,
)  # fmt: skip
REMEMBERED = RELEASE.model_copy(update={"remember": True})
DUBS = {
    "remembered": REMEMBERED,
    "remembered, started late": REMEMBERED.model_copy(update={"start_from": 0.91}),
    "remembered, steps reused": REMEMBERED.model_copy(update={"step_reuse": 0.6}),
}


def models() -> tuple[PlainXDub, dict[ReferenceAttention, DubbingTransformer]]:
    """The plain one and ours in both attention modes, all of the same weights."""
    audio = {
        "feature_channels": [SHAPE.audio_dim],
        "inner_dim": SHAPE.audio_inner_dim,
        "num_layers": SHAPE.audio_layers,
    }
    weights = random_weights({**SHAPE.model_dump(), "audio": audio}, torch.Generator().manual_seed(0))
    ours: dict[ReferenceAttention, DubbingTransformer] = {}
    for mode in ("full", "own"):
        ours[mode] = DubbingTransformer.build(SHAPE.model_copy(update={"reference_attention": mode})).eval()
        ours[mode].load_state_dict(weights)
    return PlainXDub(weights, PlainConfig(SHAPE.num_heads, SHAPE.audio_heads)), ours


def inputs(side: int, words: int) -> dict[str, Tensor]:
    """One window: noise, reference, sound, text."""
    torch.manual_seed(0)
    latents = (1, SHAPE.in_channels, FRAMES, side, side)
    return {
        "noise": torch.randn(latents),
        "reference": torch.randn(latents),
        "audio": torch.randn(1, FRAMES, SHAPE.audio_window, SHAPE.audio_dim),
        "text": torch.randn(1, words, SHAPE.text_dim or 0),
    }


def report(name: str, plain: float, seconds: float, bar: str = "") -> None:
    """One line: seconds, and how many times faster than the plain implementation."""
    print(f"{name:<44}{seconds:8.2f} s  {plain / seconds:5.2f}x {bar}", flush=True)


def steps(plain: PlainXDub, ours: dict[ReferenceAttention, DubbingTransformer], given: dict[str, Tensor]) -> None:
    """A guided step: three branches."""
    noise, reference, audio, text = given.values()
    guidance, timestep = Guidance.release(), torch.full((1, FRAMES), T)
    remembered = {mode: Branches(model, guidance, reference, audio, text, None, 0.0) for mode, model in ours.items()}

    def one_plain() -> Tensor:
        seen = torch.cat([torch.zeros_like(reference), reference, reference])
        heard = torch.cat([torch.zeros_like(audio), torch.zeros_like(audio), audio])
        x, t = torch.cat([noise] * 3), torch.full((3,), 1000 * T)
        parts = plain.velocity(x, t, seen, heard, torch.cat([text] * 3)).unflatten(0, (3, 1))
        return sum(weight * part for (weight, *_), part in zip(guidance.branches(T), parts, strict=True))

    def one(mode: ReferenceAttention) -> Tensor:
        return guided(ours[mode], guidance, T, noise, timestep, reference, audio, text)

    entries: dict[str, Callable[[], Tensor]] = {
        "plain": one_plain,
        "ours": lambda: one("full"),
        "ours, sound and text remembered": lambda: remembered["full"](T, noise, timestep, last=False),
        "ours, attention mode own": lambda: one("own"),
        "ours, reference remembered too": lambda: remembered["own"](T, noise, timestep, last=False),
    }
    results = {name: function() for name, function in entries.items()}
    scale = float(results["plain"].abs().mean())
    for name, twin in (("ours", "plain"), (list(entries)[2], "plain"), (list(entries)[4], list(entries)[3])):
        off = float((results[name] - results[twin]).abs().max()) / scale
        print(f"{name} differs from {twin} by {off:.1e} of the mean velocity at most")
    best = race(entries, ROUNDS, time.process_time)
    bars = ("", "(bar 1.5x)", "(bar 1.5x)", "", "(bar 2x)")
    for name, bar in zip(entries, bars, strict=True):
        report(f"guided step: {name}", best["plain"], best[name], bar)


def wan(given: dict[str, Tensor]) -> None:
    """One branch, reference and sound off."""
    theirs = WanTransformer3DModel(
        num_attention_heads=SHAPE.num_heads, attention_head_dim=SHAPE.dim // SHAPE.num_heads, in_channels=48,
        out_channels=48, text_dim=SHAPE.text_dim, freq_dim=SHAPE.freq_dim, ffn_dim=SHAPE.ffn_dim,
        num_layers=SHAPE.num_layers,
    ).eval()  # fmt: skip
    ours = DubbingTransformer.build(SHAPE).eval()
    latents, text = given["noise"], given["text"]
    entries: dict[str, Callable[[], object]] = {
        "Wan": lambda: theirs(latents, torch.tensor([600.0]), text, return_dict=False),
        "ours": lambda: ours(latents, torch.full((1, FRAMES), T), None, None, text),
    }
    best = race(entries, 2 * ROUNDS, time.process_time)
    print(f"diffusers' Wan {best['Wan']:.2f} s, ours {best['ours']:.2f} s: {best['Wan'] / best['ours']:.2f}x (bar 1x)")


def dubs(plain: PlainXDub, ours: DubbingTransformer, given: dict[str, Tensor]) -> None:
    """Whole sampling runs, once each."""

    def run(flow: FlowConfig) -> Tensor:
        return sample(
            ours, given["noise"], reference=given["reference"], audio=given["audio"], text=given["text"],
            times=sampling_times(flow), guidance=Guidance.of(flow), prediction="v", border=flow.border,
            remember=flow.remember, step_reuse=flow.step_reuse,
        )  # fmt: skip

    ran = [0]

    def count(block: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        ran[0] += inputs[0].shape[1] == FRAMES

    ours.blocks[-1].register_forward_pre_hook(count)
    begin = time.process_time()
    denoise(plain, *given.values())
    whole = time.process_time() - begin
    report("30-step dub: plain", whole, whole)
    every = 0
    for name, flow in DUBS.items():
        ran[0], begin = 0, time.process_time()
        run(flow)
        every = every or ran[0]
        share = f"blocks ran {ran[0] / every:4.0%}"
        bar = " (bar 4x)" if flow.step_reuse else ""
        report(f"30-step dub: {name}", whole, time.process_time() - begin, share + bar)


def main() -> None:
    """Prints all ratios."""
    torch.set_num_threads(1)
    plain, ours = models()
    count = sum(parameter.numel() for parameter in ours["full"].parameters()) / 1e6
    print(f"{count:.0f} M parameters, {FRAMES} latent frames, cells and words {STEP}, {DUB}, one thread")
    with torch.inference_mode():
        wan(inputs(*STEP))
        steps(plain, ours, inputs(*STEP))
        dubs(plain, ours["own"], inputs(*DUB))


if __name__ == "__main__":
    main()
