"""A block of the dubbing transformer, and its head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model_code.backbones.attention import EPS, Attention, KeysValues, add_gated, modulate
from model_code.backbones.split import Split


class DubbingBlock(nn.Module):
    """Self-attention over all tokens; text and audio cross-attention on the target's; FFN over all.

    Modulation is computed per latent frame, not per token: tokens of a frame share their timestep.

    Args:
        dim: Width.
        num_heads: Heads of every attention.
        ffn_dim: Inner width of the feed-forward layer.
        has_text: Whether there is text attention.
        spatial: Whether each frame's tokens first look at one another.
        reference_alone: Whether reference tokens look at reference tokens only.
    """

    def __init__(
        self, dim: int, num_heads: int, ffn_dim: int, has_text: bool, spatial: bool, reference_alone: bool
    ) -> None:
        super().__init__()
        self.reference_alone = reference_alone
        self.spatial_attn = Attention(dim, num_heads, EPS) if spatial else None
        self.self_attn = Attention(dim, num_heads, EPS)
        self.cross_attn = Attention(dim, num_heads, EPS) if has_text else None
        self.norm3 = nn.LayerNorm(dim, eps=EPS) if has_text else None
        self.audio_attn = Attention(dim, num_heads, EPS)
        self.norm4 = nn.LayerNorm(dim, eps=EPS)
        self.ffn = nn.Sequential(nn.Linear(dim, ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(ffn_dim, dim))
        self.modulation = nn.Parameter(torch.randn(1, 9 if spatial else 6, dim) / dim**0.5)

    def modulations(self, time: Tensor) -> tuple[Tensor, ...]:
        """(B,frames,6 or 9,dim) projected time -> shift, scale, gate of self-attention, FFN, spatial attention."""
        return (self.modulation[:, None] + time)[..., None, :].unbind(2)

    def _within_frames(
        self, x: Tensor, modulation: tuple[Tensor, ...], rotary: tuple[Tensor, Tensor], split: Split | None
    ) -> Tensor:
        """Spatial attention. Any frame's rotary table will do: what its tokens share cancels between them."""
        if self.spatial_attn is None:
            return x
        shift, scale, gate = modulation[6:]
        tokens = x.shape[2]
        hidden = modulate(x, shift, scale).flatten(0, 1)
        hidden = self.spatial_attn(hidden, rotary=(rotary[0][:tokens], rotary[1][:tokens]), split=split)
        return add_gated(x, hidden.unflatten(0, x.shape[:2]), gate)

    def reference_keys(
        self, x: Tensor, time: Tensor, rotary: tuple[Tensor, Tensor], split: Split | None = None
    ) -> KeysValues:
        """What target tokens see of reference tokens x (B,frames,tokens,dim) that look at one another only.

        With `split`, of all tokens in this process's heads.
        """
        modulation = self.modulations(time)
        x = self._within_frames(x, modulation, rotary, split)
        k, v = self.self_attn.keys_values(modulate(x, *modulation[:2]).flatten(1, 2), rotary)
        if split is not None:
            k, v = split.to_heads((k, v))
        return k, v

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        rotary: tuple[Tensor, Tensor],
        audio: Tensor | KeysValues | None,
        text: Tensor | KeysValues | None,
        reference_frames: int,
        reference: KeysValues | None = None,
        split: Split | None = None,
        last: bool = False,
    ) -> Tensor:
        """One block; same shape back, of the `last` one without the reference.

        Args:
            x: (B,frames,tokens per frame,dim), reference frames first.
            time: (B,frames,6,dim) projected time embedding; 9 with spatial attention.
            rotary: Tables for all tokens.
            audio: (B*target frames,window,dim), its keys and values, or None for no audio attention.
            text: (B,words,dim), its keys and values, or None.
            reference_frames: How many of x's frames are the reference's.
            reference: From `reference_keys`, where x is the target alone.
            split: x and the tables are this process's part of every frame's tokens.
            last: No block follows, so that only the target's tokens go on once they have seen the reference's.
        """
        batch, _, tokens, _ = x.shape
        modulation = self.modulations(time)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation[:6]
        x = self._within_frames(x, modulation, rotary, split)
        leaving = reference_frames if last else 0
        staying = reference_frames - leaving
        alone = staying * (tokens if split is None else split.tokens) if self.reference_alone else 0
        hidden = modulate(x, shift1, scale1).flatten(1, 2)
        hidden = self.self_attn(
            hidden, rotary=rotary, before=reference, alone=alone, silent=leaving * tokens, split=split
        )
        x, gate1, shift2, scale2, gate2 = (each[:, leaving:] for each in (x, gate1, shift2, scale2, gate2))
        x = add_gated(x, hidden.unflatten(1, (-1, tokens)), gate1)
        beside, target = x[:, :staying], x[:, staying:]
        if self.cross_attn is not None and self.norm3 is not None and text is not None:
            hidden = self.cross_attn(self.norm3(target).flatten(1, 2), text)
            target = target + hidden.unflatten(1, (-1, tokens))
        if audio is not None:
            hidden = self.audio_attn(self.norm4(target).flatten(0, 1), audio)
            target = target + hidden.unflatten(0, (batch, -1))
        x = torch.cat([beside, target], dim=1) if staying else target
        return add_gated(x, self.ffn(modulate(x, shift2, scale2)), gate2)


class Head(nn.Module):
    """Modulated output layer."""

    def __init__(self, dim: int, out_features: int) -> None:
        super().__init__()
        self.head = nn.Linear(dim, out_features)
        self.modulation = nn.Parameter(torch.randn(1, 2, dim) / dim**0.5)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x (B,frames,tokens,dim), time (B,frames,dim) embedding -> (B,frames,tokens,features)."""
        shift, scale = (self.modulation[:, None] + time[:, :, None])[..., None, :].unbind(2)
        return self.head(modulate(x, shift, scale))
