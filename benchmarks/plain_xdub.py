"""The released X-Dub (on Wan2.2-TI2V-5B) written plainly: every formula once, nothing fused, cached or skipped.

What ``model_code`` is measured against, in numbers (``tests/golden``) and in time (``benchmarks``). Like public Wan
code it modulates token by token and rotates in complex double precision; it runs all three guidance branches at
every step. It reads weights under the released checkpoint's key names.

``python -m benchmarks.plain_xdub FOLDER`` writes a tiny random model and what comes of it, in the form that
``tests/golden`` reads; ``tests/golden/plain`` was made so.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

U8 = NDArray[np.uint8]


@dataclass(frozen=True)
class PlainConfig:
    """What the weights' shapes do not say."""

    num_heads: int
    audio_heads: int
    patch_size: tuple[int, int, int] = (1, 2, 2)
    eps: float = 1e-6

    @classmethod
    def read(cls, folder: Path) -> PlainConfig:
        """From `folder`/config.json."""
        given = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return cls(given["num_heads"], given["audio"]["num_heads"], tuple(given["patch_size"]), given["eps"])


def sinusoid(position: Tensor, width: int) -> Tensor:
    """(N,) -> (N, width): cosines, then sines."""
    half = width // 2
    angle = position.double()[:, None] * 10000.0 ** (-torch.arange(half, device=position.device).double() / half)
    return torch.cat([angle.cos(), angle.sin()], dim=1)


def audio_positions(length: int, width: int) -> Tensor:
    """(length, width): sines and cosines in turn."""
    angle = torch.arange(length)[:, None] * torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)


def rotary_axis(positions: Tensor, width: int) -> Tensor:
    """(N,) positions on one axis -> (N, width / 2) complex rotations."""
    frequency = 10000.0 ** (-torch.arange(0, width, 2, device=positions.device).double() / width)
    angle = positions.double()[:, None] * frequency
    return torch.polar(torch.ones_like(angle), angle)


