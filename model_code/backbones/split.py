"""A sequence shared out among processes that sample together (DeepSpeed-Ulysses, arXiv 2309.14509).

Each process has a part of every latent frame's tokens, in all layers. What works token by token, frame by frame (their
modulation) or against something short that every process has (text, a frame's own sound, whose windows it also has)
then needs nobody. Only where tokens look at one another do processes exchange: before, each gives its tokens' queries,
keys and values away head by head and gets all tokens of some heads; afterwards the same back.

Not diffusers' context parallelism (0.42, `enable_parallelism`). Its hooks could cut our tokens, but the exchange lies
inside its attention dispatcher, which our attention does not call, and does not fit ours: it joins tokens process by
process, where a reference that looks at itself alone has to come first; it would exchange remembered keys at every
step, which here lie head by head from the first; and nothing makes processes agree on which steps reuse blocks. On a
machine without accelerators it fails altogether (it divides by their number), so that no test could run there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from model_code.errors import InputError
from model_code.team import Member


def check_heads(heads: int, own: Member) -> None:
    """Raises `InputError` unless every process gets as many heads as any other."""
    if heads % own.size:
        raise InputError(
            f"{heads} heads for {own.size} sampling processes", "make processes.sampling_processes a divisor of them"
        )


class Split:
    """How a frame's tokens lie among the processes: the first ones have one more where they do not come out even.

    Args:
        own: This process's place.
        tokens: Of a frame.

    Raises:
        InputError: There are fewer tokens than processes.
    """

    def __init__(self, own: Member, tokens: int) -> None:
        if tokens < own.size:
            raise InputError(
                f"{tokens} tokens a frame for {own.size} sampling processes", "lower processes.sampling_processes"
            )
        even, more = divmod(tokens, own.size)
        self.own, self.tokens = own, tokens
        self.counts = [even + (rank < more) for rank in range(own.size)]

    def part(self, x: Tensor, dim: int) -> Tensor:
        """This process's part of all tokens of a frame, which lie along `dim`."""
        return x.narrow(dim, sum(self.counts[: self.own.rank]), self.counts[self.own.rank])

    def table(self, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Rotary tables (frames*tokens,1,width) of this process's tokens."""
        cos, sin = (self.part(each.unflatten(0, (-1, self.tokens)), 1).flatten(0, 1) for each in rotary)
        return cos, sin

    def to_heads(self, values: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """(B,heads,frames*own tokens,width) each -> (B,own heads,frames*tokens,width) each, in one exchange."""
        x = torch.stack(list(values))
        frames = x.shape[-2] // self.counts[self.own.rank]
        parts = x.unflatten(2, (self.own.size, -1)).unbind(2)
        lead, width = parts[0].shape[:3], x.shape[-1]
        received = _exchange(parts, [(*lead, frames, count, width) for count in self.counts])
        return torch.cat(received, dim=4).flatten(3, 4).unbind()

    def to_tokens(self, x: Tensor) -> Tensor:
        """(B,frames*tokens,own heads,width) -> (B,frames*own tokens,heads,width)."""
        parts = x.unflatten(1, (-1, self.tokens)).split(self.counts, dim=2)
        received = _exchange(parts, [parts[self.own.rank].shape] * self.own.size)
        return torch.cat(received, dim=3).flatten(1, 2)

    def whole(self, x: Tensor) -> Tensor:
        """(B,frames,own tokens,width) -> (B,frames,tokens,width)."""
        shapes = [(*x.shape[:2], count, x.shape[3]) for count in self.counts]
        return torch.cat(_exchange([x] * self.own.size, shapes), dim=2)


def _exchange(parts: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    """Gives each process its part; what each of them gave, of these shapes."""
    sizes = [math.prod(shape) for shape in shapes]
    outgoing = parts[0].new_empty(sum(part.numel() for part in parts))
    incoming = parts[0].new_empty(sum(sizes))
    for part, place in zip(parts, outgoing.split([part.numel() for part in parts]), strict=True):
        place.view(part.shape).copy_(part)
    dist.all_to_all_single(incoming, outgoing, sizes, [part.numel() for part in parts])
    return [piece.view(*shape) for piece, shape in zip(incoming.split(sizes), shapes, strict=True)]
