"""Building blocks of the transformer: modulation, rotary positions, attention with width-wide q/k norms, sound."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import nullcontext
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_code.backbones.split import Split

EPS = 1e-6
KeysValues = tuple[Tensor, Tensor]
"""Keys, normed and rotated, and values of one attention: (B,heads,tokens,head_dim) each."""


def in_float32(layers: Iterable[nn.Module], x: Tensor) -> Tensor:
    """What linear layers and activations make of x in float32, whatever autocast and the weights' precision.

    So the times and what modulates by them keep their digits in bf16, as in diffusers' Wan.
    """
    kind = x.device.type
    with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
        x = x.float()
        for layer in layers:
            x = F.linear(x, layer.weight.float(), layer.bias.float()) if isinstance(layer, nn.Linear) else layer(x)
    return x


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Norm of the last dimension without weights, then x (1 + scale) + shift, which broadcast; like x.

    Like `add_gated` computed in the precision of what modulates.
    """
    return torch.addcmul(shift, F.layer_norm(x.float(), x.shape[-1:], eps=EPS), 1 + scale).type_as(x)


def add_gated(x: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
    """x + branch * gate, which broadcasts; like x."""
    return torch.addcmul(x, branch, gate).type_as(x)


def sinusoidal_embedding(position: Tensor, dim: int) -> Tensor:
    """(...,) positions -> (..., dim): cosines, then sines, of geometric frequencies; computed in double precision."""
    half = dim // 2
    frequency = torch.pow(10000.0, -torch.arange(half, dtype=torch.float64, device=position.device) / half)
    angle = (position.double()[..., None] * frequency).repeat(*[1] * position.ndim, 2)
    # Not concatenated: autocast knows no concatenation in double precision.
    return torch.where(torch.arange(dim, device=position.device) < half, angle.cos(), angle.sin())


@lru_cache(maxsize=32)
def rotary_table(
    head_dim: int, grid: tuple[int, int, int], shift: tuple[int, int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of 3D rotary positions.

    Args:
        head_dim: Width of a head, split into time, height and width parts (128 -> 44/42/42).
        grid: Tokens in time, height and width.
        shift: Added to the height and width positions: the reference stands in shifted space (paper, section 3).
        device: Where the tables live.

    Returns:
        Two (tokens,1,head_dim) float32 tables for `rotate`: every angle twice in a row, for interleaved pairs; the
        sines of even entries are negated.
    """
    spatial = 2 * (head_dim // 6)
    parts = []
    widths = (head_dim - 2 * spatial, spatial, spatial)
    for axis, (width, count, start) in enumerate(zip(widths, grid, (0, *shift), strict=True)):
        frequency = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
        angle = torch.outer(torch.arange(start, start + count, dtype=torch.float64), frequency)
        view = [1, 1, 1, width // 2]
        view[axis] = count
        parts.append(angle.reshape(view).expand(*grid, -1))
    angles = torch.cat(parts, dim=-1).reshape(-1, 1, head_dim // 2).repeat_interleave(2, dim=-1)
    sign = torch.tensor([-1.0, 1.0], dtype=torch.float64).repeat(head_dim // 2)
    return angles.cos().float().to(device), (angles.sin() * sign).float().to(device)


class _Rotate(torch.autograd.Function):
    """x * cos + swap(x) * sin over interleaved pairs; its transpose is the rotation by the opposite angle."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(cos, sin)
        return (x * cos + x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2) * sin).type_as(x)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        cos, sin = ctx.saved_tensors  # type: ignore[attr-defined]
        turned = grad * cos - grad.unflatten(-1, (-1, 2)).flip(-1).flatten(-2) * sin
        return turned.type_as(grad), None, None


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Applies rotary positions to (B,tokens,heads,head_dim), real-valued."""
    return _Rotate.apply(x, *table)  # type: ignore[no-any-return, no-untyped-call]


class RMSNorm(nn.Module):
    """Root-mean-square norm over the full width (all heads together)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).type_as(x)


class Attention(nn.Module):
    """Multi-head attention with RMS-normed queries and keys.

    Args:
        dim: Width.
        num_heads: Heads.
        eps: Epsilon of the norms.
    """

    def __init__(self, dim: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.o = nn.Linear(dim, dim)
        self.norm_q = RMSNorm(dim, eps)
        self.norm_k = RMSNorm(dim, eps)

    def keys_values(self, source: Tensor, rotary: tuple[Tensor, Tensor] | None = None) -> KeysValues:
        """What (B,M,dim) tokens are looked at by."""
        k = self.norm_k(self.k(source)).unflatten(-1, (self.num_heads, -1))
        v = self.v(source).unflatten(-1, (self.num_heads, -1))
        return (k if rotary is None else rotate(k, rotary)).transpose(1, 2), v.transpose(1, 2)

    def forward(
        self,
        x: Tensor,
        context: Tensor | KeysValues | None = None,
        rotary: tuple[Tensor, Tensor] | None = None,
        before: KeysValues | None = None,
        alone: int = 0,
        silent: int = 0,
        split: Split | None = None,
    ) -> Tensor:
        """Attention of x (B,N,dim); same shape back, without the `silent` tokens.

        Args:
            x: Tokens that look.
            context: (B,M,dim) tokens that they look at, or these tokens' keys and values; None: at themselves.
            rotary: Tables for N tokens.
            before: Keys and values of further tokens that are looked at, before x's own.
            alone: So many first tokens of x look at one another only; the rest look at all.
            silent: So many first tokens of x are looked at and do not look; then none is `alone`.
            split: x is this process's part of the sequence, of which `silent` counts; `alone` counts in the whole, and
                `before` holds all tokens of this process's heads.
        """
        looking = None if rotary is None else (rotary[0][silent:], rotary[1][silent:])
        q = self.norm_q(self.q(x[:, silent:])).unflatten(-1, (self.num_heads, -1))
        q = (q if looking is None else rotate(q, looking)).transpose(1, 2)
        k, v = context if isinstance(context, tuple) else self.keys_values(x if context is None else context, rotary)
        if split is not None and silent:
            (q,), (k, v) = split.to_heads((q,)), split.to_heads((k, v))
        elif split is not None:
            q, k, v = split.to_heads((q, k, v))
        if before is not None:
            k, v = (torch.cat([early, late], dim=2) for early, late in zip(before, (k, v), strict=True))
        parts = [F.scaled_dot_product_attention(q[:, :, alone:], k, v)]
        if alone:
            parts.insert(0, F.scaled_dot_product_attention(q[:, :, :alone], k[:, :, :alone], v[:, :, :alone]))
        mixed = [part.transpose(1, 2) for part in parts]
        joined = torch.cat(mixed, dim=1) if alone else mixed[0]
        return self.o((joined if split is None else split.to_tokens(joined)).flatten(2))


class _GEGLU(nn.Module):
    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class _FeedForward(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.Sequential(_GEGLU(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class _AudioAttention(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(dim, dim, bias=False)
        self.to_v = nn.Linear(dim, dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for layer in (self.to_q, self.to_k, self.to_v)
        )
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _Positions(nn.Module):
    pe: Tensor

    def __init__(self, dim: int, length: int = 100) -> None:
        super().__init__()
        table = torch.zeros(1, length, dim)
        angle = torch.arange(length)[:, None] * torch.exp(torch.arange(0, dim, 2) * (-math.log(10000.0) / dim))
        table[0, :, 0::2], table[0, :, 1::2] = angle.sin(), angle.cos()
        self.register_buffer("pe", table)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pe[:, : x.shape[1]].to(x.dtype)


class _AudioLayer(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.pos_embed = _Positions(dim)
        self.attn = _AudioAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.ff = _FeedForward(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.pos_embed(self.norm1(x)))
        return x + self.ff(self.norm2(x))


class AudioProjection(nn.Module):
    """Projects each latent frame's window of audio features to the transformer's width (as in the release).

    Args:
        audio_dim: Width of the features.
        inner_dim: Width of the projection's layers.
        num_heads: Their heads.
        num_layers: Their number.
        dim: Width of the transformer.
    """

    def __init__(self, audio_dim: int, inner_dim: int, num_heads: int, num_layers: int, dim: int) -> None:
        super().__init__()
        self.proj_in = nn.Linear(audio_dim, inner_dim)
        self.layers = nn.ModuleList(_AudioLayer(inner_dim, num_heads) for _ in range(num_layers))
        self.proj_out = nn.Linear(inner_dim, dim)

    def forward(self, audio: Tensor) -> Tensor:
        """(N,window,audio_dim) -> (N,window,dim)."""
        hidden = self.proj_in(audio)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.proj_out(hidden)