def rotary_grid(head_dim: int, times: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Rotations (tokens, head_dim / 2) of a grid in time, height and width: 128 is split 44 / 42 / 42."""
    spatial = head_dim // 3
    t = rotary_axis(times, head_dim - 2 * spatial)[:, None, None, :]
    h = rotary_axis(rows, spatial)[None, :, None, :]
    w = rotary_axis(columns, spatial)[None, None, :, :]
    size = (len(times), len(rows), len(columns), -1)
    return torch.cat([t.expand(size), h.expand(size), w.expand(size)], dim=-1).flatten(0, 2)


def rotate(x: Tensor, rotations: Tensor) -> Tensor:
    """x (B, tokens, heads, head_dim), neighbours as complex pairs."""
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * rotations[None, :, None, :]).flatten(-2).to(x.dtype)


class PlainXDub:
    """The denoiser.

    Args:
        weights: State dict under the released checkpoint's names.
        config: Heads, patch and epsilon.
    """

    def __init__(self, weights: Mapping[str, Tensor], config: PlainConfig) -> None:
        self.weights, self.config = weights, config

    @classmethod
    def load(cls, folder: Path) -> PlainXDub:
        """From a folder of golden values."""
        return cls(load_file(folder / "tiny_model.safetensors"), PlainConfig.read(folder))

    def linear(self, name: str, x: Tensor) -> Tensor:
        """The linear layer of this name, with its bias if it has one."""
        return F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def layer_norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        """LayerNorm with learned scale and shift."""
        return F.layer_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], eps)

    def rms_norm(self, name: str, x: Tensor) -> Tensor:
        """RMSNorm over the full width."""
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.config.eps) * self.weights[f"{name}.weight"]

    def count(self, prefix: str) -> int:
        """How many numbered parts there are below `prefix`."""
        return len({key[len(prefix) :].split(".")[0] for key in self.weights if key.startswith(prefix)})

    def attention(self, name: str, x: Tensor, context: Tensor, rotations: Tensor | None = None) -> Tensor:
        """Multi-head attention of x (B, N, dim) to context (B, M, dim); queries and keys are normed."""
        heads = self.config.num_heads
        q = self.rms_norm(f"{name}.norm_q", self.linear(f"{name}.q", x)).unflatten(-1, (heads, -1))
        k = self.rms_norm(f"{name}.norm_k", self.linear(f"{name}.k", context)).unflatten(-1, (heads, -1))
        v = self.linear(f"{name}.v", context).unflatten(-1, (heads, -1))
        if rotations is not None:
            q, k = rotate(q, rotations), rotate(k, rotations)
        mixed = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return self.linear(f"{name}.o", mixed.transpose(1, 2).flatten(2))

    def project_audio(self, features: Tensor) -> Tensor:
        """(N, window, features) -> (N, window, dim)."""
        x = self.linear("audio_embedding.proj_in", features)
        for index in range(self.count("audio_embedding.layers.")):
            name = f"audio_embedding.layers.{index}"
            places = audio_positions(x.shape[1], x.shape[2]).to(x)
            hidden = self.layer_norm(f"{name}.norm1", x, 1e-5) + places
            q, k, v = (
                self.linear(f"{name}.attn.to_{part}", hidden)
                .unflatten(-1, (self.config.audio_heads, -1))
                .transpose(1, 2)
                for part in "qkv"
            )
            mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            x = x + self.linear(f"{name}.attn.to_out.0", mixed)
            value, gate = self.linear(f"{name}.ff.net.0.proj", self.layer_norm(f"{name}.norm2", x, 1e-5)).chunk(2, -1)
            x = x + self.linear(f"{name}.ff.net.2", value * F.gelu(gate))
        return self.linear("audio_embedding.proj_out", x)

    def patch(self, latents: Tensor) -> Tensor:
        """(B, C, F, h, w) -> tokens (B, N, dim)."""
        weight, bias = self.weights["patch_embedding.weight"], self.weights["patch_embedding.bias"]
        return F.conv3d(latents, weight, bias, stride=self.config.patch_size).flatten(2).transpose(1, 2)

    def normalised(self, x: Tensor) -> Tensor:
        """LayerNorm without weights."""
        return F.layer_norm(x, x.shape[-1:], eps=self.config.eps)

    def block(
        self, name: str, x: Tensor, time: Tensor, rotations: Tensor, text: Tensor, audio: Tensor, targets: int
    ) -> Tensor:
        """One block; the last `targets` tokens are the target's.

        Args:
            name: Prefix of its weights.
            x: (B, N, dim), the reference's tokens first.
            time: (B, N, 6, dim).
            rotations: (N, head_dim / 2).
            text: (B, words, dim).
            audio: (B, frames, window, dim).
            targets: Number of the target's tokens.
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = (self.weights[f"{name}.modulation"][:, None] + time).unbind(2)
        hidden = self.normalised(x) * (1 + scale1) + shift1
        x = x + gate1 * self.attention(f"{name}.self_attn", hidden, hidden, rotations)
        reference, target = x[:, :-targets], x[:, -targets:]
        hidden = self.layer_norm(f"{name}.norm3", target, self.config.eps)
        target = target + self.attention(f"{name}.cross_attn", hidden, text)
        frames = audio.shape[1]
        hidden = self.layer_norm(f"{name}.norm4", target, self.config.eps).unflatten(1, (frames, -1)).flatten(0, 1)
        heard = self.attention(f"{name}.audio_attn", hidden, audio.flatten(0, 1))
        target = target + heard.unflatten(0, (-1, frames)).flatten(1, 2)
        x = torch.cat([reference, target], dim=1)
        hidden = self.normalised(x) * (1 + scale2) + shift2
        hidden = F.gelu(self.linear(f"{name}.ffn.0", hidden), approximate="tanh")
        return x + gate2 * self.linear(f"{name}.ffn.2", hidden)

    def velocity(
        self, latents: Tensor, timestep: Tensor, reference: Tensor, audio: Tensor, text: Tensor, motion: int = 0
    ) -> Tensor:
        """The predicted velocity (B, C, F, h, w).

        Args:
            latents: (B, C, F, h, w) noisy target.
            timestep: (B,) in 0..1000.
            reference: Like latents; clean.
            audio: (B, F, window, features).
            text: (B, words, text width).
            motion: Leading frames of the target that are clean: their timestep is 0, as is the reference's.
        """
        batch, _, frames, height, width = latents.shape
        _, rows, columns = (n // p for n, p in zip((frames, height, width), self.config.patch_size, strict=True))
        x = torch.cat([self.patch(reference), self.patch(latents)], dim=1)
        targets = frames * rows * columns
        tokens = x.shape[1]

        per_token = timestep[:, None].repeat(1, tokens)
        per_token[:, : tokens - targets + motion * rows * columns] = 0
        freq_dim = self.weights["time_embedding.0.weight"].shape[1]
        embedded = sinusoid(per_token.flatten(), freq_dim).to(x.dtype).unflatten(0, (batch, tokens))
        embedded = self.linear("time_embedding.2", F.silu(self.linear("time_embedding.0", embedded)))
        time = self.linear("time_projection.1", F.silu(embedded)).unflatten(-1, (6, -1))

        words = self.linear("text_embedding.2", F.gelu(self.linear("text_embedding.0", text), approximate="tanh"))
        sound = self.project_audio(audio.flatten(0, 1)).unflatten(0, (batch, frames))
        head_dim = x.shape[2] // self.config.num_heads
        t, h, w = (torch.arange(count, device=x.device) for count in (frames, rows, columns))
        rotations = torch.cat([rotary_grid(head_dim, t, h + rows, w + columns), rotary_grid(head_dim, t, h, w)])
        for index in range(self.count("blocks.")):
            x = self.block(f"blocks.{index}", x, time, rotations, words, sound, targets)

        shift, scale = (self.weights["head.modulation"][:, None] + embedded[:, -targets:, None]).unbind(2)
        x = self.linear("head.head", self.normalised(x[:, -targets:]) * (1 + scale) + shift)
        x = x.reshape(batch, frames, rows, columns, *self.config.patch_size[1:], -1)
        return x.permute(0, 6, 1, 2, 4, 3, 5).reshape(batch, -1, frames, height, width).contiguous()


def sigma_schedule(steps: int, shift: float) -> list[float]:
    """Noise levels of the steps, in single precision; sampling ends at 0, which is not listed."""
    grid = torch.linspace(1, 0, steps + 1)[:-1]
    return (shift * grid / (1 + (shift - 1) * grid)).tolist()


def reference_scale(t: float, initial: float) -> float:
    """Plateaus of 1, 0.6 and 0.3 times `initial`, joined by half cosines between 0.85, 0.75 and 0.45, 0.35."""
    if t >= 0.85:
        return initial
    if t > 0.75:
        return initial * (0.8 - 0.2 * math.cos(math.pi * (t - 0.75) / 0.1))
    if t >= 0.45:
        return initial * 0.6
    if t > 0.35:
        return initial * (0.45 - 0.15 * math.cos(math.pi * (t - 0.35) / 0.1))
    return initial * 0.3


def audio_scale(t: float, initial: float) -> float:
    """`initial` t^1.5."""
    return initial * t**1.5


def paint_border(latents: Tensor, source: Tensor, motion: int) -> Tensor:
    """A copy whose outermost cells are `source`'s, in all frames after the motion frames."""
    latents = latents.clone()
    for side in (0, -1):
        latents[:, :, motion:, side, :] = source[:, :, motion:, side, :]
        latents[:, :, motion:, :, side] = source[:, :, motion:, :, side]
    return latents


@torch.no_grad()
def denoise(
    model: PlainXDub,
    noise: Tensor,
    reference: Tensor,
    audio: Tensor,
    text: Tensor,
    *,
    steps: int = 30,
    shift: float = 5.0,
    scales: tuple[float, float] = (2.5, 10.0),
    motion: Tensor | None = None,
) -> Tensor:
    """A whole sampling run; arguments as `PlainXDub.velocity`, `scales` of reference and audio."""
    kept = 0 if motion is None else motion.shape[2]
    z = noise.clone()
    if motion is not None:
        z[:, :, :kept] = motion
    levels = [*sigma_schedule(steps, shift), 0.0]
    for t, after in pairwise(levels):
        border = min(t, 0.95)
        z = paint_border(z, (1 - border) * reference + border * noise, kept)
        nothing, seen, heard = model.velocity(
            torch.cat([z, z, z]),
            torch.full((3 * len(z),), 1000 * t, device=z.device),
            torch.cat([torch.zeros_like(reference), reference, reference]),
            torch.cat([torch.zeros_like(audio), torch.zeros_like(audio), audio]),
            torch.cat([text, text, text]),
            kept,
        ).chunk(3)
        s_r, s_a = reference_scale(t, scales[0]), audio_scale(t, scales[1])
        z = z + (after - t) * (nothing + s_r * (seen - nothing) + s_a * (heard - seen))
        if motion is not None:
            z[:, :, :kept] = motion
    return paint_border(z, reference, kept)


def audio_indices(latent_frames: int, start: int, features: int = 10_000, window: int = 8) -> list[list[int]]:
    """Features that each latent frame sees: frame 0 those of video frames start-3..start, i > 0 of the next four."""
    rows = []
    for index in range(latent_frames):
        last_frame = start if index == 0 else start + 4 * index
        first = 2 * (last_frame - 3)
        rows.append([min(max(first + step, 0), features - 1) for step in range(window)])
    return rows


def back_and_forth(count: int, length: int) -> list[int]:
    """`length` indices that run to and fro over `count` frames, the ends not repeated."""
    once = [*range(count), *range(count - 2, 0, -1)]
    return [once[index % len(once)] for index in range(length)]


def correct_color(generated: U8, source: U8) -> U8:
    """Each frame's channels get the source's mean and deviation, measured where both hardly differ."""
    result = generated.copy()
    for t in range(len(generated)):
        new, old = generated[t] / 255.0, source[t] / 255.0
        same = np.abs(new - old).mean(axis=2) < 0.07
        if not same.any():
            continue
        for channel in range(3):
            a, b = new[..., channel], old[..., channel]
            spread = max(a[same].std(), 1e-6)
            matched = (a - a[same].mean()) / spread * b[same].std() + b[same].mean()
            result[t, ..., channel] = (np.clip(matched, 0, 1) * 255).astype(np.uint8)
    return result


TINY: dict[str, Any] = {
    "dim": 12,
    "num_heads": 2,
    "num_layers": 2,
    "ffn_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "patch_size": [1, 2, 2],
    "freq_dim": 16,
    "text_dim": 8,
    "eps": 1e-6,
    "audio": {"feature_channels": [4, 6], "inner_dim": 8, "num_heads": 2, "num_layers": 1},
}


def random_weights(config: Mapping[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
    """Weights of any size under the released names, all of them random, norms around 1."""
    dim, audio = config["dim"], config["audio"]
    inner = audio["inner_dim"]
    weights: dict[str, Tensor] = {}

    def draw(name: str, *shape: int, scale: float = 0.3, around: float = 0.0) -> None:
        weights[name] = around + scale * torch.randn(*shape, generator=generator)

    def linear(name: str, fan_in: int, fan_out: int, bias: bool = True) -> None:
        draw(f"{name}.weight", fan_out, fan_in, scale=fan_in**-0.5)
        if bias:
            draw(f"{name}.bias", fan_out)

    def norm(name: str, width: int) -> None:
        draw(f"{name}.weight", width, around=1.0)
        draw(f"{name}.bias", width)

    patch = config["patch_size"]
    draw("patch_embedding.weight", dim, config["in_channels"], *patch)
    draw("patch_embedding.bias", dim)
    for name, width in (("text_embedding", config["text_dim"]), ("time_embedding", config["freq_dim"])):
        linear(f"{name}.0", width, dim)
        linear(f"{name}.2", dim, dim)
    linear("time_projection.1", dim, 6 * dim)
    linear("audio_embedding.proj_in", sum(audio["feature_channels"]), inner)
    for index in range(audio["num_layers"]):
        name = f"audio_embedding.layers.{index}"
        norm(f"{name}.norm1", inner)
        norm(f"{name}.norm2", inner)
        for part in "qkv":
            linear(f"{name}.attn.to_{part}", inner, inner, bias=False)
        linear(f"{name}.attn.to_out.0", inner, inner)
        linear(f"{name}.ff.net.0.proj", inner, 8 * inner)
        linear(f"{name}.ff.net.2", 4 * inner, inner)
        weights[f"{name}.pos_embed.pe"] = audio_positions(100, inner)[None]
    linear("audio_embedding.proj_out", inner, dim)
    for index in range(config["num_layers"]):
        for attention in ("self_attn", "cross_attn", "audio_attn"):
            for part in "qkvo":
                linear(f"blocks.{index}.{attention}.{part}", dim, dim)
            for part in "qk":
                draw(f"blocks.{index}.{attention}.norm_{part}.weight", dim, around=1.0)
        for part in ("norm3", "norm4"):
            norm(f"blocks.{index}.{part}", dim)
        linear(f"blocks.{index}.ffn.0", dim, config["ffn_dim"])
        linear(f"blocks.{index}.ffn.2", config["ffn_dim"], dim)
        draw(f"blocks.{index}.modulation", 1, 6, dim)
    linear("head.head", dim, config["out_channels"] * math.prod(patch))
    draw("head.modulation", 1, 2, dim)
    return weights


def write_golden(folder: Path, config: Mapping[str, Any] = TINY, seed: int = 0) -> None:
    """Writes a random model, inputs and results, in the form that ``tests/golden`` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    (folder / "config.json").write_text(json.dumps(dict(config)) + "\n", encoding="utf-8")
    save_file(random_weights(config, generator), folder / "tiny_model.safetensors")
    model = PlainXDub.load(folder)
    frames, rows, columns, features = 3, 4, 6, sum(config["audio"]["feature_channels"])
    shape = (config["in_channels"], frames, rows, columns)
    words = (12, config["text_dim"])

    io = {
        "latents": draw(2, *shape),
        "ref_latents": draw(2, *shape),
        "audio_feats": draw(2, frames, 8, features),
        "context": draw(2, *words),
        "timestep": torch.tensor([750.0, 312.5]),
    }
    given = (io["latents"], io["timestep"], io["ref_latents"], io["audio_feats"], io["context"])
    io["velocity"] = model.velocity(*given)
    x, t, reference, audio, text = given
    moving = model.velocity(x[:1], t[:1], reference[:1], audio[:1], text[:1], motion=1)
    io["velocity_motion"] = torch.cat([moving, io["velocity"][1:]])
    io["velocity_no_ref_no_audio"] = model.velocity(x, t, reference * 0, audio * 0, text)
    save_file(io, folder / "tiny_io.safetensors")

    run = {
        "noise": draw(1, *shape),
        "ref_latents": draw(1, *shape),
        "audio_feats": draw(1, frames, 8, features),
        "context": draw(1, *words),
        "motion_latents": draw(1, config["in_channels"], 1, rows, columns),
    }
    parts = (run["noise"], run["ref_latents"], run["audio_feats"], run["context"])
    run["denoised"] = denoise(model, *parts, steps=6)
    run["denoised_with_motion"] = denoise(model, *parts, steps=6, motion=run["motion_latents"])
    save_file(run, folder / "tiny_denoise.safetensors")

    grid = torch.linspace(0, 1, 101).tolist()
    schedules = {
        "t": grid,
        "ref_scale_init_2.5": [reference_scale(t, 2.5) for t in grid],
        "audio_scale_init_10": [audio_scale(t, 10.0) for t in grid],
        "sigmas_30_steps_shift_5": sigma_schedule(30, 5.0),
        "pingpong_n5_len13": back_and_forth(5, 13),
        "audio_window_indices_start0_13frames": audio_indices(4, 0),
        "audio_window_indices_start8_13frames": audio_indices(4, 8),
    }
    (folder / "schedules.json").write_text(json.dumps(schedules) + "\n", encoding="utf-8")

    random = np.random.default_rng(seed)
    source = random.integers(20, 230, (2, 12, 12, 3), dtype=np.uint8)
    generated = np.clip(source * 0.93 + 9 + random.normal(0, 3, source.shape), 0, 255).astype(np.uint8)
    generated[:, 7:10, 3:9] = random.integers(0, 255, (2, 3, 6, 3), dtype=np.uint8)
    corrected = correct_color(generated, source)
    np.savez_compressed(folder / "color_correction.npz", source=source, generated=generated, corrected=corrected)


if __name__ == "__main__":
    write_golden(Path(sys.argv[1]))
